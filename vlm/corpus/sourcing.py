"""The sources of one build: their cards, layouts and folders, checked together before any work begins."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import UserError, all_of
from autoseg.progress import ProgressBar, progress
from autoseg.records import content_hash, file_sha256
from vlm.corpus.readers import read_source
from vlm.corpus.registry import choose_layout
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, SourceCard


@dataclass(frozen=True)
class PresentSource:
    """A source on this disk."""

    card: SourceCard
    layout: Layout
    folder: Path

    @property
    def image_root(self) -> Path:
        return self.folder / self.layout.image_root


@dataclass(frozen=True)
class Survey:
    """What one reading of a source's index files found.

    rows : that its reader gave, rejects among them. left_out : that it did not give (another split, another part of a
    table); those behind the last given row are not known of. labels : distinct ones (of any standing), sorted.
    own_validation : some rows are in "val", or the layout puts all rows into one split. fingerprint : eight digits that
    change with the card, the index files and what the rows say (reports and texts of tars are no index files).
    """

    rows: int
    left_out: int
    labels: tuple[str, ...]
    own_validation: bool
    fingerprint: str


def find_sources(
    names: Sequence[str], cards: Mapping[str, SourceCard], data: Path, take_available: bool
) -> tuple[tuple[PresentSource, ...], tuple[str, ...]]:
    """(the sources below `data`, in the order of `names`; names of those that are not there).

    UserError: a name without a card, a name given twice; and, unless `take_available`, a source that is not complete:
    all of them at once, with their access.
    """
    unknown = [name for name in names if name not in cards]
    if unknown:
        raise UserError(f"no source is called {', '.join(unknown)}. `vlm sources` lists them.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError(f"the source {', '.join(twice)} is named twice; its pairs would have equal ids. Name it once.")
    present, missing = [], []
    for name in names:
        folder = data / cards[name].folder
        try:
            present.append(PresentSource(cards[name], choose_layout(cards[name], folder), folder))
        except UserError as error:
            # The first line names the folder, the second what the preferred layout lacks there.
            missing.append((name, str(error).splitlines()[1].removeprefix("  - ")))
    if missing and not take_available:
        raise all_of(
            [f"{name} ({cards[name].access}): {reason}" for name, reason in missing],
            f"{len(missing)} of {len(names)} sources are not complete below {data}:",
            "`vlm sources NAME --path DIR` says what is missing and how to get it. To build from what is here, add "
            "--available, or name sources with --sources.",
        )
    if not present:
        raise UserError(f"{data} holds none of the sources {', '.join(names)}.\n`vlm sources --data {data}` shows "
                        "what is looked for where.")
    return tuple(present), tuple(name for name, _ in missing)


def survey_sources(sources: Sequence[PresentSource]) -> dict[str, Survey]:
    """Read every index file once: hours of work do not begin where the last source's column is missing.

    Raises
    ------
    UserError : all sources whose index cannot be read, together.
    """
    surveys, problems = {}, []
    with progress("read", None, "rows") as bar:
        for source in sources:
            try:
                surveys[source.card.name] = _survey(source, bar)
            except UserError as error:
                problems.append(f"{source.card.name}: {error}")
    if problems:
        raise all_of(problems, f"{len(problems)} of {len(sources)} sources cannot be read:",
                     "Mend them, or leave them out with --sources.")
    return surveys


def _survey(source: PresentSource, bar: ProgressBar) -> Survey:
    rows, behind_last, labels, own_validation = 0, 0, set[str](), source.layout.split is not None
    said = hashlib.sha256()
    for row in read_source(source.card, source.layout, source.folder):
        rows += 1
        behind_last = max(behind_last, row.row + 1)
        said.update(_said(row))
        bar.advance(note=source.card.name)
        if not isinstance(row, Reject):
            labels.update(row.labels, row.uncertain, row.absent)
            own_validation = own_validation or row.split == "val"
    if rows == 0:
        raise UserError("its index files hold no row")
    return Survey(rows, behind_last - rows, tuple(sorted(labels)), own_validation,
                  _fingerprint(source, said.hexdigest()))


def _said(row: SourceRow | Reject) -> bytes:
    """All that a pair is made of but the image. (A row's `repr` would say it too, and cost minutes per million.)"""
    texts = [str(row.row), row.image]
    if isinstance(row, SourceRow):
        lists = (row.labels, row.uncertain, row.absent, [caption.text for caption in row.captions])
        texts += [str(one) for one in (row.slice_index, row.patient, row.article, row.split, row.modality, row.anatomy,
                                           row.view)]
        texts += ["\0".join(one) for one in lists]
    return "\1".join([*texts, ""]).encode()


def _fingerprint(source: PresentSource, said: str) -> str:
    files = {name: file_sha256(source.folder / name)
             for name in source.layout.index if (source.folder / name).is_file()}
    return content_hash({"card": source.card.model_dump(mode="json"), "layout": source.layout.name, "files": files,
                         "rows": said})
