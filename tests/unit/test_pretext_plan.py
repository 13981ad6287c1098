"""How boxes and slabs follow from a plan: the specification's cases, and laws for every architecture and patch."""

import math
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_planned_architectures import EIGHT_CASES

from autoseg.errors import UserError
from autoseg.initialization.pretext import choose_slabs, mask_block, plan_pretext, token_stride
from autoseg.initialization.record import PretextPlan
from autoseg.planning.architectures import build_topology, pool_patch
from autoseg.planning.attention import cumulative_strides, is_eligible
from autoseg.planning.optimizers import OPTIMIZERS
from autoseg.schema import ArchitectureName, NetworkPlan

ARCHITECTURES: tuple[ArchitectureName, ...] = get_args(ArchitectureName)
UNIT = (1.0, 1.0, 1.0)


def planned(architecture: ArchitectureName, spacing: tuple[float, ...], shape: tuple[int, ...]) -> NetworkPlan:
    pooling = pool_patch(architecture, spacing, shape)
    return NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=2, topology=build_topology(architecture, pooling),
        batch_dice=False, optimizer=OPTIMIZERS[architecture], memory_gib=1.0, reasons=(),
    )


def pretext(
    architecture: ArchitectureName, spacing: tuple[float, ...], shape: tuple[int, ...], method: str = "lwi"
) -> PretextPlan:
    return plan_pretext(architecture, planned(architecture, spacing, shape), method)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the specification
BOXES_AND_SLABS = {
    "synapse": ((8, 16, 16), (6, 8)), "lung": ((16, 16, 16), (5, 16)), "brats": ((16, 16, 16), (4, 32)),
    "ct": ((16, 16, 16), (5, 32)), "acdc": ((4, 16, 16), (5, 4)), "promise": ((4, 16, 16), (5, 4)),
    "hippocampus": ((8, 8, 8), (5, 8)), "2d": ((16, 16), None),
}


@pytest.mark.parametrize("architecture", ["hybrid", "resenc"])
@pytest.mark.parametrize("case", BOXES_AND_SLABS)
def test_the_specified_cases_get_the_specified_boxes_and_slabs(case: str, architecture: ArchitectureName) -> None:
    """Hippocampus's boxes are 8 voxels wide and, as the others, at most a quarter of the patch: 40 / 4 is 10."""
    (spacing, patch, _), (block, slabs) = EIGHT_CASES[case], BOXES_AND_SLABS[case]
    tasks = pretext(architecture, spacing, patch)
    assert tasks.mask_block == block and tasks.mask_ratio == 0.6
    if slabs is None:
        assert tasks.slabs is None and tasks.order_weight == 0 and tasks.border_slices == 0
        assert any("2-D" in reason for reason in tasks.reasons)
    else:
        count, thickness = slabs
        assert count * thickness == patch[0] and tasks.slabs == count and tasks.order_weight == 0.2
        assert any(f"{count} slabs of {thickness} slices" in reason for reason in tasks.reasons)


def test_published_architectures_are_tied_to_their_own_tokens() -> None:
    """UNETR's tokens are 16 voxels wide, two of which pass a quarter of 96; UNETR++ and Swin UNETR attend at finer
    strides than 4, where two tokens could be interpolated: their boxes are those of stride 4."""
    assert pretext("unetr", UNIT, (96, 96, 96)).mask_block == (16, 16, 16)
    assert pretext("unetr", UNIT, (128, 128, 128)).mask_block == (32, 32, 32)
    assert pretext("unetr-pp", (3.0, 0.76, 0.76), (64, 128, 128)).mask_block == (4, 8, 8)
    assert pretext("swin-unetr", UNIT, (96, 96, 96)).mask_block == (8, 8, 8)
    assert pretext("mednext", UNIT, (128, 128, 128)).mask_block == (16, 16, 16)


# ---------------------------------------------------------------- laws
edges, distances = st.integers(8, 300), st.floats(0.2, 8.0)
PATCHES = st.lists(st.tuples(edges, distances), min_size=2, max_size=3).map(
    lambda axes: sorted(axes, key=lambda axis: -axis[1])
)


