"""File formats: ours (but init.json and run.json, which lie beside their readers) and `dataset.json`; frozen."""

from typing import Annotated, Literal

from pydantic import Field

from autoseg.labelling import Labelled
from autoseg.records import ForeignRecord, Record

ArchitectureName = Literal["plain", "resenc", "hybrid", "unetr", "unetr-pp", "swin-unetr", "mednext"]
CHECKPOINTED: tuple[ArchitectureName, ...] = ("plain", "resenc", "hybrid")
"""Architectures of ours, whose first stages can be recomputed; the others are libraries' or published as they are."""
OptimizerName = Literal["sgd", "adamw"]
ConfigurationName = Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
NormalizationChoice = Literal["auto", "percentile", "rank"]
"""What a person may ask for; `auto`: by the channels' names, or by what the training needs."""
NormalizationScheme = Literal["ct", "zscore", "rescale_to_0_1", "rgb_to_0_1", "nonorm", "percentile", "rank"]


# ---------------------------------------------------------------- dataset.json (nnU-Net v2, v1 and MSD)
class ListedCase(ForeignRecord):
    """One entry of nnU-Net's explicit file lists: paths absolute or relative to the dataset folder."""

    images: tuple[str, ...]
    label: str


class DatasetManifest(ForeignRecord):
    """`dataset.json`, as its keys stand in the file; `autoseg.data.dataset` interprets them.

    `labels` is name → value (v2) or value → name (v1, MSD); `channel_names` may be called `modality`. Ours: `patients`,
    case → patient; `annotated_labels`, of cases in which not all are.
    """

    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None
    labels: dict[str, int | str | list[int]]
    file_ending: str | None = None
    numTraining: int | None = None  # noqa: N815 (the file's key)
    name: str | None = None
    dataset: dict[str, ListedCase] | None = None
    training: list[dict[str, str]] | None = None
    regions_class_order: list[int] | None = None
    annotated_labels: dict[str, list[str]] | None = None
    patients: dict[str, str] | None = None


# ---------------------------------------------------------------- fingerprint.json
class IntensityStatistics(Record):
    """Foreground intensities of one channel over the dataset; every case weighs the same (as in nnU-Net)."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


class CaseFingerprint(Record):
    """Facts of one case, in array order (z, y, x).

    Attributes
    ----------
    shape, cropped_shape : voxels before and after cropping to the box of nonzero voxels.
    spacing : mm.
    left_right_axis : array axis closest to the patient's left-right (of a 2-D image, y or x); None where it was not
        determined.
    class_voxels : label name → number of voxels, background included.
    class_extents : label name → voxels of its bounding box, None where it is absent; without background.
    """

    id: str
    shape: tuple[int, int, int]
    cropped_shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    left_right_axis: int | None
    class_voxels: dict[str, int]
    class_extents: dict[str, tuple[int, int, int] | None] = Field(default_factory=dict)


class Fingerprint(Labelled):
    """What was measured; no decisions."""

    dataset: str
    name: str
    is_2d: bool
    file_ending: str
    channel_names: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[IntensityStatistics, ...]
    median_relative_size_after_cropping: float


# ---------------------------------------------------------------- plan.json
class ChannelNormalization(Record):
    """How one channel is normalized; `within_nonzero` restricts z-score to the nonzero voxels of the case."""

    scheme: NormalizationScheme
    within_nonzero: bool
    statistics: IntensityStatistics


class AttentionPlan(Record):
    """Where a `hybrid` attends; tuples per encoder stage, the finest first.

    Attributes
    ----------
    blocks : attention blocks that take the place of the stage's last residual blocks (0: none).
    heads : attention heads; the channels per head are features / heads (1 where there are no blocks).
    key_shapes : the grid that keys and values are averaged to, at most; None: every token is a key.
    spacing : mm between the patch's voxels, plan order; positions in attention are measured with it.
    drop_path : the share of samples for which the last attention block is left out in training; earlier ones less.
    """

    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    key_shapes: tuple[tuple[int, ...] | None, ...]
    spacing: tuple[Annotated[float, Field(gt=0)], ...]
    drop_path: float = Field(ge=0, lt=1)


class Topology(Record):
    """The shape of a network, coarse stages last; tuples per stage, in plan order.

    `encoder_blocks`: convolutions (plain), residual blocks (resenc; in a hybrid, `attention` counts among them) or
    transformer blocks (unetr, unetr-pp, swin-unetr) per stage; `decoder_blocks`: convolutions or blocks per decoder
    stage, from the bottleneck's neighbor outwards (one entry fewer). `attention`: of a hybrid only.
    """

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    attention: AttentionPlan | None = None


class OptimizerPlan(Record):
    """How a network is optimized.

    Attributes
    ----------
    momentum : of SGD (Nesterov); β₁ of AdamW.
    second_momentum : β₂ of AdamW; None for SGD.
    weight_decay : SGD: on every weight (L2); AdamW: decoupled, and not on norms, biases, scales and positions.
    gradient_clip : the largest common Euclidean norm of all gradients.
    warmup_share : the share of the schedule over which the learning rate rises from zero, linearly.
    """

    name: OptimizerName
    learning_rate: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    second_momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    warmup_share: float = Field(default=0.0, ge=0, lt=1)

    @property
    def bytes_per_weight(self) -> int:
        """Of weight, gradient and the optimizer's one (SGD) or two (AdamW) moments, all float32."""
        return 12 if self.name == "sgd" else 16


