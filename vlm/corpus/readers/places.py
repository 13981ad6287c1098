"""What a file's path says about its image."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlm.corpus.readers.opening import column_positions, csv_rows, first_group, open_text, safe_relative
from vlm.corpus.rows import Reject
from vlm.schema import Layout, Modality, SourceCard

FOLDER_MODALITIES: dict[str, Modality] = {
    "ct": "CT", "mr": "MRI", "mri": "MRI", "us": "Ultrasound", "xr": "X-ray", "cr": "X-ray", "dx": "X-ray",
}
"""Folder names that are modality codes of DICOM, or that RadImageNet uses (CT, MR, US)."""

RELEASE = re.compile(r"^(?:CheXpert-v1\.0[^/]*/|(?:[^/]+/)*files/(?=p1\d/p\d{8}/)|(?:[^/]+/)?images/(?=\d{8}_\d{3}\.))")
"""Folders above the image root with which tables may begin a path: CheXpert's begin with the release's name; MIMIC's
files/ and NIH's images/ are the root, and whether the prepared tables repeat it is not published."""


def modality_of(card: SourceCard, image: str) -> Modality:
    """The source's only modality; of a source with several, what a folder of the path says, else `mixed`."""
    if len(card.modalities) == 1:
        return card.modalities[0]
    for folder in PurePosixPath(image).parts[:-1]:
        found = FOLDER_MODALITIES.get(folder.lower())
        if found in card.modalities:
            return found
    return "mixed"


def image_path(cell: str, layout: Layout) -> str | None:
    """The path below the image root that a cell names; None where it is empty or leaves the root.

    The suffix is added where it is not there yet, and what RELEASE finds is taken off.
    """
    path = safe_relative(cell)
    if path is None:
        return None
    path = RELEASE.sub("", path)
    return path if path.lower().endswith(layout.image_suffix.lower()) else path + layout.image_suffix


def patient_of(layout: Layout, image: str) -> str | None:
    return first_group(layout.patient_pattern, image)


def article_of(layout: Layout, image: str) -> str | None:
    return first_group(layout.article_pattern, image)


def bad_path(card: SourceCard, row: int, cell: str) -> Reject:
    """For a cell that names no image, or one outside the image folder."""
    reason = "its path leaves the source's image folder" if cell.strip() else "the row names no image file"
    return Reject(card.name, row, cell.strip(), reason)


def named_cells(path: Path, wanted: tuple[str | int, ...], delimiter: str) -> Iterator[tuple[str, ...] | None]:
    """The wanted cells of each row of a CSV file with a header, in the order of `wanted`; None for a row too short.

    Raises
    ------
    UserError : the file is absent, not UTF-8, separated by something else, or lacks a wanted column.
    """
    with open_text(path) as lines:
        rows = csv_rows(lines, delimiter, path)
        places = column_positions(path, next(rows, []), wanted, delimiter)
        for row in rows:
            yield tuple(row[place] for place in places) if len(row) > max(places) else None
