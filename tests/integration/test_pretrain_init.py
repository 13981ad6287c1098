"""`pretrain-init` and `train --init` as a user runs them: what they leave, exact resuming, every refusal."""

import importlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.numpy

from autoseg.commands.plan import plan
from autoseg.commands.pretrain_init import pretrain_init
from autoseg.commands.train import train
from autoseg.data.splits import read_splits
from autoseg.errors import UserError
from autoseg.initialization import measurement
from autoseg.initialization.record import InitRecord
from autoseg.recording import RunRecord
from autoseg.records import file_sha256, read_record
from autoseg.schema import CheckpointInfo
from autoseg.training.settings import TrainSettings

command_module = importlib.import_module("autoseg.commands.pretrain_init")
train_module = importlib.import_module("autoseg.commands.train")

SHAPE = (16, 18, 20)  # z, y, x
CASES = "abcdefg"
SHORT = {"steps": 3, "device": "cpu"}
TRAINING = {"epochs": 1, "steps_per_epoch": 1, "device": "cpu"}


def write_dataset(folder: Path, cases: int = 7, channels: int = 1, constant: str | None = None) -> Path:
    """A ball per case in noise that brightens from slice to slice; case names are a, b, c, …"""
    rng = np.random.default_rng(1)
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    for case in CASES[:cases]:
        label = ((z - 8) ** 2 + (y - 9) ** 2 + (x - 10) ** 2 < 20).astype(np.uint8)
        for channel in range(channels):
            image = rng.normal(size=SHAPE) + 0.2 * z + 3 * label
            if case == constant:
                image = np.full(SHAPE, 5.0)
            write_image(folder / f"imagesTr/{case}_{channel:04d}.nii.gz", image)
        write_image(folder / f"labelsTr/{case}.nii.gz", label)
    names = {str(channel): f"MR{channel}" for channel in range(channels)}
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": names, "labels": {"background": 0, "ball": 1}, "numTraining": cases,
        "file_ending": ".nii.gz"}))
    return folder


def write_image(path: Path, voxels: np.ndarray) -> None:
    kind = np.uint8 if voxels.dtype == np.uint8 else np.float32
    nibabel.save(nibabel.Nifti1Image(voxels.T.astype(kind), np.diag([1.0, 1.0, 1.5, 1.0])), path)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A planned dataset of seven cases with two channels; tests copy it."""
    folder = tmp_path_factory.mktemp("pretrain_init")
    write_dataset(folder / "dataset", channels=2)
    assert plan(folder / "dataset", run=folder / "run", architecture="resenc", workers=1,
                configurations="2d,3d_fullres") == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Small batches in float32, so that no precision is probed; few patches to measure on."""
    settings = replace(TrainSettings(), max_batch_size=2, precision="float32", validation_steps=0)
    monkeypatch.setattr(command_module, "load_preset", lambda name: settings)
    monkeypatch.setattr(train_module, "load_preset", lambda name: settings)
    monkeypatch.setattr(measurement, "PATCHES", 4)


@pytest.fixture
def run(planned, tmp_path):
    return Path(shutil.copytree(planned, tmp_path / "run"))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "weights.safetensors")


def init_of(run: Path, name: str = "resenc", configuration: str = "3d_fullres") -> Path:
    return run / "init" / name / configuration / "fold_0"


def test_what_it_leaves_is_found_by_train(run, caplog):
    with caplog.at_level(logging.INFO, "autoseg"):
        assert pretrain_init(run=run, **SHORT) == 0
    folder = init_of(run)
    record = read_record(InitRecord, folder / "init.json")
    split = read_splits(run / "splits.json", list(CASES))[0]
    seen = {image.id for image in (*record.images, *record.held_back)}
    assert seen == set(split.train) and not seen & set(split.val)
    dataset = Path(json.loads((run / "plan.json").read_text())["dataset"])
    for image in record.images:
        files = [dataset / "imagesTr" / f"{image.id}_{channel:04d}.nii.gz" for channel in (0, 1)]
        assert image.sha256 == tuple(map(file_sha256, files))
    assert record.steps == record.planned_steps == 3 and record.ended_by == "steps"
    assert record.measures.held_back and record.measures.masked_error is not None
    assert record.measures.order_chance == pytest.approx(1 / record.pretext.slabs)
    assert (folder / "reconstruction.png").read_bytes()[1:4] == b"PNG"
    assert read_record(RunRecord, run / "run.json").command == "pretrain-init"
    assert any("order task" in line for line in caplog.messages)

    with caplog.at_level(logging.INFO, "autoseg"):
        assert train(run=run, **TRAINING, learning_rate=1e-12) == 0
    assert any("first weights" in line and str(folder) in line for line in caplog.messages)
    model = run / "models" / "resenc+init" / "3d_fullres" / "fold_0"
    info = read_record(CheckpointInfo, model / "model.json")
    assert info.training["init_sha256"] == record.weights_sha256
    assert info.network.optimizer.warmup_share >= 0.05
    first, trained = weights(folder), weights(model)
    heads = {name for name in trained if name not in first}
    assert heads and all(".head." in name for name in heads)
    for name, value in first.items():
        np.testing.assert_allclose(trained[name], value, atol=1e-6)
    # A finished model is continued under the name it has, with the weights that it began with.
    assert train(run=run, **TRAINING, learning_rate=1e-12, resume=True) == 0


