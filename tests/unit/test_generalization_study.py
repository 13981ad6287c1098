"""The pure parts of the study of generalization: which runs, which cases, its shifts, its scores and statistics."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.networks.builder import build_network
from autoseg.networks.soundness import topology_problems
from autoseg.planning.planner import PlanSettings, decide_plan
from autoseg.schema import CaseFingerprint, Fingerprint, IntensityStatistics, Plan

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import generalization  # noqa: E402
from generalization import ARMS, BASE, DIRECTIONS, GROUPS, SEEDS, Run, declared_runs, study_settings  # noqa: E402
from generalization_cost import ratio, switches  # noqa: E402
from generalization_data import (  # noqa: E402
    BATCH,
    PATCH,
    SHIFTS,
    SOURCES,
    annotated_slices,
    halves,
    split_cases,
    study_plan,
)
from generalization_report import (  # noqa: E402
    FAMILIES,
    differences,
    draw_figure,
    family,
    interval_text,
    print_tables,
    text_verdict,
    verdicts,
)

IDS = [f"case_{number:02}" for number in range(20)]


# ---------------------------------------------------------------- runs
def test_every_run_is_declared_once_and_the_target_and_words_only_where_they_exist() -> None:
    runs = list(declared_runs(GROUPS["all"], list(DIRECTIONS), SEEDS))
    assert len({run.key for run in runs}) == len(runs)
    assert {run.arm.name for run in runs} == set(ARMS)
    of_pictures = {run.arm.name for run in runs if run.direction == "cxr"}
    assert of_pictures == {name for name, arm in ARMS.items() if not arm.text_guided and not arm.on_target}
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_arms_make_equally_many_forward_passes() -> None:
    for arm in ARMS.values():
        settings = study_settings(arm, 400, "float32")
        assert settings.epochs * settings.steps_per_epoch == 400
        assert settings.max_batch_size is not None
        assert settings.max_batch_size * arm.passes == BATCH
        assert arm.passes == {"slaug": 2, "ccsdg": 3}.get(settings.domain_generalization, settings.gin_views)


def test_text_arms_differ_from_their_base_in_words_alone() -> None:
    plain = study_settings(ARMS[BASE], 400, "float32").flat()
    for arm in GROUPS["text"]:
        assert arm.normalization == ARMS[BASE].normalization
        flat = study_settings(arm, 400, "float32").flat()
        changed = {name for name in flat if flat[name] != plain[name]}
        two_views = {"gin_views", "max_batch_size"} if arm.name == "B7" else set()  # consistency needs two
        assert changed <= {"text_guided", "text_geometry", "text_route", "guidance.distractors",
                           "guidance.text_weight"} | two_views
        assert "text_guided" in changed
    compared = [study_settings(ARMS[name], 400, "float32").flat() for name in ("B5", "B2", "B3", "B4", "B6")]
    for one in compared[1:]:
        assert {name for name in one if one[name] != compared[0][name]} == {"text_geometry"}


def test_a_run_with_a_line_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Run] = []

    def carry_out(run: Run, _: argparse.Namespace) -> dict[str, Any]:
        made.append(run)
        return a_line(run.arm.name, run.seed, 80) | {"direction": run.direction, "run_seconds": 1.0}

    monkeypatch.setattr(generalization, "carry_out", carry_out)
    arguments = argparse.Namespace(arms=["A1", "A3r"], directions=["bssfp-lge"], seeds=[1, 2], part="0/1", minutes=None)
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(a_line("A3r", 1, 80)) + "\n")
    generalization.make_runs(arguments, path)
    assert [run.key for run in made] == [("bssfp-lge", "A1", 1), ("bssfp-lge", "A1", 2), ("bssfp-lge", "A3r", 2)]
    generalization.make_runs(arguments, path)
    assert len(made) == 3


def test_parts_share_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Run] = []
    monkeypatch.setattr(generalization, "carry_out", lambda run, _: made.append(run) or a_line(
        run.arm.name, run.seed, 80) | {"direction": run.direction, "run_seconds": 1.0})
    for part in ("0/2", "1/2"):
        arguments = argparse.Namespace(arms=None, only="primary", directions=list(DIRECTIONS), seeds=[1], part=part,
                                       minutes=None)
        generalization.make_runs(arguments, tmp_path / f"{part[0]}.jsonl")
    wanted = list(declared_runs(GROUPS["primary"], list(DIRECTIONS), [1]))
    assert sorted(run.key for run in made) == sorted(run.key for run in wanted)


# ---------------------------------------------------------------- cases, plan, shifts
@pytest.mark.parametrize("count", [5, 10, 11, 20])
def test_cases_are_split_once(count: int) -> None:
    ids = IDS[:count]
    for one, other in (split_cases(ids), halves(ids)):
        assert sorted((*one, *other)) == ids
        assert one
        assert other
    assert split_cases(ids) == split_cases(ids[::-1])
    assert len(split_cases(ids)[1]) == round(0.3 * count)
    assert len(halves(ids)[0]) - len(halves(ids)[1]) in (0, 1)


def test_the_studys_plan_has_its_grid_and_a_network_of_about_a_million_weights() -> None:
    plan = a_plan()
    small = study_plan(plan, SOURCES["bssfp"]).configurations["2d"]
    before = plan.configurations["2d"]
    assert small.spacing[-2:] == (SOURCES["bssfp"].spacing,) * 2
    network = small.networks["plain"]
    assert network.patch_shape == PATCH
    assert not topology_problems(network.topology, network.patch_shape)
    extents = [np.multiply(one.spacing[-2:], one.median_shape[-2:]) for one in (small, before)]
    np.testing.assert_allclose(*extents)
    assert 0.5e6 < sum(weight.numel() for weight in build_network("plain", network, 1, 4).parameters()) < 2e6
    doubled = study_plan(plan, SOURCES["cxr"]).configurations["2d"]
    np.testing.assert_allclose(doubled.spacing[-2:], np.multiply(2, before.spacing[-2:]))


def test_shifts_stay_in_range_and_depend_on_nothing_but_their_chance() -> None:
    unit = np.random.default_rng(0).random((37, 50))
    for shift in SHIFTS.values():
        moved = shift(unit, np.random.default_rng(1))
        assert moved.shape == unit.shape
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert np.abs(moved - unit).mean() > 0.05
        np.testing.assert_array_equal(moved, shift(unit, np.random.default_rng(1)))
    assert all(imitated <= set(SHIFTS) for imitated in FAMILIES.values())
    assert {family(arm) for arm in ARMS} == set(FAMILIES)


# ---------------------------------------------------------------- scores
def test_annotated_slices_lie_along_the_widest_spacing() -> None:
    reference = np.zeros((9, 8, 7), np.uint8)
    reference[3, 2, 2] = reference[5, 6, 1] = 1
    assert annotated_slices(reference, (8.0, 1.0, 1.0)) == (slice(3, 6), slice(None), slice(None))
    assert annotated_slices(reference, (1.0, 8.0, 1.0)) == (slice(None), slice(2, 7), slice(None))
    assert annotated_slices(np.zeros_like(reference), (8.0, 1.0, 1.0)) == (slice(None),) * 3
    picture = np.zeros((1, 8, 7), np.uint8)
    picture[0, 4, 4] = 1
    assert annotated_slices(picture, (1.0, 1.0, 1.0)) == (slice(0, 1), slice(None), slice(None))


def a_line(arm: str, seed: int, dice: float, spread: float = 0.0) -> dict[str, Any]:
    """A line of results with two labels and six cases; `spread` widens the cases' scores, equally for all arms."""
    rows = {case: [[round((dice + spread * (number - 2.5)) / 100, 4)] * 4] * 2 for number, case in enumerate(IDS[:6])}
    return {"direction": "bssfp-lge", "arm": arm, "seed": seed, "labels": ["RV", "LV"], "normalization": "plan",
            "scores": {"out": rows} if arm == "T" else {"in": rows, "out": rows}, "steps_per_second": 2.0}


