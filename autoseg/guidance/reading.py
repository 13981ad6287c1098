"""Lexicon files → entries: TOML parsed and checked, both sides of paired structures written out."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from autoseg.errors import UserError
from autoseg.guidance.records import Entry, EntrySide, LexiconFile, Modality, Side, SidedTexts, Structure, TissueFile
from autoseg.records import parse_toml

FOLDER = "presets/anatomy"
TISSUES = "tissues.toml"
HOW_TO_ADD = "docs/lexicon.md shows how an entry is written."
OTHER: dict[Side, Side] = {"left": "right", "right": "left"}

Written = dict[str, tuple[Structure, str]]
"""Canonical name → the structure, its region and appearance filled in, and the file that it stands in."""


def shipped_structures() -> Written:
    """All structures of presets/anatomy, as written."""
    tissues = shipped_tissues()
    written: Written = {}
    for name, text in _shipped_texts().items():
        if name == TISSUES:
            continue
        path = Path(FOLDER) / name
        for structure, value in structures_of(parse_toml(LexiconFile, text, path, HOW_TO_ADD), tissues, path).items():
            if structure in written:
                raise UserError(f"{path}: {structure!r} stands in {written[structure][1]} already.")
            written[structure] = value
    return written


def shipped_tissues() -> Mapping[str, dict[Modality, str]]:
    """How kinds of tissue look: presets/anatomy/tissues.toml."""
    return parse_toml(TissueFile, _shipped_texts()[TISSUES], Path(FOLDER) / TISSUES, HOW_TO_ADD).tissues


def extra_structures(path: Path) -> Written:
    """The structures of a user's own lexicon file; UserError where it is absent or not right."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; a lexicon file (TOML) was expected.\n{HOW_TO_ADD}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable UTF-8 text: {error}.\n{HOW_TO_ADD}") from None
    return structures_of(parse_toml(LexiconFile, text, path, HOW_TO_ADD), shipped_tissues(), path)


def structures_of(file: LexiconFile, tissues: Mapping[str, dict[Modality, str]], path: Path) -> Written:
    """A file's structures with the file's region and the tissue's looks filled in."""
    written: Written = {}
    for name, structure in file.structures.items():
        tissue = structure.tissue or file.tissue
        if tissue is not None and tissue not in tissues:
            raise UserError(f"{path}: structures.{name}: tissue {tissue!r} is none of {', '.join(sorted(tissues))}.\n"
                            "Take one of these, or leave it out and write `appearance`.")
        looks = {**(tissues[tissue] if tissue is not None else {}), **structure.appearance}
        filled = structure.model_copy(update={"region": structure.region or file.region, "appearance": looks})
        written[name] = (filled, str(path))
    return written


def entries_of(name: str, structure: Structure) -> tuple[Entry, ...]:
    """One entry; of a paired structure three: without a side, left, right."""
    if not structure.sides:
        return (_entry(name, structure, structure.side),)
    return (_entry(name, structure, "both"), _entry(name, structure, "left"), _entry(name, structure, "right"))


def _shipped_texts() -> dict[str, str]:
    folder = resources.files("presets") / "anatomy"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def _entry(name: str, structure: Structure, side: EntrySide) -> Entry:
    own = {"left": structure.left, "right": structure.right}.get(side) or SidedTexts()
    paired: Side | None = side if structure.sides and side in ("left", "right") else None
    return Entry(
        canonical=_name(name, paired),
        synonyms=tuple(_name(text, paired) for text in structure.synonyms),
        abbreviations=_short_names(structure.abbreviations, paired),
        spellings=_short_names(structure.spellings, paired),
        side=side,
        mirror=_name(name, OTHER[paired]) if paired else None,
        halves=(_name(name, "left"), _name(name, "right")) if side == "both" else None,
        region=_text(structure.region or "", paired),
        location=_text(own.location or structure.location, paired),
        shape=_text(own.shape or structure.shape, paired),
        neighbors=tuple(_text(text, paired) for text in (own.neighbors or structure.neighbors)),
        appearance={modality: _text(text, paired) for modality, text in structure.appearance.items()},
    )


def _name(template: str, side: Side | None) -> str:
    """A name on one side: where it says {side}, else behind the word of side; without a side as it is."""
    if side is None or "{side}" in template:
        return _text(template, side)
    return f"{side} {template}"


def _short_names(templates: tuple[str, ...], side: Side | None) -> tuple[str, ...]:
    """Abbreviations on one side. Those with {s} ("{s}k") mean a side, so there are none without one."""
    if side is None:
        return tuple(_text(text, None) for text in templates if "{s}" not in text)
    return tuple(text.replace("{s}", side[0]) if "{s}" in text else _name(text, side) for text in templates)


def _text(template: str, side: Side | None) -> str:
    """A text on one side; without a side, the words of side are left out, and "the {side} half" is each half."""
    if side is None:
        for part in ("half", "side"):
            template = template.replace(f"the {{side}} {part}", f"each {part}")
        return template.replace("{side} ", "").replace("{other} ", "")
    return template.replace("{side}", side).replace("{other}", OTHER[side])
