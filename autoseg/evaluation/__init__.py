"""Scores of predictions against references; numpy and scipy only."""
