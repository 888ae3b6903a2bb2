"""From detections to the broker: alerts and their suppression, evidence, the outbox, the link."""