@settings(max_examples=150)
@given(st.sampled_from(ARCHITECTURES), PATCHES, st.sampled_from(["lwi", "mim", "order"]))
def test_every_architecture_and_patch_gets_tasks_or_a_reason(
    architecture: ArchitectureName, axes: list[tuple[int, float]], method: str
) -> None:
    shape, spacing = tuple(size for size, _ in axes), tuple(mm for _, mm in axes)
    network = planned(architecture, spacing, shape)
    assume(len(network.topology.strides) > 1)
    strides, _ = token_stride(architecture, network.topology)
    possible, why_not = choose_slabs(network.patch_shape, strides)
    if method == "order" and possible is None:
        with pytest.raises(UserError, match=r"--method order: .*\n.*--method mim"):
            plan_pretext(architecture, network, "order")
        assert why_not.startswith("order task: off, ")
        return
    tasks = plan_pretext(architecture, network, method)  # type: ignore[arg-type]
    for block, step, size in zip(tasks.mask_block, strides, network.patch_shape, strict=True):
        assert 1 <= block <= max(1, size // 4)
        assert block in (step, 2 * step) or (step > block == max(1, size // 4))
    assert tasks.mask_ratio == (0 if method == "order" else 0.6)
    assert len(tasks.reasons) == 2 and all(tasks.reasons)
    if tasks.slabs is None:
        assert method == "mim" or possible is None
        assert tasks.order_weight == tasks.border_slices == 0 and "order task: off" in tasks.reasons[1]
        return
    thickness, rest = divmod(network.patch_shape[0], tasks.slabs)
    assert len(network.patch_shape) == 3 and 2 <= tasks.slabs <= 6
    assert rest == 0 and thickness >= 4 and thickness % strides[0] == 0
    for more in range(tasks.slabs + 1, 7):  # the most that is possible
        thinner, rest = divmod(network.patch_shape[0], more)
        assert rest or thinner < 4 or thinner % strides[0]
    assert 1 <= tasks.border_slices <= 3 and 2 * tasks.border_slices < thickness
    assert tasks.order_weight == (1 if method == "order" else 0.2)


@settings(max_examples=80)
@given(PATCHES)
def test_a_hybrid_and_its_skeleton_solve_the_same_tasks(axes: list[tuple[int, float]]) -> None:
    """Where the hybrid attends at the first stage of an in-plane stride of 8 (4 in a shallow network)."""
    shape, spacing = tuple(size for size, _ in axes), tuple(mm for _, mm in axes)
    hybrid, skeleton = planned("hybrid", spacing, shape), planned("resenc", spacing, shape)
    totals = cumulative_strides(skeleton.topology)
    enough = 4 if len(totals) <= 4 else 8
    coarse = [stage for stage, total in enumerate(totals) if min(total[-2:]) >= enough]
    assume(coarse and is_eligible(skeleton.topology, skeleton.patch_shape, spacing, coarse[0]))
    one, other = plan_pretext("hybrid", hybrid, "lwi"), plan_pretext("resenc", skeleton, "lwi")
    assert one.model_dump(exclude={"reasons"}) == other.model_dump(exclude={"reasons"})
    assert token_stride("hybrid", hybrid.topology)[0] == totals[coarse[0]]
    assert "which attends" in one.reasons[0] and "which attends" not in other.reasons[0]


# ---------------------------------------------------------------- edges
@pytest.mark.parametrize(("strides", "patch", "block"), [
    ((4, 8, 8), (48, 192, 192), (8, 16, 16)),   # two tokens
    ((8, 8, 8), (48, 48, 64), (8, 8, 16)),      # one, where two pass a quarter
    ((16, 16, 16), (48, 64, 128), (12, 16, 32)),  # a quarter, where one passes it
    ((1, 8, 8), (3, 64, 64), (1, 16, 16)),      # never nothing
    ((8, 8), (64, 24), (16, 6)),
])  # fmt: skip
def test_boxes_are_capped_at_a_quarter_of_the_patch(
    strides: tuple[int, ...], patch: tuple[int, ...], block: tuple[int, ...]
) -> None:
    assert mask_block(strides, patch) == block


@pytest.mark.parametrize(("size", "step", "slabs"), [
    (48, 4, 6), (128, 8, 4), (80, 8, 5), (20, 2, 5), (40, 4, 5), (8, 1, 2), (7, 1, None), (6, 1, None),
    (60, 2, 6), (12, 4, 3), (12, 6, 2), (20, 8, None), (34, 1, 2), (33, 1, 3), (31, 1, None),
])  # fmt: skip
def test_slabs_are_the_most_that_are_thick_enough_whole_tokens(size: int, step: int, slabs: int | None) -> None:
    found, why = choose_slabs((size, 64, 64), (step, 8, 8))
    assert found == slabs
    if slabs is None:
        assert f"{size} slices" in why and f"stride {step}" in why


def test_flat_and_thin_patches_have_no_order_task_and_say_so() -> None:
    for spacing, patch, words in (((1.0, 1.0), (512, 512), "2-D patches"), ((9.0, 1.0, 1.0), (7, 64, 64), "7 slices")):
        tasks = pretext("resenc", spacing, patch)
        assert tasks.slabs is None and tasks.mask_ratio == 0.6 and words in tasks.reasons[1]
        with pytest.raises(UserError, match=f"--method order: .*{words}"):
            pretext("resenc", spacing, patch, "order")


def test_the_methods_differ_in_what_they_leave_out() -> None:
    lwi, mim, order = (pretext("resenc", UNIT, (64, 64, 64), method) for method in ("lwi", "mim", "order"))
    assert (lwi.mask_ratio, mim.mask_ratio, order.mask_ratio) == (0.6, 0.6, 0)
    assert (lwi.slabs, mim.slabs, order.slabs) == (4, None, 4)
    assert (lwi.order_weight, mim.order_weight, order.order_weight) == (0.2, 0, 1)
    assert lwi.mask_block == mim.mask_block and math.prod(lwi.mask_block) > 1
