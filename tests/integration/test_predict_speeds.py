"""`predict --speed` with tiny models, and the record of its cost that the end of a training leaves for it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from command_line import run_command
from tiny_models import model_info, write_fold, write_nifti

from autoseg.cli import app
from autoseg.commands import speed_report
from autoseg.commands import train as command
from autoseg.commands.speed_report import Predicted, report_speeds
from autoseg.data.dataset import Case, list_images
from autoseg.errors import UserError
from autoseg.evaluation.pairing import FilePair
from autoseg.evaluation.scoring import score_files
from autoseg.inference import precision
from autoseg.inference.ensembling import Member
from autoseg.inference.prediction import PredictSettings, predict_members
from autoseg.inference.speed_costs import NOT_MEASURED, OTHER_SETTING, SPEEDS_NAME, SpeedReport, level_settings
from autoseg.inference.speeds import SPEEDS
from autoseg.inference.trained import Reader, TrainedModel, list_models
from autoseg.networks.checkpoint import MODEL_NAME
from autoseg.records import read_record, write_record
from autoseg.schema import CheckpointInfo, Plan, PreviousStage, Scores

CPU = torch.device("cpu")
SHAPE = (40, 21, 18)  # two windows along one axis and more with overlap


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Whether this machine is faster in bfloat16 is not what is tested here."""
    monkeypatch.setattr(precision, "_time_window", lambda *_: (1.0, 2.0))


@pytest.fixture
def run(tmp_path) -> Path:
    """Two folds of one model."""
    for fold in "01":
        write_fold(tmp_path / "run", model_info(fold=fold))
    return tmp_path / "run"


@pytest.fixture
def images(tmp_path) -> Path:
    for number in range(3):
        write_nifti(tmp_path / "images" / f"case{number}_0000.nii.gz", shape=SHAPE, seed=number)
    return tmp_path / "images"


def fold_folder(run: Path, fold: str) -> Path:
    return run / "models/plain/3d_fullres" / f"fold_{fold}"


def predict(run: Path, images: Path, masks: Path, *options: str) -> int:
    arguments = ["-i", str(images), "-o", str(masks), "--run", str(run), "--device", "cpu", "--overwrite"]
    return run_command("predict", *arguments, *options)[0]


def masks_in(folder: Path) -> list[np.ndarray]:
    return [np.asanyarray(nibabel.load(path).dataobj).copy() for path in sorted(folder.glob("case?.nii.gz"))]


def results_of(masks: Path) -> dict[str, object]:
    return json.loads((masks / "run.json").read_text())["results"]


def weights_used(masks: Path) -> set[str]:
    return {name for name in json.loads((masks / "run.json").read_text())["inputs"] if name != "images"}


def write_dice(run: Path, fold: str, dice: float) -> None:
    """A scores.json with this mean."""
    scores = Scores.model_validate({"mean": {"dice": dice, "nsd": None, "hd95": None}, "labels": {}, "cases": (),
                                    "policy": {"both_empty": "", "one_empty": "", "nsd_tolerance_mm": {}}})
    write_record(scores, fold_folder(run, fold) / "scores.json")


def write_report(run: Path, fold: str, change: float, name: str = "plain", previous: tuple[str, ...] = ()) -> None:
    """A speeds.json of `balanced`, tied to the fold's weights and those of earlier stages."""
    folder = run / "models" / name / "3d_fullres" / f"fold_{fold}"
    level = SPEEDS["balanced"]
    cost = {"overlap": level.overlap, "copies": level.copies, "precision": "float32", "seconds": 1.0,
            "times_faster": 9.8, "dice": 0.9, "dice_change": change, "dice_margin": 0.001, "worst_case": "x",
            "worst_change": -0.1, "labels": {}}
    info = read_record(CheckpointInfo, folder / MODEL_NAME)
    record = {"weights_sha256": info.weights_sha256, "previous_sha256": previous, "fold": fold,
              "device": "a device", "threads": 2, "cases": ("x", "y"), "exact_seconds": 9.8, "exact_dice": 0.9,
              "levels": {"balanced": cost}}
    write_record(SpeedReport.model_validate(record), folder / SPEEDS_NAME)


