"""The images of a set as they lie on this disk: their files, classes, patients, captions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool, Int

from autoseg.errors import UserError, all_of
from vlm.corpus.evaluation_sets import ImageListing
from vlm.corpus.image_files import ImageFile
from vlm.corpus.readers.opening import csv_rows, first_group, open_text
from vlm.evaluation.suite_files import SetPlan
from vlm.evaluation.suite_records import GroupRule

NO_CLASS = -1
SHOWN_LABELS = 8


@dataclass(frozen=True)
class ListedImage:
    """An image of a set. label : its class, "" where it has none. group : its patient; "" where it stands alone."""

    file: ImageFile
    label: str
    group: str = ""
    caption: str = ""
    is_train: bool = False


@dataclass(frozen=True)
class ImageSet:
    """All images of a set, training images for its linear probe among them.

    targets : position in the plan's classes, -1 for an image without a class. groups : number of the patient; equal
    for images of one patient only. patients : how many there are among the test images, None where nobody tells.
    """

    plan: SetPlan
    files: tuple[ImageFile, ...]
    targets: Int[np.ndarray, " image"]
    groups: Int[np.ndarray, " image"]
    captions: tuple[str, ...]
    is_train: Bool[np.ndarray, " image"]

    @property
    def tested(self) -> Bool[np.ndarray, " image"]:
        """Test images that have a class."""
        tested: Bool[np.ndarray, " image"] = ~self.is_train & (self.targets != NO_CLASS)
        return tested

    def kept(self, keep: Bool[np.ndarray, " image"]) -> "ImageSet":
        """Only these images."""
        positions = np.flatnonzero(keep)
        return ImageSet(
            self.plan, tuple(self.files[index] for index in positions), self.targets[keep], self.groups[keep],
            tuple(self.captions[index] for index in positions), self.is_train[keep])


def read_image_set(plan: SetPlan, data: Path) -> ImageSet | None:
    """The set's images below `data`; None where neither its index nor any image is there.

    Raises
    ------
    UserError : the index lacks a column, or has no row of the set; labels are no class of the set.
    """
    folder = data / plan.folder
    listing = plan.listing
    if listing.index is not None:
        if not (folder / listing.index).is_file():
            return None
        images = list(_indexed(plan, folder))
        if not images:
            kept = ", ".join(f"{column} = {value}" for column, value in listing.where.items())
            raise UserError(f"{plan.name}: {folder / listing.index} has no row of a test image"
                            f"{f' ({kept})' if kept else ''}.\nComplete the file, or correct the set's `where`.")
    else:
        images = list(_globbed(plan, folder))
    return collect(plan, images) if images else None


def collect(plan: SetPlan, images: Sequence[ListedImage]) -> ImageSet:
    """Labels and patients as numbers. UserError: labels that are no class of the set."""
    if plan.classes:
        unknown = Counter(image.label for image in images if image.label and image.label not in plan.classes)
        if unknown:
            found = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(SHOWN_LABELS))
            raise UserError(f"{plan.name}: labels that are none of its classes: {found}.\nExpected: "
                            f"{', '.join(plan.classes)}.\nCorrect the set's labels, or map them with label_values.")
    places = {label: index for index, label in enumerate(plan.classes)}
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(image.group or f"\0{position}", len(numbers))
              for position, image in enumerate(images)]
    return ImageSet(
        plan, tuple(image.file for image in images),
        np.array([places.get(image.label, NO_CLASS) for image in images], np.int64), np.array(groups, np.int64),
        tuple(image.caption for image in images), np.array([image.is_train for image in images], bool))


def require_classes(images: ImageSet) -> None:
    """UserError naming the classes that have no test image."""
    plan = images.plan
    present = set(images.targets[images.tested].tolist())
    if missing := [name for index, name in enumerate(plan.classes) if index not in present]:
        raise UserError(f"{plan.name}: no test image is of the class {', '.join(missing)}.\n"
                        "Complete the set, or give --available to measure it without.")


def require_train_classes(images: ImageSet) -> None:
    """UserError naming the classes that have no training image, where the set is said to have a training part."""
    plan = images.plan
    present = set(images.targets[images.is_train].tolist())
    missing = [name for index, name in enumerate(plan.classes) if index not in present]
    if plan.train and missing:
        kept = ", ".join(f"{column} = {value}" for column, value in plan.train.items())
        raise UserError(f"{plan.name}: no training image ({kept}) is of the class {', '.join(missing)}; a linear probe "
                        "needs every class.\nComplete the set, or give --zero-shot-only, or --available.")


def group_in(rule: GroupRule, text: str) -> str:
    """The patient that a text names; "" where it names none."""
    return text.strip() if rule.pattern is None else first_group(rule.pattern, text) or ""


def _indexed(plan: SetPlan, folder: Path) -> Iterator[ListedImage]:
    listing = plan.listing
    path = folder / (listing.index or "")
    classes = _one_hot_columns(plan)
    wanted = [listing.image, *listing.where, *plan.train, *classes]
    grouping = plan.group.column if plan.group is not None else None
    wanted += [column for column in (listing.label, plan.captions, grouping) if column is not None]
    problems = []
    for number, row in _rows(path, wanted):
        is_train = bool(plan.train) and _agrees(row, plan.train)
        if not is_train and not _agrees(row, listing.where):
            continue
        name = (PurePosixPath(listing.image_root) / (row[listing.image] + listing.image_suffix)).as_posix()
        if classes:
            hot = [column for column in classes if _is_one(row[column])]
            label = hot[0] if len(hot) == 1 else ""
            if not label:
                problems.append(f"row {number}: {len(hot)} of the columns {', '.join(classes)} are 1")
        else:
            label = _label(listing, name, row[listing.label] if listing.label is not None else None)
        yield ListedImage(
            ImageFile(folder, name), label if plan.classes else "", _group(plan, name, row),
            row[plan.captions].strip() if plan.captions else "", is_train)
    if problems:
        raise all_of(problems, f"{path}: rows whose class is not told by exactly one column:", "Correct the file.")


def _globbed(plan: SetPlan, folder: Path) -> Iterator[ListedImage]:
    listing = plan.listing
    root = folder / listing.image_root
    names = sorted({path.relative_to(folder).as_posix() for pattern in listing.glob for path in root.glob(pattern)
                    if not path.is_dir()})
    for name in names:
        yield ListedImage(ImageFile(folder, name), _label(listing, name, None), _group(plan, name, {}))


def _one_hot_columns(plan: SetPlan) -> tuple[str, ...]:
    """The classes, where an index has neither a label column nor a pattern for the path: then each has a column."""
    listing = plan.listing
    return plan.classes if listing.label is None and listing.label_pattern is None else ()


def _label(listing: ImageListing, name: str, cell: str | None) -> str:
    """The class as the set calls it: from the column, else from the path, else the name of the folder."""
    text = cell if cell is not None else name
    if listing.label_pattern is not None:
        text = first_group(listing.label_pattern, text) or ""
    elif cell is None:
        text = PurePosixPath(name).parent.name
    return listing.label_values.get(text.strip(), text.strip())


def _group(plan: SetPlan, name: str, row: Mapping[str | int, str]) -> str:
    if plan.group is None:
        return ""
    return group_in(plan.group, row[plan.group.column] if plan.group.column is not None else name)


def _agrees(row: Mapping[str | int, str], where: Mapping[str, str]) -> bool:
    return all(row[column] == value for column, value in where.items())


def _is_one(cell: str) -> bool:
    try:
        return float(cell) == 1
    except ValueError:
        return False


def _rows(path: Path, wanted: Sequence[str | int]) -> Iterator[tuple[int, dict[str | int, str]]]:
    """(line number from 1 for the header, wanted cells by column name or position) of every row."""
    with open_text(path) as lines:
        rows = csv_rows(lines, ",", path)
        header = next(rows, [])
        missing = [str(column) for column in wanted
                   if (column not in header if isinstance(column, str) else column >= len(header))]
        if missing:
            raise UserError(f"{path} has no column {', '.join(dict.fromkeys(missing))}; it has "
                            f"{', '.join(header) or 'none'}.")
        places = {column: header.index(column) if isinstance(column, str) else column for column in wanted}
        for number, row in enumerate(rows, 2):
            yield number, {column: row[place] if place < len(row) else "" for column, place in places.items()}
