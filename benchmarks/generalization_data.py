"""Data of the study in generalization.py: its small plan, cases, synthetic shifts, scores and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Integer

from autoseg.data.dataset import Case, Dataset, open_dataset
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.store import Store, open_store, store_folder
from autoseg.data.volume import read_image, read_labels
from autoseg.evaluation.scoring import TWO_MM, score_case
from autoseg.planning.fingerprint import measure
from autoseg.planning.normalization import with_normalization
from autoseg.planning.planner import PlanSettings, decide_plan, store_record
from autoseg.records import read_record, write_record
from autoseg.schema import CaseScores, NetworkPlan, Plan, Topology

CONFIGURATION: Literal["2d"] = "2d"
ARCHITECTURE: Literal["plain"] = "plain"
PATCH = (128, 128)
BATCH = 12
FEATURES = (16, 32, 64, 128, 128)
CONVOLUTIONS = 1
HELD_OUT_SHARE = 0.3
Normalization = Literal["plan", "percentile", "rank"]
Labels = Integer[np.ndarray, "z y x"]
Unit = Float[np.ndarray, "*shape"]
CaseRow = list[list[float | None]]
"""Per label, in the plan's order: Dice and NSD of whole volumes, then both inside the annotated slices."""


@dataclass(frozen=True)
class Source:
    """A dataset of the study. `spacing`: mm in plane, or a multiple of the plan's own where `relative`."""

    name: str
    spacing: float
    relative: bool = False


SOURCES = {
    "bssfp": Source("Cardiac_MSCMR_bSSFP", 2.0),
    "lge": Source("Cardiac_MSCMR_LGE", 2.0),
    "ct": Source("AbdCT_SABS", 2.0),
    "mr": Source("AbdMR_CHAOS_T2", 2.0),
    "cxr": Source("CXRLung_Montgomery", 2.0, relative=True),
}


@dataclass(frozen=True)
class Domain:
    """One dataset, planned: its cases by id, and the folder that its plan, stores and models go to."""

    dataset: Dataset
    cases: Mapping[str, Case]
    plan: Plan
    folder: Path

    def normalized(self, normalization: Normalization) -> tuple[Plan, Store]:
        """The plan with this normalization, and the store of all cases made by it (once)."""
        plan = self.plan if normalization == "plan" else with_normalization(self.plan, normalization)
        record = store_record(plan, CONFIGURATION)
        folder = store_folder(self.folder, CONFIGURATION, record)
        preprocess_dataset(self.dataset, record, folder, 1)
        return plan, open_store(folder)


def open_domain(key: str, data: Path, work: Path) -> Domain:
    """A dataset with the study's plan, measured and decided once per work folder."""
    source = SOURCES[key]
    dataset, folder = open_dataset(data / source.name), work / source.name
    path = folder / "plan.json"
    if not path.exists():
        settings = PlanSettings(architecture=ARCHITECTURE, configurations=(CONFIGURATION,))
        write_record(study_plan(decide_plan(measure(dataset, 1), settings), source), path)
    return Domain(dataset, {case.id: case for case in dataset.cases}, read_record(Plan, path), folder)


def study_plan(plan: Plan, source: Source) -> Plan:
    """The plan with the study's in-plane spacing, patch, batch and network of about a million weights."""
    configuration = plan.configurations[CONFIGURATION]
    planned, before = configuration.networks[ARCHITECTURE], configuration.spacing
    after = tuple(source.spacing * (old if source.relative else 1.0) for old in before[-2:])
    stages = len(FEATURES)
    topology = Topology(
        strides=((1, 1), *((2, 2) for _ in FEATURES[1:])), kernel_sizes=((3, 3),) * stages, features=FEATURES,
        encoder_blocks=(CONVOLUTIONS,) * stages, decoder_blocks=(CONVOLUTIONS,) * (stages - 1),
    )
    network = NetworkPlan.model_validate({
        **planned.model_dump(), "patch_shape": PATCH, "batch_size": BATCH, "topology": topology.model_dump(),
        "reasons": ("The study's own small network.",),
    })
    shape = configuration.median_shape
    resampled = tuple(size * old / new for size, old, new in zip(shape[-2:], before[-2:], after, strict=True))
    changed = configuration.model_copy(update={
        "spacing": (*before[:-2], *after), "median_shape": (*shape[:-2], *resampled),
        "networks": {ARCHITECTURE: network}, "architecture": ARCHITECTURE,
    })
    return plan.model_copy(update={"configurations": {CONFIGURATION: changed}})


