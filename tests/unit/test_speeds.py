"""What the levels of `--speed` are, what a record of their cost says, and which fold and precision are taken."""

import itertools
import logging
import math
import statistics
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import model_info

from autoseg.commands.speed_report import _spread
from autoseg.data.dataset import Case
from autoseg.evaluation.scoring import TWO_MM, summarize
from autoseg.inference import precision
from autoseg.inference.ensembling import Member
from autoseg.inference.precision import MOST_PASSES, PROBE_VOXELS, fastest_precision, probe_windows
from autoseg.inference.prediction import PredictSettings
from autoseg.inference.sliding_window import WindowSettings, lay_windows, mirrored_copies, predict_logits
from autoseg.inference.speed_costs import (
    NOT_MEASURED,
    OTHER_SETTING,
    SPEEDS_NAME,
    SpeedCost,
    SpeedReport,
    best_fold,
    compare_speeds,
    differences,
    in_words,
    level_settings,
    previous_weights,
    read_report,
)
from autoseg.inference.speeds import SPEEDS
from autoseg.inference.trained import TrainedModel
from autoseg.networks.builder import build_network
from autoseg.records import read_record, write_json, write_record
from autoseg.schema import CaseScores, LabelScores, Scores, Topology

CPU = torch.device("cpu")
BALANCED = SPEEDS["balanced"]
LENGTHS = st.integers(1, 90)
SUBSETS = [subset for n in range(4) for subset in combinations(range(3), n)]


def scores(**cases: tuple[float | None, float | None]) -> Scores:
    """Case → the Dice of labels a and b."""
    def label(dice):
        return LabelScores(dice=dice, nsd=None, hd95=None, volume_ml=1, reference_volume_ml=1)

    found = [CaseScores(id=case, labels={"a": label(a), "b": label(b)}) for case, (a, b) in cases.items()]
    return summarize(found, ("a", "b"), TWO_MM)


def report(change: float = -0.0004, weights: str = "w", **changes: object) -> SpeedReport:
    facts = {"overlap": BALANCED.overlap, "copies": BALANCED.copies, "precision": "bfloat16", "seconds": 2.0,
             "times_faster": 9.8, "dice": 0.9, "dice_change": change, "dice_margin": 0.001, "worst_case": "x",
             "worst_change": -0.01, "labels": {"a": change}}
    cost = SpeedCost.model_validate({**facts, **changes})
    return SpeedReport(weights_sha256=weights, fold="0", device="cpu", threads=1, cases=("x", "y"), exact_seconds=19.6,
                       exact_dice=0.9, levels={"balanced": cost})


# ---------------------------------------------------------------- levels
@pytest.mark.parametrize("speed", SPEEDS.values(), ids=SPEEDS)
@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(LENGTHS, LENGTHS, LENGTHS), patch=st.tuples(*[st.integers(1, 40)] * 3))
def test_every_level_covers_every_voxel(speed, shape, patch):
    grid = lay_windows(shape, patch, speed.overlap)
    for starts, length, n, padding in zip(grid.starts, grid.shape, shape, grid.padding, strict=True):
        whole = n + sum(padding)
        seen = {voxel for start in starts for voxel in range(start, start + length)}
        assert seen == set(range(whole))


def test_exact_is_the_predictions_default():
    assert level_settings(SPEEDS["exact"], CPU, torch.bfloat16) == PredictSettings(device=CPU)
    assert not SPEEDS["exact"].single_fold


def test_faster_levels_compute_fewer_windows():
    counts = []
    for name in ("exact", "balanced", "fast"):
        speed = SPEEDS[name]
        copies = level_settings(speed, CPU, None).copies or 8
        counts.append(copies * len(lay_windows((160, 200, 160), (40, 56, 40), speed.overlap).corners))
    assert counts[0] == 4 * counts[1] and counts[0] > 10 * counts[2]


def test_no_tta_holds_for_every_level():
    assert not any(level_settings(speed, CPU, None, tta=False).tta for speed in SPEEDS.values())


