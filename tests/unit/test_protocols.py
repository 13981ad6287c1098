"""The published protocols as data: each file holds together, and a dataset is matched to it without guessing."""

import math
import sys
from functools import cache
from pathlib import Path

import pytest

from autoseg.errors import UserError
from autoseg.evaluation.scoring import TWO_MM, summarize
from autoseg.networks.soundness import topology_problems
from autoseg.planning.planner import PlanSettings, decide_plan
from autoseg.schema import CaseFingerprint, CaseScores, Fingerprint, IntensityStatistics, LabelScores, Plan

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from protocol_data import case_number, match_labels, match_split  # noqa: E402
from protocol_files import NO_CLIPPING, Protocol, load_protocol, protocol_names  # noqa: E402
from protocols import along, lengths, published_plan, report  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("btcv-unetr", "lung-unetr-pp", "synapse-unetr-pp")
ABDOMEN = ("btcv-unetr", "synapse-unetr-pp")


@pytest.fixture(params=NAMES)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return load_protocol(request.param)


def test_the_protocols_are_packaged_and_every_file_is_one() -> None:
    assert protocol_names() == sorted(NAMES)
    assert {path.stem for path in (ROOT / "presets" / "protocols").glob("*.toml")} == set(NAMES)
    with pytest.raises(UserError, match="Known: btcv-unetr"):
        load_protocol("pancreas")


def test_a_protocol_is_called_as_its_file(protocol: Protocol) -> None:
    assert load_protocol(protocol.name) == protocol


@pytest.mark.parametrize(("name", "train", "test"), [
    ("btcv-unetr", 18, 12), ("synapse-unetr-pp", 18, 12), ("lung-unetr-pp", 50, 13)])
def test_splits_have_the_published_sizes_and_no_case_twice(name: str, train: int, test: int) -> None:
    splits = load_protocol(name).splits
    assert (len(splits.train), len(splits.test)) == (train, test)
    numbers = [case_number(case, splits.prefixes) for case in (*splits.train, *splits.test)]
    assert None not in numbers and len(set(numbers)) == train + test
    form = "lung_{:03d}" if name.startswith("lung") else "img{:04d}"
    assert [form.format(number) for number in numbers] == [*splits.train, *splits.test]


def test_both_abdominal_protocols_share_their_cases_and_labels() -> None:
    one, other = map(load_protocol, ABDOMEN)
    assert (one.splits.train, one.splits.test) == (other.splits.train, other.splits.test)
    assert (one.labels, one.aliases, one.metrics.subsets) == (other.labels, other.aliases, other.metrics.subsets)
    # BTCV's labelled cases: 1 to 10 and 21 to 40.
    numbers = {case_number(case, one.splits.prefixes) for case in (*one.splits.train, *one.splits.test)}
    assert numbers == {*range(1, 11), *range(21, 41)}


def test_metrics_and_results_speak_of_labels_that_there_are(protocol: Protocol) -> None:
    organs = set(protocol.labels) - {"background"}
    for members in protocol.metrics.subsets.values():
        assert set(members) <= organs and len(set(members)) == len(members)
    assert set().union(*protocol.metrics.subsets.values()) == organs
    assert set(protocol.aliases.values()) <= organs
    assert all(result.subset in protocol.metrics.subsets for result in protocol.published)
    assert sorted(protocol.labels.values()) == list(range(len(protocol.labels)))


def test_the_eight_organs_are_those_of_the_published_evaluation() -> None:
    for name in ABDOMEN:
        protocol = load_protocol(name)
        assert {protocol.labels[organ] for organ in protocol.metrics.subsets["8 organs"]} == {1, 2, 3, 4, 6, 7, 8, 11}
        assert len(protocol.metrics.subsets["13 organs"]) == 13


def test_published_slabs_and_blocks_divide_the_patch(protocol: Protocol) -> None:
    assert protocol.patch[0] % protocol.pretraining.slabs == 0
    blocks = zip(protocol.patch, protocol.pretraining.mask_block, strict=True)
    assert all(size % block == 0 for size, block in blocks)
    strides = [math.prod(steps) for steps in zip(*protocol.network.strides, strict=True)]
    assert all(size % stride == 0 for size, stride in zip(protocol.patch, strides, strict=True))


def test_sources_are_named(protocol: Protocol) -> None:
    text = (ROOT / "presets" / "protocols" / f"{protocol.name}.toml").read_text(encoding="utf-8")
    assert "github.com/ShahinaKK/LWI-VMS, commit 89043be" in text
    assert all(result.source for result in protocol.published)


