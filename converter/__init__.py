"""From a run folder to a bundle: quantised TFLite models, τ again on their own scores, parity report."""
