"""Accuracy, balanced accuracy and AUC of class scores, with bootstrap intervals over images or patients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from autoseg.errors import UserError
from vlm.evaluation.suite_records import METRICS, Metric
from vlm.model.records import Score

RESAMPLES_AT_ONCE = 50
INTERVAL = (2.5, 97.5)

Weights = Float[np.ndarray, "resample image"]
"""How often each image was drawn; a row of ones is the set as it is."""


@dataclass(frozen=True)
class Estimate:
    """A metric of a set. draws : of resampled sets; empty where none were drawn."""

    value: float
    draws: Float[np.ndarray, " resample"]


def score_of(estimate: Estimate, chance: float | None = None) -> Score:
    """The value with the ends of its 95 % interval (percentiles of the draws)."""
    low, high = interval(estimate.draws)
    return Score(value=estimate.value, low=low, high=high, chance=chance)


def interval(draws: Float[np.ndarray, " resample"]) -> tuple[float | None, float | None]:
    """The ends of the 95 % interval; draws in which the metric is not defined are left out. (None, None): no draws."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)


def mean_estimate(estimates: list[Estimate]) -> Estimate:
    """The mean over sets that were resampled independently of each other, equally often; no draws if one has none."""
    draws = [one.draws for one in estimates]
    return Estimate(float(np.mean([one.value for one in estimates])),
                    np.mean(draws, axis=0) if all(len(part) for part in draws) else np.empty(0))


def require_two_classes(targets: Int[np.ndarray, " image"], classes: tuple[str, ...], name: str) -> None:
    """UserError where all images of a set are of one class, or it has none: nothing can be told apart there."""
    present = [classes[index] for index in np.unique(targets)]
    if len(present) < 2:
        found = (f"all of its {len(targets)} images are of the class {present[0]}" if present
                 else "it has no image with a class")
        raise UserError(f"{name}: {found}; images of at least two of {', '.join(classes)} are needed.\n"
                        "Complete the set, or leave it out of --sets.")


def estimate_metrics(
    scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"], groups: Int[np.ndarray, " image"],
    rng: np.random.Generator, resamples: int,
) -> dict[Metric, Estimate]:
    """All metrics of a set, and of sets drawn from it with replacement.

    Balanced accuracy is the mean over classes of the share that is right; AUC the mean over classes of one class
    against the rest. A class without images, in the set or in a draw, does not count in either.

    Parameters
    ----------
    groups : number of each image's patient; whole patients are drawn.
    """
    ones = np.ones((1, len(targets)))
    values = {metric: float(found[0]) for metric, found in _metrics(scores, targets, ones).items()}
    draws: dict[Metric, list[Float[np.ndarray, " part"]]] = {metric: [] for metric in METRICS}
    for weights in resampled_weights(groups, rng, resamples):
        for metric, found in _metrics(scores, targets, weights).items():
            draws[metric].append(found)
    return {metric: Estimate(value, np.concatenate(draws[metric]) if draws[metric] else np.empty(0))
            for metric, value in values.items()}


def estimate_predictions(
    predictions: Int[np.ndarray, "draw image"], targets: Int[np.ndarray, " image"], groups: Int[np.ndarray, " image"],
    rng: np.random.Generator, resamples: int,
) -> tuple[Float[np.ndarray, " draw"], Estimate]:
    """Balanced accuracy of each of several classifiers, and of their mean on sets drawn with replacement."""
    ones = np.ones((1, len(targets)))
    values = np.array([_mean_recall(predicted, targets, ones)[0] for predicted in predictions])
    draws = [np.mean([_mean_recall(predicted, targets, weights) for predicted in predictions], axis=0)
             for weights in resampled_weights(groups, rng, resamples)]
    return values, Estimate(float(values.mean()), np.concatenate(draws) if draws else np.empty(0))


def estimate_mean(
    values: Float[np.ndarray, " item"], groups: Int[np.ndarray, " item"], rng: np.random.Generator, resamples: int
) -> Estimate:
    """The mean of values, and of values drawn with replacement, whole groups at a time."""
    draws = [weights @ values / weights.sum(1) for weights in resampled_weights(groups, rng, resamples)]
    return Estimate(float(values.mean()), np.concatenate(draws) if draws else np.empty(0))