# ---------------------------------------------------------------- cases and labels
@pytest.mark.parametrize("form", ["img{:04d}", "label{:04d}", "case{:04d}", "{:04d}", "{:d}", "IMG{:d}"])
def test_every_naming_of_a_case_is_the_same_case(form: str) -> None:
    splits = load_protocol("synapse-unetr-pp").splits
    ids = [form.format(number) for number in (*range(1, 11), *range(21, 41), 61)]
    matched = match_split(ids, splits)
    assert matched.published and matched.missing == () and matched.left_out == (form.format(61),)
    assert matched.split.train == tuple(form.format(case_number(case, splits.prefixes)) for case in splits.train)
    assert matched.split.val == tuple(form.format(case_number(case, splits.prefixes)) for case in splits.test)
    assert matched.sentence.startswith("18 of 18 training and 12 of 12 test cases")


def test_missing_cases_are_named() -> None:
    matched = match_split(["lung_004", "lung_096", "lung_001"], load_protocol("lung-unetr-pp").splits)
    assert matched.split.train == ("lung_004", "lung_096") and matched.split.val == ("lung_001",)
    assert len(matched.missing) == 60 and "lung_003" in matched.missing
    assert matched.sentence.startswith("2 of 50 training and 1 of 13 test cases")


def test_unknown_ids_get_a_plain_split_that_says_so() -> None:
    ids = ["SABS_11", "SABS_00", "SABS_03", "SABS_01", "SABS_04"]
    matched = match_split(ids, load_protocol("btcv-unetr").splits)
    assert not matched.published and len(matched.missing) == 30
    assert matched.split.train == ("SABS_00", "SABS_01", "SABS_03") and matched.split.val == ("SABS_04", "SABS_11")
    assert "none of the 5 ids is of the published split" in matched.sentence


@pytest.mark.parametrize("ids", [["img0005", "img0006"], ["img0001"], ["img0005", "case0005", "img0001"], ["other"]])
def test_a_split_that_cannot_be_is_refused(ids: list[str]) -> None:
    with pytest.raises(UserError):
        match_split(ids, load_protocol("btcv-unetr").splits)


def test_labels_are_matched_by_name_whatever_their_value() -> None:
    protocol = load_protocol("btcv-unetr")
    monai = ("background", "spleen", "rkid", "lkid", "gall", "eso", "liver", "sto", "aorta", "IVC", "veins", "pancreas",
             "rad", "lad")
    found = match_labels({name: value for value, name in enumerate(monai)}, protocol)
    assert [found[organ] for organ in protocol.labels] == list(monai)
    reordered = {"background": 0, **{name: 14 - value for name, value in protocol.labels.items() if value}}
    assert match_labels(reordered, protocol) == {organ: organ for organ in protocol.labels}


@pytest.mark.parametrize("labels", [
    {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}, {"background": 0, "cancer": 1},
])
def test_other_labels_are_refused(labels: dict[str, int]) -> None:
    with pytest.raises(UserError, match="label 'pancreas': missing"):
        match_labels(labels, load_protocol("btcv-unetr"))


# ---------------------------------------------------------------- plans
@cache
def planned(name: str, spacing: tuple[float, float, float] = (3.0, 0.76, 0.76),
            shape: tuple[int, int, int] = (148, 512, 512)) -> Plan:
    """As `autoseg plan --architecture …` decides for thirty such cases."""
    protocol = load_protocol(name)
    statistics = IntensityStatistics(
        mean=90.0, median=95.0, std=40.0, min=-900.0, max=1200.0, percentile_00_5=-60.0, percentile_99_5=220.0)
    cases = tuple(
        CaseFingerprint(id=f"img{number:04d}", shape=shape, cropped_shape=shape, spacing=spacing, left_right_axis=2,
                        class_voxels=dict.fromkeys(protocol.labels, 10_000))
        for number in range(30))
    fingerprint = Fingerprint(
        dataset="/data/BTCV", name="BTCV", is_2d=False, file_ending=".nii.gz", channel_names=("CT",),
        labels=protocol.labels, cases=cases, intensities=(statistics,), median_relative_size_after_cropping=1.0)
    return decide_plan(fingerprint, PlanSettings(architecture=protocol.architecture, configurations=("3d_fullres",)))


