"""Training as a user runs it: what it leaves, exact resuming, and every request that it must refuse."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

from autoseg.commands import fold_training
from autoseg.commands.plan import plan
from autoseg.commands.train import train
from autoseg.data.splits import read_splits, training_cases
from autoseg.data.store import open_store, store_folder
from autoseg.errors import UserError
from autoseg.inference.speed_costs import SpeedReport
from autoseg.networks.segmenter import Part, Segmenter
from autoseg.planning.optimizers import RECIPES
from autoseg.planning.planner import store_record
from autoseg.records import read_record, write_record
from autoseg.schema import CheckpointInfo, Plan
from autoseg.training import session as session_module
from autoseg.training.loop import seed_layers
from autoseg.training.optimization import resolve_optimizer
from autoseg.training.session import Session, train_session
from autoseg.training.settings import OptimizerSettings, TrainSettings, load_preset

SHAPE = (20, 18, 16)  # x, y, z in the file


def write_dataset(folder: Path, cases: int = 5, labels: dict[str, int] | None = None) -> Path:
    """A ball per case, brighter than its noisy surroundings; values in the files are those of `labels`."""
    labels = labels or {"background": 0, "ball": 7}
    rng = np.random.default_rng(3)
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    for case in range(cases):
        center = np.array(SHAPE).reshape(3, 1, 1, 1) / 2 + rng.uniform(-2, 2, (3, 1, 1, 1))
        label = np.zeros(SHAPE, np.uint8)
        for value in list(labels.values())[1:]:
            ball = ((grid - center - (value % 3)) ** 2).sum(0) < 16
            label[ball] = value
        image = rng.normal(size=SHAPE) + 3 * (label > 0)
        affine = np.diag([1.2, 1.0, 1.5, 1.0])
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), folder / f"imagesTr/case{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"labelsTr/case{case}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MR"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}))
    return folder


def stop_in(monkeypatch: pytest.MonkeyPatch, configuration: str, fold: str) -> None:
    """A signal after the first step of one fold, and only the first time."""
    stopped = []

    def once(session, resume, stop):
        now = (session.configuration, session.fold) == (configuration, fold) and not stopped
        if now:
            stopped.append(fold)
        return train_session(session, resume, (lambda step: step == 1) if now else stop)

    monkeypatch.setattr(fold_training, "train_session", once)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    assert plan(write_dataset(folder / "dataset"), run=folder / "run", workers=1) == 0
    return folder / "run"


def session(run: Path, folder: Path, fold: str = "0", **settings: object) -> Session:
    decided = read_record(Plan, run / "plan.json")
    record = store_record(decided, "3d_fullres")
    store = open_store(store_folder(run, "3d_fullres", record))
    ids = sorted(store.cases)
    train_ids, validation_ids = training_cases(read_splits(run / "splits.json", ids), fold, ids)
    chosen = replace(TrainSettings(epochs=4, steps_per_epoch=5, validation_steps=1, max_batch_size=2,
                                   precision="float32"), **settings)
    planned = decided.configurations["3d_fullres"].networks["resenc"].optimizer
    return Session(
        plan=decided, configuration="3d_fullres", architecture="resenc", name="test", fold=fold,
        settings=chosen, optimizer=resolve_optimizer(planned, RECIPES, chosen), seed=5, store=store,
        train_ids=tuple(train_ids), validation_ids=tuple(validation_ids), folder=folder,
        device=torch.device("cpu"), versions={},
    )


class Drawing(Segmenter):
    """A tiny network that draws in training: a dropout and a drop path."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.dropout = nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.5)
        self.last = nn.Conv3d(4, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        if self.training:
            features = features * (torch.rand(len(x), 1, 1, 1, 1) < 0.7)
        return self.last(self.dropout(features))

    def forward_all(self, x: Tensor) -> list[Tensor]:
        return [self(x)]

    def initialize(self) -> None:
        """As torch draws them."""

    def parts(self) -> list[Part]:
        return [Part("all", "two convolutions", self)]


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "weights.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_draws_in_its_layers_what_an_uninterrupted_one_does(run, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(session_module, "build_network", lambda *plan: Drawing(plan[-1]))
    asked = {"optimizer": optimizer, "caching": "resident"}
    whole, parts = (session(run, tmp_path / name, **asked) for name in ("whole", "parts"))
    train_session(whole, False, lambda _: False)
    train_session(parts, False, lambda step: step == 8)
    torch.manual_seed(99)
    torch.rand(7)
    info = train_session(parts, True, lambda _: False)
    assert same(weights_of(whole.folder), weights_of(parts.folder))
    assert info.network.optimizer == RECIPES[optimizer]
    other = replace(session(run, tmp_path / "other", **asked), seed=6)
    train_session(other, False, lambda _: False)
    assert not same(weights_of(whole.folder), weights_of(other.folder))


def test_what_layers_draw_is_a_function_of_seed_and_step():
    def drawn(seed, step):
        seed_layers(seed, step)
        return tuple(torch.rand(4).tolist())

    keys = [(seed, step) for seed in (0, 1, 2**32 - 1) for step in (0, 1, 2, 249_999)]
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert [drawn(*key) for key in keys] == [drawn(*key) for key in keys]


@pytest.mark.parametrize("caching", ["resident", "streamed"])
def test_stopping_and_resuming_equals_training_in_one_go_bit_for_bit(run, tmp_path, caching):
    whole = session(run, tmp_path / "whole", caching="resident")
    assert train_session(whole, False, lambda _: False).steps == 20
    parts = session(run, tmp_path / "parts", caching=caching)
    # Step 8 is inside the second epoch: its metrics must survive as well.
    assert train_session(parts, False, lambda step: step == 8) is None
    assert not (parts.folder / "model.json").exists()
    assert train_session(parts, True, lambda _: False).steps == 20
    folders = (whole.folder, parts.folder)
    assert same(weights_of(whole.folder), weights_of(parts.folder))
    timeless = [[{key: value for key, value in json.loads(line).items()
                  if key not in ("seconds", "steps_per_second", "data_wait")}
                 for line in (folder / "metrics.jsonl").read_text().splitlines()]
                for folder in folders]
    assert timeless[0] == timeless[1] and [line["step"] for line in timeless[0]] == [5, 10, 15, 20]


def test_resuming_with_another_plan_seed_or_fold_is_refused(run, tmp_path):
    asked = session(run, tmp_path / "model")
    assert train_session(asked, False, lambda step: step == 1) is None
    network = asked.plan.configurations["3d_fullres"].networks["resenc"]
    changed = network.model_copy(update={"batch_dice": not network.batch_dice})
    configuration = asked.plan.configurations["3d_fullres"].model_copy(update={"networks": {"resenc": changed}})
    other = replace(asked, plan=asked.plan.model_copy(update={"configurations": {"3d_fullres": configuration}}))
    for refused, word in ((other, "plan"), (replace(asked, seed=6), "seed"),
                          (replace(asked, train_ids=asked.train_ids[1:]), "cases"),
                          (replace(asked, optimizer=RECIPES["adamw"]), "(?s)optimizer .*sgd.*adamw")):
        with pytest.raises(UserError, match=word):
            train_session(refused, True, lambda _: False)


def test_the_schedule_warms_up_and_the_record_says_with_what(run, tmp_path, caplog):
    asked = session(run, tmp_path / "model", optimizer="adamw", epochs=2, steps_per_epoch=2, validation_steps=0,
                    adamw=OptimizerSettings(warmup_share=0.75, learning_rate=1e-3))
    with caplog.at_level("INFO", logger="autoseg"):
        info = train_session(asked, False, lambda _: False)
    assert any("adamw, learning rate 0.001" in message for message in caplog.messages)
    assert info.network.optimizer == asked.optimizer and asked.optimizer.warmup_share == 0.75
    assert info.training["adamw.learning_rate"] == 1e-3 and info.training["optimizer"] == "adamw"
    lines = [json.loads(line) for line in (asked.folder / "metrics.jsonl").read_text().splitlines()]
    # The last of two steps of each epoch: half of the schedule is two thirds of the warm-up, then its end.
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * 2 / 3, 1e-3])


