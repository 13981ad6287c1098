"""`vlm sources`: which sources there are, how to get them, and what of them lies on this disk."""

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import Annotated

from cyclopts import Parameter

from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from vlm.corpus.registry import (
    LOOKED_AT,
    LayoutStatus,
    SourceStatus,
    column_names,
    layout_status,
    load_cards,
    read_card,
    status_of,
)
from vlm.schema import Layout, SourceCard

LINE = 100
"""Characters of a line of running text: what a terminal of usual width shows without a break."""


def sources(
    name: str | None = None,
    *,
    path: Path | None = None,
    data: Path | None = None,
    json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """List the sources that a corpus can be built from, or tell all about one of them.

    Parameters
    ----------
    name
        One source, or a TOML file with a source card of your own. Without it all sources are listed.
    path
        The folder in which that source lies: what is missing there is said, for each layout.
    data
        The folder below which the sources lie, each in the folder that its card names. Says of every source
        whether it is there: its index files are opened and its first images are looked for.
    json
        Print one JSON object on stdout.
    """
    if name is None:
        if path is not None:
            raise UserError(f"--path {path}: the folder of one source was given, but no source is named.\n"
                            "Name it: vlm sources NAME --path DIR; or show all sources of a folder with --data DIR.")
        _list_all(load_cards(), data, json)
        return 0
    if path is not None and data is not None:
        raise UserError(f"--path {path} and --data {data} both say where {name} lies. Give one of them.")
    card = _card(name)
    _tell_one(card, data / card.folder if data is not None else path, json)
    return 0


def _card(name: str) -> SourceCard:
    if name.endswith(".toml"):
        return read_card(Path(name))
    cards = load_cards()
    if name not in cards:
        near = get_close_matches(name.lower(), cards, n=3, cutoff=0.5)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"no source is called {name}.\n{meant}`vlm sources` lists all.")
    return cards[name]


def _list_all(cards: Mapping[str, SourceCard], data: Path | None, json: bool) -> None:
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data} is no folder. Name the folder below which the sources lie.")
    statuses = {name: status_of(card, data / card.folder) for name, card in cards.items()} if data is not None else {}
    if json:
        write_json_object({"sources": [
            {"name": card.name, "title": card.title, "part": card.part, "modalities": card.modalities,
             "access": card.access, "pairs_expected": card.pairs_expected, "folder": card.folder,
             "status": status_record(statuses[name]) if name in statuses else None}
            for name, card in cards.items()
        ]})
        return
    header = ("source", "UniMed part", "modalities", "access", "pairs", *(("on this disk",) if statuses else ()))
    rows = [
        (name, card.part or "-", ", ".join(card.modalities), card.access,
         f"{card.pairs_expected:,}" if card.pairs_expected is not None else "?",
         *((status_line(statuses[name]),) if statuses else ()))
        for name, card in cards.items()
    ]
    counted = Counter(card.access for card in cards.values())
    total = f"{len(cards)} sources: {', '.join(f'{count} {access}' for access, count in sorted(counted.items()))}."
    hint = "`vlm sources NAME --path DIR` tells about one of them and what is missing."
    if statuses:
        hint = f"complete: the index can be read, and its first {LOOKED_AT} images are there.\n{hint}"
    write_stdout("\n".join([format_columns((header, *rows)), "", total, hint]))


def _tell_one(card: SourceCard, folder: Path | None, json: bool) -> None:
    status, layouts = None, dict[str, LayoutStatus]()
    if folder is not None:
        status = status_of(card, folder)
        layouts = {layout.name: layout_status(card, layout, folder) for layout in card.layouts}
    if json:
        write_json_object({
            "card": card.model_dump(mode="json"), "folder": str(folder) if folder is not None else None,
            "status": status_record(status) if status is not None else None,
            "layouts": {name: {"missing": found.missing, "problem": found.problem} for name, found in layouts.items()},
        })
        return
    lines = [f"{card.name}: {card.title}", ""]
    pairs = "an unknown number of" if card.pairs_expected is None else f"{card.pairs_expected:,}"
    lines += _field("what", f"{', '.join(card.modalities)}; {pairs} pairs expected"
                    + (f"; UniMed's {card.part}" if card.part is not None else ""))
    lines += _field("access", card.access) + _field("obtain", card.obtain) + _field("licence", card.licence)
    lines += _field("cite", card.citation)
    for overlap in card.overlaps:
        lines += _field("overlap", f"{overlap.evaluation}: {overlap.said}")
    lines += _field("remarks", card.remarks) if card.remarks else []
    for layout in card.layouts:
        lines += ["", *_layout_lines(card, layout, layouts.get(layout.name))]
    if status is not None:
        lines += ["", f"{folder}: {status_line(status)}"]
        if status.state == "unreadable":
            lines.append(status.problem)
    write_stdout("\n".join(lines))


def _layout_lines(card: SourceCard, layout: Layout, found: LayoutStatus | None) -> list[str]:
    """What a layout consists of and, where it was looked for, what of it is missing."""
    columns = ", ".join(str(column) for column in column_names(layout))
    lines = [f"layout {layout.name} (reader {layout.reader}), below the folder {card.folder}/ of --data:"]
    lines += _field("  index", ", ".join(layout.index)) if layout.index else []
    lines += _field("  columns", columns) if columns else []
    lines += _field("  images", f"{layout.image_root}/")
    if found is not None:
        lines += [f"  missing   {one}" for one in found.missing] or ["  missing   nothing"]
        if found.problem:
            lines += ["  problem   " + found.problem.replace("\n", "\n            ")]
    return lines


def status_line(status: SourceStatus) -> str:
    """One line about a source on this disk."""
    if status.state == "complete":
        return f"complete, layout {status.layout}"
    if status.state == "images missing":
        return f"images missing, layout {status.layout}: {status.found} of the first {status.looked_at} are there"
    return "index cannot be read" if status.state == "unreadable" else "absent"


def status_record(status: SourceStatus) -> dict[str, object]:
    """The same for `--json`."""
    return {"state": status.state, "layout": status.layout, "looked_at": status.looked_at, "found": status.found,
            "problem": status.problem}


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows below each other in columns as wide as their widest cell; the first row is underlined."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _field(label: str, text: str) -> list[str]:
    """`label     text`, broken into lines that begin below the text."""
    return fill(text, LINE, initial_indent=label.ljust(12), subsequent_indent=" " * 12,
                break_long_words=False, break_on_hyphens=False).splitlines()