class NetworkPlan(Record):
    """One network of a configuration; `reasons` say why, one sentence each.

    `memory_gib`: to train; an estimate, unless `memory_measured_on` names the device on which it was measured.
    `checkpointed_stages`: so many of the first stages keep no activations and are computed again in the backward pass.
    """

    patch_shape: tuple[int, ...]
    batch_size: int = Field(ge=1)
    topology: Topology
    batch_dice: bool
    optimizer: OptimizerPlan
    memory_gib: float
    memory_measured_on: str | None = None
    checkpointed_stages: int = Field(default=0, ge=0)
    reasons: tuple[str, ...]


class ConfigurationPlan(Record):
    """One configuration; lengths are 2 for `2d` and 3 otherwise, in plan order.

    `median_shape`: voxels of the median case at `spacing`. `architecture` names the network `train` takes;
    `architecture_reasons` say why, where the planner chose it. `previous_stage`: of a cascade, the configuration whose
    masks are channels of the input.
    """

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    normalization: tuple[ChannelNormalization, ...]
    architecture: ArchitectureName
    architecture_reasons: tuple[str, ...] = ()
    networks: dict[ArchitectureName, NetworkPlan]
    next_stage: str | None = None
    previous_stage: ConfigurationName | None = None


class Plan(Labelled):
    """Decisions for a dataset. `axes`: array axis at each plan position (coarsest first): plan[i] = array[axes[i]].

    Attributes
    ----------
    dataset : absolute path of the dataset folder, as planned.
    left_right_axes : array axes (z, y, x) that are left-right in at least one case.
    sided_labels : pairs of names that differ only in side ("left_kidney", "right_kidney").
    """

    version: Literal[1] = 1
    dataset: str
    name: str
    is_2d: bool
    file_ending: str
    channel_names: tuple[str, ...]
    axes: tuple[int, int, int]
    left_right_axes: tuple[int, ...]
    sided_labels: tuple[tuple[str, str], ...]
    memory_target_gib: float
    nnunet_parity: bool
    reasons: tuple[str, ...]
    configurations: dict[ConfigurationName, ConfigurationPlan]

    def input_channels(self, configuration: ConfigurationName) -> int:
        """Of a configuration's networks: the image's, and of a cascade one per foreground label."""
        is_cascade = self.configurations[configuration].previous_stage is not None
        return len(self.channel_names) + (len(self.labels) - 1) * is_cascade


# ---------------------------------------------------------------- splits.json
class Split(Record):
    """One fold: case identifiers. splits.json is a list of these, as nnU-Net's splits_final.json."""

    train: tuple[str, ...]
    val: tuple[str, ...]


# ---------------------------------------------------------------- preprocessed/<configuration>/<hash8>/
class StoreRecord(Record):
    """`store.json`: all that shaped the store (its hash names the folder), in plan order.

    `spacing` has three entries; None along axis 0 of a `2d` store: that axis keeps each case's own spacing.
    """

    version: Literal[1] = 1
    axes: tuple[int, int, int]
    spacing: tuple[float | None, float, float]
    normalization: tuple[ChannelNormalization, ...]
    labels: dict[str, int]
    ignore: int | None = None

    @property
    def facts(self) -> dict[str, object]:
        """What is hashed; an ignore label only where there is one, so that older stores keep their names."""
        return self.model_dump(mode="json", exclude=None if self.ignore is not None else {"ignore"})


