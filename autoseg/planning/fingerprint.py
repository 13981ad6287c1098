"""The fingerprint of a dataset: every file is read once, checked and measured; no decisions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Integer
from scipy import ndimage

from autoseg.data.case_memory import reading_bytes
from autoseg.data.dataset import Case, Dataset
from autoseg.data.integrity import CaseProblems, LoadedCase, load_case, raise_problems
from autoseg.data.parallel import map_cases
from autoseg.data.preprocessing import nonzero_box
from autoseg.errors import UserError, all_of
from autoseg.geometry import left_right_axis
from autoseg.planning.intensities import Sketch, merge_sketches, sketch_channels
from autoseg.schema import CaseFingerprint, Fingerprint


@dataclass(frozen=True)
class CaseFacts:
    """What one case adds to the fingerprint; small, because it travels from a worker process.

    `sketches`: one per channel, none where the case has no foreground.
    """

    case: CaseFingerprint
    is_2d: bool
    sketches: tuple[Sketch, ...]


def measure(dataset: Dataset, workers: int) -> Fingerprint:
    """Read, check and measure every case, in `workers` processes.

    Shapes after cropping are those of the box of voxels that are nonzero in any channel (nnU-Net fills the
    holes of that mask first; holes lie inside the box, so it is the same). Foreground intensities are those
    of voxels with a label inside the box (see `intensities`).

    Raises
    ------
    UserError : listing all problems of all cases together; or a declared label that no case has; or 2-D
        images among 3-D ones.
    """
    # Workers need the dataset's facts but not the list of all its cases.
    function = partial(measure_case, dataset=replace(dataset, cases=()))
    results = map_cases(function, dataset.cases, workers, "fingerprint", needed_bytes=reading_bytes)
    problems = [result for result in results if isinstance(result, CaseProblems)]
    if problems:
        raise_problems(problems, dataset)
    facts = [result for result in results if isinstance(result, CaseFacts)]
    _check_together(facts, dataset)
    kept = [math.prod(one.case.cropped_shape) / math.prod(one.case.shape) for one in facts]
    with_foreground = [one.sketches for one in facts if one.sketches]
    return Fingerprint(
        dataset=str(dataset.root.resolve()),
        name=dataset.name,
        is_2d=facts[0].is_2d,
        file_ending=dataset.file_ending,
        channel_names=dataset.channel_names,
        labels=dataset.labels,
        regions=dataset.regions,
        ignore=dataset.ignore,
        cases=tuple(one.case for one in facts),
        intensities=tuple(merge_sketches(channel) for channel in zip(*with_foreground, strict=True)),
        median_relative_size_after_cropping=float(np.median(kept)),
    )


def measure_case(case: Case, dataset: Dataset) -> CaseFacts | CaseProblems:
    """Read and check one case, and measure it if it is sound."""
    loaded = load_case(case, dataset)
    return loaded if isinstance(loaded, CaseProblems) else _facts(loaded, dataset)


def same_facts(old: Fingerprint, new: Fingerprint) -> bool:
    """Whether a plan made from `old` stands: everything that both measured is equal.

    Fingerprints of earlier versions lack `class_extents`, which no decision but the choice of the architecture reads:
    where an old case has none, they are not compared.
    """
    if len(old.cases) != len(new.cases):
        return False
    cases = tuple(
        now if before.class_extents else now.model_copy(update={"class_extents": {}})
        for before, now in zip(old.cases, new.cases, strict=True)
    )
    return old == new.model_copy(update={"cases": cases})


def _facts(loaded: LoadedCase, dataset: Dataset) -> CaseFacts:
    image, grid = loaded.image.voxels, loaded.image.grid
    (z0, z1), (y0, y1), (x0, x1) = nonzero_box(image)
    box = np.s_[z0:z1, y0:y1, x0:x1]
    # Voxels of the ignore label, the highest, are in no count and no statistic.
    counts = _count_labels(loaded.labels, len(dataset.labels) + 1)[: len(dataset.labels)]
    known = loaded.labels < len(dataset.labels)
    shape, spacing = image.shape[1:], grid.spacing
    return CaseFacts(
        CaseFingerprint(
            id=loaded.case.id,
            shape=(shape[0], shape[1], shape[2]),
            cropped_shape=(z1 - z0, y1 - y0, x1 - x0),
            spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            left_right_axis=left_right_axis(grid),
            class_voxels=dict(zip(dataset.labels, counts, strict=True)),
            class_extents=_label_extents(loaded.labels, dataset.labels),
        ),
        grid.is_2d,
        sketch_channels(image[:, *box], (loaded.labels[box] > 0) & known[box]),
    )


def _count_labels(labels: Integer[np.ndarray, "z y x"], classes: int) -> list[int]:
    """Voxels per internal label; slice by slice, because counting widens integers to 8 bytes."""
    counts = np.zeros(classes, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=classes)
    return [int(count) for count in counts]


def _label_extents(
    labels: Integer[np.ndarray, "z y x"], names: dict[str, int]
) -> dict[str, tuple[int, int, int] | None]:
    """Voxels of each label's bounding box, None where it is absent; background, the first name, is left out.

    `labels` are internal: 0, 1, 2, … in the order of `names`.
    """
    foreground = [name for name, value in names.items() if value != 0]
    boxes = ndimage.find_objects(labels, max_label=len(foreground))
    return {name: _box_size(box) for name, box in zip(foreground, boxes, strict=True)}


def _box_size(box: tuple[slice, slice, slice] | None) -> tuple[int, int, int] | None:
    if box is None:
        return None
    z, y, x = (int(axis.stop - axis.start) for axis in box)
    return z, y, x


def _check_together(facts: Sequence[CaseFacts], dataset: Dataset) -> None:
    """What only the whole dataset shows."""
    if not facts:
        raise UserError(f"{dataset.root} has no training cases.\nPut them into imagesTr and labelsTr.")
    flat = [one.case.id for one in facts if one.is_2d]
    if 0 < len(flat) < len(facts):
        deep = [one.case.id for one in facts if not one.is_2d]
        raise UserError(
            f"{dataset.root} mixes 2-D images ({len(flat)}, for example {flat[0]}) and 3-D images "
            f"({len(deep)}, for example {deep[0]}).\nAll images must have the same number of dimensions: "
            "make two datasets."
        )
    if absent := _absent_labels(facts, dataset):
        raise all_of(
            absent,
            f"{dataset.root / 'dataset.json'} declares labels that no case has:",
            "Remove them from \"labels\" in dataset.json, or correct the label files.",
        )
    if not any(one.sketches for one in facts):
        raise UserError(
            f"{dataset.root}: every labelled voxel lies outside the nonzero part of its image.\n"
            "Labels on the images' anatomy were expected: check that images and labels belong together."
        )


def _absent_labels(facts: Sequence[CaseFacts], dataset: Dataset) -> list[str]:
    """The declared labels, background aside, that no voxel of any case has."""
    return [
        f"{name!r} (value {value})"
        for name, value in dataset.labels.items()
        if value != 0 and not any(one.case.class_voxels[name] for one in facts)
    ]
