"""Two processes under torchrun (gloo, CPU) train as one with twice the batch does, and share the rest of the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_training import BATCH, CONFIGURATION, JOBS, PROCESSES, largest_difference, train_job
from test_training import write_dataset

from autoseg.commands.plan import plan
from autoseg.commands.train import train
from autoseg.errors import UserError
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo, Scores
from autoseg.training import journal

TESTS = Path(__file__).parents[1]
PRESET = 'epochs = 2\nsteps_per_epoch = 1\nvalidation_steps = 1\nprecision = "float32"\n'


def torchrun(*command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES),
         *map(str, command)], capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    assert plan(write_dataset(folder / "dataset"), run=folder / "run", workers=1, configurations=CONFIGURATION) == 0
    return folder / "run"


def test_two_processes_train_as_one_with_twice_the_batch(run, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "draw_progress", lambda *_: None)
    done = torchrun(TESTS / "shared_training.py", run, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for job in JOBS:
        train_job(run, tmp_path / "one", job, PROCESSES * BATCH)
        assert largest_difference(tmp_path / "one" / job, tmp_path / "two" / job) < 1e-5, job
        one, two = ([json.loads(line) for line in (tmp_path / name / job / "metrics.jsonl").read_text().splitlines()]
                    for name in ("one", "two"))
        for alone, together in zip(one, two, strict=True):
            assert together["pseudo_dice"] == pytest.approx(alone["pseudo_dice"], abs=1e-3)
            for number in ("loss", "validation_loss", "learning_rate"):
                assert together[number] == pytest.approx(alone[number], abs=1e-5)
    torch.set_num_threads(threads)
    # What is compared would show a difference: other losses and views give other weights.
    assert largest_difference(tmp_path / "two/batch-dice", tmp_path / "two/sample-dice") > 1e-4
    assert largest_difference(tmp_path / "two/batch-dice", tmp_path / "two/views-streamed") > 1e-4


@pytest.mark.slow
def test_a_shared_training_leaves_what_a_training_leaves_and_goes_on_with_as_many(run, tmp_path):
    preset = tmp_path / "short.toml"
    preset.write_text(PRESET)
    options = ("--run", run, "--configuration", CONFIGURATION, "--name", "shared", "--device", "cpu")
    done = torchrun("-m", "--", "autoseg", "train", *options, "--preset", preset)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Next: autoseg predict") == 1
    assert done.stderr.count("optimizer: ") == 1
    folder = run / "models" / "shared" / CONFIGURATION / "fold_0"
    info = read_record(CheckpointInfo, folder / "model.json")
    assert info.training["processes"] == PROCESSES
    assert info.steps == 2
    scores = read_record(Scores, folder / "scores.json")
    masks = [path.name for path in (folder / "validation").glob("*.nii.gz")]
    assert sorted(masks) == sorted(f"{case.id}.nii.gz" for case in scores.cases)
    assert not list(folder.rglob("failures.json"))
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((run / "run.json").read_text())["command"] == "train"
    with pytest.raises(UserError, match=r"number of processes.*\(then 2; now 1\)"):
        train(run=run, configuration=CONFIGURATION, name="shared", device="cpu", resume=True, epochs=3)
