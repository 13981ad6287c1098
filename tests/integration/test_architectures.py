"""Every architecture through plan, train and predict as a user runs them, on small 2-D pictures of discs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoseg.commands.plan import plan
from autoseg.commands.predict import predict
from autoseg.commands.train import train
from autoseg.errors import UserError
from autoseg.networks.checkpoint import read_model
from autoseg.records import read_record
from autoseg.schema import Plan

ARCHITECTURES = ("plain", "resenc", "hybrid", "unetr", "unetr-pp", "swin-unetr", "mednext")


def write_pictures(folder: Path, cases: int = 5, size: int = 64) -> Path:
    rng = np.random.default_rng(1)
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    y, x = np.mgrid[:size, :size]
    for case in range(cases):
        center = rng.uniform(24, 40, 2)
        disc = ((y - center[0]) ** 2 + (x - center[1]) ** 2 < 150).astype(np.uint8)
        gray = np.clip(60 + 120 * disc + rng.normal(0, 10, disc.shape), 0, 255).astype(np.uint8)
        Image.fromarray(gray).save(folder / f"imagesTr/case{case}_0000.png")
        Image.fromarray(disc).save(folder / f"labelsTr/case{case}.png")
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "gray"}, "labels": {"background": 0, "disc": 1}, "numTraining": cases,
        "file_ending": ".png"}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    dataset = write_pictures(folder / "dataset")
    for architecture in ARCHITECTURES:
        assert plan(dataset, run=folder / "run", architecture=architecture, workers=1) == 0  # type: ignore[arg-type]
    return folder / "run"


def test_one_plan_holds_all_architectures_over_one_store(run: Path) -> None:
    configuration = read_record(Plan, run / "plan.json").configurations["2d"]
    assert set(configuration.networks) == set(ARCHITECTURES) and configuration.architecture == ARCHITECTURES[-1]
    assert len(list((run / "preprocessed" / "2d").iterdir())) == 1
    optimizers = {name: network.optimizer.name for name, network in configuration.networks.items()}
    assert optimizers["resenc"] == optimizers["plain"] == "sgd" and optimizers["hybrid"] == "adamw"


SLOW = ("unetr", "swin-unetr")
"""Half a minute between them, whose steps are tested one by one elsewhere: `make test-all` runs them end to end."""


@pytest.mark.parametrize("architecture", [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ARCHITECTURES])
def test_an_architecture_trains_predicts_and_reads_back(run: Path, tmp_path: Path, architecture: str) -> None:
    assert train(run=run, architecture=architecture, preset="quick", epochs=1, steps_per_epoch=2, device="cpu") == 0  # type: ignore[arg-type]
    network, info = read_model(run / "models" / architecture / "2d" / "fold_0")
    assert info.architecture == architecture and info.steps == 2
    logits = network(torch.zeros(1, 1, *info.network.patch_shape))
    assert logits.shape == (1, 2, *info.network.patch_shape) and torch.isfinite(logits).all()
    images = run.parent / "dataset" / "imagesTr"
    assert predict(input=images, output=tmp_path / "masks", run=run, name=architecture, tta=False, device="cpu") == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 5


def test_weights_of_another_topology_are_refused(run: Path) -> None:
    """A hybrid whose record says another number of attention blocks than its weights have."""
    assert train(run=run, architecture="hybrid", name="edited", preset="quick", epochs=1, steps_per_epoch=1,
                 device="cpu") == 0
    folder = run / "models" / "edited" / "2d" / "fold_0"
    record = json.loads((folder / "model.json").read_text())
    blocks = record["network"]["topology"]["attention"]["blocks"]
    record["network"]["topology"]["attention"]["blocks"] = [max(0, count - 1) for count in blocks]
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="does not hold the weights of this network"):
        read_model(folder)


def test_a_patch_that_the_strides_do_not_divide_is_refused(run: Path) -> None:
    text = (run / "plan.json").read_text()
    content = json.loads(text)
    network = content["configurations"]["2d"]["networks"]["hybrid"]
    network["patch_shape"] = [size - 1 for size in network["patch_shape"]]
    (run / "plan.json").write_text(json.dumps(content))
    try:
        with pytest.raises(UserError, match="multiples of all strides"):
            train(run=run, architecture="hybrid", name="odd", preset="quick", epochs=1, steps_per_epoch=1, device="cpu")
    finally:
        (run / "plan.json").write_text(text)


def test_an_architecture_that_is_not_planned_is_refused(tmp_path: Path) -> None:
    dataset = write_pictures(tmp_path / "dataset")
    assert plan(dataset, run=tmp_path / "run", architecture="plain", workers=1) == 0
    with pytest.raises(UserError, match=f"Add it with `autoseg plan .* --run {tmp_path / 'run'} --architecture hybrid"):
        train(run=tmp_path / "run", architecture="hybrid", preset="quick", device="cpu")
