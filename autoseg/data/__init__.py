"""Datasets: files, volumes, checks, splits, preprocessing and the store. Nothing here imports torch."""