def test_scratch_draws_the_weights(run):
    assert pretrain_init(run=run, **SHORT) == 0
    assert train(run=run, init="scratch", **TRAINING, learning_rate=1e-12) == 0
    scratch = weights(run / "models" / "resenc" / "3d_fullres" / "fold_0")
    first = weights(init_of(run))
    convolutions = [name for name in first if name.endswith("convolution.weight")]
    assert not any(np.allclose(scratch[name], first[name], atol=1e-6) for name in convolutions)


def test_resumed_equals_uninterrupted(run, monkeypatch):
    options = {"steps": 6, "device": "cpu"}
    assert pretrain_init(run=run, name="whole", **options) == 0

    class StopAtThree:
        def __enter__(self):
            return lambda done: done == 3

        def __exit__(self, *error):
            return None

    with monkeypatch.context() as context:
        context.setattr(command_module, "stop_on_signals", StopAtThree)
        with pytest.raises(UserError, match="--resume"):
            pretrain_init(run=run, name="parts", **options)
    assert not (init_of(run, "parts") / "init.json").exists()
    with pytest.raises(UserError, match="interrupted"):
        pretrain_init(run=run, name="parts", **options)
    with pytest.raises(UserError, match="--steps"):
        pretrain_init(run=run, name="parts", resume=True, **{**options, "steps": 7})
    assert pretrain_init(run=run, name="parts", resume=True, device="cpu") == 0  # options left out are as begun
    whole, parts = weights(init_of(run, "whole")), weights(init_of(run, "parts"))
    assert whole.keys() == parts.keys() and all(np.array_equal(whole[name], parts[name]) for name in whole)
    one, other = (read_record(InitRecord, init_of(run, name) / "init.json") for name in ("whole", "parts"))
    assert one.measures == other.measures and one.weights_sha256 == other.weights_sha256
    metrics = (init_of(run, "parts") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]


def test_methods(run):
    for method in ("mim", "order"):
        assert pretrain_init(run=run, method=method, name=method, **SHORT) == 0
        record = read_record(InitRecord, init_of(run, method) / "init.json")
        assert (record.measures.masked_error is None) == (method == "order")
        assert (record.measures.order_accuracy is None) == (method == "mim")


def test_two_dimensions_have_no_order(run, caplog):
    with caplog.at_level(logging.INFO, "autoseg"):
        assert pretrain_init(run=run, configuration="2d", **SHORT) == 0
    assert any("order task: off, 2-D" in line for line in caplog.messages)
    assert read_record(InitRecord, init_of(run, configuration="2d") / "init.json").measures.order_accuracy is None
    with pytest.raises(UserError, match="--method order: 2-D patches have no slices"):
        pretrain_init(run=run, configuration="2d", method="order", name="order", **SHORT)
    assert train(run=run, configuration="2d", **TRAINING) == 0
    assert (run / "models" / "resenc+init" / "2d" / "fold_0" / "model.json").exists()


def test_extra_images(run, tmp_path):
    extra = tmp_path / "extra"
    extra.mkdir()
    rng = np.random.default_rng(8)
    for case in ("new1", "new2"):
        for channel in (0, 1):
            write_image(extra / f"{case}_{channel:04d}.nii.gz", rng.normal(size=(14, 20, 18)))
    assert pretrain_init(run=run, extra_images=extra, **SHORT) == 0
    record = read_record(InitRecord, init_of(run) / "init.json")
    assert [image.id for image in record.extra_images] == ["new1", "new2"]
    assert not {"new1", "new2"} & {image.id for image in (*record.images, *record.held_back)}

    validation = read_splits(run / "splits.json", list(CASES))[0].val[0]
    dataset = Path(json.loads((run / "plan.json").read_text())["dataset"]) / "imagesTr"
    for channel in (0, 1):
        shutil.copy(dataset / f"{validation}_{channel:04d}.nii.gz", extra)
    with pytest.raises(UserError, match=f"'{validation}' is a validation case"):
        pretrain_init(run=run, extra_images=extra, name="leak", **SHORT)
    for channel in (0, 1):
        (extra / f"{validation}_{channel:04d}.nii.gz").rename(extra / f"renamed_{channel:04d}.nii.gz")
    with pytest.raises(UserError, match=f"the same voxels as validation case '{validation}'"):
        pretrain_init(run=run, extra_images=extra, name="leak", **SHORT)
    assert not (run / "init" / "leak").exists()


