"""The choices of a person about a training: one frozen value; a preset is a named set of them in a TOML file."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Literal, TypeVar, get_args, get_origin

from autoseg.errors import UserError
from autoseg.schema import NormalizationChoice

MirrorChoice = Literal["auto", "nnunet", "none"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
CachingChoice = Literal["auto", "resident", "streamed"]
OptimizerChoice = Literal["auto", "sgd", "adamw"]
DomainGeneralization = Literal["none", "gin", "slaug", "ccsdg"]
TextGeometry = Literal["centred", "raw", "orthonormal", "random", "shuffled", "rotated", "learned"]
TextRoute = Literal["alignment", "heads", "gram"]
FREEZABLE = ("none", "encoder", "backbone")
FlatSettings = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Numbers of one optimizer that replace the plan's or the recipe's; None keeps those.

    The fields are those of `autoseg.schema.OptimizerPlan`.
    """

    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    gradient_clip: float | None = None
    warmup_share: float | None = None

    def given(self) -> dict[str, float]:
        """The numbers that replace others."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Numbers of text guidance (`--text-guided`); section [guidance] of a preset.

    Attributes
    ----------
    weight : of the guidance's loss beside the segmentation's, once it has risen.
    ramp_share : the share of the schedule over which the weight rises from zero, linearly.
    temperature : of the softmax over candidates.
    text_weight : of the loss between regions and vectors; 0 leaves the views' consistency alone.
    consistency_weight : of the loss between two views of one region, where the method has two views.
    distractors : so many names of the bank that the dataset lacks stand as wrong answers beside its labels.
    """

    weight: float = 0.1
    ramp_share: float = 0.1
    temperature: float = 0.1
    text_weight: float = 1.0
    consistency_weight: float = 0.5
    distractors: int = 24


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """nnU-Net's recipe by default (reference: nnunetv2 nnUNetTrainer).

    Attributes
    ----------
    epochs, steps_per_epoch : the schedule's length; the learning rate reaches its end with the last epoch.
    validation_steps : batches of random validation patches per epoch, for the pseudo-Dice.
    max_minutes : training ends after this long even if epochs are left, and the rate reaches its end then.
    max_batch_size : an upper bound on the plan's batch size (small machines); None keeps the plan's.
    optimizer : `auto` is the plan's.
    sgd, adamw : numbers for the case that this optimizer is used; sections [sgd] and [adamw] of a preset.
    pretraining : numbers of `pretrain-init`'s optimizer (AdamW); section [pretraining].
    learning_rate : of the optimizer that is used, whichever it is; from the command line, and beats all others.
    rate_power : after the warm-up the rate falls as (1 − progress)^rate_power.
    foreground_fraction : share of each batch's patches that must contain foreground.
    mirror : `auto` leaves out the left-right axis where labels differ only in side; `nnunet` mirrors every axis.
    checkpoint_minutes : a resumable state is written at least this often (at the end of an epoch).
    augment : False leaves patches as they are stored; augment_intensity: False turns and mirrors them only.
    normalization : `auto` is the plan's, or what domain generalization needs where the plan's will not do.
    domain_generalization : views that make a network survive another scanner, sequence or modality.
    text_guided : train with the vectors of a text bank; text_route: by which way they act.
    freeze : first weights that stay as they are: `none`, `encoder`, `backbone` (all but the heads), or the number of
        encoder stages.
    """

    epochs: int = 1000
    steps_per_epoch: int = 250
    validation_steps: int = 50
    max_minutes: float | None = None
    max_batch_size: int | None = None
    optimizer: OptimizerChoice = "auto"
    sgd: OptimizerSettings = field(default_factory=OptimizerSettings)
    adamw: OptimizerSettings = field(default_factory=OptimizerSettings)
    pretraining: OptimizerSettings = field(default_factory=OptimizerSettings)
    learning_rate: float | None = None
    rate_power: float = 0.9
    foreground_fraction: float = 0.33
    augment: bool = True
    augment_intensity: bool = True
    normalization: NormalizationChoice = "auto"
    domain_generalization: DomainGeneralization = "none"
    gin_views: int = 1
    text_guided: bool = False
    text_geometry: TextGeometry = "centred"
    text_route: TextRoute = "alignment"
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    freeze: str = "none"
    mirror: MirrorChoice = "auto"
    precision: PrecisionChoice = "auto"
    caching: CachingChoice = "auto"
    checkpoint_minutes: float = 5.0

    def flat(self) -> FlatSettings:
        """The settings as a flat JSON-able dictionary; numbers of an optimizer are named as "sgd.momentum"."""
        flat: FlatSettings = {}
        for name, value in asdict(self).items():
            flat |= {f"{name}.{key}": inner for key, inner in value.items()} if name in SECTIONS else {name: value}
        return flat


