"""MIMIC-CXR as PhysioNet publishes it: three tables, and a text file per study."""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int64

from autoseg.errors import UserError
from vlm.corpus.readers.markers import captions_of, tidy
from vlm.corpus.readers.places import named_cells
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, SourceCard, Split

FRONTAL = frozenset({"AP", "PA"})
"""ViewPosition of frontal images; the others (lateral views, and 16 thousand without a word) are left out."""

UNKNOWN = -2
"""Beside 1 (present), 0 (absent) and -1 (uncertain): the labeler found no mention."""

SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}

_TOLD = ("FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION", "FINDINGS", "IMPRESSION", "CONCLUSION", "CONCLUSIONS")
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ,/()'-]{2,60}):", re.MULTILINE)


def read_mimic_cxr(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """One row per frontal image: the study's labels, its report's findings and impression, and the official split.

    layout.index : the tables -chexpert, -metadata and -split, in this order; layout.findings : the labels' columns.
    Images and reports lie in p10/p10000032/s50414267/<dicom_id>.jpg below the image root, and in
    p10/p10000032/s50414267.txt below the text root. A study without report keeps its labels. In memory are 24 bytes
    per study and the patients that are not for training.

    Raises
    ------
    UserError : a table is absent, lacks a column, or is not one of three; a study is no number; a label or a split is
        none that is known; a report is there and cannot be read.
    """
    if len(layout.index) != 3:  # noqa: PLR2004
        raise UserError(f"{card.name}: the layout {layout.name} names {len(layout.index)} tables; three were expected: "
                        "chexpert, metadata, split.")
    chexpert, metadata, split = (folder / index for index in layout.index)
    studies, values = _labels(chexpert, layout)
    held_back = _splits(split, layout)
    wanted = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for row, cells in enumerate(named_cells(metadata, wanted, layout.delimiter)):
        if cells is None:
            yield Reject(card.name, row, "", "the row has too few columns")
        elif cells[3] in FRONTAL:
            found = _labels_of(studies, values, cells[2])
            yield _row(card, layout, row, cells, found, held_back.get(cells[1], "train"), folder)


def report_text(text: str) -> str:
    """The findings and the impression of a report, without headings; "" where it has neither."""
    sections: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    ends = [following.start() for following in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends[:len(headings)], strict=True):
        sections.setdefault(heading.group(1).strip(), tidy(text[heading.end():end]))
    return " ".join(dict.fromkeys(sections[name] for name in _TOLD if sections.get(name)))


def _labels(path: Path, layout: Layout) -> tuple[Int64[np.ndarray, "study"], Int8[np.ndarray, "study finding"]]:
    """Study numbers, sorted, and what each says of every finding."""
    numbers, rows = [], []
    for cells in named_cells(path, ("study_id", *layout.findings), layout.delimiter):
        if cells is not None:
            number = _number(cells[0])
            if number is None:
                raise UserError(f"{path}: the study {cells[0]!r} is no number. Download the file again.")
            numbers.append(number)
            rows.append(bytes(_value(cell, path) - UNKNOWN for cell in cells[1:]))
    values = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), len(layout.findings))
    order = np.argsort(np.array(numbers, np.int64), kind="stable")
    return np.array(numbers, np.int64)[order], values[order].astype(np.int8) + np.int8(UNKNOWN)


def _labels_of(studies: Int64[np.ndarray, "study"], values: Int8[np.ndarray, "study finding"],
               study: str) -> Int8[np.ndarray, "finding"]:
    number = _number(study)
    at = len(studies) if number is None else int(np.searchsorted(studies, number))
    if at == len(studies) or studies[at] != number:
        return np.full(values.shape[1], UNKNOWN, np.int8)
    return np.asarray(values[at])


def _splits(path: Path, layout: Layout) -> dict[str, Split]:
    """Patients that are not for training; one who stands in two splits is in the one that is tested on."""
    held_back: dict[str, Split] = {}
    known = SPLITS | {name: split for name, split in layout.splits.items() if split != ""}
    for cells in named_cells(path, ("subject_id", "split"), layout.delimiter):
        if cells is None:
            continue
        if cells[1] not in known:
            raise UserError(f"{path}: the split {cells[1]!r} is not known; {', '.join(known)} were expected.")
        if known[cells[1]] != "train" and held_back.get(cells[0]) != "test":
            held_back[cells[0]] = known[cells[1]]
    return held_back


def _row(  # noqa: PLR0913
    card: SourceCard, layout: Layout, row: int, cells: tuple[str, ...], values: Int8[np.ndarray, "finding"],
    split: Split, folder: Path,
) -> SourceRow | Reject:
    dicom, subject, study = cells[:3]
    if _number(subject) is None or _number(study) is None or not re.fullmatch(r"[0-9A-Za-z-]+", dicom):
        return Reject(card.name, row, dicom, f"subject {subject!r}, study {study!r} or image {dicom!r} is no id")
    place = f"p{subject[:2]}/p{subject}/s{study}"
    try:
        report = _report(folder / (layout.text_root or "."), f"{place}.txt")
    except UnicodeDecodeError:
        return Reject(card.name, row, f"{place}/{dicom}.jpg", f"its report {place}.txt is not UTF-8")
    captions = captions_of([(report, "report")], "report")
    told = {value: tuple(layout.rename.get(name, name) for name, one in zip(layout.findings, values, strict=True)
                         if one == value) for value in (1, 0, -1)}
    if not captions and not any(told.values()):
        return Reject(card.name, row, f"{place}/{dicom}.jpg", "the study has neither labels nor a report")
    return SourceRow(row, f"{place}/{dicom}.jpg", card.modalities[0], captions, told[1], told[-1], told[0],
                     card.anatomy, card.view, subject, None, layout.split or split, dicom)


@lru_cache(maxsize=8)
def _report(root: Path, name: str) -> str:
    """What the report says; "" where there is none. Images of a study follow each other, so few are remembered."""
    try:
        return report_text((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{root / name} cannot be read: {error.strerror or error}.") from None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None  # so many digits fit 64 bits


def _value(text: str, path: Path) -> int:
    try:
        value = float(text) if text.strip() else float(UNKNOWN)
    except ValueError:
        value = float("nan")
    if value not in (1.0, 0.0, -1.0, float(UNKNOWN)):
        raise UserError(f"{path}: {text!r} is not a label; 1, 0, -1 or nothing was expected.")
    return int(value)
