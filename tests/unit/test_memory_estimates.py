"""Estimated memory is proportional to what automatic differentiation saves, alike for every architecture."""

import math
from dataclasses import replace
from typing import get_args

import pytest
from test_planner import make_fingerprint

from autoseg.errors import UserError
from autoseg.networks.builder import make_network
from autoseg.networks.introspection import describe_network
from autoseg.planning.architectures import build_topology, pool_patch
from autoseg.planning.attention import voxels_per_stage
from autoseg.planning.fitting import TooLittleMemory, fit_patch
from autoseg.planning.memory import (
    REFERENCE_BATCH,
    REFERENCES,
    demand_of,
    feature_map_values,
    find_reference,
    weights_gib,
)
from autoseg.planning.optimizers import OPTIMIZERS
from autoseg.planning.patch import Budget, choose_batch, search_patch
from autoseg.planning.planner import PlanSettings, decide_plan
from autoseg.planning.published_memory import COUNTS, SAVED_PER_VALUE
from autoseg.planning.topology import Pooling
from autoseg.schema import CHECKPOINTED, ArchitectureName, ConfigurationName, NetworkPlan

ARCHITECTURES: tuple[ArchitectureName, ...] = get_args(ArchitectureName)
GRIDS = {
    "ct": ((3.0, 0.76, 0.76), (64, 128, 128)),
    "cardiac": ((10.0, 1.5, 1.5), (20, 256, 224)),
    "hippocampus": ((1.0, 1.0, 1.0), (40, 56, 40)),
    "flat": ((1.0, 1.0), (384, 320)),
}
CLASSES = 3


def planned(architecture: ArchitectureName, grid: str, checkpointed: int = 0) -> NetworkPlan:
    pooling: Pooling = pool_patch(architecture, *GRIDS[grid])
    return NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=2, topology=build_topology(architecture, pooling),
        batch_dice=False, optimizer=OPTIMIZERS[architecture], memory_gib=1.0, checkpointed_stages=checkpointed,
        reasons=(),
    )  # fmt: skip


def saved_per_value(architecture: ArchitectureName, network: NetworkPlan) -> float:
    anywhere = (1.0,) * len(network.patch_shape)
    described = describe_network(architecture, network, 1, CLASSES, anywhere)
    demand = demand_of(architecture, network.topology, network.patch_shape, CLASSES, network.checkpointed_stages)
    return described.saved_bytes / 2 / demand.values


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_value_stands_for_as_many_saved_numbers_everywhere(architecture: ArchitectureName, grid: str) -> None:
    """Within 6% of two; `resenc`, which nnU-Net's rule was made for, among them."""
    ratio = saved_per_value(architecture, planned(architecture, grid))
    assert 0.94 * SAVED_PER_VALUE < ratio < 1.03 * SAVED_PER_VALUE


