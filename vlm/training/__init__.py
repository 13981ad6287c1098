"""A corpus and a recipe → the weights of a CLIP."""
