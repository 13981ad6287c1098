"""Cards of all sources: read and checked, and what of a source lies on this disk."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import Literal

from autoseg.errors import UserError, all_of
from autoseg.records import parse_toml
from vlm.corpus.image_files import TAR_MARK
from vlm.corpus.readers import read_source
from vlm.corpus.readers.folders import image_files
from vlm.corpus.rows import Reject
from vlm.corpus.toml_files import read_toml
from vlm.schema import Layout, SourceCard

State = Literal["complete", "images missing", "unreadable", "absent"]
LOOKED_AT = 200
"""Images that are looked for before a source is called complete: enough to see that they were not unpacked, and cheap
on a network disk. The build itself counts every missing image."""


@dataclass(frozen=True)
class SourceStatus:
    """What of a source lies in its folder.

    layout : the one that would be read; None where none is there. looked_at, found : the first images of the source
    that were looked for, and those of them that are there. problem : why it cannot be read, else "".
    """

    state: State
    layout: str | None = None
    looked_at: int = 0
    found: int = 0
    problem: str = ""


@dataclass(frozen=True)
class LayoutStatus:
    """What of one layout is not in a folder (`missing`), and why its index cannot be read ("" where it can)."""

    missing: tuple[str, ...]
    problem: str = ""


def load_cards() -> dict[str, SourceCard]:
    """The cards that come with the package, by name, sorted. UserError naming every card that is not right."""
    files = sorted((file for file in (_presets() / "sources").iterdir() if file.name.endswith(".toml")),
                   key=lambda file: file.name)
    return checked_cards((Path(f"presets/vlm/sources/{file.name}"), file.read_text(encoding="utf-8")) for file in files)


def read_card(path: Path) -> SourceCard:
    """A card of a user's own, checked like the others; its file may have any name."""
    card = read_toml(SourceCard, path, "A source card")
    if problem := _problem(card):
        raise UserError(f"{path}: {problem}.\nCorrect the card.")
    return card


def with_own_cards(cards: Mapping[str, SourceCard], paths: Iterable[Path]) -> dict[str, SourceCard]:
    """`cards` and a user's own, sorted by name. UserError for two of one name: their pairs would have equal ids."""
    merged, came_from, problems = dict(cards), dict[str, str](), list[str]()
    for path in paths:
        card = read_card(path)
        if card.name in merged:
            problems.append(f"{path}: {card.name} is already the name of {came_from.get(card.name, 'a preset')}")
            continue
        merged[card.name], came_from[card.name] = card, str(path)
    if problems:
        raise all_of(problems, "Two sources have the same name:", "Give each source a name of its own.")
    return dict(sorted(merged.items()))


def checked_cards(texts: Iterable[tuple[Path, str]]) -> dict[str, SourceCard]:
    """Cards by name from (path, TOML text). UserError naming all that are not right: a key, a file that is not named
    like its card, a name given twice, a label table that does not exist."""
    cards, problems = dict[str, SourceCard](), list[str]()
    for path, text in texts:
        try:
            card = parse_toml(SourceCard, text, path)
        except UserError as error:
            problems.append(str(error))
            continue
        if path.stem != card.name:
            problems.append(f"{path}: its card is called {card.name}; name the file {card.name}.toml")
        if card.name in cards:
            problems.append(f"{path}: another card is called {card.name} already")
        if problem := _problem(card):
            problems.append(f"{path}: {problem}")
        cards[card.name] = card
    if problems:
        raise all_of(problems, f"{len(problems)} source cards cannot be used:", "Correct them.")
    return dict(sorted(cards.items()))


def choose_layout(card: SourceCard, folder: Path) -> Layout:
    """The first of the card's layouts whose files are all in `folder`; UserError with what each layout lacks."""
    problems = []
    for layout in card.layouts:
        missing = missing_files(card, layout, folder)
        if not missing:
            return layout
        problems.append(f"layout {layout.name}: no {', no '.join(missing)}")
    raise all_of(problems, f"{folder} holds no complete layout of {card.name}; each lacks something:",
                 f"To get it: {card.obtain}")