def test_differences_are_paired_by_case_and_seed() -> None:
    ones = [a_line("A3r", seed, 70 + seed, spread=9) for seed in (1, 2, 3)]
    others = [a_line("A1", seed, 60, spread=9) for seed in (1, 2)]
    found = differences(ones, others)
    np.testing.assert_allclose(found, 11.5)  # seeds 1 and 2; the cases' own spread is gone
    assert interval_text(found) == "+11.5 [+11.5, +11.5]"
    assert not differences(ones, []).size
    assert not differences(ones, [a_line("T", 1, 80)], outside=False).size


def test_a_label_that_is_in_neither_mask_does_not_count() -> None:
    one, other = a_line("A3r", 1, 70), a_line("A1", 1, 60)
    one["scores"]["out"][IDS[0]] = [[None] * 4, [0.7] * 4]
    np.testing.assert_allclose(differences([one], [other]), 10)


@pytest.mark.parametrize(("random", "shuffled", "helps"), [(80, 80, True), (80, 90, False), (90, 80, False)])
def test_words_help_only_if_they_beat_both_controls(random: float, shuffled: float, helps: bool) -> None:
    arms = {name: [a_line(name, seed, dice) for seed in SEEDS]
            for name, dice in (("B5", 85), ("B2", random), ("B4", shuffled))}
    (said,) = text_verdict(arms)
    assert said.endswith("words help beyond random vectors on this data." if helps else
                         "no measurable benefit of wording over random vectors on this data.")
    assert text_verdict({"B5": arms["B5"], "B2": arms["B2"]}) == []


