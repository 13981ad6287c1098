"""Laws of the planner: what is asked for is planned or refused with a reason, and reasons say what was decided."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.store import store_folder
from autoseg.errors import UserError
from autoseg.planning.architectures import build_topology
from autoseg.planning.fingerprint import same_facts
from autoseg.planning.memory import REFERENCES, feature_map_values
from autoseg.planning.normalization import scheme_of
from autoseg.planning.patch import LARGEST_BATCH
from autoseg.planning.planner import PlanSettings, add_architecture, decide_plan, store_record
from autoseg.planning.summary import describe_plan
from autoseg.planning.topology import pool
from autoseg.records import read_record, write_record
from autoseg.schema import CaseFingerprint, ConfigurationName, Fingerprint, IntensityStatistics, NetworkPlan, Plan
from autoseg.training.mirroring import mirror_positions

STATISTICS = IntensityStatistics(
    mean=5.0, median=4.0, std=2.0, min=0.0, max=9.0, percentile_00_5=0.1, percentile_99_5=8.9
)


def make_fingerprint(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    count: int = 20,
    channels: tuple[str, ...] = ("T1",),
    names: tuple[str, ...] = ("organ",),
    left_right: tuple[int, ...] = (2,),
    is_2d: bool = False,
    kept: float = 1.0,
) -> Fingerprint:
    """`count` equal cases."""
    labels = {"background": 0} | {name: 10 * (position + 1) for position, name in enumerate(names)}
    return Fingerprint(
        dataset="/data/made", name="made", is_2d=is_2d, file_ending=".nii.gz", channel_names=channels, labels=labels,
        intensities=(STATISTICS,) * len(channels), median_relative_size_after_cropping=kept,
        cases=tuple(
            CaseFingerprint(
                id=f"case_{number}", shape=shape, cropped_shape=shape, spacing=spacing,
                left_right_axis=left_right[number % len(left_right)], class_voxels=dict.fromkeys(labels, 50),
            )
            for number in range(count)
        ),
    )


def plan(fingerprint: Fingerprint, **choices: object) -> Plan:
    """`resenc` unless another architecture is asked for: what "auto" chooses is `test_choice`'s."""
    return decide_plan(fingerprint, PlanSettings(**{"architecture": "resenc", **choices}))  # type: ignore[arg-type]


def default_network(planned: Plan, configuration: str) -> NetworkPlan:
    entry = dict(planned.configurations)[configuration]  # type: ignore[index]
    return entry.networks[entry.architecture]


LARGE_CT = make_fingerprint((400, 512, 512), (1.0, 0.8, 0.8), channels=("CT",))
SMALL = make_fingerprint((36, 50, 35), count=200)
PICTURES = make_fingerprint((1, 300, 420), is_2d=True, channels=("R", "G", "B"))


# ---------------------------------------------------------------- networks
edges = st.integers(4, 300)


@given(st.lists(st.tuples(edges, st.floats(0.2, 8.0)), min_size=2, max_size=3))
def test_a_patch_can_be_halved_as_its_strides_say(axes: list[tuple[int, float]]) -> None:
    shape, spacing = [size for size, _ in axes], [mm for _, mm in axes]
    pooling = pool(spacing, shape)
    assert len(pooling.kernel_sizes) == pooling.stages
    assert set(pooling.strides[0]) == {1}
    for axis, size in enumerate(pooling.patch_shape):
        halvings = sum(stride[axis] == 2 for stride in pooling.strides)
        assert pooling.divisors[axis] == 2**halvings
        assert size % 2**halvings == 0 and size >= shape[axis] > size - 2**halvings
        assert halvings == 0 or size / 2**halvings >= 4
        kernels = [kernel[axis] for kernel in pooling.kernel_sizes]
        assert kernels == sorted(kernels) and kernels[-1] == 3


