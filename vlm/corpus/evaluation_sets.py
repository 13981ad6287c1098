"""Evaluation sets: what they are, where their images lie, and how these look."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from autoseg.errors import UserError
from autoseg.progress import progress
from autoseg.records import Record, parse_toml
from vlm.corpus.facts import name_hash, sha256_words
from vlm.corpus.readers.opening import column_positions, csv_rows, open_text
from vlm.corpus.workers import stream_map
from vlm.schema import Modality, Slug


class ImageListing(Record):
    """How the images of a set lie in its folder.

    glob : patterns of image files. index : or a CSV with a row per image; `image` is its column (or position, from 0),
    `where` keeps rows with these values, `image_root` and `image_suffix` make a path of what the column says.
    label : column of the class; None: the class is the name of the image's folder. label_pattern : regular expression
    whose one group is the class, searched in that column, or in the image's path. label_values : what is found → class.
    """

    glob: tuple[str, ...] = ()
    index: str | None = None
    image: str | int = 0
    where: dict[str, str] = {}
    image_root: str = "."
    image_suffix: str = ""
    label: str | int | None = None
    label_pattern: str | None = None
    label_values: dict[str, str] = {}


class IdList(Record):
    """A file that names a source's images or patients that are in the set.

    source : the source's name. ids : "image" or "patient". file : relative to the set's folder; .csv, .json (a list of
    objects) or text with an id a line. column : of a CSV, or key of an object. pattern : regular expression whose one
    group is the id, searched in the text found there.
    """

    source: Slug
    ids: Literal["image", "patient"]
    file: str
    column: str | None = None
    pattern: str | None = None

    @field_validator("pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None and re.compile(pattern).groups != 1:
            raise ValueError(f"{pattern!r} must have exactly one group")
        return pattern


class SourceOverlap(Record):
    """A source of training images that is known, or must be feared, to hold images of the set, and why."""

    source: Slug
    said: str


class EvaluationCard(Record):
    """presets/vlm/evaluation/<name>.toml: a set of images that models are measured on and never trained on.

    images_expected : published number. metric : that the published average uses. skipped : why the published
    average leaves the set out; "" where it does not. folder : below the folder of all evaluation sets.
    """

    name: Slug
    title: str
    modality: Modality
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    metric: Literal["accuracy", "auc"]
    images_expected: int | None = None
    skipped: str = ""
    folder: str
    listing: ImageListing
    id_lists: tuple[IdList, ...] = ()
    overlaps: tuple[SourceOverlap, ...] = ()
    citation: str = ""
    remarks: str = ""


@dataclass(frozen=True)
class EvaluationSet:
    """What is known of a set's images on this disk.

    sha256, phash : uint64 [image, 4]. files : [image] names below the set's folder. patients : uint64, `name_hash` of
    (source, patient). images : source → names of its images that are in the set. unreadable : images that are listed
    and cannot be opened.
    """

    name: str
    modality: Modality
    sha256: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 4), np.uint64))
    phash: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 4), np.uint64))
    files: tuple[str, ...] = ()
    patients: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    images: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unreadable: int = 0
    lists: tuple[tuple[str, str], ...] = ()
    """(source, file) of every id list that was read."""


def load_evaluation_cards() -> dict[str, EvaluationCard]:
    """The cards that come with the package, by name. UserError where a file's name is not its card's."""
    cards = {}
    entries = (resources.files("presets") / "vlm" / "evaluation").iterdir()
    for entry in sorted((entry for entry in entries if entry.name.endswith(".toml")), key=lambda entry: entry.name):
        path = Path("presets/vlm/evaluation") / entry.name
        card = parse_toml(EvaluationCard, entry.read_text(encoding="utf-8"), path)
        if card.name != path.stem:
            raise UserError(f"{path} holds the set {card.name}; a set's name must be its file's.")
        cards[card.name] = card
    return cards


def hash_evaluation_set(card: EvaluationCard, folder: Path, workers: int = 1) -> EvaluationSet:
    """Hash the images of a set and read its id lists; what is not in `folder` is left out.

    Parameters
    ----------
    folder : the set's own folder.
    workers : processes that open images.

    Raises
    ------
    UserError : an index or id list that is there lacks its column, or names a file outside the folder.
    """
    files = listed_files(card, folder)
    sha256, phash = np.zeros((len(files), 4), np.uint64), np.zeros((len(files), 4), np.uint64)
    good = np.zeros(len(files), bool)
    with progress(f"hash {card.name}", len(files), "images") as bar:
        for position, found in stream_map(partial(_hash_file, folder), enumerate(files), workers):
            bar.advance()
            if found is not None:
                good[position], sha256[position], phash[position] = True, sha256_words(found[0]), found[1]
    patients: list[int] = []
    images: dict[str, frozenset[str]] = {}
    lists = []
    for known in card.id_lists:
        path = folder / known.file
        if not path.is_file():
            continue
        ids = read_ids(known, path)
        lists.append((known.source, known.file))
        if known.ids == "patient":
            patients.extend(name_hash(known.source, patient) for patient in sorted(ids))
        else:
            images[known.source] = images.get(known.source, frozenset()) | ids
    return EvaluationSet(
        card.name, card.modality, sha256[good], phash[good],
        tuple(name for name, is_good in zip(files, good, strict=True) if is_good),
        np.array(patients, np.uint64), images, int((~good).sum()), tuple(lists),
    )


def listed_files(card: EvaluationCard, folder: Path) -> tuple[str, ...]:
    """Names of the set's images below its folder, sorted; none where neither its images nor its index are there."""
    listing = card.listing
    root = folder / listing.image_root
    if listing.index is None:
        found = {path for pattern in listing.glob for path in root.glob(pattern) if path.is_file()}
        return tuple(sorted(path.relative_to(folder).as_posix() for path in found))
    index = folder / listing.index
    if not index.is_file():
        return ()
    names = set()
    for row in _csv_rows(index, (listing.image, *listing.where)):
        if all(row[column] == value for column, value in listing.where.items()):
            name = (Path(listing.image_root) / (row[listing.image] + listing.image_suffix)).as_posix()
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(f"{index} names {name}, which is outside {folder}.\nCorrect the file.")
            names.add(name)
    return tuple(sorted(names))


