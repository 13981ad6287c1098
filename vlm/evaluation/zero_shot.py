"""Zero-shot classification: a class is the mean of its sentences' vectors; an image's score is a cosine."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def unit(vectors: Float[np.ndarray, "*rows dimension"]) -> Float[np.ndarray, "*rows dimension"]:
    """Vectors of length 1; a vector of zeros has no direction and stays one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def class_vectors(sentences: Sequence[Float[np.ndarray, "sentence dimension"]]) -> Float[np.ndarray, "class dimension"]:
    """Unit vectors of classes from the vectors of each class's sentences, of which every one counts the same."""
    return unit(np.stack([unit(vectors).mean(0) for vectors in sentences]))


def class_scores(
    images: Float[np.ndarray, "image dimension"], classes: Float[np.ndarray, "class dimension"]
) -> Float[np.ndarray, "image class"]:
    """Cosines of images and classes, both of unit length. The class with the highest is the prediction."""
    scores: Float[np.ndarray, "image class"] = images @ classes.T
    return scores
