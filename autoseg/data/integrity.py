"""Reading a training case once, with every check; problems come back as sentences, reported together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from jaxtyping import Integer

from autoseg.data.dataset import Case, Dataset
from autoseg.data.labels import count_values, to_internal
from autoseg.data.volume import Volume, read_image, read_labels, volume_differences
from autoseg.errors import UserError, all_of


@dataclass(frozen=True)
class LoadedCase:
    """A case that passed all checks: float32 image, internal labels (z, y, x) as uint8 or int16."""

    case: Case
    image: Volume
    labels: Integer[np.ndarray, "z y x"]


@dataclass(frozen=True)
class CaseProblems:
    """What is wrong with a case: complete sentences, the file first."""

    id: str
    problems: tuple[str, ...]


def load_case(case: Case, dataset: Dataset) -> LoadedCase | CaseProblems:
    """Read a case's image and labels, each file once, and check them.

    Checked: files readable, number of channels, 3-D, finite intensities, channels on one grid, labels
    integers and declared, labels on the image's grid (shape, spacing, direction, origin, as far as the files
    state them).
    """
    problems: list[str] = []
    image = labels = None
    try:
        image = read_image(case.images, len(dataset.channel_names), dataset.channels_in_one_file)
    except UserError as error:
        problems.append(str(error))
    if case.label is None:
        problems.append(f"Case '{case.id}' has no label file; training needs one.")
    else:
        try:
            labels = read_labels(case.label)
        except UserError as error:
            problems.append(str(error))
    if image is not None and labels is not None and (found := volume_differences(labels, image)):
        problems.append(f"{case.label}: not on the grid of its image {case.images[0].name}: "
                        f"{'; '.join(found)}. Resample or export the labels onto the image's grid.")
    if labels is not None:
        problems.extend(_undeclared(case, labels.voxels[0], dataset))
    if problems or image is None or labels is None:
        return CaseProblems(case.id, tuple(problems))
    return LoadedCase(case, image, to_internal(labels.voxels[0], dataset.labelled.values))


def raise_problems(problems: Sequence[CaseProblems], dataset: Dataset) -> NoReturn:
    """One UserError that lists the problems of all cases."""
    lines = [line for case in problems for line in case.problems]
    many = "problems" if len(lines) > 1 else "problem"
    raise all_of(
        lines, f"{len(lines)} {many} in {len(problems)} of {len(dataset.cases)} cases of {dataset.root}:",
        "Mend these files, or take the cases out of the dataset (and correct numTraining in dataset.json).",
    )


def _undeclared(case: Case, labels: Integer[np.ndarray, "z y x"], dataset: Dataset) -> list[str]:
    known = set(dataset.labelled.values)
    counts = {value: count for value, count in count_values(labels).items() if value not in known}
    if not counts:
        return []
    declared = dict(dataset.labels) | ({} if dataset.ignore is None else {"ignore": dataset.ignore})
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(counts.items())[:10])
    more = f" and {len(counts) - 10} more values" if len(counts) > 10 else ""
    return [f"{case.label}: label values that dataset.json does not declare: {shown}{more}; declared are "
            f"{', '.join(f'{value} ({name})' for name, value in declared.items())}. Declare them, or correct "
            "the labels."]
