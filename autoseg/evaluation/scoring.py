"""Scores of predicted label files against reference label files: per case and label, and their means."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer
from scipy.ndimage import find_objects

from autoseg.data.labels import to_internal
from autoseg.data.parallel import map_cases
from autoseg.data.volume import Volume, read_labels, volume_differences
from autoseg.errors import UserError, all_of
from autoseg.evaluation.metrics import dice, hd95, nsd, surface_distances, volume_ml
from autoseg.evaluation.pairing import FilePair, pair_files
from autoseg.schema import CaseScores, LabelScores, MeanScores, ScorePolicy, Scores

Labels = Integer[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Box = tuple[slice, slice, slice]

BOTH_EMPTY = "dice, nsd and hd95 are null, and the case is left out of the label's means"
ONE_EMPTY = "dice and nsd are 0; hd95 is undefined: null, and left out of the label's mean"


@dataclass(frozen=True)
class Tolerance:
    """How far in mm a boundary may lie off for NSD: a label's own in `by_label`, else `default_mm`."""

    default_mm: float = 2.0
    by_label: Mapping[str, float] = field(default_factory=dict)

    def of(self, label: str) -> float:
        """The tolerance of one label in mm."""
        return self.by_label.get(label, self.default_mm)


TWO_MM = Tolerance()


def score_folders(
    predictions: Path,
    references: Path | Mapping[str, Path],
    labels: Mapping[str, int] | None = None,
    *,
    tolerance: Tolerance = TWO_MM,
    workers: int = 1,
) -> Scores:
    """`score_files` for the partners that `pair_files` finds."""
    return score_files(pair_files(predictions, references), labels, tolerance=tolerance, workers=workers)


def score_files(
    pairs: Sequence[FilePair],
    labels: Mapping[str, int] | None = None,
    *,
    tolerance: Tolerance = TWO_MM,
    workers: int = 1,
) -> Scores:
    """Scores of every pair, cases in parallel, and their means.

    `labels`: name → value in the files (0 is background and not scored); None: every value that occurs,
    called `label_<value>`. Raises one UserError for all cases whose files cannot be read, lie on different
    grids or hold values that `labels` does not name.
    """
    score = partial(score_pair, labels=None if labels is None else dict(labels), tolerance=tolerance)
    outcomes = map_cases(score, list(pairs), workers, "evaluate")
    problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if problems:
        raise all_of(
            problems,
            f"{len(problems)} of {len(pairs)} cases cannot be scored:",
            "Prediction and reference must be label files on one grid, with declared values.",
        )
    cases = [outcome for outcome in outcomes if isinstance(outcome, CaseScores)]
    names = _names_found(cases) if labels is None else tuple(_foreground(labels))
    return summarize(cases, names, tolerance)


def score_pair(pair: FilePair, labels: Mapping[str, int] | None, tolerance: Tolerance) -> CaseScores | str:
    """Read and score one case; what is wrong with it, as a line, when it cannot be scored."""
    try:
        prediction, reference = read_labels(pair.prediction), read_labels(pair.reference)
    except UserError as error:
        return f"{pair.id}: {error}"
    if differences := volume_differences(prediction, reference):
        return f"{pair.prediction} against {pair.reference}: {'; '.join(differences)}"
    if labels is None:
        labels = {f"label_{value}": value for value in _values(prediction, reference)}
    elif problems := _unnamed_values(pair, prediction, reference, labels):
        return problems
    return score_case(
        pair.id,
        prediction.voxels[0],
        reference.voxels[0],
        reference.grid.spacing,
        labels=labels,
        tolerance=tolerance,
    )


