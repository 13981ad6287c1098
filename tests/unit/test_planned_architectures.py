"""Each architecture's strides, blocks and attention for a patch, against what was published and what is specified."""

import itertools
import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner import make_fingerprint, plan

from autoseg.networks.soundness import topology_problems
from autoseg.planning.architectures import STEM_TOKENS, build_topology, pool_patch
from autoseg.planning.attention import (
    FEWEST_TOKENS,
    MOST_TOKENS,
    POOLED_KEYS,
    is_eligible,
    plan_attention,
    stage_shapes,
    token_spacing,
)
from autoseg.planning.topology import pool, rigid_pooling
from autoseg.schema import ArchitectureName, AttentionPlan, NetworkPlan, Topology

ARCHITECTURES: tuple[ArchitectureName, ...] = get_args(ArchitectureName)
RIGID: dict[ArchitectureName, int] = {"swin-unetr": 32, "mednext": 16}


def topology_for(architecture: ArchitectureName, spacing: tuple[float, ...], shape: tuple[int, ...]) -> Topology:
    return build_topology(architecture, pool_patch(architecture, spacing, shape))


def attention_of(topology: Topology) -> AttentionPlan:
    assert topology.attention is not None
    return topology.attention


# ---------------------------------------------------------------- hybrid
EIGHT_CASES = {
    "synapse": ((3.0, 0.76, 0.76), (48, 192, 192), [(12, 24, 24), (6, 12, 12), (6, 6, 6)]),
    "lung": ((1.24, 0.79, 0.79), (80, 192, 160), [(10, 24, 20), (5, 12, 10), (5, 6, 5)]),
    "brats": ((1.0, 1.0, 1.0), (128, 128, 128), [(16, 16, 16), (8, 8, 8), (4, 4, 4)]),
    "ct": ((0.8, 0.8, 0.8), (160, 160, 160), [(20, 20, 20), (10, 10, 10), (5, 5, 5)]),
    "acdc": ((10.0, 1.56, 1.56), (20, 256, 224), [(10, 32, 28), (5, 16, 14), (5, 8, 7)]),
    "promise": ((3.6, 0.62, 0.62), (20, 320, 256), [(10, 40, 32), (5, 20, 16), (5, 10, 8), (5, 5, 4)]),
    "hippocampus": ((1.0, 1.0, 1.0), (40, 56, 40), [(10, 14, 10), (5, 7, 5)]),
    "2d": ((1.0, 1.0), (512, 512), [(64, 64), (32, 32), (16, 16), (8, 8)]),
}


@pytest.mark.parametrize("case", EIGHT_CASES)
def test_the_eight_specified_cases_attend_where_the_table_says(case: str) -> None:
    """The table of the specification; its tokens are 6912, 864, 216; 4800, 600, 150; 4096, 512, 64; and so on."""
    spacing, patch, grids = EIGHT_CASES[case]
    pooling = pool(spacing, patch)
    assert pooling.patch_shape == patch
    topology = build_topology("hybrid", pooling)
    attention, shapes = attention_of(topology), stage_shapes(topology, patch)
    attending = [stage for stage, blocks in enumerate(attention.blocks) if blocks]
    assert [shapes[stage] for stage in attending] == grids
    assert all(attention.blocks[stage] == 2 for stage in attending)
    assert [attention.key_shapes[stage] for stage in attending] == [
        (POOLED_KEYS[len(grid)],) * len(grid) if math.prod(grid) > MOST_TOKENS else None for grid in grids
    ]
    assert (case == "promise") == any(attention.key_shapes)
    assert all(topology.features[stage] == 64 * attention.heads[stage] or topology.features[stage] < 64
               for stage in attending)
    assert attention.spacing == spacing


def test_tokens_are_as_large_as_the_table_says() -> None:
    for case, sizes in {"synapse": (12, 6.08, 6.08), "lung": (9.92, 6.32, 6.32), "acdc": (20, 12.48, 12.48)}.items():
        spacing, patch, _ = EIGHT_CASES[case]
        assert token_spacing(topology_for("hybrid", spacing, patch), spacing, 3) == pytest.approx(sizes)


edges = st.integers(8, 300)


