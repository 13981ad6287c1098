"""Label tables: what the labels of the sources mean in words, and how an image is called in a sentence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoseg.errors import UserError
from autoseg.records import Record, parse_toml
from vlm.schema import Modality, Slug

Phrase = Annotated[str, Field(pattern=r"^\w[^.;:{}|\n]*[^ .;:,{}|\n]$")]
ImagePhrase = Annotated[str, Field(pattern=r"^[A-Za-z{][^.;:|\n]*[^ .;:,|\n]$")]
LabelKind = Literal["finding", "normal", "denial", "region"]

GENERAL = "general"
"""The table whose image phrases are used where another table, or none, has nothing for a modality."""
_ARTICLE = re.compile(r"^(?:an?|the) ")
_SINGULAR_ENDINGS = ("ss", "sis", "us", "itis", "is")
"""Of words that end in s and are no plurals: stenosis, thrombus, abscess, retinitis."""


@dataclass(frozen=True)
class Noun:
    """A noun phrase as it stands in a sentence, with its article where one is due. plural : of its verb."""

    text: str
    plural: bool = False

    @property
    def bare(self) -> str:
        """Without its article: what stands behind "no" or "evidence of"."""
        return _ARTICLE.sub("", self.text)

    @property
    def possible(self) -> str:
        """With "possible" before the noun: "a possible effusion", "possible edema"."""
        article = _ARTICLE.match(self.text)
        return f"{'a ' if article else ''}possible {self.bare}"


class Label(Record):
    """One label of a source in words of our own.

    kind : "finding" (something that is seen), "normal" (the absence of disease), "denial" (the absence of one thing,
        `denied`) or "region" (a part of the body, which is no finding).
    phrases, plurals : noun phrases that fit behind "shows": singular ones with their article, and plural ones. Each is
        a name of the label by itself. also : further names; never written by the grammar, but known to the checks.
    denied : what is not there, like phrases, where these do not fit behind "no" or "no evidence of"; of a normal
        label, "abnormality" otherwise.
    graded_normal : of a normal label: whether its image may be called normal and unremarkable; false for "benign".
    disease : something that a patient has ("in a patient with …"). neutral : no disease, may stand beside "normal".
    implies : labels of the same table that are true with this one and need not be named beside it.
    deniable : whether its absence can be told in few words; false for "abnormality other than …".
    anatomy : of every image with this label. location : "in the lungs". images : image phrases of this label alone.
    modalities : in which the table's words hold; empty: in all. aliases : other spellings of the label.
    """

    kind: LabelKind = "finding"
    phrases: tuple[Phrase, ...] = ()
    plurals: tuple[Phrase, ...] = ()
    also: tuple[Phrase, ...] = ()
    denied: tuple[Phrase, ...] = ()
    graded_normal: bool = True
    disease: bool = False
    neutral: bool = False
    deniable: bool = True
    implies: tuple[str, ...] = ()
    anatomy: str | None = None
    location: str | None = None
    images: tuple[ImagePhrase, ...] = ()
    modalities: tuple[Modality, ...] = ()
    aliases: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_words(self) -> "Label":
        if self.kind == "denial" and not self.denied:
            raise ValueError("a denial needs `denied`: what is not there")
        if self.kind in ("finding", "region") and not self.phrases + self.plurals:
            raise ValueError(f"a {self.kind} needs phrases or plurals")
        return self

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """All phrases, singular ones first."""
        return (*(Noun(text) for text in self.phrases), *(Noun(text, plural=True) for text in self.plurals))

    @property
    def absences(self) -> tuple[Noun, ...]:
        """What is not there, where the label is denied; the plural of each is guessed where `denied` names it."""
        return tuple(Noun(text, looks_plural(text)) for text in self.denied) or self.nouns

    @property
    def names(self) -> tuple[str, ...]:
        """Every bare text that names the label."""
        texts = chain((noun.bare for noun in self.nouns), map(bare, (*self.also, *self.denied)))
        return tuple(dict.fromkeys(texts))


class LabelTable(Record):
    """presets/vlm/findings/<name>.toml: labels of sources → words, and modality → how its images are called.

    images : image phrases without article; {anatomy} is put in as an adjective ("chest"), {the} with its article.
    anatomy : of all images, where neither the label nor the source says it.
    labels : raw label text → its words. A label that is not here is looked up without regard to case, underscores,
        hyphens and slashes. exclusive : groups of labels of which an image has one at most.
    """

    name: Slug
    title: str
    anatomy: str | None = None
    images: dict[Modality, Annotated[tuple[ImagePhrase, ...], Field(min_length=1)]] = {}
    labels: dict[str, Label] = {}
    exclusive: tuple[tuple[str, ...], ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> "LabelTable":
        named = chain(*(label.implies for label in self.labels.values()), *self.exclusive)
        if unknown := sorted(set(named) - set(self.labels)):
            raise ValueError(f"labels are referred to that the table lacks: {', '.join(unknown)}")
        seen = dict[str, str]()
        for key, label in self.labels.items():
            for spelling in (key, *label.aliases):
                if (other := seen.setdefault(spelling_of(spelling), key)) != key:
                    raise ValueError(f"{spelling!r} is a spelling of two labels, {other!r} and {key!r}")
        return self

    @cached_property
    def spellings(self) -> Mapping[str, str]:
        """Spelling without case and punctuation → label of this table."""
        return {spelling_of(spelling): key for key, label in self.labels.items() for spelling in (key, *label.aliases)}

    @cached_property
    def rivals(self) -> Mapping[str, frozenset[str]]:
        """Label → labels that cannot be true with it."""
        return {key: frozenset(chain(*(group for group in self.exclusive if key in group))) - {key}
                for key in self.labels}

    def __hash__(self) -> int:
        """By name: tables are keys of caches, and a table's dictionaries cannot be hashed."""
        return hash(self.name)

    def key_of(self, label: str) -> str | None:
        """The table's own spelling of a label; None where the table lacks it."""
        return label if label in self.labels else self.spellings.get(spelling_of(label))


