"""The file format of a published protocol, presets/protocols/<name>.toml: what was run, on which cases, what came out.

Facts that no public text states are "unknown" there; comments in the files say where each of the others stands.
"""

from importlib import resources
from pathlib import Path
from typing import Literal

from autoseg.errors import UserError
from autoseg.records import Record, parse_toml
from autoseg.schema import ArchitectureName, OptimizerName

NO_CLIPPING = 1e6
"""A plan has a norm to clip gradients at; protocols without clipping get one that is never reached."""
Unknown = Literal["unknown"]
Triple = tuple[int, int, int]


class Normalization(Record):
    """`window`: HU below `low` and above `high` are cut, and that range becomes 0 … 1. `planned`: nnU-Net's for CT."""

    scheme: Literal["planned", "window"]
    low: float | None = None
    high: float | None = None


class PublishedNetwork(Record):
    """Strides per stage, the finest first (z, y, x); kernels are 3 along every axis."""

    strides: tuple[Triple, ...]


class PublishedSplit(Record):
    """Ids as published. A case of a dataset is the number after one of `prefixes`.

    `certain`: whether the list is known to be the one that was used.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    prefixes: tuple[str, ...]
    certain: bool
    remark: str


class PublishedCounting(Record):
    """How the published code counts: Dice where neither mask has the organ, HD95 where one of them lacks it."""

    dice_both_absent: float | Unknown
    hd95_undefined: float | Unknown
    hd95_unit: Literal["mm", "voxel", "unknown"]


class Metrics(Record):
    """Groups of organs whose scores are averaged, by name."""

    subsets: dict[str, tuple[str, ...]]
    published_counting: PublishedCounting


class Pretraining(Record):
    """The self-supervised phase as published; `steps_per_training_step` scales it with a shortened training."""

    method: Literal["lwi", "mim", "order"]
    steps: int | Unknown
    steps_per_training_step: float
    mask_ratio: float
    mask_block: Triple
    slabs: int
    learning_rate: float
    loss: str


class PublishedOptimizer(Record):
    """As `OptimizerPlan`; without `gradient_clip`: gradients are not clipped."""

    name: OptimizerName
    learning_rate: float
    momentum: float
    second_momentum: float | None = None
    weight_decay: float
    gradient_clip: float = NO_CLIPPING
    warmup_share: float = 0.0


class Training(Record):
    """The supervised phase as published."""

    steps: int
    steps_per_epoch: int
    foreground_fraction: float
    batch_dice: bool | Literal["planned"]
    loss: str
    augmentation: str
    selection: str
    optimizer: PublishedOptimizer


class PublishedResult(Record):
    """One result as it is printed at `source`; Dice in %."""

    model: str
    subset: str
    dice: float | Unknown
    hd95: float | Unknown
    source: str


class Remarks(Record):
    """`not_repeated`: faults of the published run that a run here does not have; `different`: what else differs."""

    not_repeated: tuple[str, ...]
    different: tuple[str, ...]


class Protocol(Record):
    """presets/protocols/<name>.toml; lengths along z (through the slices), y, x, spacing in mm."""

    name: str
    title: str
    dataset: str
    architecture: ArchitectureName
    spacing_mm: tuple[float, float, float] | Literal["planned"]
    patch: Triple
    batch: int | Unknown
    mirrored_predictions: bool
    normalization: Normalization
    network: PublishedNetwork
    labels: dict[str, int]
    aliases: dict[str, str]
    splits: PublishedSplit
    metrics: Metrics
    pretraining: Pretraining
    training: Training
    published: tuple[PublishedResult, ...]
    remarks: Remarks


def protocol_names() -> list[str]:
    """Names of the protocols that come with autoseg."""
    folder = resources.files("presets") / "protocols"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_protocol(name: str) -> Protocol:
    """A protocol by name; UserError where there is none, or where its file holds something else."""
    if name not in protocol_names():
        raise UserError(f"--protocol {name}: no such protocol. Known: {', '.join(protocol_names())}.")
    path = resources.files("presets") / "protocols" / f"{name}.toml"
    return parse_toml(Protocol, path.read_text(encoding="utf-8"), Path(f"{name}.toml"))