def score_case(
    case_id: str,
    prediction: Labels,
    reference: Labels,
    spacing: Sequence[float],
    *,
    labels: Mapping[str, int],
    tolerance: Tolerance,
) -> CaseScores:
    """Scores of every foreground label in one case.

    Parameters
    ----------
    prediction, reference : labels as they stand in files, (z, y, x), on one grid; no values but those named.
    spacing : mm along (z, y, x).
    labels : name → value in the files; the value 0 is background and not scored.
    """
    foreground = _foreground(labels)
    values = (0, *foreground.values())
    ours, theirs = to_internal(prediction, values), to_internal(reference, values)
    # One pass over each volume finds where every label lies; the rest happens inside those boxes.
    boxes = zip(find_objects(ours, len(foreground)), find_objects(theirs, len(foreground)), strict=True)
    scores = {}
    for internal, (name, found) in enumerate(zip(foreground, boxes, strict=True), start=1):
        box = _united([one for one in found if one is not None], ours.shape)
        scores[name] = _score_label(
            ours[box] == internal, theirs[box] == internal, spacing, tolerance.of(name)
        )
    return CaseScores(id=case_id, labels=scores)


def summarize(cases: Sequence[CaseScores], names: Sequence[str], tolerance: Tolerance) -> Scores:
    """Means over cases per label, and their mean over labels; None is skipped, and remains where all is None.

    A label that a case does not list is in neither of its masks. UserError when `tolerance` names a label
    that is not among `names`.
    """
    if unknown := [name for name in tolerance.by_label if name not in names]:
        raise UserError(
            f"A tolerance is given for {', '.join(map(repr, unknown))}, but the labels are "
            f"{', '.join(map(repr, names))}. Name one of these."
        )
    neither = LabelScores(dice=None, nsd=None, hd95=None, volume_ml=0.0, reference_volume_ml=0.0)
    complete = tuple(
        CaseScores(id=case.id, labels={name: case.labels.get(name, neither) for name in names})
        for case in cases
    )
    means = {name: _mean_scores(case.labels[name] for case in complete) for name in names}
    policy = ScorePolicy(
        both_empty=BOTH_EMPTY,
        one_empty=ONE_EMPTY,
        nsd_tolerance_mm={name: tolerance.of(name) for name in names},
    )
    return Scores(mean=_mean_scores(means.values()), labels=means, cases=complete, policy=policy)


def _score_label(
    prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance_mm: float
) -> LabelScores:
    distances = surface_distances(prediction, reference, spacing)
    return LabelScores(
        dice=dice(prediction, reference),
        nsd=nsd(distances, tolerance_mm),
        hd95=hd95(distances),
        volume_ml=volume_ml(prediction, spacing),
        reference_volume_ml=volume_ml(reference, spacing),
    )


def _mean_scores(scores: Iterable[MeanScores]) -> MeanScores:
    scores = list(scores)
    return MeanScores(
        dice=_mean(one.dice for one in scores),
        nsd=_mean(one.nsd for one in scores),
        hd95=_mean(one.hd95 for one in scores),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _foreground(labels: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in labels.items() if value != 0}


def _names_found(cases: Sequence[CaseScores]) -> tuple[str, ...]:
    names = {name for case in cases for name in case.labels}
    return tuple(sorted(names, key=lambda name: int(name.removeprefix("label_"))))


def _united(boxes: Sequence[Box], shape: Sequence[int]) -> Box:
    """The box around all, one voxel wider inside the image: an axis has one voxel only if the image has."""
    if not boxes:
        return (slice(0, 0), slice(0, 0), slice(0, 0))
    low = [max(0, min(box[axis].start for box in boxes) - 1) for axis in range(3)]
    high = [min(shape[axis], max(box[axis].stop for box in boxes) + 1) for axis in range(3)]
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))


def _values(*volumes: Volume) -> list[int]:
    return sorted({int(value) for volume in volumes for value in np.unique(volume.voxels)} - {0})


def _unnamed_values(pair: FilePair, prediction: Volume, reference: Volume, labels: Mapping[str, int]) -> str:
    problems = []
    for path, volume in ((pair.prediction, prediction), (pair.reference, reference)):
        if unnamed := [value for value in _values(volume) if value not in labels.values()]:
            problems.append(f"{path} holds {', '.join(map(str, unnamed))}; the labels are {dict(labels)}")
    return "; ".join(problems)
