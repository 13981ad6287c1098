"""`autoseg find-best` over tiny models, and `predict` with what it chose."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tiny_models import LABELS, model_info, write_fold, write_nifti

from autoseg.cli import app
from autoseg.data.dataset import open_dataset
from autoseg.data.splits import write_splits
from autoseg.errors import UserError
from autoseg.evaluation.pairing import FilePair
from autoseg.evaluation.scoring import score_files
from autoseg.inference import computing, pairs
from autoseg.inference.best import read_best
from autoseg.inference.postprocessing import keep_largest
from autoseg.inference.prediction import PredictSettings, predict_cases, predict_members
from autoseg.inference.trained import Reader, list_models
from autoseg.networks.checkpoint import read_model
from autoseg.records import read_record, write_record
from autoseg.schema import CheckpointInfo, Plan, PreviousStage, Scores, Split

FOLDS = (("a", "b"), ("c",))
SETTINGS = PredictSettings(device=torch.device("cpu"), overwrite=True)


@dataclass(frozen=True)
class Place:
    run: Path
    dataset: Path

    def validate(self, name: str, configuration: str, fold: str) -> None:
        """What the end of a training does."""
        folder = self.run / "models" / name / configuration / f"fold_{fold}"
        cases = [case for case in open_dataset(self.dataset).cases if case.id in FOLDS[int(fold)]]
        model = next(one for one in list_models(self.run) if one.folder == folder.parent)
        predict_members(cases, [Reader().member(model, (fold,), (fold,))], folder / "validation", SETTINGS)
        masks = [FilePair(case.id, folder / "validation" / f"{case.id}.nii.gz", case.label) for case in cases]
        info = read_record(CheckpointInfo, folder / "model.json")
        write_record(score_files(masks, info), folder / "scores.json")


@pytest.fixture
def place(tmp_path) -> Place:
    """Three cases in two folds; a model whose masks are nearly the references, and a poor one in 2d."""
    place = Place(tmp_path / "run", tmp_path / "Dataset001_Tiny")
    for number, case in enumerate("abc"):
        write_nifti(place.dataset / "imagesTr" / f"{case}_0000.nii.gz", shape=(12, 11, 10), seed=number)
    info = model_info()
    for fold in range(2):
        write_fold(place.run, model_info(fold=str(fold)))
        flat = model_info(fold=str(fold), is_2d=True, name="flat").model_copy(update={"is_2d": False})
        write_fold(place.run, flat, seed=50)
    write_record(Plan(
        labels=LABELS, dataset=str(place.dataset), name="Tiny", is_2d=False, file_ending=".nii.gz",
        channel_names=info.channel_names, axes=(0, 1, 2), left_right_axes=(), sided_labels=(), memory_target_gib=1,
        nnunet_parity=False, reasons=(), configurations={},
    ), place.run / "plan.json")
    write_splits([Split(train=tuple(set("abc") - set(val)), val=val) for val in FOLDS], place.run / "splits.json")
    write_references(place)
    for name, configuration in (("plain", "3d_fullres"), ("flat", "2d")):
        for fold in "01":
            place.validate(name, configuration, fold)
    return place


def write_references(place: Place) -> None:
    """The plain model's own masks of the validation cases, with a block set to background."""
    (place.dataset / "labelsTr").mkdir()
    for case in "abc":
        (place.dataset / "labelsTr" / f"{case}.nii.gz").touch()
    declared = {"channel_names": {"0": "c0"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (place.dataset / "dataset.json").write_text(json.dumps(declared))
    for fold, cases in enumerate(FOLDS):
        model = read_model(place.run / f"models/plain/3d_fullres/fold_{fold}")
        chosen = [case for case in open_dataset(place.dataset).cases if case.id in cases]
        predict_cases(chosen, [model], place.dataset / "labelsTr", SETTINGS)
        for case in chosen:
            image = nibabel.load(case.label)
            voxels = np.asanyarray(image.dataobj).copy()
            voxels[:3] = 0
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), case.label)
    for name in ("labels.json", "failures.json"):
        (place.dataset / "labelsTr" / name).unlink(missing_ok=True)