@settings(max_examples=60)
@given(st.lists(st.tuples(edges, st.floats(0.2, 8.0)), min_size=2, max_size=3))
def test_a_hybrid_is_its_resenc_with_attention(axes: list[tuple[int, float]]) -> None:
    shape, spacing = tuple(size for size, _ in axes), tuple(mm for _, mm in axes)
    skeleton, topology = topology_for("resenc", spacing, shape), topology_for("hybrid", spacing, shape)
    assert topology.model_copy(update={"attention": None}) == skeleton
    attention, patch = attention_of(topology), pool(spacing, shape).patch_shape
    shapes = stage_shapes(topology, patch)
    for stage, blocks in enumerate(attention.blocks):
        assert 0 <= blocks < topology.encoder_blocks[stage] or blocks == 0
        assert topology.features[stage] % attention.heads[stage] == 0
        tokens = math.prod(shapes[stage])
        keys = attention.key_shapes[stage]
        seen = tokens if keys is None else math.prod(map(min, shapes[stage], keys))
        assert blocks == 0 or tokens * seen <= max(MOST_TOKENS**2, tokens * 343)
        if is_eligible(topology, patch, spacing, stage):
            assert blocks > 0 and tokens >= FEWEST_TOKENS
    # Without an eligible stage the coarsest attends; a network of one stage is none.
    assert sum(attention.blocks) > 0 or len(topology.strides) == 1


def test_attention_does_not_depend_on_the_patch_beyond_its_stages() -> None:
    """Heads and blocks are those of the topology; a patch of the same strides changes keys at most."""
    topology = topology_for("resenc", (1.0, 1.0, 1.0), (128, 128, 128))
    small, large = (plan_attention(topology, patch, (1.0, 1.0, 1.0)) for patch in ((128,) * 3, (192,) * 3))
    assert small.heads == large.heads and small.blocks == large.blocks and small.spacing == large.spacing
    assert small.key_shapes != large.key_shapes


# ---------------------------------------------------------------- every architecture
@settings(max_examples=60)
@given(st.sampled_from(ARCHITECTURES), st.lists(st.tuples(edges, st.floats(0.2, 8.0)), min_size=2, max_size=3))
def test_a_pooled_patch_is_a_topology_that_can_be_built(
    architecture: ArchitectureName, axes: list[tuple[int, float]]
) -> None:
    shape, spacing = tuple(size for size, _ in axes), tuple(mm for _, mm in axes)
    pooling = pool_patch(architecture, spacing, shape)
    topology = build_topology(architecture, pooling)
    assert all(padded >= size for padded, size in zip(pooling.patch_shape, shape, strict=True))
    if pooling.stages == 1:
        assert architecture not in RIGID
        return
    assert topology_problems(topology, pooling.patch_shape) == []
    divisors = tuple(math.prod(steps) for steps in zip(*topology.strides, strict=True))
    assert divisors == pooling.divisors
    assert topology.attention is None or architecture == "hybrid"
    if architecture in RIGID:
        assert set(itertools.chain(*topology.strides[1:])) == {2} and set(divisors) == {RIGID[architecture]}
        assert set(itertools.chain(*topology.kernel_sizes)) == {3}
        assert math.prod(stage_shapes(topology, pooling.patch_shape)[-1]) > 1


@settings(max_examples=60)
@given(st.lists(st.tuples(edges, st.floats(0.2, 8.0)), min_size=2, max_size=3))
def test_published_hybrids_take_the_first_halvings_of_nnunet(axes: list[tuple[int, float]]) -> None:
    shape, spacing = tuple(size for size, _ in axes), tuple(mm for _, mm in axes)
    whole = pool(spacing, shape)
    for architecture in ("unetr", "unetr-pp"):
        pooling = pool_patch(architecture, spacing, shape)
        topology = build_topology(architecture, pooling)
        taken = next(
            count for count in range(1, whole.stages + 1)
            if tuple(map(math.prod, zip(*whole.strides[:count], strict=True))) == pooling.divisors
        )
        stages = pooling.stages
        if architecture == "unetr":
            assert taken == min(whole.stages, 5) and pooling.strides == whole.strides[:5]
            assert sum(topology.encoder_blocks[1:]) == (12 if stages > 1 else 0)
            assert topology.features[-1] == 768
            continue
        assert pooling.strides[2:] == whole.strides[taken - max(0, stages - 2) : taken]
        assert stages <= 5 and topology.features == (16, 32, 64, 128, 256)[:stages]
        if stages > 1:
            assert math.prod(stage_shapes(topology, pooling.patch_shape)[1]) <= STEM_TOKENS