def test_where_windows_overlap_by_half_neighbors_make_all_mirrorings_of_every_inner_voxel():
    grid = lay_windows((24, 32, 40), (8, 8, 8), 0.5)
    seen = {voxel: [] for voxel in product(range(4, 20), range(4, 28), range(4, 36))}
    for corner in grid.corners:
        [axes] = mirrored_copies(grid, corner, SUBSETS, 1)
        for voxel in product(*(range(start, start + 8) for start in corner)):
            if voxel in seen:
                seen[voxel].append(axes)
    assert all(sorted(found) == sorted(SUBSETS) for found in seen.values())


def test_two_copies_are_opposite_and_one_is_the_first_of_them():
    grid = lay_windows((24, 32, 40), (8, 8, 8), 0.25)
    for corner in grid.corners:
        [one] = mirrored_copies(grid, corner, SUBSETS, 1)
        first, second = mirrored_copies(grid, corner, SUBSETS, 2)
        assert first == one and set(first) ^ set(second) == {0, 1, 2}
        assert mirrored_copies(grid, corner, SUBSETS, None) == SUBSETS
        assert mirrored_copies(grid, corner, [()], 2) == [()], "what training did not mirror is not mirrored"
    assert mirrored_copies(grid, grid.corners[0], SUBSETS, 1) == [()]


@pytest.mark.parametrize("copies", [1, 2, None])
def test_a_network_that_does_not_mind_mirrors_gives_the_same_with_any_copies(copies):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 20, 18, 23)).astype(np.float32))
    network = torch.nn.Conv3d(1, 2, 1)
    how = WindowSettings(device=CPU, copies=copies, batch_voxels=3 * 512)
    with torch.inference_mode():
        expected = network(image[None])[0]
    torch.testing.assert_close(predict_logits(network, image, (8, 8, 8), (0, 1, 2), how), expected)


# ---------------------------------------------------------------- costs
def test_a_cost_is_the_difference_of_the_means_and_its_margin_that_of_paired_cases():
    exact = scores(x=(0.9, 0.8), y=(0.7, None), z=(0.5, 0.6))
    other = scores(x=(0.8, 0.8), y=(0.7, None), z=(0.6, 0.5))
    cost = compare_speeds(exact, other, (10.0, 2.0), level_settings(BALANCED, CPU, torch.bfloat16))
    assert cost.times_faster == 5
    assert (cost.precision, cost.overlap, cost.copies) == ("bfloat16", BALANCED.overlap, BALANCED.copies)
    assert cost.dice_change == pytest.approx((0.0 / 3 + (-0.1) / 2) / 2)
    assert cost.labels == pytest.approx({"a": 0.0, "b": -0.05})
    changes = [-0.05, 0.0, 0.0]
    assert cost.dice_margin == pytest.approx(1.96 * statistics.stdev(changes) / math.sqrt(3))
    assert (cost.worst_case, cost.worst_change) == ("x", pytest.approx(-0.05))


def test_one_case_has_no_margin_and_undefined_dice_no_change():
    one = compare_speeds(scores(x=(0.9, 0.8)), scores(x=(0.9, 0.7)), (1.0, 1.0), level_settings(BALANCED, CPU, None))
    assert one.dice_margin is None and one.precision == "float32"
    nothing = scores(x=(None, None))
    none = compare_speeds(nothing, nothing, (1.0, 1.0), level_settings(BALANCED, CPU, None))
    assert (none.dice_change, none.worst_case, none.is_large) == (None, None, False)


def test_the_record_comes_back_as_it_was_written_and_only_for_its_weights(tmp_path):
    written = report()
    write_record(written, tmp_path / SPEEDS_NAME)
    assert read_record(SpeedReport, tmp_path / SPEEDS_NAME) == written
    assert read_report(tmp_path, model_info(weights_sha256="w")) == written
    assert read_report(tmp_path, model_info(weights_sha256="others")) is None
    assert read_report(tmp_path / "nowhere", model_info(weights_sha256="w")) is None


