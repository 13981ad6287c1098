"""File formats of text guidance: the lexicon's entries as a person writes them, and the record of a text bank."""

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, RootModel, field_validator, model_validator

from autoseg.records import Record

Side = Literal["left", "right"]
EntrySide = Literal["left", "right", "both", "none"]
"""Of a lexicon entry. both: a paired structure named without its side ("kidney"); none: there is one of it."""

Modality = Literal["CT", "MR", "US", "X-ray", "PET", "fundus", "OCT", "pathology", "endoscopy", "dermoscopy"]
"""Kind of device. pathology: any microscope image, of tissue or of single cells."""

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex8 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Text = Annotated[str, Field(min_length=1, max_length=300)]

PLACEHOLDERS = ("{side}", "{other}", "{s}")
"""In the texts of a paired structure: its side in a word, the other side in a word, its side's first letter."""
_FIELD = re.compile(r"\{[^}]*\}|[{}]")


# ---------------------------------------------------------------- presets/anatomy/*.toml
class SidedTexts(Record):
    """What is different on one side of a paired structure: these texts take the place of the common ones."""

    location: Text | None = None
    shape: Text | None = None
    neighbors: tuple[Text, ...] | None = None


class Structure(Record):
    """One table `[structures."name"]` of a lexicon file; the name is canonical.

    Attributes
    ----------
    sides : there is a left and a right one. The table gives three entries: "kidney", "left kidney", "right kidney".
    side : of a structure that is named with a side but has no mirror twin (a chamber of the heart).
    region : part of the body, as it stands behind "in the"; the file's `region` where absent.
    location : where it lies, with its preposition ("behind the stomach"); names the side, for paired ones as {side}.
    shape : with its article ("a bean-shaped organ").
    neighbors : what touches it or lies nearest, nearest first; names of other entries.
    synonyms : names that a person would say; sentences use them.
    abbreviations, spellings : other names by which it is found (datasets' words); sentences do not use them.
    tissue : a table of tissues.toml, which says how it looks; the file's `tissue` where absent.
    appearance : modality → how it looks there; takes the place of the tissue's text.
    left, right : what is different on that side.

    Texts of paired structures use the `PLACEHOLDERS`. Without a side "the {side} half" (or side) becomes "each half",
    elsewhere "{side} " is left out, and the text must read right then.
    """

    sides: bool = False
    side: Literal["left", "right", "none"] = "none"
    region: Text | None = None
    location: Text
    shape: Text
    neighbors: tuple[Text, ...] = ()
    synonyms: tuple[Text, ...] = ()
    abbreviations: tuple[Text, ...] = ()
    spellings: tuple[Text, ...] = ()
    tissue: str | None = None
    appearance: dict[Modality, Text] = {}
    left: SidedTexts | None = None
    right: SidedTexts | None = None

    @model_validator(mode="after")
    def _fits_its_sides(self) -> "Structure":
        texts = _texts(self)
        if unknown := {field for text in texts for field in _FIELD.findall(text)} - set(PLACEHOLDERS):
            raise ValueError(f"{', '.join(sorted(unknown))} is no placeholder; there are {', '.join(PLACEHOLDERS)}")
        if self.sides:
            given = {"left": self.left, "right": self.right}
            places = [(given[side] or SidedTexts()).location or self.location for side in given]
            if not all("{side}" in place or side in place for side, place in zip(given, places, strict=True)):
                raise ValueError("the location of a structure with sides = true must name the side: write {side}")
            if self.side != "none":
                raise ValueError("sides = true makes both sides; leave out `side`")
        elif self.left or self.right or any("{" in text for text in texts):
            raise ValueError("placeholders and the tables left and right belong to structures with sides = true")
        return self