def test_a_plan_takes_the_protocols_grid_and_network(protocol: Protocol) -> None:
    before = planned(protocol.name)
    plan = published_plan(before, protocol)
    configuration = plan.configurations["3d_fullres"]
    network = configuration.networks[protocol.architecture]
    assert list(configuration.networks) == [configuration.architecture] == [protocol.architecture]
    assert network.patch_shape == protocol.patch and network.topology.strides == protocol.network.strides
    assert not topology_problems(network.topology, network.patch_shape)
    assert network.optimizer.learning_rate == protocol.training.optimizer.learning_rate
    expected = before.configurations["3d_fullres"].spacing if protocol.spacing_mm == "planned" else protocol.spacing_mm
    assert configuration.spacing == expected
    assert published_plan(plan, protocol) == plan, "an interrupted run finds the same plan"


def test_unetr_is_planned_as_published() -> None:
    protocol = load_protocol("btcv-unetr")
    configuration = published_plan(planned(protocol.name), protocol).configurations["3d_fullres"]
    assert configuration.median_shape == (222.0, 259.0, 259.0)
    [channel] = configuration.normalization
    statistics = channel.statistics
    scaled = [(min(max(value, statistics.percentile_00_5), statistics.percentile_99_5) - statistics.mean)
              / statistics.std for value in (-1000, -175, 37.5, 250, 3000)]
    assert channel.scheme == "ct" and scaled == [0, 0, 0.5, 1, 1]
    network = configuration.networks["unetr"]
    assert network.batch_size == 4 and not network.batch_dice
    assert network.optimizer.name == "adamw" and network.optimizer.gradient_clip == NO_CLIPPING


def test_lengths_along_plan_axes() -> None:
    """A dataset whose coarsest array axis is y is planned (y, z, x): the protocol's z, y, x follow."""
    assert along((1, 0, 2), (2.0, 1.5, 1.0)) == (1.5, 2.0, 1.0)
    protocol = load_protocol("synapse-unetr-pp")
    plan = published_plan(planned(protocol.name, (0.8, 3.0, 0.7), (512, 148, 512)), protocol)
    assert plan.axes == (1, 0, 2)
    assert plan.configurations["3d_fullres"].networks["unetr-pp"].patch_shape == (128, 64, 128)


def test_shrunken_patches_stay_buildable(protocol: Protocol) -> None:
    plan = published_plan(planned(protocol.name), protocol, shrink=4)
    network = plan.configurations["3d_fullres"].networks[protocol.architecture]
    assert network.patch_shape == tuple(size // 4 for size in protocol.patch)


def test_both_phases_shorten_together() -> None:
    unetr, lung = load_protocol("btcv-unetr"), load_protocol("lung-unetr-pp")
    published = lengths(unetr, None)
    assert (published.pretraining, published.training, published.epochs) == (800 * 18, 5000 * 18, 5000)
    assert lengths(unetr, 1000).pretraining == 160 and lengths(unetr, 4).epochs == 1
    assert lengths(lung, None).epochs == 1000 and lengths(lung, 4).per_epoch == 4


# ---------------------------------------------------------------- scores
def scored(case: str, dice: float | None, hd95: float | None, protocol: Protocol) -> CaseScores:
    label = LabelScores(dice=dice, nsd=dice, hd95=hd95, volume_ml=1.0, reference_volume_ml=1.0)
    return CaseScores(id=case, labels={organ: label for organ in protocol.labels if organ != "background"})


@pytest.mark.parametrize(("name", "dice", "hd95"), [
    ("btcv-unetr", 0.8 / 3, None), ("synapse-unetr-pp", 1.8 / 3, 4 / 3)])
def test_absent_organs_count_as_declared(name: str, dice: float, hd95: float | None) -> None:
    """Of three cases one has the organ in both masks, one in neither, one only in the reference."""
    protocol = load_protocol(name)
    cases = [scored("a", 0.8, 4.0, protocol), scored("b", None, None, protocol), scored("c", 0.0, None, protocol)]
    names = [organ for organ in protocol.labels if organ != "background"]
    reported = report(summarize(cases, names, TWO_MM), {organ: organ for organ in names}, protocol)["8 organs"]
    assert reported["dice"] == pytest.approx(0.4) and reported["hd95_mm"] == pytest.approx(4.0)
    assert reported["counted_as_published"]["dice"] == pytest.approx(dice)
    assert reported["counted_as_published"]["hd95_mm"] == (None if hd95 is None else pytest.approx(hd95))
