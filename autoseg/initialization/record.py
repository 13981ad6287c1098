"""`init.json`, the record of first weights: what was hidden and shuffled, which images were seen, how well it went."""

from typing import Literal

from pydantic import Field

from autoseg.records import Record
from autoseg.schema import ArchitectureName, ConfigurationName, NetworkPlan, StoreRecord

InitMethod = Literal["lwi", "mim", "order"]
"""Masked reconstruction with slab order, masked reconstruction alone, slab order alone."""


class PretextPlan(Record):
    """What pretraining hides and shuffles in a patch; lengths in voxels, axes in plan order.

    Attributes
    ----------
    mask_block, mask_ratio : the share of such boxes that is hidden, drawn per sample (0: nothing is hidden).
    slabs : into so many slabs of equal thickness the first patch axis is cut and shuffled; None: no order task.
    shuffled_share : of the samples; the others keep their slabs in order.
    border_slices : at most so many slices are hidden at either border of every slab.
    order_weight : of the order loss beside the reconstruction loss (of `order` alone: 1).
    reasons : why, one sentence each.
    """

    mask_block: tuple[int, ...]
    mask_ratio: float = Field(ge=0, lt=1)
    slabs: int | None
    border_slices: int
    order_weight: float = Field(ge=0)
    shuffled_share: float = Field(default=1.0, ge=0, le=1)
    reasons: tuple[str, ...]


class SeenImage(Record):
    """An image that pretraining learned from or was measured on: SHA-256 of its files, in the order of channels."""

    id: str
    sha256: tuple[str, ...]


class InitMeasures(Record):
    """How well the pretext tasks are solved at the end, on patches that are not augmented.

    Attributes
    ----------
    images : ids of the images measured on. `held_back`: these were kept out of pretraining.
    masked_error : mean squared error over hidden voxels of the image (padding is left out), in units of the channel's
        variance over the images.
    inpainting_error : the same of linear inpainting from the image's visible voxels.
    order_accuracy : the share of slabs whose place is told by all heads together (their mean log-probability);
        `order_accuracies`: by each head alone, per encoder stage.
    order_chance, border_matching_accuracy : by guessing, and by matching the slabs' borders. None without order task.
    padded_share : of the slabs' slices that lie outside the image: they tell which slab is first or last.
    """

    images: tuple[str, ...]
    held_back: bool
    patches: int
    masked_error: float | None = None
    inpainting_error: float | None = None
    order_accuracy: float | None = None
    order_accuracies: dict[str, float] = Field(default_factory=dict)
    order_chance: float | None = None
    border_matching_accuracy: float | None = None
    padded_share: float | None = None


class InitRecord(Record):
    """`init.json` beside first weights: which network, from which images, how, and how well.

    Attributes
    ----------
    network : with the batch and the optimizer that pretraining used.
    images, held_back, extra_images : learned from; only measured on; learned from by --extra-images.
    planned_steps : `steps` is less where the error stopped falling or the time was up (`ended_by`).
    seconds : of pretraining, without the measurement.
    plan_hash : changes with whatever of the plan shapes the network or its input.
    """

    version: Literal[1] = 1
    name: str
    configuration: ConfigurationName
    fold: str
    architecture: ArchitectureName
    network: NetworkPlan
    channel_names: tuple[str, ...]
    store: StoreRecord
    method: InitMethod
    pretext: PretextPlan
    images: tuple[SeenImage, ...]
    held_back: tuple[SeenImage, ...]
    extra_images: tuple[SeenImage, ...]
    extra_folder: str | None
    settings: dict[str, str | int | float | bool | None]
    steps: int
    planned_steps: int
    ended_by: Literal["steps", "time", "plateau"]
    seconds: float
    steps_per_second: float
    measures: InitMeasures
    plan_hash: str
    weights_sha256: str
    versions: dict[str, str]
