"""Readers by name: each turns a source's files into rows, streaming, and rejects what it cannot use."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from vlm.corpus.readers.opening import has_no_surrogate
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, ReaderName, SourceCard

Reader = Callable[[SourceCard, Layout, Path], Iterator[SourceRow | Reject]]
"""(card, layout, the source's folder) → rows in a fixed order. UserError for what concerns the whole source (a missing
file or column: which, and which exist; a wrong delimiter; text that is not UTF-8), a `Reject` for one row."""

READERS: dict[ReaderName, str] = {
    "image_folders": "vlm.corpus.readers.folders:read_image_folders",
    "table": "vlm.corpus.readers.table:read_table",
    "unimed_shards": "vlm.corpus.readers.unimed:read_unimed_shards",
    "unimed_csv": "vlm.corpus.readers.unimed:read_unimed_csv",
    "caption_lists": "vlm.corpus.readers.caption_lists:read_caption_lists",
    "openi": "vlm.corpus.readers.openi:read_openi",
    "openi_xml": "vlm.corpus.readers.openi:read_openi_xml",
    "mimic_cxr": "vlm.corpus.readers.mimic:read_mimic_cxr",
    "llava_med_alignment": "vlm.corpus.readers.llava_med:read_alignment",
    "llava_med_instruct": "vlm.corpus.readers.llava_med:read_instruct",
    "retina_captions": "vlm.corpus.readers.retina:read_captions",
    "den": "vlm.corpus.readers.retina:read_den",
    "chexpert": "vlm.corpus.readers.adapted:read_chexpert",
    "radimagenet": "vlm.corpus.readers.adapted:read_radimagenet",
    "roco": "vlm.corpus.readers.adapted:read_roco",
}


def read_source(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """The rows of a source under `folder`, as its layout's reader gives them; a row with a name that is no Unicode
    (of a file or folder in another encoding) is a reject: no list or shard could hold the name."""
    module, function = READERS[layout.reader].split(":")
    reader: Reader = getattr(import_module(module), function)
    return (row if _is_unicode(row) else Reject(card.name, row.row, row.image.encode(errors="replace").decode(),
                                                "its name is not UTF-8; rename the file, or its folder")
            for row in reader(card, layout, folder))


def _is_unicode(row: SourceRow | Reject) -> bool:
    texts = [row.image]
    if isinstance(row, SourceRow):
        texts += [row.source_id, row.patient or "", row.article or "", *row.labels, *row.uncertain, *row.absent]
    return all(has_no_surrogate(text) for text in texts)