def test_words_say_what_was_measured_and_on_what():
    assert in_words(BALANCED, report()) == (
        "balanced: Dice -0.0004 ± 0.0010 on 2 validation cases of fold 0, 9.8 times faster than exact with that fold "
        "(measured by train on cpu)")
    assert NOT_MEASURED in in_words(BALANCED, None)
    assert NOT_MEASURED in in_words(SPEEDS["fast"], report())
    assert NOT_MEASURED in in_words(BALANCED, report(overlap=0.4)), "the level meant something else then"


@pytest.mark.parametrize(("asked", "reason"), [
    ({}, None), ({"tta": False}, "--no-tta"), ({"precision": torch.float16}, "in bfloat16, this computes in float16"),
    ({"precision": None}, "in bfloat16, this computes in float32"), ({"skip_constant": True}, "--skip-empty"),
])  # fmt: skip
def test_a_report_tells_of_a_run_that_computes_as_it_did(asked, reason):
    how = replace(level_settings(BALANCED, CPU, torch.bfloat16), **asked)
    found = differences(report(), BALANCED, tiny_member(), how)
    line = in_words(BALANCED, report(), found)
    assert len(found) == (reason is not None)
    assert (f"{OTHER_SETTING}: " in line and reason in line) if reason else "9.8 times faster" in line


def test_without_mirroring_in_training_no_tta_is_nothing_else():
    how = level_settings(BALANCED, CPU, torch.bfloat16, tta=False)
    assert not differences(report(), BALANCED, tiny_member(mirror_axes=()), how)


def test_a_cascades_report_tells_of_the_first_stage_it_was_measured_with():
    def cascade(*weights: str) -> Member:
        first = Member([tiny_member(weights_sha256=one).folds[0] for one in weights])
        return Member(tiny_member(weights_sha256="w").folds, first)

    how = level_settings(BALANCED, CPU, torch.bfloat16)
    written = report().model_copy(update={"previous_sha256": previous_weights(cascade("a"))})
    assert not differences(written, BALANCED, cascade("a"), how)
    for other in (cascade("b"), cascade("a", "b")):
        [reason] = differences(written, BALANCED, other, how)
        assert "first stage" in reason
    assert differences(report(), BALANCED, cascade("a"), how), "a record that does not name its first stage"


@pytest.mark.parametrize("content", ["{", '{"levels": 3}', "\xff"])
def test_a_damaged_record_is_a_warning_and_none(tmp_path, caplog, content):
    (tmp_path / SPEEDS_NAME).write_text(content, encoding="latin-1")
    assert read_report(tmp_path, model_info(weights_sha256="w")) is None
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert str(tmp_path / SPEEDS_NAME) in warning


def test_levels_that_exist_no_more_leave_the_others_measured(tmp_path):
    content = report().model_dump(mode="json")
    write_json({**content, "levels": {**content["levels"], "swift": content["levels"]["balanced"]}},
               tmp_path / SPEEDS_NAME)
    assert read_report(tmp_path, model_info(weights_sha256="w")) == report()


@pytest.mark.parametrize(("change", "large"), [(-0.0021, True), (-0.0019, False), (0.01, False)])
def test_a_loss_beyond_two_thousandths_is_large(change, large):
    assert report(change).levels["balanced"].is_large is large


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, [0, 5]), (4, [0, 2, 5, 7]), (99, list(range(10)))])
def test_measured_cases_are_spread_over_all(count, expected):
    cases = [Case(str(number), (Path("image"),), None) for number in range(10)]
    assert [int(case.id) for case in _spread(cases, count)] == expected


# ---------------------------------------------------------------- the fold
def model_with(tmp_path, **dice: float | None) -> TrainedModel:
    """Folds and their validation Dice; None: not validated."""
    folds = tuple(name.removeprefix("fold_") for name in dice)
    for name, value in dice.items():
        (tmp_path / name).mkdir()
        if value is not None:
            write_record(scores(x=(value, value)), tmp_path / name / "scores.json")
    return TrainedModel("m", "2d", folds, tmp_path)


