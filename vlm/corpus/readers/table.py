"""Tables with one row per image: CSV, TSV or JSON lines, with labels, findings, captions or reports."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import get_args

from autoseg.errors import UserError
from vlm.corpus.readers.opening import column_positions, csv_rows, mended, open_text, safe_relative, told_or_found
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Caption, CaptionKind, Layout, Modality, SourceCard, Split

JSON_LINES = (".jsonl", ".ndjson", ".json")
PEEKED = 100
"""JSON lines have no header: a key that none of so many first lines has is taken for a missing column."""

CAPTION_ROLES: dict[str, CaptionKind] = {"caption": "native", "captions": "native", "report": "report"}
ROLES = ("image", "slice", "label", "labels", *CAPTION_ROLES, "patient", "article", "split", "modality", "anatomy",
         "view", "id")
SPLITS: Mapping[str, Split | None] = {"train": "train", "val": "val", "test": "test", "": None}

MODALITY_WORDS: dict[str, Modality] = {
    **{name.lower(): name for name in get_args(Modality)},
    "ct": "CT", "mr": "MRI", "us": "Ultrasound", "cr": "X-ray", "dx": "X-ray", "op": "Fundus", "sm": "Pathology",
}
"""Our own names and those of DICOM's attribute Modality (PS3.3 C.7.3.1.1.1) that say the same."""

FINDING_VALUES = {"1": "present", "1.0": "present", "0": "absent", "0.0": "absent", "-1": "uncertain",
                  "-1.0": "uncertain", "": None}
EMPTY = ("", "nan", "NaN")
"""How tables write that a cell is empty; pandas writes nan."""

Cells = Callable[[str | int], object]
"""A column's name or position → its cell in one row: text, or what JSON holds there."""


class BadRow(Exception):
    """Its text is why a row becomes a Reject."""


@dataclass(frozen=True)
class _Line:
    """A line of an index file as its cells, or why it has none."""

    cells: Cells | None
    reason: str = ""