def test_the_command_line_chooses_the_optimizer_and_resuming_restores_it(run):
    asked = {"run": run, "name": "chosen", "device": "cpu", "fold": "all"}
    assert train(**asked, preset="quick", epochs=1, steps_per_epoch=2, optimizer="adamw", learning_rate=0.002) == 0
    path = run / "models" / "chosen" / "3d_fullres" / "fold_all" / "model.json"
    used = read_record(CheckpointInfo, path).network.optimizer
    expected = {**load_preset("quick").adamw.given(), "learning_rate": 0.002}
    assert used == RECIPES["adamw"].model_copy(update=expected)
    with pytest.raises(UserError, match="optimizer"):
        train(**asked, resume=True, epochs=2, optimizer="sgd")
    with pytest.raises(UserError, match=r"0\.002.*0\.01"):
        train(**asked, resume=True, epochs=2, learning_rate=0.01)
    assert train(**asked, resume=True, epochs=2) == 0
    info = read_record(CheckpointInfo, path)
    assert info.network.optimizer == used and info.steps == 4


def test_a_time_limit_ends_the_schedule(run, tmp_path):
    asked = session(run, tmp_path / "model", epochs=100000, max_minutes=0.03, steps_per_epoch=2, validation_steps=0)
    info = train_session(asked, False, lambda _: False)
    lines = [json.loads(line) for line in (asked.folder / "metrics.jsonl").read_text().splitlines()]
    assert 1.8 <= info.seconds < 10 and lines[-1]["learning_rate"] < 0.5 * lines[0]["learning_rate"]