@cache
def load_table(name: str) -> LabelTable:
    """The label table of that name; UserError where there is none, or where it is not right."""
    path = Path(f"presets/vlm/findings/{name}.toml")
    if name not in TABLES():
        raise UserError(f"{path} does not exist; the label tables are {', '.join(TABLES())}.")
    text = (resources.files("presets") / "vlm" / "findings" / path.name).read_text(encoding="utf-8")
    table = parse_toml(LabelTable, text, path)
    if table.name != name:
        raise UserError(f"{path}: the table in it is called {table.name}; name the file {table.name}.toml.")
    return table


def TABLES() -> tuple[str, ...]:
    """The names of all label tables, sorted."""
    folder = resources.files("presets") / "vlm" / "findings"
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def words_of(label: str, table: LabelTable | None, modality: Modality) -> Label:
    """A label's words: the table's, or the label text itself where the table lacks it or means another modality."""
    key = table.key_of(label) if table is not None else None
    if table is not None and key is not None:
        words = table.labels[key]
        if not words.modalities or modality in words.modalities:
            return words
    return _from_text(label)


def describe(label: str, table: LabelTable | None, modality: Modality) -> str:
    """A label in plain words for a person or a language model: "a pleural effusion (or: pleural fluid)"."""
    words = words_of(label, table, modality)
    texts = [noun.text for noun in words.nouns] or [f"no {bare(text)}" for text in words.denied] or ["no abnormality"]
    return texts[0] if len(texts) == 1 else f"{texts[0]} (or: {', '.join(texts[1:])})"


def bare(text: str) -> str:
    """A noun phrase without its article."""
    return _ARTICLE.sub("", text)


def spelling_of(label: str) -> str:
    """A label without case, and with one space for every run of other characters than letters and digits."""
    return " ".join(re.findall(r"[^\W_]+", label.casefold())) or label.casefold()


def looks_plural(text: str) -> bool:
    """Whether the head of a noun phrase ends like a plural: a guess, for words that nobody put into a table."""
    head = re.split(r" (?:of|in|with|from|at|on|for|by) ", text)[0].rstrip()
    return head.endswith("s") and not head.endswith(_SINGULAR_ENDINGS)


@cache
def _from_text(label: str) -> Label:
    """Words for a label of no table: its own, with spaces for underscores and small letters where that is usual."""
    text = " ".join(_small(word) for word in re.sub(r"[_|.;:{}\s]+", " ", label).split()).strip(" ,-") or "finding"
    lower = text.casefold()
    if lower in ("normal", "healthy", "no finding", "no findings", "no abnormality"):
        return Label(kind="normal")
    if match := re.match(r"(?:no|non|without|absence of)[ -](.+)$", text, re.IGNORECASE):
        return Label(kind="denial", denied=(_allowed(match[1]),))
    kind: LabelKind = "normal" if re.match(r"(?:normal|healthy) \w", lower) else "finding"
    phrases = (_allowed(text),)
    return Label(kind=kind, plurals=phrases) if looks_plural(text) else Label(kind=kind, phrases=phrases)


def _allowed(text: str) -> str:
    """A text that is a `Phrase`: of two characters at least, the first a letter or digit."""
    text = re.sub(r"^[\W_]+", "", text).strip(" ,") or "finding"
    return text if len(text) > 1 else f"finding {text}"


def _small(word: str) -> str:
    """A word with a small first letter, unless it is written with other capitals or digits (COVID-19, pT1)."""
    return word.lower() if re.fullmatch(r"[A-Z][a-z-]+", word) else word
