"""From captures or published rows to a trained run folder: autoencoder, classifier, scaler, τ, metrics, provenance."""