class StoredCase(Record):
    """`<case>.json` beside the arrays: where the stored voxels lie in the original image.

    Attributes
    ----------
    shape : voxels stored, plan order.
    original_shape : voxels of the file, array order (z, y, x).
    crop : per array axis (start, stop) of the box of nonzero voxels.
    original_spacing : mm, array order.
    spacing : mm of the stored voxels, plan order.
    class_counts : voxels per internal label 0 … K in the stored labels, an ignore label left out.
    foreground_offsets : K + 1 row numbers: rows [offsets[k - 1], offsets[k]) of `<case>.foreground.npy`
        (int32, (voxel, 3), plan order) are voxels of internal label k = 1 … K. With an ignore label one more: the last
        rows are voxels of any other label (annotated voxels), background included.
    inputs : identity of the source files: (name, bytes, modification time in ns).
    """

    id: str
    shape: tuple[int, int, int]
    original_shape: tuple[int, int, int]
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    original_spacing: tuple[float, float, float]
    spacing: tuple[float, float, float]
    class_counts: tuple[int, ...]
    foreground_offsets: tuple[int, ...]
    inputs: tuple[tuple[str, int, int], ...]


# ---------------------------------------------------------------- models/…/model.json
class TextGuidanceFacts(Record):
    """The words that a model was trained with; its vectors lie in `guidance.safetensors`. Prediction uses none of it.

    Attributes
    ----------
    route, geometry : the values of --text-route and --text-geometry.
    names : the plan's foreground labels; matched: the bank's name for each.
    distractors : names of the bank that stood as wrong answers.
    bank_sha256 : of the bank's names and vectors. tower, tower_sha256 : what made them; no hash where chance did.
    tensors_sha256 : of guidance.safetensors.
    """

    route: str
    geometry: str
    names: tuple[str, ...]
    matched: tuple[str, ...]
    distractors: tuple[str, ...]
    bank_sha256: str
    tower: str
    tower_sha256: str | None
    tensors_sha256: str | None


class PreviousStage(Record):
    """The model, in the same run folder, whose masks a cascade's network gets as channels: one per foreground label."""

    name: str
    configuration: ConfigurationName


class CheckpointInfo(Labelled):
    """Everything needed to predict with `weights.safetensors` and to say how the weights came to be.

    `mirror_axes`: positions in the patch (plan order) that training mirrored and prediction may mirror.
    `training`: the settings as they were used, flattened; `weights_sha256` ties the record to its weights.
    """

    version: Literal[1] = 1
    name: str
    configuration: ConfigurationName
    fold: str
    architecture: ArchitectureName
    network: NetworkPlan
    is_2d: bool
    file_ending: str
    channel_names: tuple[str, ...]
    store: StoreRecord
    mirror_axes: tuple[int, ...]
    previous_stage: PreviousStage | None = None
    text_guidance: TextGuidanceFacts | None = None
    training: dict[str, str | int | float | bool | None]
    steps: int
    seconds: float
    plan_hash: str
    weights_sha256: str
    versions: dict[str, str]

    @property
    def input_channels(self) -> int:
        """Of the network: the image's, and of a cascade one per foreground label."""
        return len(self.channel_names) + (0 if self.previous_stage is None else len(self.labels) - 1)


# ---------------------------------------------------------------- scores.json, labels.json, failures.json
class MeanScores(Record):
    """Means; None where no case defines the score."""

    dice: float | None
    nsd: float | None
    hd95: float | None


class LabelScores(MeanScores):
    """One label in one case; distances in mm, volumes in ml; None where the empty-mask policy leaves no value."""

    volume_ml: float
    reference_volume_ml: float


class CaseScores(Record):
    """All labels of one case."""

    id: str
    labels: dict[str, LabelScores]


class ScorePolicy(Record):
    """How the edges of the definitions were settled, in words and numbers."""

    both_empty: str
    one_empty: str
    nsd_tolerance_mm: dict[str, float]


class Scores(Record):
    """`mean`: mean over labels of the labels' means; `labels.<name>`: mean over cases, None skipped."""

    mean: MeanScores
    labels: dict[str, MeanScores]
    cases: tuple[CaseScores, ...]
    policy: ScorePolicy


class LabelNames(Labelled):
    """`labels.json` beside predictions."""


class Failure(Record):
    """One entry of failures.json (a list)."""

    id: str
    file: str
    reason: str