class LexiconFile(Record):
    """presets/anatomy/<part>.toml, or a user's own: structures by canonical name, and what they have in common."""

    region: Text | None = None
    tissue: str | None = None
    structures: Annotated[dict[str, Structure], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_regions(self) -> "LexiconFile":
        lost = [name for name, structure in self.structures.items() if self.region is None and structure.region is None]
        if lost:
            raise ValueError(f"no region for {', '.join(lost)}: give the file or the structure a `region`")
        return self


class TissueFile(Record):
    """presets/anatomy/tissues.toml: kind of tissue → modality → how it looks."""

    tissues: dict[str, dict[Modality, Text]]


def _texts(structure: Structure) -> list[str]:
    return [
        structure.location, structure.shape, *structure.neighbors, *structure.synonyms, *structure.abbreviations,
        *structure.spellings, *structure.appearance.values(),
        *(text for part in (structure.left, structure.right) if part is not None
          for text in (part.location, part.shape, *(part.neighbors or ())) if text is not None),
    ]


# ---------------------------------------------------------------- in memory: one entry of the lexicon
class Entry(Record):
    """One structure of the lexicon, on one side where there are two; all names are spelled out.

    Attributes
    ----------
    canonical : the name, unique in the lexicon.
    synonyms : names that sentences may use; abbreviations, spellings : further names, only to find it by.
    side : see `EntrySide`.
    mirror : canonical name of the same structure on the other side; None where side is "both" or "none" and for
        structures without a mirror twin.
    halves : canonical names of the left and the right one, where side is "both"; else None.
    region, location, shape, neighbors, appearance : as in `Structure`.
    """

    canonical: str
    synonyms: tuple[str, ...]
    abbreviations: tuple[str, ...]
    spellings: tuple[str, ...]
    side: EntrySide
    mirror: str | None
    halves: tuple[str, str] | None
    region: str
    location: str
    shape: str
    neighbors: tuple[str, ...]
    appearance: dict[Modality, str]

    def __hash__(self) -> int:
        """By name: the appearance is a dictionary, which cannot be hashed."""
        return hash(self.canonical)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name by which the entry is found, the canonical one first."""
        return (self.canonical, *self.synonyms, *self.abbreviations, *self.spellings)


# ---------------------------------------------------------------- prompts.json
class PromptsFile(RootModel[dict[str, tuple[str, ...]]]):
    """Label → sentences, as `autoseg prompts` writes them and a person edits them; none: still to be written."""


# ---------------------------------------------------------------- bank.json
Precision = Literal["float32", "float16"]
Control = Literal["random", "orthonormal"]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""Kinds of tower that read no text."""
TowerKind = Literal["clip", "sentence-encoder", "random", "orthonormal"]
"""clip: the text tower of an image–text model; sentence-encoder: any other language model; the last two read no text
and are controls."""

COLLINEAR = 0.95
"""Cosine from which two vectors count as nearly the same: training can hardly tell their labels apart."""
PAIRS_KEPT = 100
"""So many near-collinear pairs are listed, the closest first; the others are counted."""


class Interval(Record):
    """A measured value with its confidence interval. measure : what was measured, in words."""

    value: float
    low: float
    high: float
    measure: str = ""


class TowerRecord(Record):
    """What turned the sentences into vectors.

    Attributes
    ----------
    sha256 : of its weights; None where it has none (random, orthonormal).
    seed : of the controls without weights.
    corpus : what it was trained on, in words; None where unknown.
    scores : measurement → value, as its own record states them.
    better_than_start : validation retrieval minus that of the weights it started from; None: not measured or not
        trained here.
    licence : of the weights, in words.
    """

    name: str
    kind: TowerKind
    sha256: Hex64 | None
    seed: int | None = None
    corpus: str | None = None
    scores: dict[str, float] = {}
    better_than_start: Interval | None = None
    licence: str


class CollinearPair(Record):
    """Two labels whose vectors point almost the same way."""

    first: str
    second: str
    cosine: float


class SimilaritySummary(Record):
    """Cosines between different labels' vectors; None where there is one label only.

    near_collinear : pairs from `COLLINEAR` on, the closest first, at most `PAIRS_KEPT` of near_collinear_count.
    """

    mean: float | None
    min: float | None
    max: float | None
    near_collinear_count: int
    near_collinear: tuple[CollinearPair, ...]


class TextBankRecord(Record):
    """bank.json beside bank.safetensors: what each row of the vectors stands for, and where it comes from.

    Attributes
    ----------
    names : label of each row.
    prompts : label → the sentences that its vector is the mean direction of; none for vectors that no text gave.
    prompts_sha256 : label → first 8 digits of its sentences' hash: names what was edited without encoding it anew.
    precision : of the stored vectors; in memory they are float32.
    sha256 : of the names and the stored vectors.
    """

    format: Literal["autoseg text bank 1"] = "autoseg text bank 1"
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    prompts: dict[str, tuple[str, ...]]
    prompts_sha256: dict[str, Hex8]
    tower: TowerRecord
    dimension: Annotated[int, Field(ge=1)]
    precision: Precision
    sha256: Hex64
    similarity: SimilaritySummary

    @field_validator("names")
    @classmethod
    def _are_unique(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names stand there twice: {', '.join(twice)}")
        return names

    @model_validator(mode="after")
    def _has_prompts_of_every_name(self) -> "TextBankRecord":
        for field, given in (("prompts", set(self.prompts)), ("prompts_sha256", set(self.prompts_sha256))):
            if given != set(self.names):
                odd = sorted(given.symmetric_difference(self.names))
                raise ValueError(f"{field} and names do not hold the same labels: {', '.join(odd[:10])}")
        return self