@given(st.lists(st.integers(12, 300), min_size=3, max_size=3), st.sampled_from(["plain", "resenc"]))
def test_feature_maps_grow_with_the_patch_and_labels(shape: list[int], architecture: str) -> None:
    pooling = pool((1.0, 1.0, 1.0), shape)
    topology = build_topology(architecture, pooling)  # type: ignore[arg-type]
    patch = pooling.patch_shape
    larger = [size + divisor for size, divisor in zip(patch, pooling.divisors, strict=True)]
    values = [feature_map_values(architecture, topology, one, labels)  # type: ignore[arg-type]
              for one in (patch, larger) for labels in (2, 5)]
    assert values[0] < values[1] < values[3] and values[0] < values[2]
    assert values[1] - values[0] == 3 * math.prod(patch)


@settings(max_examples=10, deadline=None)
@given(
    st.tuples(st.integers(12, 400), st.integers(20, 500), st.integers(20, 500)),
    st.tuples(st.floats(0.3, 8), st.floats(0.3, 2), st.floats(0.3, 2)),
    st.sampled_from(["plain", "resenc"]), st.floats(3, 60), st.integers(1, 300), st.booleans(),
)
def test_a_plan_keeps_to_its_bounds(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], architecture: str, memory_gib: float,
    count: int, parity: bool,
) -> None:
    fingerprint = make_fingerprint(shape, spacing, count)
    planned = plan(fingerprint, architecture=architecture, memory_gib=memory_gib, nnunet_parity=parity)
    for name, configuration in planned.configurations.items():
        network = configuration.networks[configuration.architecture]
        dimensions = 2 if name == "2d" else 3
        assert len(configuration.spacing) == len(network.patch_shape) == dimensions
        assert network.batch_size >= 2
        assert parity or network.batch_size <= LARGEST_BATCH[dimensions]
        # The smallest batch of two may exceed what fits only by the rounding of the batch size.
        assert network.memory_gib <= memory_gib * (1 + 0.5 / network.batch_size) + 0.01
        assert len(network.reasons) >= 4
        depth = len(network.topology.strides)
        assert len(network.topology.features) == len(network.topology.encoder_blocks) == depth
        assert len(network.topology.decoder_blocks) == depth - 1
    coarsest = max(planned.configurations["3d_fullres"].spacing) if "3d_fullres" in planned.configurations else None
    assert coarsest is None or planned.configurations["3d_fullres"].spacing[0] == coarsest


def test_more_memory_never_makes_a_smaller_patch() -> None:
    voxels = [math.prod(default_network(plan(LARGE_CT, memory_gib=gib), "3d_fullres").patch_shape)
              for gib in (3.0, 6.0, 8.0, 16.0, 40.0, 80.0)]
    assert voxels == sorted(voxels) and voxels[0] < voxels[-1]


def test_presets_are_planned_for_their_own_memory() -> None:
    for size in ("M", "L", "XL"):
        assert plan(SMALL, preset_size=size).memory_target_gib == REFERENCES["resenc", size].memory_gib
    assert plan(SMALL, preset_size="L", memory_gib=11.0).memory_target_gib == 11.0
    assert plan(SMALL).memory_target_gib == 8.0


# ---------------------------------------------------------------- batch
def test_silly_batches_are_capped_and_the_reasons_name_both_numbers() -> None:
    ours, theirs = plan(SMALL), plan(SMALL, nnunet_parity=True)
    capped, whole = default_network(ours, "2d"), default_network(theirs, "2d")
    assert capped.batch_size == LARGEST_BATCH[2] < whole.batch_size
    (sentence,) = [reason for reason in capped.reasons if reason.startswith("Batch 64")]
    assert str(whole.batch_size) in sentence and "--nnunet-parity" in sentence
    assert capped.patch_shape == whole.patch_shape
    assert default_network(ours, "3d_fullres") == default_network(theirs, "3d_fullres")


