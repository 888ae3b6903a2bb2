"""The judgement of fitted models and bundles: evaluation, comparisons, baselines, audits."""
