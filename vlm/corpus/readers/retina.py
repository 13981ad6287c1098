"""UniMed's tables of fundus images: one per collection, with captions made from labels, and DeepEyeNet's."""

import re
from collections.abc import Iterator
from pathlib import Path

from vlm.corpus.readers.lists import NotAList, listed_texts
from vlm.corpus.readers.markers import captions_of
from vlm.corpus.readers.places import bad_path, image_path, modality_of, named_cells, patient_of
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Caption, Layout, SourceCard

PREFIX = "The fundus image of "
"""What UniMed writes before a keyword of DeepEyeNet; `caption_prefix` of a layout replaces it."""

_PERSONAL = re.compile(r"year|//", re.IGNORECASE)
"""Ages ("28-year-old white male") and dates: they are no findings."""

_WORD = re.compile(r"[^\W\d_]{3}")


def read_captions(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Rows of `filename`, `captions` (a list in a cell) and `sentence_level_captions` (one text).

    UserError: a table is absent, not UTF-8, or lacks one of the columns.
    """
    wanted = ("filename", "captions", "sentence_level_captions")
    row = 0
    for index in layout.index:
        for cells in named_cells(folder / index, wanted, layout.delimiter):
            yield _captions_row(card, layout, row, cells)
            row += 1


def read_den(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Rows of `image`, `categories` (a list in a cell) and `atributes` (spelled so; not used).

    Categories that hold "year" or "//" (ages, dates), and those without a word, are left out. Each other one becomes a
    caption behind the layout's prefix; the last, which is what the published script looks for, is the first caption. A
    row of which nothing is left is rejected: the script takes a category by chance there.
    UserError: a table is absent, not UTF-8, or lacks one of the columns.
    """
    row = 0
    for index in layout.index:
        for cells in named_cells(folder / index, ("image", "categories", "atributes"), layout.delimiter):
            yield _den_row(card, layout, row, cells)
            row += 1


def den_captions(categories: list[str], prefix: str) -> tuple[Caption, ...]:
    """The last category that tells a finding, then the others, each behind the prefix."""
    findings = [text for text in categories if not _PERSONAL.search(text) and _WORD.search(text)]
    ordered = findings[-1:] + findings[:-1]
    return captions_of([(f"{prefix}{text.rstrip(' .')}.", "native") for text in ordered], "column categories")


def _captions_row(card: SourceCard, layout: Layout, row: int, cells: tuple[str, ...] | None) -> SourceRow | Reject:
    if cells is None:
        return Reject(card.name, row, "", "the row has too few columns")
    filename, listed, sentence = cells
    try:
        texts = listed_texts(listed)
    except NotAList as problem:
        return Reject(card.name, row, filename, str(problem))
    captions = captions_of([(text, "template") for text in texts], "column captions")
    known = {caption.text for caption in captions}
    further = captions_of([(sentence, "template")], "column sentence_level_captions")
    return _row(card, layout, row, filename, captions + tuple(one for one in further if one.text not in known))


def _den_row(card: SourceCard, layout: Layout, row: int, cells: tuple[str, ...] | None) -> SourceRow | Reject:
    if cells is None:
        return Reject(card.name, row, "", "the row has too few columns")
    try:
        captions = den_captions(listed_texts(cells[1]), layout.caption_prefix or PREFIX)
    except NotAList as problem:
        return Reject(card.name, row, cells[0], str(problem))
    return _row(card, layout, row, cells[0], captions)


def _row(
    card: SourceCard, layout: Layout, row: int, cell: str, captions: tuple[Caption, ...]
) -> SourceRow | Reject:
    image = image_path(cell, layout)
    if image is None:
        return bad_path(card, row, cell)
    if not captions:
        return Reject(card.name, row, image, "none of its texts is a caption")
    return SourceRow(row, image, modality_of(card, image), captions, anatomy=card.anatomy, view=card.view,
                     patient=patient_of(layout, image), split=layout.split, source_id=image.rsplit("/", 1)[-1])
