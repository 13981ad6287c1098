"""From a plan and a store to trained weights."""
