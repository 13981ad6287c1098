"""The files that a person writes for an evaluation: suites of image sets, the prompts of their classes."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from autoseg.records import Record
from vlm.corpus.evaluation_sets import ImageListing
from vlm.schema import Modality, Slug

Metric = Literal["accuracy", "balanced_accuracy", "auc"]
METRICS: tuple[Metric, ...] = ("accuracy", "balanced_accuracy", "auc")

Sentence = Annotated[str, Field(min_length=3, pattern=r"\S")]
Sentences = Annotated[tuple[Sentence, ...], Field(min_length=1)]


class PromptSet(Record):
    """presets/vlm/prompts/<name>.toml: what is said of each class of a set.

    templates, phrases : every phrase of a class is put into every template, at {}. sentences : of a class, as they are.
    """

    name: Slug
    templates: tuple[Sentence, ...] = ()
    phrases: dict[str, Sentences] = {}
    sentences: dict[str, Sentences] = {}
    remarks: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> "PromptSet":
        if bool(self.templates) != bool(self.phrases):
            raise ValueError("templates and phrases belong together; one of them is missing")
        if bad := [template for template in self.templates if template.count("{}") != 1]:
            raise ValueError(f"a template needs {{}} exactly once: {'; '.join(bad)}")
        if not self.phrases and not self.sentences:
            raise ValueError("neither sentences nor templates with phrases are given")
        return self

    def by_class(self) -> dict[str, tuple[str, ...]]:
        """Class → its sentences."""
        classes = dict.fromkeys((*self.phrases, *self.sentences))
        return {name: (*(template.replace("{}", phrase) for template in self.templates
                         for phrase in self.phrases.get(name, ())), *self.sentences.get(name, ()))
                for name in classes}


class GroupRule(Record):
    """Which images belong together (one patient, one volume), since they are no independent measurements.

    column : of the set's index, by name or position; None: the image's path. pattern : regular expression whose one
    group is the patient, searched there; an image without a match stands alone. None: the whole text.
    """

    column: str | Annotated[int, Field(ge=0)] | None = None
    pattern: str | None = None

    @field_validator("pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        _require_one_group(pattern)
        return pattern


class SuiteSet(Record):
    """One set of a suite. Whatever is not given is taken from the evaluation card of this name, if there is one.

    classes : none where the set serves retrieval only. metric : the one that stands for the set.
    folder : below --data. listing : its images, their classes; `where` keeps the test images.
    train : `where` that keeps images for a linear probe instead. captions : column with each image's caption, for
    retrieval. source : name of these images in a corpus, where --data is one.
    prompts : name of a prompt preset (by default the set's own name), or sentences by class.
    """

    name: Slug
    title: str = ""
    modality: Modality | None = None
    classes: tuple[str, ...] = ()
    metric: Metric | None = None
    folder: str | None = None
    listing: ImageListing | None = None
    train: dict[str, str] = {}
    captions: str | None = None
    group: GroupRule | None = None
    source: Slug | None = None
    prompts: Slug | dict[str, Sentences] | None = None
    remarks: str = ""

    @field_validator("folder")
    @classmethod
    def _is_below_data(cls, folder: str | None) -> str | None:
        if folder is not None and not _is_below(folder):
            raise ValueError(f"{folder!r} must lie below --data: no / in front, no ..")
        return folder

    @field_validator("listing")
    @classmethod
    def _can_be_read(cls, listing: ImageListing | None) -> ImageListing | None:
        if listing is None:
            return None
        if bool(listing.glob) == (listing.index is not None):
            raise ValueError("either glob or index is needed: where the images are listed")
        paths = (*listing.glob, listing.image_root, *([] if listing.index is None else [listing.index]))
        if outside := [path for path in paths if not _is_below(path)]:
            raise ValueError(f"{outside[0]!r} must lie below the set's folder: not empty, no / in front, no ..")
        if negative := [column for column in (listing.image, listing.label) if isinstance(column, int) and column < 0]:
            raise ValueError(f"column {negative[0]}: positions are counted from 0")
        _require_one_group(listing.label_pattern)
        return listing

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) == 1:
            raise ValueError(f"a single class ({classes[0]}) cannot be told from another; two are needed")
        if len(set(classes)) < len(classes):
            raise ValueError(f"a class is named twice: {', '.join(classes)}")
        return classes


def _is_below(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path.strip()) and not pure.is_absolute() and ".." not in pure.parts


def _require_one_group(pattern: str | None) -> None:
    try:
        if pattern is not None and re.compile(pattern).groups != 1:
            raise ValueError(f"{pattern!r} must have exactly one group")
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


class Suite(Record):
    """presets/vlm/suites/<name>.toml, or a user's file: the sets that a model is measured on.

    published : presets/vlm/published/<published>.toml, figures to be shown beside.
    """

    name: Slug
    title: str = ""
    published: Slug | None = None
    sets: Annotated[tuple[SuiteSet, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "Suite":
        names = [one.name for one in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"two sets have the same name: {', '.join(names)}")
        return self


class PublishedModel(Record):
    """Figures of a model in percent. average : over all sets. groups : by modality. sets : by name."""

    average: float | None = None
    groups: dict[Modality, float] = {}
    sets: dict[Slug, float] = {}


class PublishedFigures(Record):
    """presets/vlm/published/<name>.toml: what a publication prints for the sets of a suite."""

    name: Slug
    title: str
    remarks: str
    models: dict[str, PublishedModel]
