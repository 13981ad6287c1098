"""Suites, prompts and published figures: read from the package's presets or a user's file, and completed."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TypeVar

from autoseg.errors import UserError, all_of
from autoseg.records import Record, parse_toml
from vlm.corpus.evaluation_sets import EvaluationCard, ImageListing, load_evaluation_cards
from vlm.corpus.toml_files import read_toml
from vlm.evaluation.suite_records import (
    GroupRule,
    Metric,
    PromptSet,
    PublishedFigures,
    Suite,
    SuiteSet,
)
from vlm.schema import Modality

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class SetPlan:
    """A set with nothing left to look up. prompts : class → sentences. images_expected : published number, where the
    listing is the card's. Further fields as of `SuiteSet`."""

    name: str
    title: str
    modality: Modality
    classes: tuple[str, ...]
    metric: Metric
    folder: str
    listing: ImageListing
    prompts: Mapping[str, tuple[str, ...]]
    train: Mapping[str, str]
    captions: str | None
    group: GroupRule | None
    source: str | None
    remarks: str
    images_expected: int | None = None


def suite_names() -> tuple[str, ...]:
    """The suites that come with the package."""
    return _preset_names("suites")


def read_suite(name: str) -> tuple[Suite, tuple[SetPlan, ...]]:
    """A suite by name or from a user's TOML file, and its completed sets.

    Raises
    ------
    UserError : no such suite; or a set lacks something that no evaluation card gives, or sentences for a class.
    """
    if name in suite_names():
        suite = _read_preset(Suite, "suites", name)
    else:
        path = Path(name)
        if path.suffix != ".toml" or not path.is_file():
            raise UserError(f"--suite {name}: neither a suite nor a TOML file. Suites: {', '.join(suite_names())}.")
        suite = read_toml(Suite, path, "A suite of image sets")
    cards = load_evaluation_cards()
    plans, problems = [], list[str]()
    for one in suite.sets:
        found = _complete(one, cards.get(one.name), problems)
        plans += [found] if found else []
    if problems:
        raise all_of(problems, f"Suite {name}: sets that are not complete:", "Complete the suite's file.")
    return suite, tuple(plans)


def choose_sets(plans: tuple[SetPlan, ...], names: tuple[str, ...]) -> tuple[SetPlan, ...]:
    """The sets of these names, in the suite's order; all where none is named. UserError with the nearest names."""
    known = [plan.name for plan in plans]
    problems = []
    for name in names:
        if name not in known:
            near = [one for one in known if name in one] or get_close_matches(name, known, 3)
            problems.append(f"{name}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    if problems:
        raise all_of(problems, "--sets names sets that are not in the suite:", f"Its sets: {', '.join(known)}.")
    return tuple(plan for plan in plans if not names or plan.name in names)


def read_published(name: str) -> PublishedFigures:
    """Figures of a publication that come with the package."""
    return _read_preset(PublishedFigures, "published", name)


def read_prompts(name: str) -> PromptSet:
    """A prompt preset. UserError with the names there are where there is none."""
    if name not in _preset_names("prompts"):
        raise UserError(f"There is no prompt preset {name}. Presets: {', '.join(_preset_names('prompts'))}.")
    return _read_preset(PromptSet, "prompts", name)


def _complete(one: SuiteSet, card: EvaluationCard | None, problems: list[str]) -> SetPlan | None:
    """The set with what its card gives; None where something is missing, which is told in `problems`."""
    if card is None and one.listing is None:
        problems.append(f"{one.name}: gives no listing, and there is no evaluation card of this name")
        return None
    listing = one.listing or (card.listing if card else None)
    modality = one.modality or (card.modality if card else None)
    folder = one.folder if one.folder is not None else (card.folder if card else None)
    classes = one.classes or (card.classes if card else ())
    if listing is None or modality is None or folder is None:
        missing = [name for name, value in (("modality", modality), ("folder", folder)) if value is None]
        problems.append(f"{one.name}: gives no {' and no '.join(missing)}")
        return None
    if not classes and one.captions is None:
        problems.append(f"{one.name}: gives neither classes nor a column of captions, so there is nothing to measure")
        return None
    found = len(problems)
    if listing.index is None and (one.train or one.captions or (one.group and one.group.column is not None)):
        problems.append(f"{one.name}: train, captions and a group's column need a listing with an index")
    prompts = _prompts(one, classes, problems) if classes else {}
    return None if len(problems) > found else SetPlan(
        name=one.name, title=one.title or (card.title if card else one.name), modality=modality, classes=classes,
        metric=one.metric or (card.metric if card else "balanced_accuracy"), folder=folder, listing=listing,
        prompts=prompts, train=one.train, captions=one.captions, group=one.group, source=one.source,
        remarks=one.remarks or (card.remarks if card else ""),
        images_expected=card.images_expected if card is not None and one.listing is None else None,
    )


def _prompts(one: SuiteSet, classes: tuple[str, ...], problems: list[str]) -> dict[str, tuple[str, ...]]:
    if isinstance(one.prompts, dict):
        said = dict(one.prompts)
    else:
        name = one.prompts or one.name
        if name not in _preset_names("prompts"):
            problems.append(f"{one.name}: gives no sentences, and there is no prompt preset {name}")
            return {}
        said = _read_preset(PromptSet, "prompts", name).by_class()
    if missing := [name for name in classes if not said.get(name)]:
        problems.append(f"{one.name}: classes without a sentence: {', '.join(missing)}")
    if unknown := sorted(set(said) - set(classes)):
        problems.append(f"{one.name}: sentences for what is no class: {', '.join(unknown)}")
    return {name: said.get(name, ()) for name in classes}


def _preset_names(kind: str) -> tuple[str, ...]:
    entries = (resources.files("presets") / "vlm" / kind).iterdir()
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml")))


def _read_preset(record: type[AnyRecord], kind: str, name: str) -> AnyRecord:
    file = resources.files("presets") / "vlm" / kind / f"{name}.toml"
    return parse_toml(record, file.read_text(encoding="utf-8"), Path(f"presets/vlm/{kind}/{name}.toml"))