def measure(
    metric: Metric, scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"]
) -> float:
    """One metric of a set."""
    return float(_FUNCTIONS[metric](scores, targets, np.ones((1, len(targets))))[0])


def resampled_weights(
    groups: Int[np.ndarray, " image"], rng: np.random.Generator, resamples: int
) -> Iterator[Weights]:
    """As many groups as there are, drawn with replacement; in parts, so that memory does not grow with `resamples`.

    None of a single group: the only one there is tells nothing about how groups differ.
    """
    _, members = np.unique(groups, return_inverse=True)
    if (count := int(members.max()) + 1) < 2:
        return
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.integers(count, size=(size, count))
        times = np.stack([np.bincount(row, minlength=count) for row in drawn])
        yield times[:, members].astype(np.float64)


def class_margins(scores: Float[np.ndarray, "image class"]) -> Float[np.ndarray, "image class"]:
    """Each class's score less the mean of the other classes' scores: for two classes their difference.

    An image whose cosines are all high is not more of every class than another, so that raw cosines cannot be ranked.
    """
    others = (scores.sum(1, keepdims=True) - scores) / (scores.shape[1] - 1)
    margins: Float[np.ndarray, "image class"] = scores - others
    return margins


def confusion_matrix(
    scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"]
) -> Int[np.ndarray, "true predicted"]:
    """Images of each true and predicted class."""
    count = scores.shape[1]
    counts: Int[np.ndarray, "true predicted"] = np.bincount(
        targets * count + scores.argmax(1), minlength=count * count).reshape(count, count)
    return counts


def _metrics(
    scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"], weights: Weights
) -> Mapping[Metric, Float[np.ndarray, " resample"]]:
    return {metric: function(scores, targets, weights) for metric, function in _FUNCTIONS.items()}


def _accuracy(
    scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"], weights: Weights
) -> Float[np.ndarray, " resample"]:
    right = (scores.argmax(1) == targets).astype(np.float64)
    shares: Float[np.ndarray, " resample"] = weights @ right / weights.sum(1)
    return shares


def _balanced_accuracy(
    scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"], weights: Weights
) -> Float[np.ndarray, " resample"]:
    return _mean_recall(scores.argmax(1), targets, weights)


def _mean_recall(
    predicted: Int[np.ndarray, " image"], targets: Int[np.ndarray, " image"], weights: Weights
) -> Float[np.ndarray, " resample"]:
    right = (predicted == targets).astype(np.float64)
    of_class = (targets[:, None] == np.unique(targets)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        recalls = (weights * right) @ of_class / (weights @ of_class)
    return _mean_of_defined(recalls)


def _auc(
    scores: Float[np.ndarray, "image class"], targets: Int[np.ndarray, " image"], weights: Weights
) -> Float[np.ndarray, " resample"]:
    margins = class_margins(scores)
    areas = [_binary_auc(margins[:, index], targets == index, weights) for index in range(scores.shape[1])]
    return _mean_of_defined(np.stack(areas, 1))


def _binary_auc(
    score: Float[np.ndarray, " image"], positive: np.ndarray, weights: Weights
) -> Float[np.ndarray, " resample"]:
    """Probability that a drawn positive has a higher score than a drawn negative, ties counting half; else NaN."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of runs of equal scores
    positives = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    negatives = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    with np.errstate(invalid="ignore"):
        areas: Float[np.ndarray, " resample"] = (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))
    return areas


def _mean_of_defined(values: Float[np.ndarray, "resample class"]) -> Float[np.ndarray, " resample"]:
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Float[np.ndarray, " resample"] = np.where(defined, values, 0).sum(1) / defined.sum(1)
    return means


_FUNCTIONS: dict[Metric, Callable[..., Float[np.ndarray, " resample"]]] = {
    "accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "auc": _auc}
