"""A model's text tower as a folder of its own, and text banks: what the segmenter reads."""