def test_the_fold_that_validated_best_is_taken(tmp_path):
    model = model_with(tmp_path, fold_0=0.7, fold_1=0.9, fold_2=0.9, fold_all=None)
    assert best_fold(model, model.folds)[0] == "1"
    assert best_fold(model, ("0", "all"))[0] == "0"
    assert best_fold(model, ("all",))[0] == "all"


def test_without_scores_the_first_fold_is_taken_and_the_reason_says_so(tmp_path):
    fold, why = best_fold(model_with(tmp_path, fold_0=None, fold_1=None), ("0", "1"))
    assert fold == "0" and "none was validated" in why


def test_damaged_scores_are_a_warning_and_of_a_single_fold_not_read(tmp_path, caplog):
    model = model_with(tmp_path, fold_0=0.7, fold_1=0.9)
    (tmp_path / "fold_1/scores.json").write_text("{")
    assert best_fold(model, ("1",)) == ("1", "the only one")
    assert not caplog.records
    assert best_fold(model, ("0", "1"))[0] == "0"
    assert str(tmp_path / "fold_1/scores.json") in caplog.text


# ---------------------------------------------------------------- the precision
def tiny_member(**changes) -> Member:
    info = model_info(**changes)
    return Member([(build_network(info.architecture, info.network, info.input_channels, len(info.outputs)), info)])


@pytest.mark.parametrize(("seconds", "expected"), [((2.0, 1.0), torch.bfloat16), ((1.0, 2.0), None)])
def test_the_faster_precision_is_taken_and_measured_once(monkeypatch, seconds, expected):
    calls = []
    monkeypatch.setattr(precision, "_measured", {})
    monkeypatch.setattr(precision, "_time_window", lambda *arguments: calls.append(arguments) or seconds)
    member = tiny_member()
    assert fastest_precision([member], CPU).dtype == expected
    assert fastest_precision([member, tiny_member(fold="1")], CPU).dtype == expected
    assert len(calls) == 1
    fastest_precision([tiny_member(channels=2)], CPU)
    assert len(calls) == 2, "another network is measured by itself"


FIRST_PASSES = [False, False, True, True]


def test_the_probe_times_both_in_turn_and_ends(monkeypatch):
    monkeypatch.setattr(precision, "PROBE_SECONDS", 60.0)
    monkeypatch.setattr(precision, "CLEAR", math.inf)
    monkeypatch.setattr(precision, "DECISIVE", math.inf)
    network, seen = tiny_member().folds[0][0].eval(), []
    network.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    single, half = precision._time_window(network, [(1, 1, 16, 16, 16)])
    assert single > 0 and half > 0
    assert seen == FIRST_PASSES + [False, True] * (MOST_PASSES - 2)
    monkeypatch.setattr(precision, "PROBE_SECONDS", 0.0)
    seen.clear()
    precision._time_window(network, [(1, 1, 16, 16, 16), (1, 1, 32, 32, 32)])
    assert seen == FIRST_PASSES, "a slow machine gets two of each"


def timed(monkeypatch, seconds):
    """Passes take `seconds(window, half, number of this window in this precision)`; the list of them."""
    calls = []

    def taken(_, window, half):
        calls.append((window.shape[-1], half))
        return seconds(window, half, calls.count(calls[-1]) - 1)

    monkeypatch.setattr(precision, "_pass_seconds", taken)
    monkeypatch.setattr(precision, "PROBE_SECONDS", 60.0)
    return calls