def find_best(place: Place, *options: str) -> int:
    arguments = ["find-best", "--run", str(place.run), "--device", "cpu", "--workers", "1"]
    try:
        return int(app([*arguments, *options], result_action="return_value"))
    except UserError as error:
        sys.stderr.write(str(error))
        return 2


def predict(place: Place, masks: Path, *options: str) -> int:
    arguments = ["-i", str(place.dataset / "imagesTr"), "-o", str(masks), "--run", str(place.run), "--device", "cpu"]
    try:
        return int(app(["predict", *arguments, *options], result_action="return_value"))
    except UserError as error:
        sys.stderr.write(str(error))
        return 2


def voxels_of(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj).copy()


# ---------------------------------------------------------------- what it does
def test_the_best_model_wins_and_predict_takes_it(place, tmp_path, capsys):
    assert find_best(place) == 0
    shown = capsys.readouterr().out
    best = read_best(place.run)
    assert best is not None
    assert [member.name for member in best.members] == ["plain"]
    assert best.members[0].folds == ("0", "1") and best.folds == ("0", "1") and best.cases == 3
    assert [len(one.members) for one in best.candidates].count(2) == 1
    dice = [one.dice for one in best.candidates]
    assert dice == sorted(dice, reverse=True) and best.dice == dice[0] > dice[-1]
    for word in ("plain 3d_fullres", "flat 2d + plain 3d_fullres", "Dice", "± folds", "Best: plain"):
        assert word in shown
    assert best.candidates[0].dice_std is not None
    record = json.loads((place.run / "run.json").read_text())
    assert record["command"] == "find-best" and record["results"]["dice"] == best.dice

    assert predict(place, tmp_path / "default") == 0
    log = json.loads((tmp_path / "default/run.json").read_text())
    assert set(log["inputs"]) >= {"fold_0", "fold_1"}
    assert predict(place, tmp_path / "named", "--name", "plain") == 0
    assert predict(place, tmp_path / "raw", "--no-postprocessing") == 0
    for case in "abc":
        raw, named = (voxels_of(tmp_path / kind / f"{case}.nii.gz") for kind in ("raw", "named"))
        np.testing.assert_array_equal(raw, named)


def test_means_are_pooled_over_cases_and_spread_over_folds(place):
    assert find_best(place, "--no-ensembles") == 0
    best = read_best(place.run)
    for one in best.candidates:
        (member,) = one.members
        folder = place.run / "models" / member.name / member.configuration
        folds = [read_record(Scores, folder / f"fold_{fold}/scores.json") for fold in range(2)]
        cases = [case for scores in folds for case in scores.cases]
        dice = {name: [case.labels[name].dice for case in cases] for name in ("organ", "lesion")}
        labels = [np.mean([value for value in values if value is not None]) for values in dice.values()]
        assert one.dice == pytest.approx(np.mean(labels))
        assert one.dice_std == pytest.approx(np.std([scores.mean.dice for scores in folds], ddof=1))
    assert not (place.run / "find_best").exists()


def test_a_pair_is_predicted_by_the_networks_that_have_not_seen_the_case(place, tmp_path):
    assert find_best(place) == 0
    reader, cases = Reader(), open_dataset(place.dataset).cases
    for fold, ids in enumerate(FOLDS):
        members = [reader.member(model, (str(fold),)) for model in list_models(place.run)]
        here = [case for case in cases if case.id in ids]
        predict_members(here, members, tmp_path / "expected", SETTINGS)
        for case in here:
            kept = place.run / "find_best/flat@2d+plain@3d_fullres" / f"fold_{fold}" / f"{case.id}.nii.gz"
            np.testing.assert_array_equal(voxels_of(kept), voxels_of(tmp_path / "expected" / f"{case.id}.nii.gz"))


def test_a_pair_that_is_better_is_chosen_and_predicted(place, tmp_path, capsys, caplog):
    """The references become the pair's own masks."""
    assert find_best(place) == 0
    folder = place.run / "find_best/flat@2d+plain@3d_fullres"
    for fold, ids in enumerate(FOLDS):
        for case in ids:
            shutil.copy(folder / f"fold_{fold}" / f"{case}.nii.gz", place.dataset / "labelsTr")
        for name, configuration in (("plain", "3d_fullres"), ("flat", "2d")):
            place.validate(name, configuration, str(fold))
        (folder / f"fold_{fold}" / "scores.json").unlink()
    assert find_best(place) == 0
    best = read_best(place.run)
    assert [member.name for member in best.members] == ["flat", "plain"] and best.dice == 1
    assert best.largest_components == ()
    assert predict(place, tmp_path / "masks") == 0
    record = json.loads((tmp_path / "masks/run.json").read_text())
    assert {f"{model}/fold_{fold}" for model in ("flat/2d", "plain/3d_fullres") for fold in "01"} < set(
        record["inputs"])


