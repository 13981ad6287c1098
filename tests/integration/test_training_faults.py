"""What a training does when something outside it goes wrong: nothing of the user's is lost, one message says why."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import write_dataset

from autoseg.commands import fold_training
from autoseg.commands.plan import plan
from autoseg.commands.train import train
from autoseg.errors import UserError
from autoseg.training import journal

SHORT = {"preset": "quick", "epochs": 1, "steps_per_epoch": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    plan(write_dataset(folder / "dataset"), run=folder / "run", workers=1)
    return folder


@pytest.fixture
def place(planned, tmp_path):
    """A copy of the planned run that a test may spoil; its dataset is the common one."""
    shutil.copytree(planned / "run", tmp_path / "run")
    return tmp_path


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_dataset_named_by_a_relative_path_can_be_planned_again(place, monkeypatch):
    write_dataset(place / "relative")
    monkeypatch.chdir(place)
    assert plan(Path("relative"), run=Path("other"), workers=1) == 0
    assert plan(Path("relative"), run=Path("other"), workers=1, architecture="plain") == 0


def test_a_full_disk_while_training_is_one_message(place, monkeypatch):
    monkeypatch.setattr(journal, "asdict", disk_full)
    with pytest.raises(UserError, match="disk is full"):
        train(run=place / "run", **SHORT)
    assert not list(place.rglob("model.json"))


def test_overwriting_keeps_the_old_model_until_the_new_training_starts(place, monkeypatch):
    assert train(run=place / "run", **SHORT) == 0
    [model] = place.rglob("model.json")
    before = model.read_bytes()
    monkeypatch.setattr(fold_training, "preprocess_dataset", disk_full)
    with pytest.raises(OSError, match="space"):
        train(run=place / "run", overwrite=True, **SHORT)
    assert model.read_bytes() == before
    monkeypatch.undo()
    assert train(run=place / "run", overwrite=True, **SHORT) == 0


def test_a_finished_model_can_be_trained_longer(place):
    assert train(run=place / "run", **SHORT) == 0
    assert train(run=place / "run", resume=True, epochs=3, device="cpu") == 0
    [model] = place.rglob("model.json")
    assert json.loads(model.read_text())["steps"] == 3
    assert [json.loads(line)["step"] for line in (model.parent / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_validation_that_fails_for_every_case_says_why_and_keeps_the_model(place, monkeypatch):
    def unreadable(*_):
        raise UserError("scan.nii.gz is broken.")

    monkeypatch.setattr("autoseg.inference.prediction.read_image", unreadable)
    with pytest.raises(UserError, match=r"(?s)is trained.*scan\.nii\.gz is broken"):
        train(run=place / "run", **SHORT)
    assert list(place.rglob("model.json"))


def test_one_validation_case_that_fails_is_status_3(planned, tmp_path, monkeypatch):
    plan(write_dataset(tmp_path / "dataset", cases=10), run=tmp_path / "run", workers=1)
    whole = fold_training.predict_members

    def lose_one(cases, models, output, settings):
        broken = cases[0].images[0]
        content = broken.read_bytes()
        broken.write_bytes(b"")
        try:
            return whole(cases, models, output, settings)
        finally:
            broken.write_bytes(content)

    monkeypatch.setattr(fold_training, "predict_members", lose_one)
    assert train(run=tmp_path / "run", **SHORT) == 3
    [failures] = tmp_path.rglob("failures.json")
    [scores] = tmp_path.rglob("scores.json")
    assert len(json.loads(failures.read_text())) == 1 and len(json.loads(scores.read_text())["cases"]) == 1


def test_a_dataset_that_has_gone_is_one_message(place):
    content = json.loads((place / "run" / "plan.json").read_text())
    (place / "run" / "plan.json").write_text(json.dumps({**content, "dataset": str(place / "gone")}))
    with pytest.raises(UserError, match="gone"):
        train(run=place / "run", **SHORT)


@pytest.mark.parametrize(("arguments", "words"), [
    (("plan", "nowhere"), ["nowhere"]),
    (("plan", "dataset", "--memory-gib", "0"), ["memory"]),
    (("plan", "dataset", "--seed", "-1"), ["seed"]),
    (("plan", "dataset", "--configurations", "4d"), ["4d", "3d_fullres"]),
    (("train",), ["autoseg plan"]),
    (("train", "--run", "run", "--fold", "7"), ["fold 7", "0 to 4"]),
    (("train", "--run", "run", "--fold", "00"), ["fold 00"]),
    (("predict", "-i", "dataset/imagesTr", "-o", "masks", "--run", "run"), ["train"]),
    (("evaluate", "-p", "nowhere", "-r", "dataset/labelsTr"), ["nowhere"]),
])
def test_the_process_ends_with_status_2_and_one_message(planned, tmp_path, arguments, words):
    for name in ("dataset", "run"):
        (tmp_path / name).symlink_to(planned / name)
    before = sorted(path for path in (planned / "run").rglob("*"))
    done = subprocess.run([sys.executable, "-m", "autoseg", *arguments], cwd=tmp_path, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "run"]
    assert sorted(path for path in (planned / "run").rglob("*") if path.name != "run.json") == [
        path for path in before if path.name != "run.json"]
