"""Data only: named sets of settings, read through importlib.resources."""
