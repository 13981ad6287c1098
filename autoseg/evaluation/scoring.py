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
from autoseg.labelling import Labelled
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
    labels: Labelled | None = None,
    *,
    tolerance: Tolerance = TWO_MM,
    workers: int = 1,
    annotated: Mapping[str, tuple[str, ...]] | None = None,
) -> Scores:
    """`score_files` for the partners that `pair_files` finds."""
    pairs = pair_files(predictions, references)
    return score_files(pairs, labels, tolerance=tolerance, workers=workers, annotated=annotated)


def score_files(
    pairs: Sequence[FilePair],
    labels: Labelled | None = None,
    *,
    tolerance: Tolerance = TWO_MM,
    workers: int = 1,
    annotated: Mapping[str, tuple[str, ...]] | None = None,
) -> Scores:
    """Scores of every pair, cases in parallel, and their means.

    `labels`: what the values mean; None: every value that occurs is a label, called `label_<value>`. `annotated`: of
    the cases in which not everything is annotated, the names that are; only these are scored there. Raises one
    UserError for all cases whose files cannot be read, lie on different grids or hold values that `labels` does not
    name.
    """
    score = partial(score_pair, labels=labels, tolerance=tolerance, annotated=annotated or {})
    outcomes = map_cases(score, list(pairs), workers, "evaluate")
    problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if problems:
        raise all_of(
            problems,
            f"{len(problems)} of {len(pairs)} cases cannot be scored:",
            "Prediction and reference must be label files on one grid, with declared values.",
        )
    cases = [outcome for outcome in outcomes if isinstance(outcome, CaseScores)]
    names = _names_found(cases) if labels is None else tuple(labels.foreground)
    return summarize(cases, names, tolerance)


def score_pair(
    pair: FilePair, labels: Labelled | None, tolerance: Tolerance, annotated: Mapping[str, tuple[str, ...]]
) -> CaseScores | str:
    """Read and score one case; what is wrong with it, as a line, when it cannot be scored."""
    try:
        prediction, reference = read_labels(pair.prediction), read_labels(pair.reference)
    except UserError as error:
        return f"{pair.id}: {error}"
    if differences := volume_differences(prediction, reference):
        return f"{pair.prediction} against {pair.reference}: {'; '.join(differences)}"
    if labels is None:
        labels = Labelled(labels={"background": 0} | {f"label_{value}": value
                                                      for value in _values(prediction, reference)})
    elif problems := _unnamed_values(pair, prediction, reference, labels):
        return problems
    return score_case(
        pair.id,
        prediction.voxels[0],
        reference.voxels[0],
        reference.grid.spacing,
        labels=labels,
        tolerance=tolerance,
        names=annotated.get(pair.id),
    )


def score_case(
    case_id: str,
    prediction: Labels,
    reference: Labels,
    spacing: Sequence[float],
    *,
    labels: Labelled,
    tolerance: Tolerance,
    names: Sequence[str] | None = None,
) -> CaseScores:
    """Scores of every label, or region, in one case.

    Parameters
    ----------
    prediction, reference : labels as they stand in files, (z, y, x), on one grid; no values but those declared.
    spacing : mm along (z, y, x).
    labels : what the values mean. A voxel that the reference ignores is in no mask, neither predicted nor referred to.
    names : those to score; None: all.
    """
    if labels.ignore is not None:
        ignored = reference == labels.ignore
        prediction, reference = np.where(ignored, 0, prediction), np.where(ignored, 0, reference)
    values = tuple(labels.labels.values())
    ours, theirs = to_internal(prediction, values), to_internal(reference, values)
    # One pass over each volume finds where every label lies; the rest happens inside those boxes.
    found = (find_objects(ours, len(values) - 1), find_objects(theirs, len(values) - 1))
    scores = {}
    for (name, _), members in zip(labels.foreground.items(), labels.members, strict=True):
        if names is not None and name not in names:
            continue
        boxes = [one for side in found for member in members if member > 0 and (one := side[member - 1]) is not None]
        box = _united(boxes, ours.shape)
        scores[name] = _score_label(
            _mask(ours[box], members), _mask(theirs[box], members), spacing, tolerance.of(name)
        )
    return CaseScores(id=case_id, labels=scores)


def _mask(internal: Labels, members: Sequence[int]) -> Mask:
    """Where one of the members is."""
    mask = internal == members[0]
    for member in members[1:]:
        mask |= internal == member
    return np.asarray(mask)


def summarize(cases: Sequence[CaseScores], names: Sequence[str], tolerance: Tolerance) -> Scores:
    """Means over cases per label, and their mean over labels; None is skipped, and remains where all is None.

    A label that a case does not list is in neither of its masks, or is not annotated there. UserError when
    `tolerance` names a label that is not among `names`.
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


def _unnamed_values(pair: FilePair, prediction: Volume, reference: Volume, labels: Labelled) -> str:
    problems = []
    known = tuple(labels.labels.values())
    # Only a reference may leave voxels out.
    for path, volume, values in ((pair.prediction, prediction, known), (pair.reference, reference, labels.values)):
        if unnamed := [value for value in _values(volume) if value not in values]:
            problems.append(f"{path} holds {', '.join(map(str, unnamed))}; the labels are {labels.labels}")
    return "; ".join(problems)