def missing_files(card: SourceCard, layout: Layout, folder: Path) -> tuple[str, ...]:
    """What of a layout's index files and folders is not in `folder`, as paths below it, sorted as the layout has them.

    Images are not looked for one by one; of `image_folders` the folders of the splits, else those that are renamed to
    labels, must be there and the image root must hold an image.
    """
    if not folder.is_dir():
        return (f"folder {folder}",)
    missing = [name for name in layout.index if not _is_there(folder, name)]
    folders = [layout.image_root, *([layout.text_root] if layout.text_root is not None else [])]
    if layout.reader == "image_folders" and (folder / layout.image_root).is_dir():
        below = layout.splits or ({} if layout.label_pattern is not None else layout.rename)
        folders += [f"{layout.image_root}/{name}".removeprefix("./") for name in below if below[name]]
    missing += [f"{name}/" for name in folders if not (folder / name).is_dir()]
    if layout.reader == "image_folders" and not missing:
        first = next(image_files(folder / layout.image_root, layout.image_pattern), None)
        missing += [] if first else [f"image below {layout.image_root}/"]
    return tuple(missing)


def status_of(card: SourceCard, folder: Path, looked_at: int = LOOKED_AT) -> SourceStatus:
    """What of a source lies in `folder`: its index is begun to be read, and its first images are looked for."""
    try:
        layout = choose_layout(card, folder)
    except UserError as error:
        return SourceStatus("absent", problem=str(error))
    root = folder / layout.image_root
    try:
        # Rejects are among the rows looked at: an index of nothing but rejects is not read to its end.
        rows = islice(read_source(card, layout, folder), looked_at)
        images = [row.image for row in rows if not isinstance(row, Reject)]
    except UserError as error:
        return SourceStatus("unreadable", layout.name, problem=str(error))
    if not images:
        return SourceStatus("unreadable", layout.name, problem=f"none of its first {looked_at} rows can be used")
    found = sum(_image_is_there(root, image) for image in images)
    return SourceStatus("complete" if found == len(images) else "images missing", layout.name, len(images), found)


def layout_status(card: SourceCard, layout: Layout, folder: Path) -> LayoutStatus:
    """What a layout lacks: files and, where its index files are there (the images may be missing), columns."""
    missing = missing_files(card, layout, folder)
    if layout.reader == "image_folders" or not folder.is_dir() or set(missing) & set(layout.index):
        return LayoutStatus(missing)
    try:
        next(iter(read_source(card, layout, folder)), None)
    except UserError as error:
        return LayoutStatus(missing, str(error))
    return LayoutStatus(missing)


def column_names(layout: Layout) -> tuple[str | int, ...]:
    """The columns (names, or positions from 0) that a layout's index files must have, each once."""
    return tuple(dict.fromkeys((*layout.columns.values(), *layout.findings, *layout.where)))


def _is_there(folder: Path, name: str) -> bool:
    """Whether an index file, or for a pattern any file, lies below `folder`."""
    return (folder / name).is_file() or ("*" in name and any(path.is_file() for path in folder.glob(name)))


def _image_is_there(root: Path, image: str) -> bool:
    """Of a member of a tar, only the tar is looked for."""
    tar, mark, _ = image.partition(TAR_MARK)
    try:
        return (root / (f"{tar}.tar" if mark else image)).is_file()
    except OSError:  # a name that is too long for a file, a folder that may not be entered
        return False


def _presets() -> Traversable:
    return resources.files("presets") / "vlm"


def _problem(card: SourceCard) -> str:
    """Why no reader could use the card; "" where one can."""
    if card.label_table is not None and not (_presets() / "findings" / f"{card.label_table}.toml").is_file():
        return f"its label table presets/vlm/findings/{card.label_table}.toml does not exist"
    for layout in card.layouts:
        if len(layout.delimiter) != 1:
            return f"the delimiter of its layout {layout.name} is {layout.delimiter!r}; one character was expected"
        if layout.label_separator == "":
            return f"the label_separator of its layout {layout.name} is empty; leave it out for one label per cell"
        if negative := [str(place) for place in layout.columns.values() if isinstance(place, int) and place < 0]:
            return f"its layout {layout.name} names column {', '.join(negative)}; the first is 0"
    return ""
