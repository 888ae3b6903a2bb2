"""What a fitted model or a bundle is worth: evaluation, comparisons, baselines, audits."""
