"""UniMed's own shards, and tables whose captions are joined by the same markers."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from autoseg.errors import UserError
from vlm.corpus.readers.markers import marked_captions
from vlm.corpus.readers.places import article_of, bad_path, image_path, modality_of, named_cells, patient_of
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, SourceCard, Split

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TEXT_LIMIT = 1 << 20
"""Bytes of a text member: the longest report has some thousand; more than a million is no caption."""

Item = tuple[str, str, str]
"""(key, image member or "", text or "")."""


def read_unimed_shards(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Pairs of plain UniMed shards: tars whose members `<key>.jpg` and `<key>.txt` follow each other.

    layout.index : one shard of each folder (all `dataset-*.tar` beside it are read, sorted), or patterns. A row's
    image is `<tar>!<member>`, below the image root. The name's ending says nothing: PNG bytes are named .jpg too.

    Raises
    ------
    UserError : a folder without shards.
    """
    row = 0
    for shard in shard_files(layout, folder):
        name = shard.relative_to(folder / layout.image_root).as_posix()
        try:
            for key, member, text in _items(shard):
                image = f"{name}!{member}" if member else ""
                yield _row(card, row, image, text, layout.split) or Reject(
                    card.name, row, f"{name}!{member or key}", _lack(member, text))
                row += 1
        except (tarfile.TarError, OSError, EOFError) as error:
            yield Reject(card.name, row, name, f"the tar is damaged; its further pairs are lost: {error}")
            row += 1


def read_unimed_csv(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Rows of a table with an image and a text whose captions are joined by UniMed's markers.

    layout.columns : `image` and `caption` (names, or positions from 0); without them, columns of these names.
    UserError: a table is absent, not UTF-8, or lacks a column.
    """
    wanted = (layout.columns.get("image", "image"), layout.columns.get("caption", "caption"))
    row = 0
    for index in layout.index:
        for cells in named_cells(folder / index, wanted, layout.delimiter):
            yield _table_row(card, layout, row, cells)
            row += 1


def _table_row(card: SourceCard, layout: Layout, row: int, cells: tuple[str, ...] | None) -> SourceRow | Reject:
    if cells is None:
        return Reject(card.name, row, "", "the row has too few columns")
    image = image_path(cells[0], layout)
    if image is None:
        return bad_path(card, row, cells[0])
    captions = marked_captions(cells[1])
    if not captions:
        return Reject(card.name, row, image, "it has no caption")
    return SourceRow(
        row, image, modality_of(card, image), captions, anatomy=card.anatomy, view=card.view,
        patient=patient_of(layout, image), article=article_of(layout, image), split=layout.split,
        source_id=image.rsplit("/", 1)[-1],
    )


def shard_files(layout: Layout, folder: Path) -> tuple[Path, ...]:
    """The tars that a layout's index names, and those beside them that are named `dataset-*.tar`; sorted, each once."""
    found = set[Path]()
    for pattern in layout.index:
        named = [path for path in folder.glob(pattern) if path.is_file()]
        beside = [path for path in (folder / pattern).parent.glob("dataset-*.tar") if path.is_file()]
        found.update(named, beside)
    if not found:
        raise UserError(f"{folder}: no shard {', '.join(layout.index)} is there; tars of UniMed were expected.")
    return tuple(sorted(found))


def _items(shard: Path) -> Iterator[Item]:
    """Members of a tar, grouped by key, as they follow each other."""
    key, image, text = "", "", ""
    with tarfile.open(shard, mode="r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.suffix.lower() not in (*IMAGE_ENDINGS, ".txt"):
                continue
            own = path.with_suffix("").as_posix()
            if own != key and (image or text):
                yield key, image, text
                image, text = "", ""
            key = own
            if path.suffix.lower() == ".txt":
                text = _text(tar, member)
            else:
                image = member.name
    if image or text:
        yield key, image, text


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """What a text member says; a lone "\\0" where it is not text, so that the pair is rejected with a reason."""
    stream = tar.extractfile(member)
    content = b"\0" if stream is None or member.size > TEXT_LIMIT else stream.read()
    try:
        return content.decode("utf-8-sig").strip() or " "
    except UnicodeDecodeError:
        return "\0"


def _row(card: SourceCard, row: int, image: str, text: str, split: Split | None) -> SourceRow | None:
    captions = () if "\0" in text else marked_captions(text)
    if not image or not captions:
        return None
    return SourceRow(row, image, modality_of(card, image), captions, anatomy=card.anatomy, view=card.view,
                     split=split, source_id=PurePosixPath(image.rsplit("!", maxsplit=1)[-1]).stem)


def _lack(member: str, text: str) -> str:
    if not member:
        return "there is a text, but no image"
    if not text:
        return "there is an image, but no text"
    return "its text is not UTF-8, or too long for a caption" if "\0" in text else "its text is empty"