def read_table(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Rows of the index files, one after the other, counted through from 0.

    A row that says nothing (no label, no finding, no text), whose image lies outside the root, or whose cells cannot be
    understood becomes a Reject. Files that end in .jsonl, .ndjson or .json hold one object per line, others are CSV.

    Raises
    ------
    UserError : an index file is absent, is not UTF-8, lacks a column (which, and which exist) or has another delimiter;
        the card names no index, no image column, or a role that this reader does not know.
    """
    unknown = sorted(set(layout.columns) - set(ROLES))
    if unknown or not layout.index or "image" not in layout.columns:
        raise UserError(
            f"the layout {layout.name} of {card.name}: "
            + (f"the reader `table` knows no role {', '.join(unknown)}" if unknown else "an index and a column for the "
               "role image were expected") + f".\nRoles: {', '.join(ROLES)}. Correct the card."
        )
    lines = chain.from_iterable(_lines(folder / name, layout) for name in layout.index)
    for row, line in enumerate(lines):
        if line.cells is None:
            yield Reject(card.name, row, "", line.reason)
            continue
        try:
            made = _source_row(card, layout, folder, row, line.cells)
        except BadRow as error:
            image = line.cells(layout.columns["image"])
            yield Reject(card.name, row, _text(image) if isinstance(image, str) else "", str(error))
            continue
        if made is not None:
            yield made


def _lines(path: Path, layout: Layout) -> Iterator[_Line]:
    wanted = tuple(dict.fromkeys((*layout.columns.values(), *layout.findings, *layout.where)))
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    reader = _json_lines if plain.suffix in JSON_LINES else _csv_lines
    return reader(path, layout.delimiter, wanted)


def _csv_lines(path: Path, delimiter: str, wanted: tuple[str | int, ...]) -> Iterator[_Line]:
    with open_text(path) as stream:
        rows = csv_rows(stream, delimiter, path)
        header = next(rows, None)
        if header is None:
            raise UserError(f"{path} is empty. Get the file again.")
        positions = dict(zip(wanted, column_positions(path, header, wanted, delimiter), strict=True))
        width = len(header)
        for row in rows:
            if len(row) < width or (len(row) > width and any(cell.strip() for cell in row[width:])):
                yield _Line(None, f"{len(row)} fields; {width} were expected, as in the header line")
            else:
                yield _Line(partial(_cell, row, positions))


def _cell(row: list[str], positions: Mapping[str | int, int], column: str | int) -> str:
    return row[positions[column]]


def _json_lines(path: Path, _delimiter: str, wanted: tuple[str | int, ...]) -> Iterator[_Line]:
    with open_text(path) as stream:
        objects = (_parsed(line) for line in stream if not line.isspace())
        first = list(islice(objects, PEEKED))
        keys = sorted({key for one in first if isinstance(one, dict) for key in one})
        if first and not keys:
            raise UserError(f"{path}: one JSON object per line was expected.\n"
                            f"A list of objects becomes that by: jq -c '.[]' {path.name}")
        missing = [str(name) for name in wanted if name not in keys]
        if missing:
            raise UserError(f"{path}: no key {', '.join(missing)} in its first {len(first)} lines.\n"
                            f"Its keys: {', '.join(keys)}.\nName the keys in the source's card.")
        for one in chain(first, objects):
            yield _Line(one.get) if isinstance(one, dict) else _Line(None, "no JSON object stands in this line")


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _source_row(card: SourceCard, layout: Layout, folder: Path, row: int, cells: Cells) -> SourceRow | None:
    """None: a row that the card leaves out. BadRow: it cannot be used."""
    if any(_text(cells(column)) != value for column, value in layout.where.items()):
        return None
    columns = layout.columns

    def told(role: str) -> str | None:
        return _text(cells(columns[role])) if role in columns else None

    split, is_left_out = _split(layout, told("split"))
    if is_left_out:
        return None
    name = told("image") or ""
    image = safe_relative(name + layout.image_suffix) if name else None
    if image is None:
        raise BadRow("the image's path leaves the image root" if name else "it names no image")
    labels, is_dropped = _labels(layout, image, cells)
    findings = _findings(layout, cells)
    captions = _captions(layout, folder, cells)
    if not (labels or captions or any(findings)):
        if is_dropped:
            return None
        raise BadRow("it has no label and no caption")
    present, uncertain, absent = findings
    return SourceRow(
        row, image, _modality(card, told("modality")), captions, tuple(dict.fromkeys((*labels, *present))), uncertain,
        absent, told("anatomy") or card.anatomy, told("view") or card.view,
        told_or_found(layout.patient_pattern, told("patient"), image),
        told_or_found(layout.article_pattern, told("article"), image), split, told("id") or "", _slice(told("slice")),
    )


def _split(layout: Layout, told: str | None) -> tuple[Split | None, bool]:
    """(split, whether the row is left out)."""
    if told is None:
        return layout.split, False
    if told in layout.splits:
        mapped = layout.splits[told]
        return (mapped, False) if mapped else (None, True)
    if told in SPLITS and (not layout.splits or not told):
        return SPLITS[told], False
    expected = ", ".join(sorted(name for name in layout.splits or SPLITS if name))
    raise BadRow(f"its split is {told[:60]!r}; one of {expected} was expected")


def _labels(layout: Layout, image: str, cells: Cells) -> tuple[tuple[str, ...], bool]:
    """(labels, whether the card's `rename` drops one)."""
    columns, found = layout.columns, list[str]()
    if "label" in columns or layout.label_pattern is not None:
        told = _text(cells(columns["label"])) if "label" in columns else None
        found.append(told_or_found(layout.label_pattern, told, image) or "")
    if "labels" in columns:
        cell = cells(columns["labels"])
        found += [_text(one) for one in cell] if isinstance(cell, list) else _parts(_text(cell), layout.label_separator)
    named = [label.strip() for label in found if label.strip()]
    renamed = [layout.rename.get(label, label) for label in named]
    return tuple(dict.fromkeys(label for label in renamed if label)), "" in renamed


def _parts(text: str, separator: str | None) -> list[str]:
    return [text] if separator is None else text.split(separator)


def _findings(layout: Layout, cells: Cells) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(present, uncertain, absent)."""
    found: dict[str, list[str]] = {"present": [], "uncertain": [], "absent": []}
    for column in layout.findings:
        value = _text(cells(column))
        if value not in FINDING_VALUES:
            raise BadRow(f"the finding {column} is {value[:60]!r}; 1, 0, -1 or nothing was expected")
        standing, name = FINDING_VALUES[value], layout.rename.get(column, column)
        if standing is not None and name:
            found[standing].append(name)
    return tuple(found["present"]), tuple(found["uncertain"]), tuple(found["absent"])


def _captions(layout: Layout, folder: Path, cells: Cells) -> tuple[Caption, ...]:
    made = []
    for role, kind in CAPTION_ROLES.items():
        if role in layout.columns:
            cell = cells(layout.columns[role])
            texts = [_text(one) for one in cell] if isinstance(cell, list) else [_text(cell)]
            if role == "report" and layout.text_root is not None:
                texts = [_report_file(folder / layout.text_root, text) for text in texts if text]
            made += [Caption(text=layout.caption_prefix + text, kind=kind, origin=f"column {layout.columns[role]}")
                     for text in texts if text]
    return tuple(made)


def _report_file(root: Path, name: str) -> str:
    """The text of a report; "" where its file is absent."""
    below = safe_relative(name)
    if below is None:
        raise BadRow(f"the report's path {name[:60]!r} leaves the folder of reports")
    try:
        return (root / below).read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadRow(f"the report {below} cannot be read: {error}") from None


def _modality(card: SourceCard, told: str | None) -> Modality:
    if told:
        modality = MODALITY_WORDS.get(told.lower())
        if modality is None:
            raise BadRow(f"its modality is {told[:60]!r}; one of {', '.join(get_args(Modality))} was expected")
        return modality
    return card.modalities[0] if len(card.modalities) == 1 else "mixed"


def _slice(told: str | None) -> int | None:
    if not told:
        return None
    if not told.isdecimal():
        raise BadRow(f"its slice is {told[:60]!r}; a number from 0 was expected")
    return int(told)


def _text(cell: object) -> str:
    """A cell as text without surrounding space; "" for an empty one. BadRow: an object or list of JSON."""
    if isinstance(cell, dict | list):
        raise BadRow(f"a text was expected, not {str(cell)[:60]}")
    text = mended(cell).strip() if isinstance(cell, str) else "" if cell is None else str(cell)
    return "" if text in EMPTY else text