# ---------------------------------------------------------------- configurations
def test_lowres_exists_where_the_patch_sees_little_and_says_so() -> None:
    planned = plan(LARGE_CT)
    assert set(planned.configurations) == {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    lowres = planned.configurations["3d_lowres"]
    assert lowres.next_stage == "3d_cascade_fullres"
    fullres = planned.configurations["3d_fullres"]
    assert all(low > full for low, full in zip(lowres.spacing, fullres.spacing, strict=True))
    assert any("25%" in reason for reason in default_network(planned, "3d_lowres").reasons)
    assert "3d_lowres" not in plan(SMALL).configurations
    assert any(reason.startswith("No 3d_lowres") for reason in plan(SMALL).reasons)


def test_a_lowres_that_no_network_can_be_built_for_is_left_out_with_the_reason() -> None:
    planned = plan(make_fingerprint((380, 12, 256), (4.07, 0.39, 0.87)), preset_size="M")
    assert set(planned.configurations) == {"2d", "3d_fullres"}
    assert any(reason.startswith("No 3d_lowres") and "halved" in reason for reason in planned.reasons)


def test_only_what_is_asked_for_is_planned() -> None:
    assert tuple(plan(LARGE_CT, configurations=("3d_lowres",)).configurations) == ("3d_lowres",)
    only_2d = plan(LARGE_CT, configurations=("2d",))
    assert only_2d.configurations == {"2d": plan(LARGE_CT).configurations["2d"]}


@pytest.mark.parametrize(("fingerprint", "configuration", "why"), [
    (PICTURES, "3d_fullres", "single slice"),
    (SMALL, "3d_lowres", "covers"),
    (SMALL, "4d", "no configuration of this name"),
    (make_fingerprint((30, 6, 6)), "2d", "cannot be halved"),
])
def test_what_cannot_be_had_is_refused_with_the_reason(
    fingerprint: Fingerprint, configuration: str, why: str
) -> None:
    with pytest.raises(UserError, match=why) as caught:
        plan(fingerprint, configurations=(configuration,))
    assert configuration in str(caught.value)


def test_images_too_small_for_any_network_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be halved"):
        plan(make_fingerprint((5, 6, 7)))


@pytest.mark.parametrize("memory_gib", [0.0, -3.0, math.inf, math.nan, 1e-4])
def test_impossible_memory_is_refused(memory_gib: float) -> None:
    with pytest.raises(UserError, match="--memory-gib"):
        plan(LARGE_CT, memory_gib=memory_gib)


def test_sizes_exist_for_resenc_only() -> None:
    with pytest.raises(UserError, match="--preset-size L"):
        plan(SMALL, architecture="plain", preset_size="L")


def test_flat_images_of_few_slices_shrink_without_losing_an_axis() -> None:
    """nnU-Net's search can shorten an axis of one voxel to nothing and then fails."""
    planned = plan(make_fingerprint((2, 700, 700), (9.0, 1.0, 1.0)), memory_gib=3.0)
    assert min(default_network(planned, "3d_fullres").patch_shape) >= 1


# ---------------------------------------------------------------- the cascade
@pytest.mark.parametrize("parity", [False, True])
def test_a_cascade_is_fullres_with_channels_for_the_lowres_mask(parity: bool) -> None:
    fingerprint = make_fingerprint((400, 512, 512), (1.0, 0.8, 0.8), names=("liver", "spleen", "stomach"))
    planned = plan(fingerprint, nnunet_parity=parity)
    cascade, full = planned.configurations["3d_cascade_fullres"], planned.configurations["3d_fullres"]
    assert cascade.previous_stage == "3d_lowres" and full.previous_stage is None
    network, other = default_network(planned, "3d_cascade_fullres"), default_network(planned, "3d_fullres")
    assert network == other.model_copy(update={"reasons": network.reasons})
    assert network.reasons[:-1] == other.reasons and "3 more channels" in network.reasons[-1]
    assert (cascade.spacing, cascade.median_shape) == (full.spacing, full.median_shape)
    assert store_record(planned, "3d_cascade_fullres") == store_record(planned, "3d_fullres")
    folders = {store_folder(Path("run"), name, store_record(planned, name))
               for name in ("3d_cascade_fullres", "3d_fullres")}
    assert len(folders) == 1
    assert [planned.input_channels(name) for name in ("3d_fullres", "3d_lowres", "3d_cascade_fullres")] == [1, 1, 4]
    assert "3d_cascade_fullres  (after 3d_lowres" in describe_plan(planned, fingerprint)


def test_a_cascade_takes_its_parts_along_and_exists_only_with_them() -> None:
    parts = {"3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    assert set(plan(LARGE_CT, configurations=("3d_cascade_fullres",)).configurations) == parts
    assert set(plan(LARGE_CT, configurations=("3d_fullres", "3d_lowres")).configurations) == parts - {
        "3d_cascade_fullres"}
    with pytest.raises(UserError, match="3d_cascade_fullres: the patch of 3d_fullres covers"):
        plan(SMALL, configurations=("3d_cascade_fullres",))
    assert any(reason.startswith("No 3d_lowres and no 3d_cascade_fullres") for reason in plan(SMALL).reasons)


def test_a_plan_from_before_cascades_gets_one_with_the_next_network() -> None:
    before = plan(LARGE_CT, configurations=("2d", "3d_fullres", "3d_lowres"))
    for choices in ({}, {"configurations": ("3d_cascade_fullres",)}):
        now = add_architecture(before, LARGE_CT, PlanSettings(architecture="plain", **choices))  # type: ignore[arg-type]
        cascade, full = now.configurations["3d_cascade_fullres"], now.configurations["3d_fullres"]
        assert cascade.networks.keys() == full.networks.keys() == {"resenc", "plain"}
        assert cascade.architecture == "plain"
    kept = add_architecture(before, LARGE_CT, PlanSettings(architecture="plain", configurations=("3d_fullres",)))
    assert "3d_cascade_fullres" not in kept.configurations


# ---------------------------------------------------------------- grid, labels, channels
def test_axes_put_the_coarsest_first_and_the_store_follows() -> None:
    planned = plan(make_fingerprint((300, 30, 320), (0.5, 4.0, 0.6)))
    assert planned.axes == (1, 0, 2)
    assert planned.configurations["3d_fullres"].spacing == (4.0, 0.5, 0.6)
    deep, flat = store_record(planned, "3d_fullres"), store_record(planned, "2d")
    assert deep.spacing == (4.0, 0.5, 0.6) and flat.spacing == (None, 0.5, 0.6)
    assert deep.axes == planned.axes and deep.labels == planned.labels
    with pytest.raises(UserError, match="3d_lowres"):
        store_record(planned, "3d_lowres")


def test_thin_slices_are_kept_where_slices_are_few() -> None:
    cases = make_fingerprint((20, 300, 300), (8.0, 1.0, 1.0), count=10).cases
    thin = cases[0].model_copy(update={"spacing": (5.0, 1.0, 1.0), "cropped_shape": (32, 300, 300)})
    fingerprint = make_fingerprint((20, 300, 300), (8.0, 1.0, 1.0)).model_copy(update={"cases": (thin, thin, *cases)})
    planned = plan(fingerprint)
    assert planned.configurations["3d_fullres"].spacing[0] == np.percentile([5.0, 5.0, *[8.0] * 10], 10)
    assert any("10th percentile" in reason for reason in planned.reasons)


def test_natural_pictures_are_planned_in_2d_whatever_their_slice_spacing() -> None:
    assert tuple(plan(PICTURES).configurations) == ("2d",)
    assert plan(PICTURES).axes == (0, 1, 2)
    thick = make_fingerprint((1, 300, 420), (999.0, 1.0, 1.0), is_2d=True, channels=("R", "G", "B"))
    assert plan(thick).configurations == plan(PICTURES).configurations
    coarse = make_fingerprint((1, 300, 420), (1.0, 5.0, 5.0), is_2d=True, channels=("R", "G", "B"))
    assert plan(coarse).axes == (0, 1, 2)


@pytest.mark.parametrize(("name", "scheme"), [
    ("CT", "ct"), ("ct", "ct"), ("noNorm", "nonorm"), ("rescale_to_0_1", "rescale_to_0_1"),
    ("RGB_to_0_1", "rgb_to_0_1"), ("zscore", "zscore"), ("T1", "zscore"), ("R", "zscore"), ("CT2", "zscore"),
])
def test_the_channel_name_decides_the_normalization(name: str, scheme: str) -> None:
    assert scheme_of(name) == scheme
    for kept in (0.5, 0.75, 1.0):
        (one,) = plan(make_fingerprint((36, 50, 35), channels=(name,), kept=kept)).configurations["2d"].normalization
        assert one.within_nonzero == (scheme == "zscore" and kept < 0.75)
        assert one.statistics == STATISTICS


def test_sides_and_their_axes_are_recorded() -> None:
    names = ("left_kidney", "liver", "right_kidney")
    planned = plan(make_fingerprint((36, 50, 35), names=names, left_right=(2, 0, 2)))
    assert planned.sided_labels == (("left_kidney", "right_kidney"),)
    assert planned.left_right_axes == (0, 2)
    assert any("left_kidney / right_kidney" in reason for reason in planned.reasons)
    assert plan(PICTURES).left_right_axes == (2,)


@pytest.mark.parametrize(("fingerprint", "configuration", "kept"), [
    (make_fingerprint((1, 300, 420), is_2d=True, names=("left_eye", "right_eye")), "2d", (0,)),
    (make_fingerprint((1, 300, 420), is_2d=True, names=("left_eye", "right_eye"), left_right=(1,)), "2d", (1,)),
    (make_fingerprint((1, 300, 420), is_2d=True, names=("left_eye", "right_eye"), left_right=(1, 2)), "2d", ()),
    (make_fingerprint((1, 300, 420), is_2d=True), "2d", (0, 1)),
    (make_fingerprint((300, 30, 320), (0.5, 4.0, 0.6), names=("left_eye", "right_eye")), "2d", (0,)),
    (make_fingerprint((300, 30, 320), (0.5, 4.0, 0.6), names=("left_eye", "right_eye")), "3d_fullres", (0, 1)),
    (make_fingerprint((300, 30, 320), (0.5, 4.0, 0.6), names=("left_eye", "right_eye"), left_right=(0,)), "2d", (1,)),
    (make_fingerprint((300, 30, 320), (0.5, 4.0, 0.6), names=("left_eye", "right_eye"), left_right=(1,)), "2d", (0, 1)),
])
def test_patches_are_not_mirrored_along_left_right(
    fingerprint: Fingerprint, configuration: ConfigurationName, kept: tuple[int, ...]
) -> None:
    assert mirror_positions(plan(fingerprint), configuration, "auto")[0] == kept


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_voxel_comes_first_however_fine(axis: int) -> None:
    shape, spacing = [240, 256, 250], [1.0, 1.1, 1.05]
    shape[axis], spacing[axis] = 1, 0.5
    fingerprint = make_fingerprint(tuple(shape), tuple(spacing))
    planned, others = plan(fingerprint), [other for other in range(3) if other != axis]
    assert planned.axes == (axis, *others) and tuple(planned.configurations) == ("2d",)
    assert planned.configurations["2d"].spacing == tuple(spacing[other] for other in others)
    assert any("one voxel along" in reason for reason in planned.reasons)
    assert any("single slice" in reason for reason in planned.reasons)
    assert plan(fingerprint, nnunet_parity=True).axes[0] == int(np.argmax(spacing))
    added = add_architecture(planned, fingerprint, PlanSettings(architecture="plain", nnunet_parity=True))
    assert added.axes == planned.axes and set(added.configurations["2d"].networks) == {"resenc", "plain"}


# ---------------------------------------------------------------- a second architecture
def test_an_added_architecture_shares_the_store_and_becomes_the_default() -> None:
    first = plan(LARGE_CT)
    second = add_architecture(first, LARGE_CT, PlanSettings(architecture="plain"))
    for name, configuration in second.configurations.items():
        assert store_record(second, name) == store_record(first, name)
        assert configuration.architecture == "plain"
        assert configuration.networks["resenc"] == first.configurations[name].networks["resenc"]
    alone = plan(LARGE_CT, architecture="plain")
    for name in ("2d", "3d_fullres"):
        assert default_network(second, name) == default_network(alone, name)
    lowres = default_network(second, "3d_lowres")
    differs = alone.configurations["3d_lowres"].spacing != first.configurations["3d_lowres"].spacing
    assert differs == any("The spacing is the plan's" in reason for reason in lowres.reasons)


def test_adding_what_is_there_renews_it() -> None:
    first = plan(LARGE_CT)
    assert add_architecture(first, LARGE_CT, PlanSettings(architecture="resenc")) == first
    renewed = add_architecture(first, LARGE_CT, PlanSettings(architecture="resenc", memory_gib=20.0))
    assert renewed.memory_target_gib == 20.0
    assert set(renewed.configurations["2d"].networks) == {"resenc"}
    assert any("The spacing is the plan's" in one for one in default_network(renewed, "3d_lowres").reasons)


def test_an_added_architecture_that_wants_no_lowres_is_planned_at_the_plans() -> None:
    fingerprint = make_fingerprint((160, 320, 320))
    first = plan(fingerprint, memory_gib=4.0)
    assert "3d_lowres" in first.configurations and "3d_lowres" not in plan(fingerprint, memory_gib=60.0).configurations
    second = add_architecture(first, fingerprint, PlanSettings(architecture="resenc", memory_gib=60.0))
    assert any("would have no 3d_lowres" in one for one in default_network(second, "3d_lowres").reasons)


def test_configurations_that_the_plan_lacks_cannot_be_added() -> None:
    with pytest.raises(UserError, match="2d"):
        add_architecture(plan(SMALL, configurations=("3d_fullres",)), SMALL, PlanSettings(configurations=("2d",)))
    other = make_fingerprint((36, 50, 35), (2.0, 1.0, 1.0))
    with pytest.raises(UserError, match="fingerprint"):
        add_architecture(plan(SMALL), other, PlanSettings())


# ---------------------------------------------------------------- the files and the words
def test_a_plan_survives_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    planned = plan(LARGE_CT)
    write_record(planned, tmp_path / "plan.json")
    assert read_record(Plan, tmp_path / "plan.json") == planned


def test_the_closing_words_hold_for_the_network_planned_last() -> None:
    first = plan(SMALL, memory_gib=6.0)
    assert describe_plan(first, SMALL).splitlines()[-1].startswith("Planned for 6 GiB")
    second = add_architecture(first, SMALL, PlanSettings(architecture="plain", nnunet_parity=True))
    last = describe_plan(second, SMALL).splitlines()[-1]
    assert last.startswith("The network planned last: planned for 8 GiB") and "kept unchanged" in last


def test_facts_that_an_older_version_did_not_measure_are_no_change() -> None:
    extents = {"class_extents": {"organ": (3, 4, 5)}}
    new = SMALL.model_copy(update={"cases": tuple(case.model_copy(update=extents) for case in SMALL.cases)})
    assert same_facts(SMALL, new) and same_facts(new, new)
    assert not same_facts(new, SMALL)
    assert not same_facts(SMALL, new.model_copy(update={"cases": new.cases[1:]}))
    assert not same_facts(SMALL, new.model_copy(update={"is_2d": True}))
    moved = new.cases[0].model_copy(update={"spacing": (2.0, 1.0, 1.0)})
    assert not same_facts(SMALL, new.model_copy(update={"cases": (moved, *new.cases[1:])}))


@pytest.mark.parametrize("fingerprint", [LARGE_CT, SMALL, PICTURES])
def test_the_summary_names_every_decision(fingerprint: Fingerprint) -> None:
    planned = add_architecture(plan(fingerprint), fingerprint, PlanSettings(architecture="plain"))
    text = describe_plan(planned, fingerprint)
    words = " ".join(text.split())
    for reason in planned.reasons:
        assert reason in words
    for name, configuration in planned.configurations.items():
        assert f"Configuration {name}" in text
        for network in configuration.networks.values():
            assert all(reason in words for reason in network.reasons)
    assert max(map(len, text.splitlines())) <= 120
    assert text.isprintable() or set(text) - {"\n"} <= {letter for letter in text if letter.isprintable()}