def test_goals_are_told_as_they_were_declared() -> None:
    arms = {name: [a_line(name, seed, dice) for seed in SEEDS] for name, dice in (("A1", 80), (BASE, 79.5), ("T", 84))}
    primary, gap = verdicts(arms, BASE)
    assert "-0.5 [-0.5, -0.5] out of domain" in primary
    assert "may be lost: met; never below A1: missed" in primary
    assert "-4.5" in gap
    assert gap.endswith("within 3: missed.")


def test_the_table_has_a_row_per_arm_and_the_papers_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [a_line(arm, seed, 70 + seed) for arm in ("A3r", "A1", "T") for seed in SEEDS]
    shifts = {**a_line("A1", 1, 70), "direction": "cxr"}
    shifts["scores"] = {"in": shifts["scores"]["in"]} | dict.fromkeys(SHIFTS, shifts["scores"]["in"])
    print_tables([*lines, shifts], BASE)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:6]}) == 1
    assert [line.split("|")[1].strip() for line in rows[2:6]] == ["A1", "A3r", "T", "SLAug, paper"]
    assert "**72.0** (71.0, 72.0, 73.0)" in rows[2]
    assert "86.69" in rows[5]
    draw_figure([*lines, shifts], BASE, None, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


# ---------------------------------------------------------------- cost
def test_cost_compares_each_round_with_its_own_plain_training() -> None:
    assert ratio([4.0, 2.0, 8.0], [2.0, 1.0, 4.0]) == 2.0
    arms = switches()
    assert {arm.normalization for arm in arms.values()} == {"rank"}
    assert {arm.passes for arm in arms.values()} == {1}


def a_plan() -> Plan:
    cases = tuple(CaseFingerprint(id=case, shape=(12, 256, 240), cropped_shape=(12, 256, 240),
                                  spacing=(8.0, 1.25, 1.25), left_right_axis=None, class_voxels={}) for case in IDS)
    statistics = IntensityStatistics(mean=0, median=0, std=1, min=0, max=1, percentile_00_5=0, percentile_99_5=1)
    fingerprint = Fingerprint(
        dataset="/data/heart", name="heart", is_2d=False, file_ending=".nii.gz", channel_names=("bSSFP",),
        labels={"background": 0, "RV": 1, "myocardium": 2, "LV": 3}, cases=cases, intensities=(statistics,),
        median_relative_size_after_cropping=1.0,
    )
    return decide_plan(fingerprint, PlanSettings(architecture="plain", configurations=("2d",)))