SECTIONS: dict[str, type] = {one.name: one.type for one in fields(TrainSettings) if isinstance(one.type, type)
                             and is_dataclass(one.type)}
OPTIMIZER_SECTIONS = tuple(name for name, kind in SECTIONS.items() if kind is OptimizerSettings)
OPTIMIZER_KEYS = tuple(one.name for one in fields(OptimizerSettings))
AnySettings = TypeVar("AnySettings", TrainSettings, OptimizerSettings, GuidanceSettings)


def settings_from_flat(flat: Mapping[str, object], source: str) -> TrainSettings:
    """The settings that `flat` made a dictionary of; UserError naming `source` where they are of another version."""
    nested: dict[str, object] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot and section in SECTIONS:
            nested[section] = {**nested.get(section, {}), name: value}  # type: ignore[dict-item]
        else:
            nested[key] = value
    if problems := _problems(TrainSettings, nested):
        raise UserError("\n".join([f"{source} holds settings of another version of autoseg:", *problems,
                                   "Start anew with --overwrite, or continue with the version that wrote it."]))
    return _checked(_typed(TrainSettings, nested), source)


def preset_names() -> list[str]:
    """Names of the training presets that come with autoseg."""
    folder = resources.files("presets") / "training"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str) -> TrainSettings:
    """A preset by name, or from a TOML file; UserError naming unknown or ill-typed keys."""
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"{path}: there is no such preset file. Give a TOML file or one of: "
                            f"{', '.join(preset_names())}.")
        text = _read_text(path)
    elif name in preset_names():
        text = (resources.files("presets") / "training" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise UserError(f"--preset {name}: no such preset. Known: {', '.join(preset_names())}; "
                        "or give the path of a .toml file.")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not valid TOML: {error}. Correct the file.") from None
    return _settings_from(content, f"preset {name}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable UTF-8 text: {error}.\nCorrect the file or its permissions.") from None


def override(settings: TrainSettings, **choices: object) -> TrainSettings:
    """The settings with every choice that is not None put in; UserError on values that make no sense."""
    chosen = {name: value for name, value in choices.items() if value is not None}
    return _checked(replace(settings, **chosen), "the command line")  # type: ignore[arg-type]


def _settings_from(content: dict[str, object], source: str) -> TrainSettings:
    problems = [f"  - {key}: put it into the section of an optimizer, [sgd], [adamw] or [pretraining]"
                for key in content if key in OPTIMIZER_KEYS]
    problems += _problems(TrainSettings, {key: value for key, value in content.items() if key not in OPTIMIZER_KEYS})
    if problems:
        raise UserError("\n".join([f"{source}:", *problems, "Correct the file."]))
    return _checked(_typed(TrainSettings, content), source)


def _problems(kind: type, content: Mapping[str, object], prefix: str = "") -> list[str]:
    """One line for every key that the dataclass does not have, and every value of another type."""
    known = {one.name: one.type for one in fields(kind)}
    problems = []
    for key, value in content.items():
        expected = known.get(key)
        if expected is None:
            problems.append(f"  - {prefix}{key}: unknown; known are {', '.join(known)}")
        elif isinstance(expected, type) and is_dataclass(expected):
            problems += (_problems(expected, value, f"{key}.") if isinstance(value, dict)
                         else [f"  - {key} = {value!r}: expected a section [{key}]"])
        elif not _fits(value, expected):
            problems.append(f"  - {prefix}{key} = {value!r}: expected {expected}")
    return problems


def _typed(kind: type[AnySettings], content: Mapping[str, object]) -> AnySettings:
    """The dataclass with these values, which have no `_problems`."""
    known = {one.name: one.type for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: _as(value, known[key]) for key, value in content.items()})  # type: ignore[arg-type]


