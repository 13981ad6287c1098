"""`train --fold all-folds`: missing folds are trained, finished kept, interrupted continued; scores are pooled."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from test_training import same, stop_in, weights_of, write_dataset

from autoseg.commands import fold_chain
from autoseg.commands.plan import plan
from autoseg.commands.train import train
from autoseg.errors import UserError
from autoseg.recording import RunRecord
from autoseg.records import read_record
from autoseg.schema import Scores

SHORT = {"preset": "quick", "epochs": 2, "steps_per_epoch": 1, "device": "cpu", "fold": "all-folds"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    plan(write_dataset(folder / "dataset", cases=3), run=folder / "run", workers=1)
    return folder / "run"


@pytest.fixture
def run(planned, tmp_path):
    """A copy of the planned run that a test may spoil."""
    return shutil.copytree(planned, tmp_path / "run")


@pytest.fixture(scope="module")
def trained(planned, tmp_path_factory):
    run = shutil.copytree(planned, tmp_path_factory.mktemp("trained") / "run")
    assert train(run=run, **SHORT) == 0
    return run


def folds_of(run: Path) -> list[Path]:
    return sorted(run.glob("models/*/3d_fullres/fold_*"))


def test_every_fold_is_trained_and_scored_and_the_scores_are_pooled(trained, capsys):
    assert [folder.name for folder in folds_of(trained)] == ["fold_0", "fold_1", "fold_2"]
    scores = [read_record(Scores, folder / "scores.json") for folder in folds_of(trained)]
    pooled = read_record(Scores, folds_of(trained)[0].parent / "scores.json")
    assert [case.id for case in pooled.cases] == ["case0", "case1", "case2"]
    dice = [one.mean.dice for one in scores]
    assert pooled.mean.dice == pytest.approx(statistics.fmean(dice))
    results = read_record(RunRecord, trained / "run.json").results
    assert [results[f"fold_{fold}.dice"] for fold in range(3)] == dice
    assert [results[f"fold_{fold}.steps"] for fold in range(3)] == [2, 2, 2]
    assert results["dice_std_over_folds"] == pytest.approx(statistics.stdev(dice))
    # Again: nothing is left to do, all is shown.
    before = {path: path.read_bytes() for path in trained.rglob("models/**/weights.safetensors")}
    capsys.readouterr()
    assert train(run=trained, json=True, **SHORT) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [shown["folds"][fold]["dice"] for fold in "012"] == dice and shown["pooled"]["cases"] == 3
    assert shown["dice_mean_over_folds"] == pytest.approx(statistics.fmean(dice))
    assert {path: path.read_bytes() for path in before} == before


def test_the_table_has_every_fold_its_spread_and_the_pool(trained, capsys):
    assert train(run=trained, **SHORT) == 0
    table = capsys.readouterr().out
    for word in ("fold 0", "fold 1", "fold 2", "mean ± std", "pooled", "ball", "Next: autoseg predict"):
        assert word in table


def test_an_interrupted_chain_goes_on_where_it_was_and_equals_an_uninterrupted_one(run, trained, monkeypatch, caplog):
    stop_in(monkeypatch, "3d_fullres", "1")
    with pytest.raises(UserError, match=r"(?s)stopped in fold 1.*same command: finished folds are skipped"):
        train(run=run, **SHORT)
    assert [(folder / "model.json").exists() for folder in folds_of(run)] == [True, False]
    results = read_record(RunRecord, run / "run.json").results
    assert results["fold_0.steps"] == 2 and "fold_1.steps" not in results
    with caplog.at_level("INFO", logger="autoseg"):
        assert train(run=run, **SHORT) == 0
    assert any("fold 0: finished, skipped" in line for line in caplog.messages)
    assert any("fold 1 of 0, 1, 2: continued" in line for line in caplog.messages)
    for ours, theirs in zip(folds_of(run), folds_of(trained), strict=True):
        assert same(weights_of(ours), weights_of(theirs))


@pytest.mark.slow
def test_overwriting_starts_all_folds_anew_and_survives_a_stop(run, trained, monkeypatch):
    shutil.copytree(trained / "models", run / "models")
    marks = [folder / "mark" for folder in folds_of(run)]
    for mark in marks:
        mark.touch()
    stop_in(monkeypatch, "3d_fullres", "1")
    with pytest.raises(UserError, match="without --overwrite"):
        train(run=run, overwrite=True, **SHORT)
    assert not any(mark.exists() for mark in marks)
    assert not (folds_of(run)[0].parent / "scores.json").exists()
    assert train(run=run, **SHORT) == 0 and len(folds_of(run)) == 3


def test_a_fold_whose_validation_failed_is_validated_again(run, trained, caplog):
    shutil.copytree(trained / "models", run / "models")
    (folds_of(run)[1] / "scores.json").unlink()
    before = weights_of(folds_of(run)[1])
    assert train(run=run, **SHORT) == 0
    assert (folds_of(run)[1] / "scores.json").exists() and same(weights_of(folds_of(run)[1]), before)
    # Without a state to continue it stays as it is, and the table says so.
    (folds_of(run)[1] / "scores.json").unlink()
    shutil.rmtree(folds_of(run)[1] / "resume")
    assert train(run=run, **SHORT) == 0
    assert not (folds_of(run)[1] / "scores.json").exists()


def test_kept_folds_of_other_settings_are_told_and_of_other_splits_refused(run, trained, caplog):
    shutil.copytree(trained / "models", run / "models")
    shutil.rmtree(folds_of(run)[2])
    assert train(run=run, **{**SHORT, "epochs": 1}) == 0
    assert any("fold 0 was trained with other settings: epochs 2 (now 1)" in line for line in caplog.messages)
    splits = json.loads((run / "splits.json").read_text())
    (run / "splits.json").write_text(json.dumps(splits[::-1]))
    with pytest.raises(UserError, match=r"(?s)was validated on case0.*--overwrite"):
        train(run=run, **SHORT)


def test_first_weights_for_some_folds_only_are_refused(run, monkeypatch):
    def begin(asked):
        return replace(plainly(asked), model_name="resenc+init" if asked.fold == "1" else "resenc")

    plainly = fold_chain.choose_beginning
    monkeypatch.setattr(fold_chain, "choose_beginning", begin)
    with pytest.raises(UserError, match=r"(?s)fold 0 resenc, fold 1 resenc\+init.*pretrain-init"):
        train(run=run, **SHORT)
    assert not (run / "models").exists()


def test_one_case_has_no_folds(tmp_path):
    plan(write_dataset(tmp_path / "dataset", cases=1), run=tmp_path / "run", workers=1)
    with pytest.raises(UserError, match=r"(?s)all-folds: with 1 case there are no folds.*--fold all"):
        train(run=tmp_path / "run", **SHORT)
