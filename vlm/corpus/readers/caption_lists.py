"""The tables that UniMed prepared for CheXpert, NIH ChestX-ray, RadImageNet and MIMIC-CXR: lists in cells."""

from collections.abc import Iterator
from pathlib import Path

from autoseg.errors import UserError
from vlm.corpus.readers.lists import NotAList, listed_texts
from vlm.corpus.readers.markers import captions_of
from vlm.corpus.readers.opening import csv_rows, open_text
from vlm.corpus.readers.places import bad_path, image_path, modality_of, patient_of
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, SourceCard

DEFAULT_COLUMNS = {"image": 0, "labels": 1, "caption": 2}
"""The scripts read by position; the names in the header are not published."""

LEAST_COLUMNS = 3


def read_caption_lists(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Rows of `[path], [labels], [captions]` and, where the layout names a column `report`, a report or nothing.

    Columns are positions (DEFAULT_COLUMNS, and those of the layout). A first row whose image is no list is the header.

    Raises
    ------
    UserError : a file is absent, is not UTF-8, is empty, or its rows have fewer columns.
    """
    row = 0
    for index in layout.index:
        for cells in _data_rows(folder / index, layout):
            yield _row(card, layout, row, cells)
            row += 1


def _data_rows(path: Path, layout: Layout) -> Iterator[list[str]]:
    places = _places(layout)
    with open_text(path) as lines:
        rows = csv_rows(lines, layout.delimiter, path)
        first = next(rows, [])
        if len(first) <= max(places.values()):
            raise UserError(
                f"{path} has {len(first)} columns ({', '.join(first)[:200] or 'none'}); {max(places.values()) + 1} "
                "were expected: lists of the path, the labels and the captions, and the report where there is one.\n"
                "Get the file that the card describes, or set its delimiter and columns in the card."
            )
        if first[places["image"]].strip().startswith("["):
            yield first
        yield from rows


def _places(layout: Layout) -> dict[str, int]:
    named = [column for column in layout.columns.values() if isinstance(column, str)]
    if named:
        raise UserError(f"the layout {layout.name} names the columns {', '.join(named)}; the reader caption_lists goes "
                        "by position (0 is the first). Give positions in the card.")
    return DEFAULT_COLUMNS | {role: int(place) for role, place in layout.columns.items()}


def _row(card: SourceCard, layout: Layout, row: int, cells: list[str]) -> SourceRow | Reject:
    places = _places(layout)
    needed = max(places[role] for role in DEFAULT_COLUMNS)
    if len(cells) <= needed:
        return Reject(card.name, row, cells[0], f"the row has {len(cells)} columns; {needed + 1} were expected")
    try:
        paths = listed_texts(cells[places["image"]])
        labels = listed_texts(cells[places["labels"]])
        texts = listed_texts(cells[places["caption"]])
    except NotAList as problem:
        return Reject(card.name, row, cells[places["image"]][:200], str(problem))
    image = image_path(paths[0], layout) if paths else None
    if image is None:
        return bad_path(card, row, paths[0] if paths else "")
    report = cells[places["report"]] if len(cells) > places.get("report", len(cells)) else ""
    captions = captions_of([(report, "report")], "column report") if report else ()
    captions = (*captions_of([(text, "template") for text in texts], f"list in {layout.name} table"), *captions)
    if not captions and not labels:
        return Reject(card.name, row, image, "the row has neither a label nor a caption")
    return SourceRow(
        row, image, modality_of(card, image), captions,
        labels=tuple(dict.fromkeys(layout.rename.get(label, label) for label in labels)),
        anatomy=card.anatomy, view=card.view, patient=patient_of(layout, image), split=layout.split,
        source_id=image.rsplit("/", 1)[-1],
    )