# ---------------------------------------------------------------- masks
def test_exact_is_the_default_and_says_nothing_of_costs(run, images, tmp_path, caplog):
    write_report(run, "0", -0.5)
    with caplog.at_level(logging.INFO, "autoseg"):
        assert predict(run, images, tmp_path / "default") == 0
        assert predict(run, images, tmp_path / "exact", "--speed", "exact") == 0
    reader = Reader()
    model = list_models(run)[0]
    predict_members(list_images(images, 1, ".nii.gz"), [reader.member(model, ("0", "1"))], tmp_path / "expected",
                    PredictSettings(device=CPU))
    for default, exact, expected in zip(*(masks_in(tmp_path / kind) for kind in ("default", "exact", "expected")),
                                        strict=True):
        np.testing.assert_array_equal(default, expected)
        np.testing.assert_array_equal(exact, expected)
    assert "faster than" not in caplog.text
    assert "speed_cost" not in results_of(tmp_path / "exact")


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_a_faster_level_is_one_fold_with_its_copies_and_overlap(run, images, tmp_path, name):
    assert predict(run, images, tmp_path / name, "--speed", name) == 0
    model = list_models(run)[0]
    settings = PredictSettings(device=CPU, copies=SPEEDS[name].copies, overlap=SPEEDS[name].overlap)
    predict_members(list_images(images, 1, ".nii.gz"), [Reader().member(model, ("0",))], tmp_path / "expected",
                    settings)
    for found, expected in zip(masks_in(tmp_path / name), masks_in(tmp_path / "expected"), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert results_of(tmp_path / name)["speed"] == name


def test_bfloat16_is_used_where_it_is_faster_and_exact_never_is(run, images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(precision, "_time_window", lambda *_: (2.0, 1.0))
    monkeypatch.setattr(precision, "_measured", {})
    seen = set()

    def remember(module, *_):
        seen.add(torch.is_autocast_enabled("cpu"))

    hook = torch.nn.modules.module.register_module_forward_hook(remember)
    try:
        with caplog.at_level(logging.INFO, "autoseg"):
            assert predict(run, images, tmp_path / "balanced", "--speed", "balanced") == 0
        assert seen == {True} and "precision bfloat16" in caplog.text
        seen.clear()
        assert predict(run, images, tmp_path / "exact") == 0
        assert seen == {False}
    finally:
        hook.remove()


# ---------------------------------------------------------------- folds
def test_the_fold_that_validated_best_is_taken_unless_folds_are_named(run, images, tmp_path):
    write_dice(run, "0", 0.6)
    write_dice(run, "1", 0.7)
    masks = tmp_path / "masks"
    assert predict(run, images, masks, "--speed", "balanced") == 0
    assert weights_used(masks) == {"fold_1"}
    assert predict(run, images, masks, "--speed", "balanced", "--folds", "0") == 0
    assert weights_used(masks) == {"fold_0"}
    assert predict(run, images, masks, "--speed", "balanced", "--folds", "all") == 0
    assert weights_used(masks) == {"fold_0", "fold_1"}


def test_of_a_cascade_the_same_fold_of_the_first_stage_is_taken(run, images, tmp_path):
    stage = PreviousStage(name="plain", configuration="3d_fullres")
    for fold in "12":
        write_fold(run, model_info(fold=fold, name="second", previous_stage=stage))
    masks = tmp_path / "masks"
    assert predict(run, images, masks, "--name", "second", "--speed", "balanced") == 0
    assert weights_used(masks) == {"plain/3d_fullres/fold_1", "second/3d_fullres/fold_1"}
    assert predict(run, images, masks, "--name", "second", "--speed", "balanced", "--folds", "2") == 0
    assert weights_used(masks) == {"plain/3d_fullres/fold_0", "second/3d_fullres/fold_2"}, "fold 2 is not there"
    assert predict(run, images, masks, "--name", "second", "--speed", "balanced", "--folds", "1") == 0
    assert weights_used(masks) == {"plain/3d_fullres/fold_1", "second/3d_fullres/fold_1"}
    assert predict(run, images, masks, "--name", "second", "--speed", "balanced", "--folds", "1,2") == 0
    assert weights_used(masks) == {f"{name}/3d_fullres/fold_{fold}" for name, folds in (("plain", "01"),
                                   ("second", "12")) for fold in folds}
    write_dice(run, "1", 0.5)
    (fold_folder(run, "1").parents[1].parent / "second/3d_fullres/fold_1/model.json").unlink()
    assert predict(run, images, masks, "--name", "second", "--speed", "balanced") == 0
    assert weights_used(masks) == {"plain/3d_fullres/fold_1", "second/3d_fullres/fold_2"}, "its best, without fold 2"


# ---------------------------------------------------------------- what it says
def test_predict_tells_the_measured_cost(run, images, tmp_path, caplog, capsys):
    write_report(run, "0", -0.0004)
    with caplog.at_level(logging.INFO, "autoseg"):
        assert predict(run, images, tmp_path / "masks", "--speed", "balanced", "--json") == 0
    line = ("balanced: Dice -0.0004 ± 0.0010 on 2 validation cases of fold 0, 9.8 times faster than exact with that "
            "fold (measured by train on a device)")
    assert line in caplog.text
    assert "exact would average 2 folds" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    shown = json.loads(capsys.readouterr().out)
    for found in (shown, results_of(tmp_path / "masks")):
        assert (found["speed"], found["speed_cost"]) == ("balanced", line)
        assert (found["speed_dice_change"], found["speed_times_faster"]) == (-0.0004, 9.8)


def test_a_large_loss_is_a_warning(run, images, tmp_path, caplog):
    write_report(run, "0", -0.0031)
    assert predict(run, images, tmp_path / "masks", "--speed", "balanced") == 0
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "Dice -0.0031" in warning and "more than 0.002" in warning and "--speed exact" in warning


@pytest.mark.parametrize("how", ["no record", "other weights", "another level"])
def test_without_a_record_of_these_weights_and_this_level_predict_says_so(run, images, tmp_path, caplog, how):
    if how != "no record":
        write_report(run, "0", -0.0004)
    if how == "other weights":
        write_fold(run, model_info(), seed=9)
    level = "fast" if how == "another level" else "balanced"
    with caplog.at_level(logging.INFO, "autoseg"):
        assert predict(run, images, tmp_path / "masks", "--speed", level) == 0
    assert NOT_MEASURED in caplog.text
    assert results_of(tmp_path / "masks")["speed_dice_change"] is None


def test_a_cascades_cost_is_that_with_the_first_stage_it_was_measured_with(run, images, tmp_path, caplog):
    stage = PreviousStage(name="plain", configuration="3d_fullres")
    for fold in "01":
        write_fold(run, model_info(fold=fold, name="second", previous_stage=stage))
    first = read_record(CheckpointInfo, fold_folder(run, "0") / MODEL_NAME).weights_sha256
    write_report(run, "0", -0.0004, name="second", previous=(first,))
    asked = ("--name", "second", "--speed", "balanced", "--folds")
    assert predict(run, images, tmp_path / "masks", *asked, "0") == 0
    assert results_of(tmp_path / "masks")["speed_dice_change"] == -0.0004
    assert predict(run, images, tmp_path / "masks", *asked, "0,1") == 0
    assert OTHER_SETTING in str(results_of(tmp_path / "masks")["speed_cost"]), "all folds of the first stage"
    write_fold(run, model_info(), seed=9)
    assert predict(run, images, tmp_path / "masks", *asked, "0") == 0
    cost = results_of(tmp_path / "masks")
    assert cost["speed_dice_change"] is None and OTHER_SETTING in cost["speed_cost"]


@pytest.mark.parametrize("option", ["--no-tta", "--skip-empty", "bfloat16"])
def test_the_cost_of_another_setting_is_not_measured(run, images, tmp_path, monkeypatch, option):
    write_report(run, "0", -0.0004)
    if option == "bfloat16":
        monkeypatch.setattr(precision, "_time_window", lambda *_: (2.0, 1.0))
        monkeypatch.setattr(precision, "_measured", {})
    options = [option] if option.startswith("--") else []
    assert predict(run, images, tmp_path / "masks", "--speed", "balanced", *options) == 0
    found = results_of(tmp_path / "masks")
    assert OTHER_SETTING in found["speed_cost"] and option in found["speed_cost"]
    assert found["speed_dice_change"] is None and found["speed_times_faster"] is None


def test_an_unknown_speed_is_one_message(run, images, tmp_path, capsys):
    assert predict(run, images, tmp_path / "masks", "--speed", "turbo") == 2
    shown = capsys.readouterr()
    message = shown.out + shown.err
    assert "turbo" in message and all(name in message for name in SPEEDS) and "Traceback" not in message
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("folds", ["01", "0"])
def test_damaged_records_are_a_warning_and_predict_goes_on(run, images, tmp_path, caplog, folds):
    if folds == "0":
        (fold_folder(run, "1") / MODEL_NAME).unlink()
    for name in (SPEEDS_NAME, "scores.json"):
        (fold_folder(run, "0") / name).write_text('{"levels": 3}')
    assert predict(run, images, tmp_path / "masks", "--speed", "balanced") == 0
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    damaged = [SPEEDS_NAME, *(["scores.json"] if len(folds) > 1 else [])]
    assert len(warnings) == len(damaged)
    assert all(any(str(fold_folder(run, "0") / name) in warning for warning in warnings) for name in damaged)
    assert NOT_MEASURED in results_of(tmp_path / "masks")["speed_cost"]


# ---------------------------------------------------------------- the end of a training
def validated(run: Path, images: Path, tmp_path: Path) -> tuple[Predicted, PredictSettings]:
    """The cases predicted exactly; references are exact's masks with a block of background, as `balanced` has it."""
    model = TrainedModel("plain", "3d_fullres", ("0",), run / "models/plain/3d_fullres")
    member = Reader().member(model, ("0",))
    cases = list_images(images, 1, ".nii.gz")
    predict_members(cases, [member], tmp_path / "exact", PredictSettings(device=CPU))
    balanced = level_settings(SPEEDS["balanced"], CPU, None)
    predict_members(cases, [member], tmp_path / "references", balanced)
    labelled = [Case(case.id, case.images, tmp_path / "references" / f"{case.id}.nii.gz") for case in cases]
    return predicted(member, labelled, tmp_path), balanced


def predicted(member: Member, cases: list[Case], tmp_path: Path) -> Predicted:
    pairs = [FilePair(case.id, tmp_path / "exact" / f"{case.id}.nii.gz", case.label) for case in cases]
    return Predicted(member, cases, 100.0, score_files(pairs, member.info))


def test_the_report_holds_what_scoring_the_levels_masks_gives(run, images, tmp_path):
    """Where the references are the level's own masks, it scores 1, and exact what it scores against them."""
    exact, _ = validated(run, images, tmp_path)
    killed = fold_folder(run, "0") / ".speeds-killed" / "fast"
    killed.mkdir(parents=True)
    (killed / "case0.nii.gz").write_bytes(b"of a training that was killed here")
    figures = report_speeds(exact, fold_folder(run, "0"), CPU, {})
    report = read_record(SpeedReport, fold_folder(run, "0") / SPEEDS_NAME)
    cost = report.levels["balanced"]
    assert cost.dice == 1 and exact.scores.mean.dice < 1
    assert cost.dice_change == pytest.approx(1 - exact.scores.mean.dice)
    assert cost.labels == pytest.approx({name: 1 - label.dice for name, label in exact.scores.labels.items()})
    assert report.cases == ("case0", "case1", "case2") and report.exact_seconds == 100
    assert cost.times_faster == pytest.approx(100 / cost.seconds, rel=0.01)
    assert set(report.levels) == {"balanced", "fast"}
    assert report.levels["fast"].dice < 1
    assert figures["balanced_dice_change"] == cost.dice_change and figures["speed_report_seconds"] is not None
    assert not list(fold_folder(run, "0").glob(".speeds-*")), "masks of this and of a killed measurement are gone"


def test_little_time_measures_some_cases_and_scales_exacts_seconds(run, images, tmp_path, monkeypatch):
    exact, _ = validated(run, images, tmp_path)
    monkeypatch.setattr(speed_report, "FIRST_CASES", 1)
    monkeypatch.setattr(speed_report, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(speed_report, "LARGEST_SHARE", 0.0)
    report_speeds(exact, fold_folder(run, "0"), CPU, {})
    report = read_record(SpeedReport, fold_folder(run, "0") / SPEEDS_NAME)
    assert report.cases == ("case0",) and report.exact_seconds == pytest.approx(100 / 3, abs=1e-3)
    assert report.exact_dice == score_files(
        [FilePair("case0", tmp_path / "exact/case0.nii.gz", tmp_path / "references/case0.nii.gz")],
        exact.member.info).mean.dice


def test_a_measurement_that_fails_is_a_warning_and_leaves_nothing(run, images, tmp_path, monkeypatch, caplog):
    exact, _ = validated(run, images, tmp_path)

    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(speed_report, "predict_members", fail)
    assert report_speeds(exact, fold_folder(run, "0"), CPU, {}) == {}
    assert "not measured: the disk is full" in caplog.text
    assert not (fold_folder(run, "0") / SPEEDS_NAME).exists()


@pytest.mark.parametrize(("option", "expected"), [(None, True), ("--no-speed-report", False)])
def test_the_measurement_can_be_left_out(tmp_path, monkeypatch, option, expected):
    asked = []

    def remember(request, *_):
        asked.append(request.speed_report)
        raise UserError("enough")

    plan = {"labels": {"background": 0, "organ": 1}, "dataset": "", "name": "", "is_2d": False,
            "file_ending": ".nii.gz", "channel_names": ["MR"], "axes": [0, 1, 2], "left_right_axes": [],
            "sided_labels": [], "memory_target_gib": 1, "nnunet_parity": False, "reasons": [], "configurations": {}}
    monkeypatch.setattr(command, "read_plan", lambda _: Plan.model_validate(plan))
    monkeypatch.setattr(command, "known_architecture", lambda *_: "resenc")
    monkeypatch.setattr(command, "with_first_stage", remember)
    with pytest.raises(UserError, match="enough"):
        app(["train", "--run", str(tmp_path), "--configuration", "3d_fullres", *([option] if option else [])])
    assert asked == [expected]


# ---------------------------------------------------------------- windows without content, threads
def test_empty_windows_are_left_out_only_when_asked(run, tmp_path):
    """Most of the image is one value: the random network calls it something there, --skip-empty background."""
    voxels = np.random.default_rng(0).normal(100, 20, (64, 20, 16)).astype(np.float32)
    voxels[24:] = 100
    (tmp_path / "images").mkdir()
    without_resampling = np.diag([1.5, 1.2, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, without_resampling), tmp_path / "images/case0_0000.nii.gz")
    for name, options in (("whole", ()), ("skipped", ("--skip-empty",))):
        assert predict(run, tmp_path / "images", tmp_path / name, *options) == 0
    [whole], [skipped] = masks_in(tmp_path / "whole"), masks_in(tmp_path / "skipped")
    assert whole[-4:].any() and not skipped[-4:].any()
    np.testing.assert_array_equal(skipped[:8], whole[:8])
    assert results_of(tmp_path / "skipped")["skip_empty"] is True


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores may be used")
def test_predicting_uses_every_core_it_may():
    code = ("import os, torch, autoseg.commands.predict, autoseg.commands.fold_training\n"
            "assert torch.get_num_threads() == len(os.sched_getaffinity(0)), torch.get_num_threads()")
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    found = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
