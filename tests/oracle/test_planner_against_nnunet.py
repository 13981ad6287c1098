"""`plain` and `resenc` plans are those of nnU-Net v2's own planners, for any dataset, preset size and memory."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import real_dataset

from autoseg.data.dataset import open_dataset
from autoseg.planning.fingerprint import measure
from autoseg.planning.planner import PlanSettings, decide_plan
from autoseg.schema import CaseFingerprint, ConfigurationPlan, Fingerprint, IntensityStatistics, Plan

STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=1.0, min=0.0, max=2.0, percentile_00_5=0.1, percentile_99_5=1.9
)
SCHEME_CLASSES = {
    "ct": "CTNormalization", "zscore": "ZScoreNormalization", "nonorm": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization", "rgb_to_0_1": "RGBTo01Normalization",
}


def make_fingerprint(
    shapes: list[tuple[int, int, int]],
    spacings: list[tuple[float, float, float]],
    channels: tuple[str, ...] = ("T1",),
    label_count: int = 2,
    kept: float = 1.0,
    is_2d: bool = False,
) -> Fingerprint:
    """A fingerprint with these cropped shapes and spacings (z, y, x)."""
    labels = {"background": 0} | {f"organ_{value}": value for value in range(1, label_count)}
    return Fingerprint(
        dataset="/somewhere", name="Dataset001_Made", is_2d=is_2d, file_ending=".nii.gz",
        channel_names=channels, labels=labels, intensities=(STATISTICS,) * len(channels),
        median_relative_size_after_cropping=kept,
        cases=tuple(
            CaseFingerprint(id=f"case_{number:03d}", shape=shape, cropped_shape=shape, spacing=spacing,
                            left_right_axis=2, class_voxels=dict.fromkeys(labels, 1))
            for number, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True))
        ),
    )


def around(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], count: int, seed: int = 0,
    shape_spread: float = 0.15, spacing_spread: float = 0.1, **facts: object,
) -> Fingerprint:
    """`count` cases scattered about a typical shape and spacing."""
    rng = np.random.default_rng(seed)
    shapes = np.maximum(1, np.rint(shape * np.exp(rng.normal(0, shape_spread, (count, 3))))).astype(int)
    spacings = np.array(spacing) * np.exp(rng.normal(0, spacing_spread, (count, 3)))
    return make_fingerprint(
        [(int(z), int(y), int(x)) for z, y, x in shapes],
        [(float(z), float(y), float(x)) for z, y, x in spacings], **facts)  # type: ignore[arg-type]


def flat(shape: tuple[int, int], count: int, seed: int, **facts: object) -> Fingerprint:
    """Natural 2-D images as nnU-Net describes them: one slice, 999 mm thick."""
    rng = np.random.default_rng(seed)
    sizes = [tuple(int(edge) for edge in np.rint(shape * np.exp(rng.normal(0, 0.1, 2)))) for _ in range(count)]
    return make_fingerprint([(1, *size) for size in sizes], [(999.0, 1.0, 1.0)] * count, is_2d=True,
                            **facts)  # type: ignore[arg-type]


FINGERPRINTS: dict[str, Callable[[], Fingerprint]] = {
    "hippocampus-like": lambda: around((36, 50, 35), (1, 1, 1), 60, spacing_spread=0, label_count=3),
    "cubes of equal edges": lambda: make_fingerprint([(160, 160, 160)] * 3, [(1.0, 1.0, 1.0)] * 3),
    "tiny": lambda: make_fingerprint([(9, 17, 12)] * 2, [(1.0, 1.0, 1.0)] * 2),
    "one case": lambda: make_fingerprint([(64, 200, 180)], [(2.5, 0.9, 0.9)], label_count=4),
    "huge ct": lambda: around((700, 512, 512), (0.8, 0.75, 0.75), 20, channels=("CT",), label_count=5),
    "liver-like": lambda: around(
        (432, 512, 512), (1.0, 0.77, 0.77), 131, 1, spacing_spread=0.3, channels=("ct",)),
    "lung-like": lambda: around((252, 512, 512), (1.24, 0.79, 0.79), 63, 2, channels=("CT",)),
    "prostate-like": lambda: around(
        (20, 320, 319), (3.6, 0.625, 0.625), 32, 3, channels=("T2", "ADC"), label_count=3),
    "acdc-like": lambda: around((9, 237, 208), (10, 1.5, 1.5), 200, 4, spacing_spread=0.25, label_count=4),
    "heart-like": lambda: around((115, 320, 232), (1.37, 1.25, 1.25), 20, 5),
    "brain": lambda: around((138, 170, 138), (1, 1, 1), 484, 6, spacing_spread=0, label_count=4, kept=0.3,
                            channels=("T1", "T1ce", "T2", "FLAIR")),
    "coarse in x": lambda: around((400, 380, 40), (0.5, 0.5, 4.0), 11, 7),
    "coarse, fine cases first": lambda: around((30, 300, 300), (4, 1.2, 1.2), 10, 8, spacing_spread=0.8),
    "micro ct": lambda: around((1200, 1100, 1000), (0.02, 0.02, 0.02), 8, 9, channels=("nonorm",)),
    "2-d": lambda: flat((300, 420), 150, 10, channels=("R", "G", "B")),
    "2-d large": lambda: flat((4000, 3000), 12, 11, channels=("rescale_to_0_1",), kept=0.5),
    "single slices in 3-d": lambda: make_fingerprint([(1, 256, 240)] * 7, [(8.0, 1.0, 1.1)] * 7),
}
PLANNERS = {
    ("plain", None): "ExperimentPlanner", ("resenc", None): "ResEncUNetPlanner",
    ("resenc", "M"): "nnUNetPlannerResEncM", ("resenc", "L"): "nnUNetPlannerResEncL",
    ("resenc", "XL"): "nnUNetPlannerResEncXL",
}


def nnunet_plan(
    fingerprint: Fingerprint, architecture: str, preset_size: str | None, memory_gib: float | None, folder: Path
) -> dict:
    """What nnunetv2's own planner decides, as its JSON (paths are environment variables of the caller)."""
    import torch
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    name = PLANNERS[architecture, preset_size]
    kind = getattr(residual_encoder_unet_planners, name, None) or getattr(default_experiment_planner, name)

    class Reader:
        pass

    class Planner(kind):
        def determine_reader_writer(self) -> type:
            return Reader

        @staticmethod
        def static_estimate_VRAM_usage(*args: object, **kwargs: object) -> int:  # noqa: N802
            with torch.device("meta"):  # nothing but shapes is asked of the network
                return kind.static_estimate_VRAM_usage(*args, **kwargs)

    write_nnunet_facts(fingerprint, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = {} if memory_gib is None else {"gpu_memory_target_in_gb": memory_gib}
        planner = Planner(fingerprint.name, **target)
        planner.plan_experiment()
    return json.loads((folder / "preprocessed" / fingerprint.name / f"{planner.plans_identifier}.json").read_text())


def write_nnunet_facts(fingerprint: Fingerprint, folder: Path) -> None:
    """dataset.json and dataset_fingerprint.json as nnU-Net would have them."""
    raw, preprocessed = folder / "raw" / fingerprint.name, folder / "preprocessed" / fingerprint.name
    for place in (raw, preprocessed):
        place.mkdir(parents=True, exist_ok=True)
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {str(number): name for number, name in enumerate(fingerprint.channel_names)},
        "labels": fingerprint.labels, "numTraining": len(fingerprint.cases), "file_ending": ".nii.gz",
        "dataset": {case.id: {"images": [f"{case.id}.nii.gz"], "label": "none"} for case in fingerprint.cases},
    }))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps({
        "spacings": [case.spacing for case in fingerprint.cases],
        "shapes_after_crop": [case.cropped_shape for case in fingerprint.cases],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": fingerprint.median_relative_size_after_cropping,
    }))


