"""Published tables that `table` reads, but for what only the paths say."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from autoseg.errors import UserError
from vlm.corpus.readers.articles import roco_articles, roco_number
from vlm.corpus.readers.opening import first_group
from vlm.corpus.readers.places import RELEASE, modality_of
from vlm.corpus.readers.table import read_table
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, SourceCard, Split

RADIMAGENET_ANATOMY = {
    "abd": "abdomen and pelvis", "af": "ankle and foot", "ankle": "ankle and foot", "brain": "brain", "hip": "hip",
    "knee": "knee", "lung": "chest", "shoulder": "shoulder", "spine": "spine", "thyroid": "thyroid",
}
"""Folders below radiology_ai/CT, MR and US; others leave the anatomy unsaid."""

ROCO_SPLITS: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}


def read_chexpert(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """As `read_table`; paths lose the release's name ("CheXpert-v1.0-small/"), which is the source's own folder."""
    for row in read_table(card, layout, folder):
        yield replace(row, image=RELEASE.sub("", row.image))


def read_radimagenet(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """As `read_table`; modality and anatomy are folders of the path ("radiology_ai/MR/knee/…")."""
    for row in read_table(card, layout, folder):
        if isinstance(row, Reject):
            yield row
            continue
        folders = PurePosixPath(row.image).parts[:-1]
        anatomy = next((RADIMAGENET_ANATOMY[name] for name in folders if name in RADIMAGENET_ANATOMY), card.anatomy)
        yield replace(row, modality=modality_of(card, row.image), anatomy=anatomy)


def read_roco(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """ROCOv2: tables <split>_captions.csv, then license_information.csv, which says the article of every image.

    Images lie in <split>/<ID>.jpg (splits train, valid, test), or without the split's folder where the image root is
    one of them. UserError: as `read_table`, and where the last table has no ID or PMCID.
    """
    if len(layout.index) < 2:  # noqa: PLR2004
        raise UserError(f"the layout {layout.name} of {card.name} names {len(layout.index)} tables; one of captions "
                        "and, last, that of licences were expected.")
    *tables, licences = layout.index
    articles = roco_articles(folder / licences)
    for row in read_table(card, layout.model_copy(update={"index": tuple(tables)}), folder):
        name = PurePosixPath(row.image).name
        split = first_group(r"_(train|valid|test)_", name)
        image = f"{split}/{name}" if split and layout.image_root == "." else row.image
        if isinstance(row, Reject):
            yield replace(row, image=image)
            continue
        number = roco_number(name.rsplit(".", 1)[0])
        yield replace(row, image=image, article=articles.get(number),
                      split=layout.split or ROCO_SPLITS.get(split or ""))
