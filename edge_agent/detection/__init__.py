"""From rows to detections: scores, votes, limits learnt per device, classes and explanations."""