def test_the_published_networks_come_out() -> None:
    synapse = topology_for("unetr-pp", (3.0, 0.76, 0.76), (64, 128, 128))
    assert synapse.strides == ((1, 1, 1), (2, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert (synapse.features, synapse.encoder_blocks) == ((16, 32, 64, 128, 256), (1, 3, 3, 3, 3))
    assert synapse.decoder_blocks == (3, 3, 3, 1)
    unetr = topology_for("unetr", (1.5, 1.5, 2.0), (96, 96, 96))
    assert unetr.strides == ((1, 1, 1), *((2, 2, 2),) * 4)
    assert (unetr.features, unetr.encoder_blocks) == ((16, 32, 64, 128, 768), (1, 3, 3, 3, 3))
    swin, mednext = (topology_for(name, (1.0, 1.0, 1.0), (96, 96, 96)) for name in ("swin-unetr", "mednext"))
    assert (swin.features, swin.encoder_blocks) == ((48, 48, 96, 192, 384, 768), (1, 2, 2, 2, 2, 1))
    assert (mednext.features, mednext.encoder_blocks) == ((32, 64, 128, 256, 512), (2,) * 5)


def test_few_halvings_share_unetrs_twelve_blocks() -> None:
    assert topology_for("unetr", (1.0, 1.0, 1.0), (40, 56, 40)).encoder_blocks == (1, 4, 4, 4)
    assert topology_for("unetr", (1.0, 1.0, 1.0), (20, 24, 20)).encoder_blocks == (1, 6, 6)


@pytest.mark.parametrize(("shape", "padded"), [
    ((20, 30, 30), (32, 32, 64)), ((33, 20, 20), (64, 32, 32)), ((32, 32, 32), (32, 32, 64)),
    ((64, 8, 8), (64, 32, 32)),
])
def test_a_rigid_patch_never_ends_in_a_single_voxel(shape: tuple[int, ...], padded: tuple[int, ...]) -> None:
    assert rigid_pooling((1.0, 1.0, 1.0), shape, 5).patch_shape == padded


# ---------------------------------------------------------------- plans
def network(architecture: ArchitectureName, memory_gib: float = 8.0, spacing: float = 1.0) -> NetworkPlan:
    fingerprint = make_fingerprint((160, 256, 256), (spacing, 0.8, 0.8))
    planned = plan(fingerprint, architecture=architecture, memory_gib=memory_gib)
    return planned.configurations["3d_fullres"].networks[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_less_memory_shortens_the_patch_along_the_architectures_own_steps(architecture: ArchitectureName) -> None:
    sizes = []
    for memory_gib in (40.0, 8.0, 6.0, 4.0):
        planned = network(architecture, memory_gib)
        divisors = [math.prod(steps) for steps in zip(*planned.topology.strides, strict=True)]
        assert all(size % step == 0 for size, step in zip(planned.patch_shape, divisors, strict=True))
        assert planned.memory_gib <= memory_gib * (1 + 0.5 / planned.batch_size) + 0.01
        sizes.append(math.prod(planned.patch_shape))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize(("architecture", "words"), [
    ("swin-unetr", ["halves every axis five times, whatever the spacing", "multiples of 32", "5 times longer"]),
    ("mednext", ["mednext halves every axis four times", "multiples of 16"]),
    ("unetr", ["a token is a box of", "12 transformer blocks", "alone, in training and prediction"]),
    ("unetr-pp", ["the stem merges", "32,768 tokens", "alone, in training and prediction"]),
    ("resenc", ["an axis is halved while it has 8 voxels"]),
])
def test_reasons_say_what_the_architecture_does(architecture: ArchitectureName, words: list[str]) -> None:
    text = " ".join(network(architecture, spacing=4.0).reasons)
    assert all(word in text for word in words)


def test_a_hybrids_reasons_name_every_stage() -> None:
    planned = network("hybrid", spacing=4.0)
    topology = planned.topology
    attention = attention_of(topology)
    text = " ".join(planned.reasons)
    for stage, shape in enumerate(stage_shapes(topology, planned.patch_shape)):
        if attention.blocks[stage]:
            grid = "×".join(map(str, shape))
            assert f"Stage {stage} ends with 2 attention blocks" in text
            assert f"{grid} = {math.prod(shape)} tokens of " in text
            assert f"{attention.heads[stage]} heads of {topology.features[stage] // attention.heads[stage]}" in text
        else:
            assert f" {stage} (" in text
    assert "stride 4, below 8" in text


def test_pooled_keys_and_last_resorts_are_said() -> None:
    pooled = plan(make_fingerprint((20, 320, 256), (3.6, 0.62, 0.62)), architecture="hybrid", memory_gib=12.0)
    assert "keys averaged to 7×7×7" in " ".join(pooled.configurations["3d_fullres"].networks["hybrid"].reasons)
    tiny = plan(make_fingerprint((12, 14, 12)), architecture="hybrid").configurations["3d_fullres"].networks["hybrid"]
    assert sum(attention_of(tiny.topology).blocks) > 0
    assert "because no stage is better" in " ".join(tiny.reasons)
