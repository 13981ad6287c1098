"""Networks built from the plan alone, and their weights on disk."""
