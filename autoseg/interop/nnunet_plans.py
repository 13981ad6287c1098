"""nnU-Net v2's plans.json and dataset.json as records of ours: what a network sees, and what it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError

from autoseg.data.volume import SUPPORTED_ENDINGS
from autoseg.errors import UserError, all_of
from autoseg.interop.nnunet_architecture import describe_network
from autoseg.interop.nnunet_labels import read_labels
from autoseg.labelling import Labelled
from autoseg.records import ForeignRecord, parse_record
from autoseg.schema import (
    ArchitectureName,
    ChannelNormalization,
    ConfigurationName,
    DatasetManifest,
    IntensityStatistics,
    NetworkPlan,
    NormalizationScheme,
    OptimizerPlan,
    StoreRecord,
    Topology,
)

CONFIGURATIONS: tuple[ConfigurationName, ...] = get_args(ConfigurationName)
SCHEMES: dict[str, NormalizationScheme] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
    "NoNormalization": "nonorm",
}
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO")
"""Those that keep the file's axes as they are; the others turn images to a canonical orientation first."""
PREPROCESSOR = "DefaultPreprocessor"
RESAMPLING = "resample_data_or_seg_to_shape"
RESAMPLED: dict[str, dict[str, object]] = {
    "resampling_fn_data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}
TRAINER_OPTIMIZER = OptimizerPlan(
    name="sgd", learning_rate=0.01, momentum=0.99, weight_decay=3e-5, gradient_clip=12.0
)
"""Of nnU-Net's default trainer; a checkpoint does not say with which its trainer replaced it."""
HINT = "Give the folder as nnU-Net v2 wrote it: <trainer>__<plans>__<configuration>."


class Plans(ForeignRecord):
    """`plans.json`; configurations as they stand there, without what they inherit."""

    plans_name: str = ""
    dataset_name: str = ""
    image_reader_writer: str = "SimpleITKIO"
    transpose_forward: tuple[int, int, int]
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, dict[str, Any]] | None = None
    foreground_intensity_properties_by_modality: dict[str, dict[str, Any]] | None = None


class PlannedConfiguration(ForeignRecord):
    """One configuration with all that it inherits; what describes the network is read by `describe_network`."""

    preprocessor_name: str = PREPROCESSOR
    batch_size: int = Field(ge=1)
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    batch_dice: bool = False
    previous_stage: str | None = None


@dataclass(frozen=True)
class Described:
    """What plans and dataset say about one configuration.

    Attributes
    ----------
    configuration : the name among ours; of one that a user added, that which it inherits from.
    previous_stage : nnU-Net's name of the configuration whose masks are channels of the input.
    """

    configuration: ConfigurationName
    architecture: ArchitectureName
    network: NetworkPlan
    labelled: Labelled
    store: StoreRecord
    channel_names: tuple[str, ...]
    file_ending: str
    is_2d: bool
    previous_stage: str | None

    @property
    def input_channels(self) -> int:
        """The image's, and of a cascade one per foreground label."""
        return len(self.channel_names) + (0 if self.previous_stage is None else len(self.labelled.labels) - 1)


def describe(plans: object, dataset: object, configuration: str, folder: Path) -> Described:
    """The configuration called `configuration`, from the parsed plans.json and dataset.json.

    folder : appears in messages only.

    Raises
    ------
    UserError : keys that are missing or ill-typed, and all that our networks and our preprocessing do not have, listed
        together: another network, other resampling, readers that turn images, labels that contradict themselves.
    """
    read = parse_record(Plans, plans, folder / "plans.json", HINT)
    manifest = parse_record(DatasetManifest, dataset, folder / "dataset.json", HINT)
    content, ancestry = _inherited(read, configuration, folder)
    planned = parse_record(PlannedConfiguration, content, folder / f"plans.json, configuration {configuration}", HINT)
    labelled, label_problems = read_labels(manifest)
    channels, channel_problems = _channel_names(manifest)
    architecture, topology, network_problems = describe_network(content, len(planned.patch_size))
    normalization, normalization_problems = _normalization(read, planned, len(channels))
    named = next((known for name in ancestry for known in CONFIGURATIONS if known == name), None)
    problems = [
        *(f"dataset.json: {problem}" for problem in (*label_problems, *channel_problems, *_ending_problems(manifest))),
        *(f"plans.json: {problem}" for problem in (*network_problems, *normalization_problems,
                                                   *_preprocessing_problems(read, planned, content))),
    ]
    if named is None:
        problems.append(f"plans.json: the configuration {configuration} neither is nor inherits from one of "
                        f"{', '.join(CONFIGURATIONS)}")
    if problems or labelled is None or architecture is None or topology is None or named is None:
        raise all_of(problems, f"{folder} holds models that cannot be brought along as they are:",
                     "Predict with nnU-Net itself, or train this dataset here: autoseg plan, autoseg train.")
    store = StoreRecord(axes=read.transpose_forward, spacing=_spacing(planned), normalization=normalization,
                        labels=labelled.labels, ignore=labelled.ignore)
    return Described(
        configuration=named, architecture=architecture, network=_network(planned, topology), labelled=labelled,
        store=store, channel_names=channels, file_ending=manifest.file_ending or "", is_2d=_is_2d(read),
        previous_stage=planned.previous_stage,
    )  # fmt: skip