def _as(value: object, kind: object) -> object:
    """A table becomes its dataclass; an integer where the field is a real number becomes one."""
    if isinstance(value, dict):
        return _typed(kind, value)  # type: ignore[type-var, arg-type]
    return float(value) if type(value) is int and int not in (get_args(kind) or (kind,)) else value


def _fits(value: object, kind: object) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if float in options and type(value) is int:
        return True
    return type(value) in options


def _checked(settings: TrainSettings, source: str) -> TrainSettings:
    minimum = {"epochs": 1, "steps_per_epoch": 1, "validation_steps": 0, "max_batch_size": 1, "rate_power": 0}
    given = {name: value for name in minimum if (value := getattr(settings, name)) is not None}
    problems = [f"{name} is {value}; a finite number, at least {minimum[name]}, was expected"
                for name, value in given.items() if not minimum[name] <= value < math.inf]
    if settings.max_minutes is not None and not 0 < settings.max_minutes < math.inf:
        problems.append(f"max_minutes is {settings.max_minutes}; a number above 0 was expected")
    if settings.gin_views not in (1, 2):
        problems.append(f"gin_views is {settings.gin_views}; 1, or 2 for the blend of two, was expected")
    if settings.freeze not in FREEZABLE and not re.fullmatch("[1-9][0-9]*", settings.freeze):
        problems.append(f"freeze is {settings.freeze!r}; {', '.join(FREEZABLE)} or a number of encoder stages, from 1, "
                        "was expected")
    if not 0 <= settings.foreground_fraction <= 1:
        problems.append(f"foreground_fraction is {settings.foreground_fraction}; 0 to 1 was expected")
    numbers = [("learning_rate", settings.learning_rate)] if settings.learning_rate is not None else []
    numbers += [(f"{section}.{name}", value) for section in OPTIMIZER_SECTIONS
                for name, value in getattr(settings, section).given().items()]
    problems += [line for name, value in numbers for line in _optimizer_problems(name, value)]
    problems += _guidance_problems(settings.guidance)
    if problems:
        raise UserError("\n".join([f"Settings from {source} make no sense:", *(f"  - {p}" for p in problems),
                                   "Correct these values."]))
    return settings


def _guidance_problems(guidance: GuidanceSettings) -> list[str]:
    wrong = [name for name, value in asdict(guidance).items() if not 0 <= value < math.inf]
    problems = [f"guidance.{name} is {getattr(guidance, name)}; 0 or more was expected" for name in wrong]
    if guidance.temperature == 0:
        problems.append("guidance.temperature is 0; a number above 0 was expected")
    return problems


def _optimizer_problems(name: str, value: float) -> list[str]:
    kind = name.rpartition(".")[2]
    if kind in ("learning_rate", "gradient_clip"):
        return [] if 0 < value < math.inf else [f"{name} is {value}; a number above 0 was expected"]
    if kind == "weight_decay":
        return [] if 0 <= value < math.inf else [f"{name} is {value}; 0 or more was expected"]
    return [] if 0 <= value < 1 else [f"{name} is {value}; 0 or more, but less than 1 was expected"]
