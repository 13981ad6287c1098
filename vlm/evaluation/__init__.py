"""Measuring a model on images that it was not trained on: zero-shot, linear probes, retrieval, and a report of it."""