def assert_same_plan(ours: Plan, theirs: dict) -> None:
    """Every decision that both make."""
    assert list(ours.axes) == theirs["transpose_forward"]
    names = set(theirs["configurations"])
    assert set(ours.configurations) == names
    for name in names:
        own = theirs["configurations"][name]
        assert ours.configurations[name].previous_stage == own.get("previous_stage")
        inherited = theirs["configurations"].get(own.get("inherits_from"), {})
        assert_same_configuration(ours.configurations[name], {**inherited, **own}, ours.is_2d)


def assert_same_configuration(ours: ConfigurationPlan, theirs: dict, is_2d: bool) -> None:
    network, expected = ours.networks[ours.architecture], theirs["architecture"]["arch_kwargs"]
    assert list(ours.spacing) == theirs["spacing"]
    assert list(ours.median_shape) == theirs["median_image_size_in_voxels"]
    assert [SCHEME_CLASSES[one.scheme] for one in ours.normalization] == theirs["normalization_schemes"]
    assert [one.within_nonzero for one in ours.normalization] == theirs["use_mask_for_norm"]
    assert ours.next_stage == theirs.get("next_stage")
    assert list(network.patch_shape) == theirs["patch_size"]
    assert network.batch_size == theirs["batch_size"]
    assert network.batch_dice == theirs["batch_dice"]
    topology = network.topology
    assert [list(one) for one in topology.strides] == [list(one) for one in expected["strides"]]
    assert [list(one) for one in topology.kernel_sizes] == [list(one) for one in expected["kernel_sizes"]]
    assert list(topology.features) == list(expected["features_per_stage"])
    encoder = expected.get("n_blocks_per_stage") or expected["n_conv_per_stage"]
    assert list(topology.encoder_blocks) == list(encoder)
    assert list(topology.decoder_blocks) == list(expected["n_conv_per_stage_decoder"])


