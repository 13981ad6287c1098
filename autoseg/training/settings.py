"""The choices of a person about a training: one frozen value; a preset is a named set of them in a TOML file."""

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

from autoseg.errors import UserError

MirrorChoice = Literal["auto", "nnunet", "none"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
CachingChoice = Literal["auto", "resident", "streamed"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """nnU-Net's recipe by default (reference: nnunetv2 nnUNetTrainer).

    Attributes
    ----------
    epochs, steps_per_epoch : the schedule's length; the learning rate reaches its end with the last epoch.
    validation_steps : batches of random validation patches per epoch, for the pseudo-Dice.
    max_minutes : training ends after this long even if epochs are left, and the rate reaches its end then.
    max_batch_size : an upper bound on the plan's batch size (small machines); None keeps the plan's.
    rate_power : rate = learning_rate · (1 − progress)^rate_power.
    foreground_fraction : share of each batch's patches that must contain foreground.
    mirror : `auto` leaves out the left-right axis where labels differ only in side; `nnunet` mirrors every axis.
    checkpoint_minutes : a resumable state is written at least this often (at the end of an epoch).
    """

    epochs: int = 1000
    steps_per_epoch: int = 250
    validation_steps: int = 50
    max_minutes: float | None = None
    max_batch_size: int | None = None
    learning_rate: float = 0.01
    momentum: float = 0.99
    weight_decay: float = 3e-5
    rate_power: float = 0.9
    gradient_clip: float = 12.0
    foreground_fraction: float = 0.33
    augment: bool = True
    mirror: MirrorChoice = "auto"
    precision: PrecisionChoice = "auto"
    caching: CachingChoice = "auto"
    checkpoint_minutes: float = 5.0

    def flat(self) -> dict[str, str | int | float | bool | None]:
        """The settings as a JSON-able dictionary."""
        return asdict(self)


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
        return _settings_from(tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not valid TOML: {error}. Correct the file.") from None


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
    known = {field.name: field.type for field in fields(TrainSettings)}
    problems = []
    for key, value in content.items():
        if key not in known:
            problems.append(f"  - {key}: unknown; known are {', '.join(known)}")
        elif not _fits(value, known[key]):
            problems.append(f"  - {key} = {value!r}: expected {known[key]}")
    if problems:
        raise UserError("\n".join([f"preset {source}:", *problems, "Correct the file."]))
    typed = {key: _as(value, known[key]) for key, value in content.items()}
    return _checked(TrainSettings(**typed), f"preset {source}")  # type: ignore[arg-type]


def _as(value: object, kind: object) -> object:
    """An integer where the field is a real number becomes one."""
    return float(value) if type(value) is int and int not in (get_args(kind) or (kind,)) else value


def _fits(value: object, kind: object) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if float in options and type(value) is int:
        return True
    return type(value) in options


def _checked(settings: TrainSettings, source: str) -> TrainSettings:
    minimum = {"epochs": 1, "steps_per_epoch": 1, "validation_steps": 0, "max_batch_size": 1}
    problems = [f"{name} is {value}; at least {least} was expected" for name, least in minimum.items()
                if (value := getattr(settings, name)) is not None and value < least]
    if settings.max_minutes is not None and not 0 < settings.max_minutes < math.inf:
        problems.append(f"max_minutes is {settings.max_minutes}; a number above 0 was expected")
    if not 0 <= settings.foreground_fraction <= 1:
        problems.append(f"foreground_fraction is {settings.foreground_fraction}; 0 to 1 was expected")
    if not 0 < settings.learning_rate < math.inf:
        problems.append(f"learning_rate is {settings.learning_rate}; a number above 0 was expected")
    if problems:
        raise UserError("\n".join([f"Settings from {source} make no sense:", *(f"  - {p}" for p in problems),
                                   "Correct these values."]))
    return settings
