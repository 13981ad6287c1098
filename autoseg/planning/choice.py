"""The rule behind `--architecture auto`: `resenc` or `hybrid`, from the dataset's facts and measured comparisons.

`hybrid` is chosen only where three things hold together: attention could see what the convolutions of its stages do
not, there is data to train it, and it was measured not to be worse than `resenc` at equal computing time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoseg.planning.attention import is_eligible, stage_shapes
from autoseg.planning.patch import readable_shape
from autoseg.planning.receptive_field import effective_field, theoretical_field
from autoseg.planning.topology import Numbers
from autoseg.schema import Fingerprint, NetworkPlan


@dataclass(frozen=True)
class Evidence:
    """A measured difference hybrid - resenc in Dice points (0 to 100) at equal wall-clock, same optimizer.

    `low`, `high`: ends of the 95% interval of `mean`. `on`: data and length. `where`: the page that shows it.
    """

    mean: float
    low: float
    high: float
    on: str
    where: str


# ---------------------------------------------------------------- what the rule rests on
HYBRID_REACH = 1.0
"""`hybrid` only where the patch extends beyond the effective receptive field, at the finest stage that would attend,
times this. Within it the convolutions of that stage already see what attention would."""
FEWEST_CASES = 30
"""No hybrid was compared on less: the smallest dataset of "nnU-Net Revisited" (2024), BTCV, has 30, and there every
hybrid of its table is behind nnU-Net (-1.1 to -4.2 Dice)."""
SMALLEST_PATCH_SHARE = 0.75
"""Of the voxels of resenc's patch: a hybrid that buys attention with a smaller view is not compared at equal terms.
One step of the patch search takes up to a quarter of a short axis."""
LARGEST_LOSS = -0.3
"""Dice points: the lower end of the measured interval must not be below. Two trainings of `resenc` that differed in the
seed alone were 0.33 apart on Hippocampus (and 1.7 on bSSFP)."""
COMPARISON = "docs/architectures.md"
MEASURED: dict[int, Evidence | None] = {
    2: Evidence(mean=-1.39, low=-4.70, high=2.08, on="cardiac MR, 200 steps on a CPU", where=COMPARISON),
    3: Evidence(mean=-0.69, low=-1.21, high=-0.22, on="hippocampus MR, 200 steps on a CPU", where=COMPARISON),
}
"""Per number of dimensions, `benchmarks/compare_architectures.py --table`, column "same time": 2-D on bSSFP, 3-D on
Hippocampus, both after 200 steps on a CPU. Longer trainings have not been compared. None: not measured, so `resenc`
is chosen."""
STRUCTURES_PERCENTILE = 95


@dataclass(frozen=True)
class Candidates:
    """The two networks of one configuration, on the same grid and for the same memory."""

    resenc: NetworkPlan
    hybrid: NetworkPlan


def choose_architecture(
    fingerprint: Fingerprint,
    axes: Sequence[int],
    spacing: Numbers,
    candidates: Candidates,
    measured: Mapping[int, Evidence | None] = MEASURED,
) -> tuple[Literal["resenc", "hybrid"], tuple[str, ...]]:
    """The architecture, and why: the verdict first, then every fact with its number.

    axes : array axes of the configuration in plan order; spacing : mm in plan order.
    """
    attending = _attending_stages(candidates.hybrid, spacing)
    obstacles = [
        obstacle
        for obstacle in (
            _reach_obstacle(candidates.hybrid, attending, spacing),
            _data_obstacle(len(fingerprint.cases)),
            _patch_obstacle(candidates),
            _evidence_obstacle(measured.get(len(spacing)), len(spacing)),
        )
        if obstacle
    ]
    facts = (
        _field_fact(candidates.hybrid, attending, spacing),
        _extent_fact(fingerprint, axes),
        _token_fact(candidates, attending),
    )
    if obstacles:
        return "resenc", (f"Architecture resenc, not hybrid: {'; '.join(obstacles)}.", *facts)
    evidence = measured[len(spacing)]
    assert evidence is not None
    verdict = (f"Architecture hybrid: the patch extends beyond what convolutions see at stage {attending[0]}, there "
               f"are {len(fingerprint.cases)} cases, and {_measurement(evidence, len(spacing))}.")
    return "hybrid", (verdict, *facts)


# ---------------------------------------------------------------- what speaks against attention
def _reach_obstacle(hybrid: NetworkPlan, attending: Sequence[int], spacing: Numbers) -> str | None:
    if not attending:
        return "no stage has the stride, the spacing and the tokens for attention"
    # The hybrid's own skeleton: shorter patches can have more stages than resenc's.
    field, stage = effective_field(hybrid.topology, attending[0]), attending[0]
    if any(size > HYBRID_REACH * seen for size, seen in zip(hybrid.patch_shape, field, strict=True)):
        return None
    return (f"convolutions see {_mm(field, spacing)} mm effectively at stage {stage}, the whole patch of "
            f"{_mm(hybrid.patch_shape, spacing)} mm")


def _data_obstacle(cases: int) -> str | None:
    if cases >= FEWEST_CASES:
        return None
    return f"{cases} cases are few for attention (at least {FEWEST_CASES})"


def _patch_obstacle(candidates: Candidates) -> str | None:
    hybrid, resenc = candidates.hybrid.patch_shape, candidates.resenc.patch_shape
    share = math.prod(hybrid) / math.prod(resenc)
    if share >= SMALLEST_PATCH_SHARE:
        return None
    return (f"in this memory its patch would be {readable_shape(hybrid)} voxels, {share:.0%} of resenc's "
            f"{readable_shape(resenc)}")


def _evidence_obstacle(evidence: Evidence | None, dimensions: int) -> str | None:
    if evidence is None:
        return f"the two have not been compared in {dimensions}-D"
    return None if evidence.low >= LARGEST_LOSS else _measurement(evidence, dimensions)


# ---------------------------------------------------------------- facts
def _field_fact(hybrid: NetworkPlan, attending: Sequence[int], spacing: Numbers) -> str:
    topology, deepest = hybrid.topology, len(hybrid.topology.strides) - 1
    stages = sorted({*attending[:1], deepest})
    seen = "; ".join(
        f"{_mm(effective_field(topology, stage), spacing)} mm effectively, "
        f"{_mm(theoretical_field(topology, stage), spacing)} mm at most, at stage {stage}"
        for stage in stages
    )
    return (f"Receptive field of the hybrid's encoder if all its blocks were convolutions: {seen} (the coarsest is "
            f"{deepest}); its patch is {_mm(hybrid.patch_shape, spacing)} mm.")


def _extent_fact(fingerprint: Fingerprint, axes: Sequence[int]) -> str:
    extents = [
        [extent[axis] * case.spacing[axis] for axis in axes]
        for case in fingerprint.cases
        for extent in case.class_extents.values()
        if extent is not None
    ]
    cases = f"{len(fingerprint.cases)} cases"
    if not extents:
        return f"{cases}; the extent of the structures was not measured."
    largest = np.percentile(extents, STRUCTURES_PERCENTILE, axis=0)
    return (f"{cases}; the structures extend over up to {'×'.join(f'{size:.0f}' for size in largest)} mm (the "
            f"{STRUCTURES_PERCENTILE}th percentile of all labels' bounding boxes).")


def _token_fact(candidates: Candidates, attending: Sequence[int]) -> str:
    hybrid, resenc = candidates.hybrid, candidates.resenc
    shapes = stage_shapes(hybrid.topology, hybrid.patch_shape)
    tokens = ", ".join(f"{math.prod(shapes[stage])} at stage {stage}" for stage in attending) or "no eligible stage"
    return (f"A hybrid would have tokens: {tokens}; patch {readable_shape(hybrid.patch_shape)}, batch "
            f"{hybrid.batch_size}, {hybrid.memory_gib:.1f} GiB (resenc: {readable_shape(resenc.patch_shape)}, "
            f"{resenc.batch_size}, {resenc.memory_gib:.1f} GiB).")


def _attending_stages(hybrid: NetworkPlan, spacing: Numbers) -> list[int]:
    topology = hybrid.topology
    stages = range(len(topology.strides))
    return [stage for stage in stages if is_eligible(topology, hybrid.patch_shape, spacing, stage)]


def _measurement(evidence: Evidence, dimensions: int) -> str:
    return (f"hybrid - resenc was measured in {dimensions}-D on {evidence.on} as {evidence.mean:+.2f} Dice points "
            f"(95%: {evidence.low:+.2f} to {evidence.high:+.2f}; at least {LARGEST_LOSS:g} is asked for; "
            f"{evidence.where})")


def _mm(voxels: Numbers, spacing: Numbers) -> str:
    return "×".join(f"{size * step:.0f}" for size, step in zip(voxels, spacing, strict=True))