def _inherited(plans: Plans, configuration: str, folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A configuration with what it inherits, and its name followed by those of its ancestors."""
    ancestry: tuple[str, ...] = ()
    content: dict[str, Any] = {}
    name: object = configuration
    while name is not None:
        if not isinstance(name, str) or name not in plans.configurations or name in ancestry:
            raise UserError(f"{folder / 'plans.json'}: the configuration {name!r}, which {configuration} is or "
                            f"inherits from, was expected once among {', '.join(plans.configurations)}.\n{HINT}")
        ancestry = (*ancestry, name)
        own = plans.configurations[name]
        content = {**own, **content}
        name = own.get("inherits_from")
    return content, ancestry


def _channel_names(manifest: DatasetManifest) -> tuple[tuple[str, ...], list[str]]:
    names = manifest.channel_names if manifest.channel_names is not None else manifest.modality or {}
    expected = [str(number) for number in range(len(names))]
    if not names or sorted(names) != sorted(expected):
        return tuple(names.values()), [f"channel_names has the numbers {', '.join(names) or 'none'}; 0, 1, 2, … "
                                       "without gaps were expected"]
    return tuple(names[number] for number in expected), []


def _ending_problems(manifest: DatasetManifest) -> list[str]:
    if manifest.file_ending is not None and manifest.file_ending.lower() in SUPPORTED_ENDINGS:
        return []
    return [f"file_ending is {manifest.file_ending!r}; one of {', '.join(SUPPORTED_ENDINGS)} was expected"]


def _normalization(
    plans: Plans, planned: PlannedConfiguration, channels: int
) -> tuple[tuple[ChannelNormalization, ...], list[str]]:
    """One entry per channel, with the statistics of the training set."""
    schemes, masks = planned.normalization_schemes, planned.use_mask_for_norm
    if not len(schemes) == len(masks) == channels:
        return (), [f"normalization_schemes has {len(schemes)} entries, use_mask_for_norm {len(masks)}; one for each "
                    f"of the {channels} channels was expected"]
    measured = plans.foreground_intensity_properties_per_channel or plans.foreground_intensity_properties_by_modality
    found, problems = [], []
    for channel, (scheme, within_nonzero) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in SCHEMES:
            problems.append(f"channel {channel} is normalized by {scheme}; one of {', '.join(SCHEMES)} was expected")
            continue
        try:
            statistics = IntensityStatistics.model_validate(_numbers((measured or {}).get(str(channel), {})))
        except ValidationError as error:
            keys = ", ".join(str(detail["loc"][0]) for detail in error.errors())
            problems.append(f"foreground_intensity_properties_per_channel: {keys} of channel {channel} missing or no "
                            "finite number")
            continue
        found.append(ChannelNormalization(scheme=SCHEMES[scheme], within_nonzero=within_nonzero, statistics=statistics))
    return tuple(found), problems


def _numbers(properties: Mapping[str, object]) -> dict[str, object]:
    return {name: properties[name] for name in IntensityStatistics.model_fields if name in properties}


def _preprocessing_problems(plans: Plans, planned: PlannedConfiguration, content: Mapping[str, Any]) -> list[str]:
    """All in which the images were prepared differently from how ours are."""
    problems = []
    if plans.image_reader_writer not in READERS:
        problems.append(f"images were read by {plans.image_reader_writer}; one of {', '.join(READERS)} was expected, "
                        "which keep the axes of the file")
    if planned.preprocessor_name != PREPROCESSOR:
        problems.append(f"images were prepared by {planned.preprocessor_name}; {PREPROCESSOR} was expected")
    for key, expected in RESAMPLED.items():
        function, arguments = content.get(key, RESAMPLING), content.get(f"{key}_kwargs", expected)
        if function != RESAMPLING or arguments != expected:
            problems.append(f"{key} is {function} with {arguments}; {RESAMPLING} with {expected} was expected")
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        problems.append(f"transpose_forward is {plans.transpose_forward}; an order of 0, 1 and 2 was expected")
    axes = len(planned.patch_size)
    if axes not in (2, 3) or len(planned.spacing) != axes:
        problems.append(f"patch_size has {axes} axes and spacing {len(planned.spacing)}; 2 or 3 of both was expected")
    if any(not mm > 0 for mm in planned.spacing):
        problems.append(f"spacing is {planned.spacing}; positive mm were expected")
    return problems


def _spacing(planned: PlannedConfiguration) -> tuple[float | None, float, float]:
    """Of the store: in 2d the first axis keeps each image's own."""
    *first, rows, columns = planned.spacing
    return (first[0] if first else None), rows, columns


def _network(planned: PlannedConfiguration, topology: Topology) -> NetworkPlan:
    return NetworkPlan(
        patch_shape=planned.patch_size, batch_size=planned.batch_size, topology=topology,
        batch_dice=planned.batch_dice, optimizer=TRAINER_OPTIMIZER, memory_gib=0.0,
        reasons=("Patch, batch and network are those of nnU-Net's plans.json.",
                 "The optimizer is that of nnU-Net's default trainer; memory was not estimated."),
    )  # fmt: skip


def _is_2d(plans: Plans) -> bool:
    """Whether the images have no third dimension: nnU-Net then plans nothing in 3d."""
    names: Sequence[str] = tuple(plans.configurations)
    return not any(name.startswith("3d") for name in names)