def test_first_weights_of_another_plan_are_refused(run):
    assert pretrain_init(run=run, **SHORT) == 0
    other = json.loads((run / "plan.json").read_text())
    network = other["configurations"]["3d_fullres"]["networks"]["resenc"]
    network["topology"]["features"] = [features // 2 for features in network["topology"]["features"]]
    (run / "plan.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"another plan than the run has now \(another topology"):
        train(run=run, **TRAINING)
    with pytest.raises(UserError, match=r"does not fit this network(.|\n)*other numbers of features"):
        train(run=run, init=str(init_of(run)), **TRAINING)
    assert not list((run / "models").glob("*/*/*/model.json"))
    assert train(run=run, init="scratch", name="mine", **TRAINING) == 0
    kept = weights(run / "models/mine/3d_fullres/fold_0")
    with pytest.raises(UserError, match="does not fit this network"):
        train(run=run, init=str(init_of(run)), name="mine", overwrite=True, **TRAINING)
    assert weights(run / "models/mine/3d_fullres/fold_0").keys() == kept.keys(), "nothing was deleted"


def test_images_that_are_not_preprocessed_are_not_prepared(tmp_path):
    """That would read labels, and the validation images."""
    dataset = write_dataset(tmp_path / "dataset")
    assert plan(dataset, run=tmp_path / "run", architecture="resenc", configurations="3d_fullres", workers=1,
                preprocess=False) == 0
    with pytest.raises(UserError, match=r"the cases of 3d_fullres are not ready(.|\n)*Run `autoseg plan "):
        pretrain_init(run=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run" / "preprocessed").exists()


def test_weights_that_saw_what_is_validated_on_now_are_refused(run):
    assert pretrain_init(run=run, **SHORT) == 0
    splits = json.loads((run / "splits.json").read_text())
    splits[0]["train"], splits[0]["val"] = splits[1]["train"], splits[1]["val"]
    (run / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match=f"saw images that this fold validates on(.|\n)*'{splits[0]['val'][0]}'"):
        train(run=run, **TRAINING)


def test_named_folders(run, tmp_path):
    assert pretrain_init(run=run, **SHORT) == 0
    with pytest.raises(UserError, match="holds neither model.json nor init.json, nor finished models"):
        train(run=run, init=str(tmp_path), **TRAINING)
    with pytest.raises(UserError, match=r"saw images that this fold validates on"):
        train(run=run, init=str(init_of(run)), fold="1", **TRAINING)
    assert train(run=run, init="scratch", **TRAINING) == 0
    assert train(run=run, init=str(run / "models/resenc/3d_fullres/fold_0"), name="tuned", **TRAINING) == 0


def test_names_and_what_exists(run, caplog):
    assert pretrain_init(run=run, name="mine", **SHORT) == 0
    with pytest.raises(UserError, match="holds first weights already"):
        pretrain_init(run=run, name="mine", **SHORT)
    assert pretrain_init(run=run, name="mine", overwrite=True, **SHORT) == 0
    with caplog.at_level(logging.INFO, "autoseg"):
        assert train(run=run, **TRAINING) == 0  # they are another name's: weights are drawn, and it is said
    assert any("there are first weights for mine" in line for line in caplog.messages)
    assert (run / "models" / "resenc").exists()
    assert train(run=run, name="mine", **TRAINING) == 0
    info = read_record(CheckpointInfo, run / "models/mine/3d_fullres/fold_0/model.json")
    assert "init_sha256" in info.training


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 0}, "--steps 0: at least 1"),
    ({"max_minutes": 0.0}, "--max-minutes 0.0: a number above 0"),
    ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ({"architecture": "hybrid"}, "--architecture hybrid: the plan of 3d_fullres holds resenc"),
    ({"fold": "9"}, "fold 9 does not exist"),
    ({"resume": True}, "holds no pretraining to continue"),
    ({"extra_images": Path("nowhere")}, "nowhere does not exist"),
])
def test_refused(run, options, message):
    with pytest.raises(UserError, match=message):
        pretrain_init(run=run, **{**SHORT, **options})
    assert not (run / "init").exists() or not list((run / "init").rglob("init.json"))


def test_constant_images_and_too_few(tmp_path):
    dataset = write_dataset(tmp_path / "constant", constant="b")
    assert plan(dataset, run=tmp_path / "run", architecture="resenc", configurations="3d_fullres", workers=1) == 0
    with pytest.raises(UserError, match=r"b_0000.nii.gz: every voxel has the same value"):
        pretrain_init(run=tmp_path / "run", fold="all", **SHORT)
    one = write_dataset(tmp_path / "one", cases=1)
    assert plan(one, run=tmp_path / "run1", architecture="resenc", configurations="3d_fullres", workers=1) == 0
    with pytest.raises(UserError, match=r"Images to learn from: 1; a batch holds 2"):
        pretrain_init(run=tmp_path / "run1", fold="all", **SHORT)