def split_cases(ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held out): about 70 % and 30 %, drawn once with seed 0, the same for every run."""
    order = np.random.default_rng(0).permutation(len(ids))
    held_out = {sorted(ids)[position] for position in order[: max(1, round(HELD_OUT_SHARE * len(ids)))]}
    return tuple(sorted(set(ids) - held_out)), tuple(sorted(held_out))


def halves(ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two halves for the networks trained on the target: each predicts the half that the other was trained on."""
    order = np.random.default_rng(0).permutation(len(ids))
    first = {sorted(ids)[position] for position in order[: (len(ids) + 1) // 2]}
    return tuple(sorted(first)), tuple(sorted(set(ids) - first))


# ---------------------------------------------------------------- synthetic shifts
def invert(unit: Unit, _: np.random.Generator) -> Unit:
    return 1 - unit


def darken(unit: Unit, _: np.random.Generator) -> Unit:
    return unit**2.5


def brighten(unit: Unit, _: np.random.Generator) -> Unit:
    return unit**0.4


def remap(unit: Unit, _: np.random.Generator) -> Unit:
    """A curve that rises, falls, rises and falls: no monotone map takes it back."""
    return np.interp(unit, (0, 0.25, 0.5, 0.75, 1), (0, 0.8, 0.3, 1, 0.4))


def shade(unit: Unit, rng: np.random.Generator) -> Unit:
    """A multiplicative field, the exponential of a quadratic of the position with coefficients in ±0.7."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in unit.shape[-2:]), indexing="ij")
    a, b, c, d, e = rng.uniform(-0.7, 0.7, 5)
    return np.clip(unit * np.exp(a * y + b * x + c * y * x + d * y**2 + e * x**2), 0, 1)


def degrade(unit: Unit, rng: np.random.Generator) -> Unit:
    """A quarter of the resolution (means of 4 × 4, then linear), and Gaussian noise of 5 % of the range."""
    from scipy.ndimage import zoom

    height, width = (length // 4 * 4 for length in unit.shape[-2:])
    cells = unit[..., :height, :width].reshape(*unit.shape[:-2], height // 4, 4, width // 4, 4).mean((-3, -1))
    factors = [new / old for new, old in zip(unit.shape, cells.shape, strict=True)]
    return np.clip(zoom(cells, factors, order=1) + rng.normal(0, 0.05, unit.shape), 0, 1)


SHIFTS: dict[str, Callable[[Unit, np.random.Generator], Unit]] = {
    "inversion": invert, "gamma 2.5": darken, "gamma 0.4": brighten, "non-monotone": remap, "bias field": shade,
    "low resolution": degrade,
}  # fmt: skip
"""Shifts of images in 0 … 1, each of the image's own smallest to largest value."""


def shifted_cases(cases: Sequence[Case], shift: str, folder: Path) -> list[Case]:
    """The cases with shifted images, written once as 8-bit pictures into `folder`; the labels stay."""
    from PIL import Image

    shifted = []
    for number, case in enumerate(sorted(cases, key=lambda one: one.id)):
        path = folder / shift.replace(" ", "_") / f"{case.id}_0000.png"
        if not path.exists():
            voxels = read_image(case.images, 1).voxels[0, 0].astype(np.float64)
            unit = (voxels - voxels.min()) / max(float(np.ptp(voxels)), 1e-8)
            moved = SHIFTS[shift](unit, np.random.default_rng([7, number]))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(255 * moved).astype(np.uint8)).save(path)
        shifted.append(Case(case.id, (path,), case.label))
    return shifted


# ---------------------------------------------------------------- scores
def annotated_slices(reference: Labels, spacing: Sequence[float]) -> tuple[slice, slice, slice]:
    """The box from the first to the last slice with any label, along the axis of the largest spacing.

    Of a volume without labels, and of a picture (one slice), the whole.
    """
    axis = int(np.argmax(spacing)) if reference.shape[0] > 1 else 0
    occupied = np.flatnonzero(reference.any(axis=tuple(other for other in range(3) if other != axis)))
    box = [slice(None)] * 3
    if occupied.size:
        box[axis] = slice(int(occupied[0]), int(occupied[-1]) + 1)
    return box[0], box[1], box[2]


def score_masks(cases: Sequence[Case], folder: Path, plan: Plan) -> dict[str, CaseRow]:
    """Case → rows of scores (`CaseRow`) of the masks in a folder."""
    found = {}
    for case in cases:
        assert case.label is not None
        reference = read_labels(case.label)
        predicted = read_labels(folder / f"{case.id}{plan.file_ending}").voxels[0]
        whole, inside = (_score(case.id, predicted, reference.voxels[0], reference.grid.spacing, plan, box)
                         for box in ((slice(None),) * 3,
                                     annotated_slices(reference.voxels[0], reference.grid.spacing)))
        found[case.id] = [[*_pair(whole, name), *_pair(inside, name)] for name in plan.labels if plan.labels[name]]
    return found


def _score(case: str, predicted: Labels, reference: Labels, spacing: Sequence[float], plan: Plan,
           box: tuple[slice, slice, slice]) -> CaseScores:
    return score_case(case, predicted[box], reference[box], spacing, labels=plan, tolerance=TWO_MM)


def _pair(scores: CaseScores, label: str) -> tuple[float | None, float | None]:
    one = scores.labels[label]
    return tuple(None if value is None else round(value, 4) for value in (one.dice, one.nsd))  # type: ignore[return-value]


# ---------------------------------------------------------------- pictures
def take_picture(case: Case, folder: Path, plan: Plan) -> dict[str, Any]:
    """Image, reference and mask of the slice with most labelled voxels, along the axis of the largest spacing."""
    assert case.label is not None
    image, reference = read_image(case.images, len(plan.channel_names)), read_labels(case.label)
    predicted = read_labels(folder / f"{case.id}{plan.file_ending}").voxels[0]
    axis = int(np.argmax(reference.grid.spacing)) if predicted.shape[0] > 1 else 0
    labelled = (reference.voxels[0] > 0).sum(tuple(other for other in range(3) if other != axis))
    place = int(np.argmax(labelled))
    image_slice: Float32[np.ndarray, "y x"] = np.take(image.voxels[0], place, axis)
    return {"image": image_slice, "reference": np.take(reference.voxels[0], place, axis).astype(np.uint8),
            "predicted": np.take(predicted, place, axis).astype(np.uint8), "case": case.id, "slice": place}