@pytest.mark.parametrize(("seconds", "passes"), [
    ((1.0, 0.7), 3), ((0.7, 1.0), 3), ((1.0, 0.3), 3), ((1.0, 0.9), MOST_PASSES),
])  # fmt: skip
def test_the_probe_ends_where_one_is_clearly_faster(monkeypatch, seconds, passes):
    calls = timed(monkeypatch, lambda _, half, number: seconds[half] if number else 9.0)
    assert precision._time_window(torch.nn.Identity(), [(1, 1, 4, 4)]) == seconds
    assert sum(half for _, half in calls) == passes


def test_bfloat16_that_is_much_faster_with_its_first_pass_needs_no_second(monkeypatch):
    calls = timed(monkeypatch, lambda _, half, number: 0.5 if half else 1.0)
    assert precision._time_window(torch.nn.Identity(), [(1, 1, 4, 4)]) == (1.0, 0.5)
    assert [half for _, half in calls] == [False, False, True]


def test_one_pass_that_was_disturbed_decides_nothing(monkeypatch):
    calls = timed(monkeypatch, lambda _, half, number: (1.3 if half else 1.0) * (2 if number == 1 and not half else 1))
    assert precision._time_window(torch.nn.Identity(), [(1, 1, 4, 4)]) == (1.0, 1.3)
    assert len(calls) == 6


def test_the_probes_window_grows_until_a_warm_pass_takes_long_enough(monkeypatch):
    """Where it never does, the whole patch is timed; the pass that builds kernels says nothing."""
    shapes = [(1, 1, n, n) for n in (4, 8, 16, 32)]
    for rate, size in ((2000, 16), (1e9, 32), (100, 4)):
        calls = timed(monkeypatch, lambda window, half, number, rate=rate: (
            window.numel() / rate / (2 if half else 1) + (5 if number == 0 else 0)))
        assert precision._time_window(torch.nn.Identity(), shapes)[0] == size**2 / rate
        assert {length for length, half in calls if half} == {size}
        assert max(length for length, _ in calls) == size


@pytest.mark.parametrize("patch", [(128, 128, 128), (16, 320, 256), (40, 56, 40), (512, 512)])
@pytest.mark.parametrize("architecture", ["resenc", "unetr"])
def test_the_probes_window_is_small_where_the_network_allows_it(patch, architecture):
    info = model_info()
    axes = len(patch)
    topology = info.network.topology.model_copy(update={"strides": ((1,) * axes, (2,) * axes, (2,) * axes)})
    network = info.network.model_copy(update={"patch_shape": patch, "topology": topology})
    windows = probe_windows(info.model_copy(update={"architecture": architecture, "network": network}))
    assert windows[-1] == patch
    if architecture == "unetr":
        assert len(windows) == 1
        return
    window = windows[0]
    assert all(math.prod(one) * 2 == math.prod(other) for one, other in itertools.pairwise(windows))
    assert math.prod(window) <= PROBE_VOXELS or all(length // 2 % 4 for length in window)
    assert math.prod(window) >= 2 * 4**axes
    assert all(length % 4 == 0 and length <= whole for length, whole in zip(window, patch, strict=True))


def test_the_probes_window_never_leaves_a_single_voxel_at_the_bottom():
    """Torch's normalization is the oracle: it refuses one."""
    strides = ((1, 1, 1), *[(2, 2, 2)] * 5, (1, 1, 2))
    topology = Topology(strides=strides, kernel_sizes=((3, 3, 3),) * 7, features=(2,) * 7, encoder_blocks=(1,) * 7,
                        decoder_blocks=(1,) * 6)
    info = model_info()
    info = info.model_copy(
        update={"network": info.network.model_copy(update={"patch_shape": (128, 128, 256), "topology": topology})})
    window = probe_windows(info)[0]
    network = build_network(info.architecture, info.network, info.input_channels, len(info.outputs)).eval()
    deepest = []
    network.encoder.register_forward_hook(lambda module, _, outputs: deepest.append(outputs[-1]))
    with torch.inference_mode():
        network(torch.zeros(1, info.input_channels, *window))
    torch.nn.functional.instance_norm(deepest[0])
    assert math.prod(window) == 2 * 32 * 32 * 64
