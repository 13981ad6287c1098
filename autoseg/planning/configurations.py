"""Which configurations a dataset can have, each with grid and network.

Rules of nnU-Net v2 (`plan_experiment` of its planner): 3D only where the median case has more than one
slice; `3d_lowres` where the patch of `3d_fullres` sees less than a quarter of the median case, and then a cascade,
whose second network is that of `3d_fullres` and gets the masks of `3d_lowres` as channels.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.planning.architectures import pool_patch
from autoseg.planning.explanation import explain_network
from autoseg.planning.fitting import TooLittleMemory, fit_patch
from autoseg.planning.optimizers import OPTIMIZERS
from autoseg.planning.patch import (
    Budget,
    FittedPatch,
    choose_batch,
    first_patch_shape,
    readable_mm,
    readable_shape,
    search_patch,
)
from autoseg.planning.spacing import Target
from autoseg.planning.topology import Numbers
from autoseg.schema import ConfigurationName, ConfigurationPlan, NetworkPlan

SMALLEST_VIEW = 0.25
"""A patch of `3d_fullres` that covers less of the median case than this asks for a `3d_lowres`."""
SPACING_STEP = 1.03
SMALLEST_REDUCTION = 2.0
"""`3d_lowres` is dropped where its median case is not at least this many times smaller in voxels."""
FULLRES: ConfigurationName = "3d_fullres"
LOWRES: ConfigurationName = "3d_lowres"
CASCADE: ConfigurationName = "3d_cascade_fullres"
LOWRES_DICE_REASON = "No batch dice: each sample has its own Dice loss, as in nnU-Net's 3d_lowres."


@dataclass(frozen=True)
class Draft:
    """One configuration, whether or not it was asked for; plan order, mm and voxels."""

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    network: NetworkPlan
    next_stage: str | None = None


@dataclass(frozen=True)
class Drafts:
    """What can be planned, and for everything else the reason why not (a sentence)."""

    possible: dict[ConfigurationName, Draft]
    impossible: dict[ConfigurationName, str]


@dataclass(frozen=True)
class LowresGrid:
    """The grid of `3d_lowres`, plan order; `voxels` of the median case before rounding `median_shape`."""

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    voxels: float


def draft_configurations(target: Target, case_count: int, budget: Budget, asked: Collection[int]) -> Drafts:
    """Plan every configuration that the dataset can have; the 3D ones only if `asked` holds 3.

    Raises
    ------
    TooLittleMemory : the memory is too small for a configuration that the images would allow, of as many
        dimensions as are `asked` for.
    """
    try:
        flat = _draft_2d(target, case_count, budget)
    except TooLittleMemory:
        if 2 in asked:
            raise
        flat = Drafts({}, {})
    deep = _draft_3d(target, case_count, budget) if 3 in asked else Drafts({}, {})
    return Drafts({**flat.possible, **deep.possible}, {**flat.impossible, **deep.impossible})


def plan_network(
    grid: tuple[Numbers, Numbers],
    dataset_voxels: float,
    budget: Budget,
    batch_dice: bool,
    reasons: tuple[str, ...],
) -> NetworkPlan:
    """Patch, batch and network for a grid: (spacing in mm, median shape in voxels), plan order.

    `dataset_voxels`: voxels of all cases at that spacing. `reasons` follow those of patch, network and batch.
    Raises TooLittleMemory when it is too small for any patch.
    """
    spacing, median_shape = grid
    patch = fit_patch(spacing, median_shape, budget)
    return _network(patch, grid, dataset_voxels, budget, batch_dice, reasons)


def _network(
    patch: FittedPatch,
    grid: tuple[Numbers, Numbers],
    dataset_voxels: float,
    budget: Budget,
    batch_dice: bool,
    reasons: tuple[str, ...],
) -> NetworkPlan:
    batch = choose_batch(patch, dataset_voxels, budget)
    memory_gib = budget.estimated_gib(len(patch.shape), patch.demand, batch.size)
    return NetworkPlan(
        patch_shape=patch.shape,
        batch_size=batch.size,
        topology=patch.topology,
        batch_dice=batch_dice,
        optimizer=OPTIMIZERS[budget.architecture],
        memory_gib=round(memory_gib, 3),
        checkpointed_stages=patch.checkpointed,
        reasons=(*explain_network(patch, batch, grid, budget), *reasons),
    )


def with_cascade(
    configurations: Mapping[ConfigurationName, ConfigurationPlan], labels: int
) -> dict[ConfigurationName, ConfigurationPlan]:
    """The configurations with the cascade made, or made anew, from `3d_fullres`, whose decisions it shares.

    `labels`: with background. Without `3d_fullres` or `3d_lowres` there is no cascade.
    """
    made = {name: entry for name, entry in configurations.items() if name != CASCADE}
    if FULLRES not in made or LOWRES not in made:
        return made
    channels = "one more channel" if labels == 2 else f"{labels - 1} more channels"
    reason = (f"A cascade: all as in {FULLRES}, with {channels} of input, the mask of {LOWRES} with one channel per "
              "foreground label. What they take of the memory is not counted, as in nnU-Net.")
    networks = {name: network.model_copy(update={"reasons": (*network.reasons, reason)})
                for name, network in made[FULLRES].networks.items()}
    return {**made, CASCADE: made[FULLRES].model_copy(update={"networks": networks, "previous_stage": LOWRES})}


def with_parts(asked: Sequence[ConfigurationName]) -> tuple[ConfigurationName, ...]:
    """The configurations and, before a cascade, those that it is made of."""
    parts = [FULLRES, LOWRES] if CASCADE in asked else []
    return tuple(dict.fromkeys((*parts, *asked)))


def _draft_2d(target: Target, case_count: int, budget: Budget) -> Drafts:
    spacing, median_shape = target.spacing[1:], target.median_shape[1:]
    if obstacle := _too_small(spacing, median_shape, budget):
        return Drafts({}, {"2d": obstacle})
    dataset_voxels = float(np.prod(target.median_shape) * case_count)
    reason = ("Batch dice: slices without some label are common, so the Dice loss pools the batch, as "
              "nnU-Net's does in 2D.")
    network = plan_network((spacing, median_shape), dataset_voxels, budget, True, (reason,))
    return Drafts({"2d": Draft(spacing, median_shape, network)}, {})


def _draft_3d(target: Target, case_count: int, budget: Budget) -> Drafts:
    spacing, median_shape = target.spacing, target.median_shape
    obstacle = _too_small(spacing, median_shape, budget)
    if not target.has_depth:
        obstacle = "the images have a single slice (median)."
    if obstacle:
        return Drafts({}, {FULLRES: obstacle, LOWRES: obstacle, CASCADE: obstacle})
    patch = fit_patch(spacing, median_shape, budget)
    share = float(np.prod(patch.shape) / np.prod(median_shape))
    lowres = _find_lowres(target, patch, budget)
    reduction = 1.0 if lowres is None else float(np.prod(median_shape) / lowres.voxels)
    kept = lowres is not None and reduction >= SMALLEST_REDUCTION
    fullres = _network(
        patch, (spacing, median_shape), float(np.prod(median_shape) * case_count), budget, kept,
        (fullres_dice_reason(kept, share),),
    )
    possible: dict[ConfigurationName, Draft] = {FULLRES: Draft(spacing, median_shape, fullres)}
    obstacle = None
    if lowres is None or not kept:
        obstacle = _no_lowres_reason(share, reduction)
    elif not search_patch(lowres.spacing, lowres.median_shape, budget).buildable:
        obstacle = _not_halved(lowres.spacing, lowres.median_shape)
    if lowres is None or obstacle is not None:
        return Drafts(possible, {LOWRES: str(obstacle), CASCADE: str(obstacle)})
    possible[LOWRES] = _draft_lowres(lowres, case_count, budget, share)
    possible[CASCADE] = Draft(spacing, median_shape, fullres)
    return Drafts(possible, {})


def _draft_lowres(lowres: LowresGrid, case_count: int, budget: Budget, share: float) -> Draft:
    reasons = (
        f"3d_lowres exists because the patch of 3d_fullres covers only {share:.1%} of the median case's "
        f"voxels (less than {SMALLEST_VIEW:.0%}). Its spacing, {readable_mm(lowres.spacing)} mm, was raised "
        f"in steps of {SPACING_STEP - 1:.0%}, finer axes first, until the patch covers {SMALLEST_VIEW:.0%}.",
        LOWRES_DICE_REASON,
    )
    network = plan_network(
        (lowres.spacing, lowres.median_shape), float(lowres.voxels * case_count), budget, False, reasons
    )
    return Draft(lowres.spacing, lowres.median_shape, network, CASCADE)


def lowres_grid(target: Target, spacing: Numbers) -> LowresGrid:
    """The median case at a spacing (mm, plan order) coarser than the target's."""
    exact = np.array(target.spacing) / np.array(spacing) * np.array(target.median_shape)
    return LowresGrid(
        tuple(float(value) for value in spacing),
        tuple(float(round(size)) for size in exact),
        float(np.prod(exact)),
    )