@pytest.mark.parametrize("grid", ["ct", "flat"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_counted_within_a_hundredth(architecture: ArchitectureName, grid: str) -> None:
    import torch

    network = planned(architecture, grid)
    with torch.device("meta"):
        built = make_network(architecture, network, 1, CLASSES)
    # MONAI's transformer blocks hold norms that nothing uses.
    counted = sum(weight.numel() for weight in built.parameters())
    weights = demand_of(architecture, network.topology, network.patch_shape, CLASSES).weights
    assert weights == pytest.approx(counted, rel=0.01)
    if architecture in CHECKPOINTED:
        assert weights == counted


@pytest.mark.parametrize("grid", ["ct", "flat"])
@pytest.mark.parametrize("architecture", CHECKPOINTED)
def test_checkpointing_frees_what_is_not_saved_any_more(architecture: ArchitectureName, grid: str) -> None:
    """Without the stage that is there while it is recomputed, the estimate is what is saved, and a little more."""
    previous = math.inf
    for checkpointed in (0, 1, 2):
        network = planned(architecture, grid, checkpointed)
        anywhere = (1.0,) * len(network.patch_shape)
        saved = describe_network(architecture, network, 1, CLASSES, anywhere).saved_bytes / 2
        values = demand_of(architecture, network.topology, network.patch_shape, CLASSES, checkpointed).values
        largest_part = values - saved / SAVED_PER_VALUE
        finest = voxels_per_stage(network.topology, network.patch_shape)[0] * network.topology.features[0]
        assert values < previous
        if checkpointed:
            assert 0 < largest_part <= 4 * finest
        previous = values


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_reference_takes_its_memory_with_or_without_weights_apart(dimensions: int) -> None:
    for (architecture, size), reference in REFERENCES.items():
        values = reference.values(dimensions, reference.memory_gib)
        estimated = reference.estimated_gib(round(values), REFERENCE_BATCH[dimensions], dimensions)
        assert estimated == pytest.approx(reference.memory_gib)
        if size is None:
            for gib in (0.1, 1.4):
                fitting = reference.values(dimensions, 6.0, gib)
                assert reference.estimated_gib(
                    round(fitting), REFERENCE_BATCH[dimensions], dimensions, gib
                ) == pytest.approx(6.0)
            assert reference.values(dimensions, 1.0, 1.4) == 0
            assert find_reference(architecture, None) is reference


def test_unetrs_weights_take_sixteen_bytes_each() -> None:
    pooling = pool_patch("unetr", (1.0, 1.0, 1.0), (96, 96, 96))
    demand = demand_of("unetr", build_topology("unetr", pooling), pooling.patch_shape, CLASSES)
    assert weights_gib("unetr", demand.weights) == pytest.approx(92.8e6 * 16 / 2**30, rel=0.01)
    assert weights_gib("unetr-pp", 42_950_000) == pytest.approx(42.95e6 * 12 / 2**30)
    assert weights_gib("hybrid", 10**6) == pytest.approx(16e6 / 2**30)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_the_references_weights_are_those_of_its_network(architecture: ArchitectureName) -> None:
    reference = find_reference(architecture, None)
    for shape, counted in (((512, 512), reference.weights_2d), ((128, 128, 128), reference.weights_3d)):
        pooling = pool_patch(architecture, (1.0,) * len(shape), shape)
        weights = demand_of(architecture, build_topology(architecture, pooling), shape, CLASSES).weights
        assert counted == pytest.approx(weights, rel=0.01)


# ---------------------------------------------------------------- patches for little memory
def budget(architecture: ArchitectureName, memory_gib: float, parity: bool = False) -> Budget:
    return Budget(architecture, find_reference(architecture, None), memory_gib, CLASSES, parity)


LARGE = ((1.0, 0.8, 0.8), (400, 512, 512)), ((1.0, 1.0), (900, 1100))


@pytest.mark.parametrize("grid", LARGE)
@pytest.mark.parametrize("architecture", CHECKPOINTED)
def test_stages_are_recomputed_before_the_patch_shrinks(
    architecture: ArchitectureName, grid: tuple[tuple[float, ...], tuple[int, ...]]
) -> None:
    reference = search_patch(*grid, budget(architecture, 8.0))
    for memory_gib in (0.7, 1.5, 3.0, 4.0, 4.5, 5.0, 6.0, 7.0, 7.5, 7.99, 8.0, 12.0):
        ours = search_patch(*grid, budget(architecture, memory_gib))
        theirs = search_patch(*grid, budget(architecture, memory_gib, parity=True))
        assert theirs.checkpointed == 0
        if memory_gib >= 8:
            assert ours == theirs
            continue
        if not ours.buildable:
            assert memory_gib < 4
            continue
        assert math.prod(ours.shape) <= math.prod(reference.shape)
        # Below that, the weights take a share of the memory that nnU-Net gives to the patch.
        assert memory_gib < 4 or math.prod(theirs.shape) <= math.prod(ours.shape)
        # Checkpointing starts where the reference's patch does not fit any more, and shrinking after both stages.
        assert (ours.checkpointed == 0) == (ours.full_values <= _allowed(ours, architecture, memory_gib))
        if ours.shape != reference.shape:
            two = demand_of(architecture, reference.topology, reference.shape, CLASSES, 2)
            assert two.values > _allowed(replace(reference, demand=two), architecture, memory_gib)
        else:
            assert ours.kept == (ours.checkpointed > 0)


def _allowed(patch: object, architecture: ArchitectureName, memory_gib: float) -> float:
    dimensions = len(patch.shape)  # type: ignore[attr-defined]
    allowed = budget(architecture, memory_gib).allowed(dimensions, patch.demand)  # type: ignore[attr-defined]
    return allowed * (REFERENCE_BATCH[dimensions] / 2 if architecture == "plain" else 1)


def test_only_our_own_stages_are_recomputed() -> None:
    for architecture in COUNTS:
        assert search_patch(*LARGE[0], budget(architecture, 4.0)).checkpointed == 0


@pytest.mark.parametrize("grid", [*LARGE, ((1.0, 1.0, 1.0), (36, 50, 35))])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_and_optimizer_fit_beside_the_values(
    architecture: ArchitectureName, grid: tuple[tuple[float, ...], tuple[int, ...]]
) -> None:
    """At the reference's memory and with nnU-Net's numbers, its own rule stands alone for the networks it made."""
    dimensions, fitting = len(grid[0]), []
    for memory_gib in (0.01, 0.3, 0.7, 1.5, 3.0, 6.0, 7.9, 8.0):
        asked = budget(architecture, memory_gib)
        patch = search_patch(*grid, asked)
        fitting.append(patch.buildable)
        if not patch.buildable:
            continue
        smallest = 2 if architecture == "plain" else REFERENCE_BATCH[dimensions]
        estimated = asked.estimated_gib(dimensions, patch.demand, smallest)
        rule = asked.reference.estimated_gib(patch.demand.values, smallest, dimensions)
        assert estimated <= memory_gib * (1 + 1e-9)
        if memory_gib < 8:
            assert estimated > weights_gib(architecture, patch.demand.weights)
        elif architecture in CHECKPOINTED:
            assert estimated == rule
        if architecture in CHECKPOINTED:
            parity = budget(architecture, memory_gib, parity=True)
            assert parity.estimated_gib(dimensions, patch.demand, smallest) == rule
    assert fitting == sorted(fitting) and fitting[-1]


@pytest.mark.parametrize("memory_gib", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("architecture", CHECKPOINTED)
def test_a_plan_for_little_memory_takes_more_than_its_weights(
    architecture: ArchitectureName, memory_gib: float
) -> None:
    import torch

    planned_for = PlanSettings(architecture=architecture, memory_gib=memory_gib)
    for shape in ((140, 170, 140), (36, 50, 35)):
        for name, entry in decide_plan(make_fingerprint(shape), planned_for).configurations.items():
            network = entry.networks[architecture]
            with torch.device("meta"):
                built = make_network(architecture, network, 1, 2)
            weights = sum(weight.numel() for weight in built.parameters())
            assert network.memory_gib > weights_gib(architecture, weights), name


@pytest.mark.parametrize("architecture", ["hybrid", "mednext", "swin-unetr"])
def test_plans_of_networks_that_nnunet_lacks_keep_to_the_memory(architecture: ArchitectureName) -> None:
    for size in (200, 256, 300, 420, 512):
        planned_for = PlanSettings(architecture=architecture, configurations=("2d",))
        (entry,) = decide_plan(make_fingerprint((90, size, size)), planned_for).configurations.values()
        assert entry.networks[architecture].memory_gib <= 8.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_nnunets_networks_round_the_batch_beyond_the_memory(architecture: ArchitectureName) -> None:
    over = []
    for grid in (((1.0, 1.0), (size, size)) for size in (200, 256, 300, 512)):
        for memory_gib in (7.9, 8.0, 9.3, 11.0):
            asked = budget(architecture, memory_gib)
            patch = fit_patch(*grid, asked)
            batch = choose_batch(patch, 1e12, asked)
            over.append(asked.estimated_gib(2, patch.demand, batch.by_memory) > memory_gib * (1 + 1e-9))
    assert any(over) == (architecture in ("plain", "resenc"))


@pytest.mark.parametrize(("architecture", "grid"), [*((one, LARGE[0]) for one in ARCHITECTURES), ("unetr", LARGE[1])])
def test_an_architecture_that_cannot_fit_says_what_would(
    architecture: ArchitectureName, grid: tuple[tuple[float, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(UserError, match="The smallest memory") as caught:
        fit_patch(*grid, budget(architecture, 1e-4))
    message = str(caught.value)
    enough = float(message.split("would train in is ")[1].split(" GiB", maxsplit=1)[0])
    assert fit_patch(*grid, budget(architecture, enough)).buildable
    assert not search_patch(*grid, budget(architecture, 0.85 * enough)).buildable
    assert f"No architecture trains in {len(grid[0])}-D in 0.0001 GiB" in message


def test_the_architectures_that_would_fit_are_named() -> None:
    with pytest.raises(TooLittleMemory, match="--memory-gib 1: .*'unetr'") as caught:
        fit_patch(*LARGE[0], budget("unetr", 1.0))
    named = str(caught.value).split("these would train in 3-D: ")[1].split(" (--architecture)")[0].split(", ")
    fitting = [one for one in ARCHITECTURES if search_patch(*LARGE[0], budget(one, 1.0)).buildable]
    assert named == fitting and "resenc" in named and "swin-unetr" not in named


def test_nnunets_count_is_not_changed_by_what_surrounds_it() -> None:
    network = planned("resenc", "ct")
    values = feature_map_values("resenc", network.topology, network.patch_shape, CLASSES)
    assert demand_of("resenc", network.topology, network.patch_shape, CLASSES).values == values


@pytest.mark.parametrize(("configuration", "dimensions"), [("2d", "2-D"), ("3d_fullres", "3-D")])
def test_the_memory_that_would_do_is_that_of_what_was_asked_for(
    configuration: ConfigurationName, dimensions: str
) -> None:
    fingerprint = make_fingerprint((36, 50, 35))
    asked = PlanSettings(architecture="hybrid", memory_gib=1e-4, configurations=(configuration,))
    with pytest.raises(TooLittleMemory, match=f"the smallest {dimensions} patch") as caught:
        decide_plan(fingerprint, asked)
    enough = float(str(caught.value).split("would train in is ")[1].split(" GiB", maxsplit=1)[0])
    assert configuration in decide_plan(fingerprint, replace(asked, memory_gib=enough)).configurations