def test_postprocessing_that_helps_is_applied_by_predict(place, tmp_path):
    """Beside each mask's largest component of `organ`, references hold none."""
    assert find_best(place, "--no-ensembles") == 0
    for fold, ids in enumerate(FOLDS):
        for case in ids:
            mask = place.run / f"models/plain/3d_fullres/fold_{fold}/validation/{case}.nii.gz"
            image = nibabel.load(mask)
            kept = keep_largest(np.asanyarray(image.dataobj).copy(), (4,))
            nibabel.save(nibabel.Nifti1Image(kept, image.affine), place.dataset / "labelsTr" / f"{case}.nii.gz")
        place.validate("plain", "3d_fullres", str(fold))
        place.validate("flat", "2d", str(fold))
    assert find_best(place, "--no-ensembles") == 0
    best = read_best(place.run)
    assert best.largest_components == ("organ",)
    assert best.dice_postprocessed == 1 > best.dice
    assert predict(place, tmp_path / "masks", "--folds", "0") == 0
    assert predict(place, tmp_path / "raw", "--folds", "0", "--no-postprocessing") == 0
    changed = 0
    for case in "abc":
        masks, raw = (voxels_of(tmp_path / kind / f"{case}.nii.gz") for kind in ("masks", "raw"))
        np.testing.assert_array_equal(masks, keep_largest(raw, (4,)))
        changed += np.count_nonzero(masks != raw)
    assert changed


def test_a_cascade_is_compared_and_its_first_stage_computed_once(place, monkeypatch):
    """In a pair with its own first stage, every case goes through two models, not three."""
    previous = PreviousStage(name="plain", configuration="3d_fullres")
    for fold in "01":
        info = model_info(fold=fold, configuration="3d_cascade_fullres", previous_stage=previous)
        write_fold(place.run, info, seed=9)
        place.validate("plain", "3d_cascade_fullres", fold)
    whole, calls = computing.stream_logits_of, []

    def counted(ensemble, *arguments):
        calls.append((ensemble.info.configuration, ensemble.info.fold))
        return whole(ensemble, *arguments)

    monkeypatch.setattr(computing, "stream_logits_of", counted)
    assert find_best(place, "--names", "plain") == 0
    assert sorted(calls) == sorted((configuration, fold) for configuration in ("3d_fullres", "3d_cascade_fullres")
                                   for fold in ("0", "0", "1"))
    assert len(read_best(place.run).candidates) == 3
    pair = json.loads(
        (place.run / "find_best/plain@3d_cascade_fullres+plain@3d_fullres/fold_0/pair.json").read_text())
    assert set(pair["weights"]) == {"plain@3d_cascade_fullres", "plain@3d_fullres"}


# ---------------------------------------------------------------- resuming
def test_pairs_are_kept_and_made_anew_only_for_other_weights_or_images(place, monkeypatch):
    assert find_best(place) == 0
    whole, calls = pairs.predict_into, []

    def counted(cases, *arguments):
        calls.append([case.id for case in cases])
        return whole(cases, *arguments)

    monkeypatch.setattr(pairs, "predict_into", counted)
    folder = place.run / "find_best/flat@2d+plain@3d_fullres"
    first = read_best(place.run)
    assert find_best(place) == 0
    assert calls == [] and read_best(place.run) == first
    (folder / "fold_0/b.nii.gz").unlink()
    assert find_best(place) == 0
    assert calls == [["b"]] and read_best(place.run) == first
    write_fold(place.run, model_info(fold="1"), seed=77)
    place.validate("plain", "3d_fullres", "1")
    assert find_best(place) == 0
    assert calls[1:] == [["c"]]
    (image,) = (place.dataset / "imagesTr").glob("a_0000*")
    os.utime(image, ns=(1, 1))
    assert find_best(place) == 0
    assert calls[2:] == [["a"]], "its image was replaced; the other case of the fold is kept"
    assert find_best(place) == 0 and len(calls) == 3


