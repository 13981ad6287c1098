"""The captions of a row: its own, and those made from its labels, by the grammar or from what a model wrote before."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoseg.progress import progress
from vlm.corpus.captions.backends import CaptionWriter, GrammarWriter
from vlm.corpus.inspection import can_be_said, label_set, table_of
from vlm.corpus.rows import LabelSet, SourceRow
from vlm.corpus.staged import write_lines
from vlm.schema import Caption, CaptionKind, SourceCard

MADE_FROM_LABELS: tuple[CaptionKind, ...] = ("template", "generated")
CACHED_SETS = 8192

Asked = tuple[str | None, LabelSet]
"""(name of the label table, labels): all that captions from labels depend on."""


def asked_of(row: SourceRow, card: SourceCard) -> Asked | None:
    """What captions are to be made of for a row; None where it brings such captions, or has no label that
    can be put into words."""
    if any(caption.kind in MADE_FROM_LABELS for caption in row.captions):
        return None
    labels = label_set(row, card)
    return (card.label_table, labels) if can_be_said(labels, card.label_table) else None


def captions_of(row: SourceRow, card: SourceCard, count: int, written: Path | None) -> tuple[Caption, ...]:
    """A row's own captions first, then `count` made from its labels; no text twice.

    written : file of `write_captions`; None: the grammar makes them.
    """
    asked = asked_of(row, card)
    if asked is None:
        made: tuple[Caption, ...] = ()
    else:
        made = _by_grammar(asked, count) if written is None else _written(written).get(asked, ())
    distinct: dict[str, Caption] = {}
    for caption in (*row.captions, *made):
        distinct.setdefault(caption.text, caption)
    return tuple(distinct.values())


def write_captions(asked: Iterable[Asked], writer: CaptionWriter, count: int, path: Path) -> int:
    """Let a model write the captions of every label set, and put them into `path`; the number of label sets.

    UserError of the writer; what it wrote before is in its cache.
    """
    distinct = sorted(set(asked), key=repr)
    lines = []
    with progress("write captions", len(distinct), "label sets") as bar:
        for table, labels in distinct:
            captions = writer.write(labels, table_of(table), count)
            lines.append({"table": table, "labels": asdict(labels),
                          "captions": [caption.model_dump(mode="json") for caption in captions]})
            bar.advance()
    return write_lines(lines, path)


@lru_cache(maxsize=CACHED_SETS)
def _by_grammar(asked: Asked, count: int) -> tuple[Caption, ...]:
    table, labels = asked
    return GrammarWriter().write(labels, table_of(table), count)


@lru_cache(maxsize=1)
def _written(path: Path) -> Mapping[Asked, tuple[Caption, ...]]:
    with path.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    return {(line["table"], _labels(line["labels"])):
            tuple(Caption.model_validate(caption) for caption in line["captions"]) for line in lines}


def _labels(content: dict[str, Any]) -> LabelSet:
    lists = {name: tuple(content[name]) for name in ("present", "uncertain", "absent")}
    return LabelSet(**(content | lists))