def test_a_whole_training_leaves_model_masks_and_scores(run):
    assert train(run=run, epochs=2, steps_per_epoch=5, preset="quick", name="whole", fold="1", device="cpu") == 0
    folder = run / "models" / "whole" / "3d_fullres" / "fold_1"
    assert {"weights.safetensors", "model.json", "metrics.jsonl", "progress.png", "validation", "scores.json",
            "speeds.json"} <= {path.name for path in folder.iterdir()}
    info = read_record(CheckpointInfo, folder / "model.json")
    assert info.steps == 10 and info.labels == {"background": 0, "ball": 7} and info.mirror_axes == (0, 1, 2)
    [mask] = (folder / "validation").glob("*.nii.gz")
    assert set(np.unique(np.asarray(nibabel.load(mask).dataobj))) <= {0, 7}
    record = json.loads((run / "run.json").read_text())
    assert record["command"] == "train"
    report = read_record(SpeedReport, folder / "speeds.json")
    assert report.weights_sha256 == info.weights_sha256 and report.cases == tuple(
        case["id"] for case in json.loads((folder / "scores.json").read_text())["cases"])
    assert record["results"]["balanced_times_faster"] == report.levels["balanced"].times_faster
    with pytest.raises(UserError, match="finished model"):
        train(run=run, epochs=2, preset="quick", name="whole", fold="1")


def test_left_and_right_are_not_mirrored(tmp_path):
    dataset = write_dataset(tmp_path / "dataset", labels={"background": 0, "left_kidney": 1, "right_kidney": 2})
    plan(dataset, run=tmp_path / "run", workers=1)
    for choice, expected in (("auto", (0, 1)), ("nnunet", (0, 1, 2)), ("none", ())):
        asked = session(tmp_path / "run", tmp_path / choice, epochs=1, steps_per_epoch=1, mirror=choice)
        axes = asked.plan.axes
        positions = tuple(axes.index(axis) for axis in expected)
        assert train_session(asked, False, lambda _: False).mirror_axes == tuple(sorted(positions))


def test_one_case_trains_with_fold_all_only(tmp_path):
    plan(write_dataset(tmp_path / "dataset", cases=1), run=tmp_path / "run", workers=1)
    with pytest.raises(UserError, match="--fold all"):
        train(run=tmp_path / "run", preset="quick", device="cpu")
    assert train(run=tmp_path / "run", preset="quick", epochs=1, steps_per_epoch=1, fold="all", device="cpu") == 0


@pytest.mark.parametrize(("choices", "word"), [
    ({"fold": "9"}, "fold"), ({"fold": "left"}, "fold"), ({"configuration": "2d", "architecture": "plain"}, "plain"),
    ({"configuration": "3d_lowres"}, "3d_lowres"), ({"resume": True}, "no training"), ({"preset": "fast"}, "quick"),
    ({"name": "../elsewhere"}, "name"), ({"epochs": 0}, "epochs"), ({"learning_rate": 0.0}, "learning_rate"),
    ({"resume": True, "overwrite": True}, "one of them"),
])
def test_requests_that_make_no_sense_are_refused_and_leave_nothing(run, choices, word):
    before = sorted(run.rglob("models/**"))
    with pytest.raises(UserError, match=word):
        train(run=run, **choices)
    assert sorted(run.rglob("models/**")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_absent_is_an_error_not_a_fallback(run):
    with pytest.raises(UserError, match="cuda"):
        train(run=run, device="cuda")


def test_training_before_planning_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="autoseg plan"):
        train(run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_belongs_to_one_dataset(run, tmp_path):
    with pytest.raises(UserError, match="one dataset"):
        plan(write_dataset(tmp_path / "other"), run=run, workers=1)


def test_planning_again_adds_a_network_and_keeps_the_store(run):
    before = sorted((run / "preprocessed").rglob("*.b2nd"))
    plan(run.parent / "dataset", run=run, architecture="plain", workers=1)
    configuration = read_record(Plan, run / "plan.json").configurations["3d_fullres"]
    assert set(configuration.networks) == {"plain", "resenc"} and configuration.architecture == "plain"
    assert sorted((run / "preprocessed").rglob("*.b2nd")) == before
    plan(run.parent / "dataset", run=run, architecture="resenc", workers=1)


def test_a_run_folder_that_cannot_be_made_is_one_message(run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="file"):
        plan(run.parent / "dataset", run=tmp_path / "file" / "run", workers=1)
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_diverging_loss_is_one_message(run, tmp_path):
    asked = session(run, tmp_path / "model", learning_rate=1e30)
    with pytest.raises(UserError, match="diverged"):
        train_session(asked, False, lambda _: False)
    assert not (asked.folder / "model.json").exists()


def test_a_plan_of_another_version_is_refused(run, tmp_path):
    content = json.loads((run / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(UserError, match="version"):
        train(run=tmp_path)
    write_record(read_record(Plan, run / "plan.json"), tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"splits\.json"):
        train(run=tmp_path)