def _find_lowres(target: Target, patch: FittedPatch, budget: Budget) -> LowresGrid | None:
    """The first coarser grid whose patch covers a quarter of the median case; None if full resolution does.

    Spacing grows by 3% a step: of the axes finer than half the coarsest spacing while there are any, then
    of all.
    """
    grid, share = None, np.prod(patch.shape) / np.prod(target.median_shape)
    spacing = np.array(target.spacing)
    while share < SMALLEST_VIEW:
        finer = spacing.max() / spacing > 2
        spacing = np.where(finer | ~finer.any(), spacing * SPACING_STEP, spacing)
        grid = lowres_grid(target, spacing.tolist())
        share = np.prod(search_patch(grid.spacing, grid.median_shape, budget).shape) / grid.voxels
    return grid


def _too_small(spacing: Numbers, median_shape: Numbers, budget: Budget) -> str | None:
    """Why no network can be built for images of this shape however much memory there is, or None.

    nnU-Net plans a network of one stage there, which fails when it runs.
    """
    halvable = pool_patch(budget.architecture, spacing, first_patch_shape(spacing, median_shape)).stages > 1
    if halvable or search_patch(spacing, median_shape, budget).buildable:
        return None
    return _not_halved(spacing, median_shape)


def _not_halved(spacing: Numbers, median_shape: Numbers) -> str:
    return (f"the median image of {readable_shape(median_shape)} voxels at {readable_mm(spacing)} mm cannot "
            "be halved even once: a network needs 12 voxels along the finest axis, or 8 along two of like spacing.")


def fullres_dice_reason(has_lowres: bool, share: float) -> str:
    """Why a 3d_fullres whose patch covers `share` of the median case's voxels has batch dice, or has not."""
    if has_lowres:
        return (f"Batch dice: a patch covers only {share:.1%} of the median case and may lack some label, so "
                "the Dice loss pools the batch.")
    return f"No batch dice: a patch covers {_covered(share)}, so each sample has its own Dice loss."


def _no_lowres_reason(share: float, reduction: float) -> str:
    if reduction == 1.0:
        return (f"the patch of 3d_fullres covers {_covered(share)}; a lower resolution is planned only below "
                f"{SMALLEST_VIEW:.0%}.")
    return (f"its median case would have only {reduction:.2g} times fewer voxels than that of 3d_fullres; "
            f"below {SMALLEST_REDUCTION:g} times it adds nothing.")


def _covered(share: float) -> str:
    return "the whole median case" if share >= 1 else f"{share:.0%} of the median case's voxels"

