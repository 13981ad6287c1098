"""How much a zero-shot result depends on the sentences: with one per class, with some, with one left out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vlm.evaluation.metrics import measure
from vlm.evaluation.records import PromptSensitivity
from vlm.evaluation.suite_records import Metric
from vlm.evaluation.zero_shot import class_scores, class_vectors
from vlm.model.records import Score

DRAWS = 20
"""Of subsets of the sentences."""

FEWEST_FOR_SOME = 4
"""Sentences of a class below which half of them is nearly one."""

Sentences = Sequence[Float[np.ndarray, "sentence dimension"]]
"""Vectors of each class's sentences."""


def prompt_sensitivity(
    metric: Metric, images: Float[np.ndarray, "image dimension"], targets: Int[np.ndarray, " image"],
    sentences: Sentences, rng: np.random.Generator,
) -> PromptSensitivity:
    """The metric with one sentence per class, with half of them, with all, and with each left out in turn."""
    def value(chosen: Sentences) -> float:
        return measure(metric, class_scores(images, class_vectors(chosen)), targets)

    fewest = min(len(vectors) for vectors in sentences)
    single = [value([vectors[index : index + 1] for vectors in sentences]) for index in range(fewest)]
    size, some = (fewest // 2, []) if fewest >= FEWEST_FOR_SOME else (None, [])
    if size is not None:
        some = [value([vectors[rng.choice(len(vectors), size, replace=False)] for vectors in sentences])
                for _ in range(DRAWS)]
    return PromptSensitivity(
        metric=metric, sentences=fewest, one=_spread(single), some_size=size, some=_spread(some) if some else None,
        all=value(sentences), leave_one_out_std=_leave_one_out(metric, images, targets, sentences),
    )


def _leave_one_out(
    metric: Metric, images: Float[np.ndarray, "image dimension"], targets: Int[np.ndarray, " image"],
    sentences: Sentences,
) -> float | None:
    """Standard deviation of the metric over leaving out each sentence; only its own class's scores change."""
    if min(len(vectors) for vectors in sentences) < 2:
        return None
    whole = class_scores(images, class_vectors(sentences))
    values = []
    for place, vectors in enumerate(sentences):
        for index in range(len(vectors)):
            changed = whole.copy()
            without = class_vectors([np.delete(vectors, index, axis=0)])
            changed[:, place] = class_scores(images, without)[:, 0]
            values.append(measure(metric, changed, targets))
    return float(np.std(values))


def _spread(values: list[float]) -> Score:
    return Score(value=float(np.mean(values)), low=min(values), high=max(values), measure="mean, lowest, highest")