# ---------------------------------------------------------------- what is left out, and bad input
def test_models_without_the_folds_are_left_out_with_reasons(place, capsys):
    write_fold(place.run, model_info(name="one"))
    place.validate("one", "3d_fullres", "0")
    write_fold(place.run, model_info(name="whole", fold="all"))
    write_fold(place.run, model_info(name="unscored"))
    assert find_best(place, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    reasons = {one["name"]: one["reason"] for one in result["left_out"]}
    assert "fold 1 is not trained" in reasons["one"]
    assert "no validation cases" in reasons["whole"]
    assert "no scores.json" in reasons["unscored"]
    assert {member["name"] for one in result["candidates"] for member in one["members"]} == {"plain", "flat"}
    assert find_best(place, "--folds", "0", "--no-ensembles", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {member["name"] for one in result["candidates"] for member in one["members"]} == {"plain", "flat", "one"}
    assert result["folds"] == ["0"] and result["cases"] == 2
    # One model before another that is as good; all of its folds predict.
    assert result["members"][0]["name"] in ("plain", "one")


@pytest.mark.parametrize(("change", "words"), [
    ("case gone", "1 missing"), ("mask gone", "validation masks are absent"), ("labels", "other labels"),
])  # fmt: skip
def test_a_fold_that_does_not_fit_is_left_out(place, capsys, change, words):
    folder = place.run / "models/flat/2d/fold_0"
    if change == "case gone":
        scores = read_record(Scores, folder / "scores.json")
        write_record(scores.model_copy(update={"cases": scores.cases[:1]}), folder / "scores.json")
    elif change == "mask gone":
        (folder / "validation/a.nii.gz").unlink()
    else:
        info = read_record(CheckpointInfo, folder / "model.json")
        write_record(info.model_copy(update={"labels": {"background": 0, "x": 4, "y": 200}}), folder / "model.json")
    assert find_best(place) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(("options", "words"), [
    (["--names", "plain,nobody"], ["nobody", "flat (2d)"]),
    (["--configurations", "3d_lowres"], ["3d_lowres", "plain (3d_fullres)"]),
    (["--names", "flat", "--configurations", "3d_fullres"], ["no model fits both"]),
    (["--folds", "0,7"], ["7 is none of the folds", "0, 1"]),
    (["--folds", ","], ["no fold"]),
])  # fmt: skip
def test_what_is_asked_and_not_there(place, capsys, options, words):
    assert find_best(place, *options) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (place.run / "best.json").exists()


def test_an_image_that_is_damaged_meanwhile(place, capsys):
    """The other cases of the fold are kept; nothing is chosen on less than all cases."""
    image = place.dataset / "imagesTr/b_0000.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(b"")
    assert find_best(place) == 2
    message = capsys.readouterr().err
    assert "b: " in message and str(image) in message and "--no-ensembles" in message
    assert not (place.run / "best.json").exists()
    assert (place.run / "find_best/flat@2d+plain@3d_fullres/fold_0/a.nii.gz").exists()
    image.write_bytes(whole)
    assert find_best(place) == 0


def test_no_model_and_no_plan(place, capsys):
    shutil.rmtree(place.run / "models")
    assert find_best(place) == 2
    assert "autoseg train" in capsys.readouterr().err
    (place.run / "plan.json").unlink()
    assert find_best(place) == 2
    assert "autoseg plan" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["the model", "a fold"])
def test_a_best_that_is_no_longer_there(place, tmp_path, capsys, gone):
    assert find_best(place, "--no-ensembles") == 0
    shutil.rmtree(place.run / "models/plain" / ("" if gone == "the model" else "3d_fullres/fold_1"))
    assert predict(place, tmp_path / "masks") == 2
    assert "find-best" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
    assert predict(place, tmp_path / "masks", "--name", "flat") == 0


def test_a_damaged_best(place, tmp_path, capsys):
    (place.run / "best.json").write_text('{"version": 1}')
    assert predict(place, tmp_path / "masks") == 2
    assert "find-best" in capsys.readouterr().err
