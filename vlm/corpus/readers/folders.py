"""Images in folders whose names are their labels, without any list of them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from autoseg.errors import UserError
from vlm.corpus.readers.opening import first_group, told_or_found
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, Modality, SourceCard

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm", ".nii", ".nii.gz")
"""Files with other endings (lists, licences, thumbnails of a system) are no images and are passed over."""


def read_image_folders(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """One row per image file below the image root, in the order of the sorted paths.

    The label is the name of the folder directly below the image root; where `layout.splits` is given, the folders
    directly below the image root are named after the split (its keys) and the label's folder is one deeper. Deeper
    folders do not matter. With `layout.label_pattern` the label is what the pattern finds in the path. Names that begin
    with a dot and links to folders are passed over.

    Raises
    ------
    UserError : the image root does not exist, or holds no image at all.
    """
    root = folder / layout.image_root
    if not root.is_dir():
        raise UserError(f"{root} does not exist.\n`vlm sources {card.name} --path {folder}` says what is looked for.")
    modality: Modality = card.modalities[0] if len(card.modalities) == 1 else "mixed"
    row = -1
    for row, image in enumerate(image_files(root, layout.image_pattern)):
        made = _row(card, layout, modality, row, image)
        if made is not None:
            yield made
    if row < 0:
        raise UserError(f"{root} holds no image ({', '.join(IMAGE_ENDINGS)}).\nUnpack the source's files there.")


def image_files(root: Path, pattern: str | None = None) -> Iterator[str]:
    """Paths of the images below `root`, sorted folder by folder; only those in which `pattern` is found."""
    wanted = re.compile(pattern or "")
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        below = PurePosixPath(Path(parent).relative_to(root).as_posix())
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_ENDINGS):
                image = str(below / name)
                if wanted.search(image):
                    yield image


def _row(card: SourceCard, layout: Layout, modality: Modality, row: int, image: str) -> SourceRow | Reject | None:
    """None: the card leaves the image out."""
    parts = image.split("/")
    split = layout.split
    if layout.splits:
        told = layout.splits.get(parts[0])
        if told is None:
            return Reject(card.name, row, image, f"its top folder is none of {', '.join(sorted(layout.splits))}")
        if told == "":
            return None
        split, parts = told, parts[1:]
    if layout.label_pattern is not None:
        found = first_group(layout.label_pattern, image)
    else:
        found = parts[0] if len(parts) > 1 else None
    if found is None:
        return Reject(card.name, row, image, "its path names no label; it lies in no folder of a class")
    label = layout.rename.get(found, found)
    if label == "":
        return None
    patient = told_or_found(layout.patient_pattern, None, image)
    article = told_or_found(layout.article_pattern, None, image)
    return SourceRow(row, image, modality, labels=(label,), anatomy=card.anatomy, view=card.view, patient=patient,
                     article=article, split=split, source_id=image)