def read_ids(known: IdList, path: Path) -> frozenset[str]:
    """The ids in a list; UserError naming the columns that exist where its own is missing, and for a list without ids:
    it would be taken for a check that found nothing."""
    if path.suffix == ".csv":
        texts = [row[known.column or 0] for row in _csv_rows(path, (known.column or 0,))]
    elif path.suffix == ".json":
        texts = _json_texts(known, path)
    else:
        texts = [line.strip() for line in _text(path).splitlines()]
    if known.pattern is not None:
        matches = [re.search(known.pattern, text) for text in texts]
        texts = [match.group(1) for match in matches if match]
    ids = frozenset(text for text in texts if text)
    if not ids:
        of = f" in which {known.pattern!r} is found" if known.pattern is not None else ""
        raise UserError(f"{path} holds no id{of}; the {known.ids} ids of {known.source} were expected.\n"
                        "Get the file again, or take it away.")
    return ids


def _json_texts(known: IdList, path: Path) -> list[str]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}.") from None
    if known.column is not None and isinstance(content, list):
        content = [item.get(known.column) if isinstance(item, dict) else None for item in content]
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise UserError(f"{path}: a list of objects with a text {known.column!r} was expected.")
    return content


def _csv_rows(path: Path, columns: tuple[str | int, ...]) -> Iterator[dict[str | int, str]]:
    """The wanted cells of every row, by column name or position."""
    with open_text(path) as lines:
        rows = csv_rows(lines, ",", path)
        places = dict(zip(columns, column_positions(path, next(rows, []), columns, ","), strict=True))
        for row in rows:
            yield {column: row[place] if place < len(row) else "" for column, place in places.items()}


def _text(path: Path) -> str:
    with open_text(path) as lines:
        return lines.read()


def _hash_file(folder: Path, job: tuple[int, str]) -> tuple[int, tuple[str, NDArray[np.uint64]] | None]:
    from vlm.corpus.images import BadImage, inspect_image

    position, name = job
    try:
        image = inspect_image(folder / name, None, None)
    except BadImage:
        return position, None
    return position, (image.sha256, image.phash)