@pytest.fixture
def nnunet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary home for nnU-Net, which finds it by environment variables."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def compare(
    fingerprint: Fingerprint, architecture: str, preset_size: str | None, memory_gib: float | None, folder: Path
) -> None:
    settings = PlanSettings(architecture=architecture, preset_size=preset_size,  # type: ignore[arg-type]
                            memory_gib=memory_gib, nnunet_parity=True)
    theirs = nnunet_plan(fingerprint, architecture, preset_size, memory_gib, folder)
    assert_same_plan(decide_plan(fingerprint, settings), theirs)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
@pytest.mark.parametrize("kind", FINGERPRINTS)
def test_generated_datasets(kind: str, architecture: str, nnunet_folder: Path) -> None:
    compare(FINGERPRINTS[kind](), architecture, None, None, nnunet_folder)


@pytest.mark.parametrize("preset_size", ["M", "L", "XL"])
@pytest.mark.parametrize("kind", ["hippocampus-like", "prostate-like", "heart-like", "2-d"])
def test_preset_sizes(kind: str, preset_size: str, nnunet_folder: Path) -> None:
    compare(FINGERPRINTS[kind](), "resenc", preset_size, None, nnunet_folder)


@pytest.mark.parametrize(("architecture", "preset_size", "memory_gib"), [
    ("plain", None, 2.5), ("plain", None, 24.0), ("resenc", None, 4.0), ("resenc", "L", 11.0), ("resenc", "XL", 80.0),
])
@pytest.mark.parametrize("kind", ["acdc-like", "heart-like", "2-d large"])
def test_other_memory(
    kind: str, architecture: str, preset_size: str | None, memory_gib: float, nnunet_folder: Path
) -> None:
    compare(FINGERPRINTS[kind](), architecture, preset_size, memory_gib, nnunet_folder)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_hippocampus(architecture: str, nnunet_folder: Path) -> None:
    fingerprint = measure(open_dataset(real_dataset("Hippocampus_MSD04")), workers=1)
    compare(fingerprint.model_copy(update={"name": "Dataset004_Hippocampus"}), architecture, None, None,
            nnunet_folder)


def random_request(seed: int) -> tuple[Fingerprint, str, str | None, float | None]:
    """A random dataset, architecture, preset size and memory."""
    rng = np.random.default_rng(seed)
    architecture, preset_size = list(PLANNERS)[rng.integers(len(PLANNERS))]
    memory_gib = None if rng.random() < 0.4 else float(np.round(np.exp(rng.uniform(np.log(2), np.log(60))), 1))
    channels = tuple(rng.choice(["T1", "CT", "noNorm", "rgb_to_0_1"], rng.integers(1, 4)).tolist())
    facts = {"channels": channels, "label_count": int(rng.integers(2, 9)), "kept": float(rng.uniform(0.3, 1))}
    count = int(rng.choice([1, 2, 5, 20, 61]))
    if rng.random() < 0.15:
        size = np.exp(rng.uniform(np.log(20), np.log(2500), 2)).astype(int)
        return flat((int(size[0]), int(size[1])), count, seed, **facts), architecture, preset_size, memory_gib
    edges = np.exp(rng.uniform(np.log(12), np.log(500), 3)).astype(int)
    spacing = np.exp(rng.normal(0, 0.6, 3))
    fingerprint = around((int(edges[0]), int(edges[1]), int(edges[2])), tuple(spacing.tolist()), count, seed,
                         float(rng.choice([0, 0.1, 0.4])), float(rng.choice([0, 0.1, 0.4])), **facts)
    return fingerprint, architecture, preset_size, memory_gib


@pytest.mark.parametrize("seed", range(15))
def test_random_datasets(seed: int, nnunet_folder: Path) -> None:
    compare(*random_request(seed), nnunet_folder)
