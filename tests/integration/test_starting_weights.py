"""`train --init PATH` and `--freeze` as a user gives them: from a run with other labels, channels and axes."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch
from test_import_nnunet_command import import_into, write
from test_training import write_dataset

from autoseg.commands.plan import plan
from autoseg.commands.train import train
from autoseg.errors import UserError
from autoseg.initialization.sources import find_source
from autoseg.initialization.transfer import read_foreign_weights
from autoseg.networks.weight_transfer import NetworkFacts
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo
from autoseg.training.first_weights import TransferRecord

PRESET = """epochs = 2
steps_per_epoch = 1
validation_steps = 0
max_batch_size = 1
precision = "float32"
[sgd]
learning_rate = 0.05
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("preset") / "short.toml"
    path.write_text(PRESET)
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory, preset) -> Path:
    """A run with one trained model: one channel, one label."""
    folder = tmp_path_factory.mktemp("source")
    assert plan(write_dataset(folder / "dataset"), run=folder / "run", workers=1) == 0
    assert train(run=folder / "run", preset=preset, fold="all") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    """A run for two channels and two labels, of which `ball` is the source's."""
    folder = tmp_path_factory.mktemp("target")
    dataset = write_dataset(folder / "dataset", labels={"background": 0, "cyst": 2, "ball": 7})
    for path in list((dataset / "imagesTr").iterdir()):
        image = nibabel.load(path)
        second = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine)
        nibabel.save(second, path.with_name(path.name.replace("_0000", "_0001")))
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "PET", "1": "MR"}}))
    assert plan(dataset, run=folder / "run", workers=1) == 0
    return folder / "run"


@pytest.fixture
def run(planned, tmp_path) -> Path:
    return Path(shutil.copytree(planned, tmp_path / "run"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / "weights.safetensors"))


def test_a_training_begins_with_what_fits_of_another_run(run, source, preset):
    assert train(run=run, preset=preset, init=str(source)) == 0
    folder, origin = run / "models/resenc+init/3d_fullres/fold_0", source / "models/resenc/3d_fullres/fold_all"
    record = read_record(TransferRecord, folder / "init_transfer.json")
    info = read_record(CheckpointInfo, folder / "model.json")
    assert info.training["init"] == record.source == str(origin)
    assert info.training["init_sha256"] == record.source_sha256
    assert info.network.optimizer.warmup_share >= 0.05 and info.training["freeze"] == "none"
    assert sorted(one.name for one in record.tensors) == sorted(weights(folder))
    adapted = {one.name: one.why for one in record.tensors if one.action == "adapted"}
    assert adapted.pop("encoder.stem.convolution.weight") == (
        "input channels: PET takes the mean of 1, times 1/2; MR by name")
    assert set(adapted.values()) == {"outputs by name: background, ball; drawn: cyst"}
    assert record.share > 0.99 and record.drawn == 0 and record.left_over == ()
    results = json.loads((run / "run.json").read_text())["results"]
    assert results["init_share"] == round(record.share, 4) and results["init_adapted"] == record.adapted


def test_two_dimensional_weights_come_from_three(run, source, preset):
    assert train(run=run, preset=preset, configuration="2d", init=str(source / "models/resenc/3d_fullres")) == 0
    record = read_record(TransferRecord, run / "models/resenc+init/2d/fold_0/init_transfer.json")
    assert record.share > 0.3 and any("3×3×3 → 3×3" in one.why for one in record.tensors)


def test_frozen_stages_are_bit_for_bit_the_sources_after_training_and_resuming(run, source, preset):
    asked = {"run": run, "preset": preset, "init": str(source)}
    assert train(**asked, freeze="encoder") == 0
    folder, origin = run / "models/resenc+init/3d_fullres/fold_0", source / "models/resenc/3d_fullres/fold_all"
    trained, begun = weights(folder), weights(origin)
    stages = [name for name in trained if name.startswith("encoder.stages.")]
    assert stages and all(torch.equal(trained[name], begun[name]) for name in stages)
    upwards = [name for name in trained if name.startswith("decoder.") and name.endswith("convolution.weight")]
    assert upwards and not any(torch.equal(trained[name], begun[name]) for name in upwards)
    assert read_record(CheckpointInfo, folder / "model.json").training["freeze"] == "encoder"
    stem = trained["encoder.stem.convolution.weight"]

    with pytest.raises(UserError, match="another setting of --freeze"):
        train(run=run, resume=True, epochs=3, freeze="none")
    assert train(run=run, resume=True, epochs=3) == 0
    longer = weights(folder)
    assert all(torch.equal(longer[name], begun[name]) for name in stages)
    assert torch.equal(longer["encoder.stem.convolution.weight"], stem)
    assert not any(torch.equal(longer[name], trained[name]) for name in upwards)
    info = read_record(CheckpointInfo, folder / "model.json")
    assert info.training["freeze"] == "encoder" and info.steps == 3


def test_what_makes_no_sense_is_refused_before_anything_is_written(run, source, preset, tmp_path):
    asked = {"run": run, "preset": preset}
    with pytest.raises(UserError, match="begins with drawn weights"):
        train(**asked, freeze="encoder", init="scratch")
    with pytest.raises(UserError, match="begins with drawn weights"):
        train(**asked, freeze="2")
    with pytest.raises(UserError, match="--freeze 40: the encoder has"):
        train(**asked, freeze="40", init=str(source))
    with pytest.raises(UserError, match="freeze is 'head'"):
        train(**asked, freeze="head", init=str(source))
    with pytest.raises(UserError, match="nor finished models"):
        train(**asked, init=str(run))
    with pytest.raises(UserError, match="there is no such folder"):
        train(**asked, init=str(tmp_path / "absent"))
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    (broken / "models/resenc/3d_fullres/fold_all/weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a valid safetensors file"):
        train(**asked, init=str(broken))
    assert not (run / "models").exists()


def test_an_incompatible_network_is_refused_with_the_reasons(run, source, preset, tmp_path):
    content = json.loads((run / "plan.json").read_text())
    for network in content["configurations"]["3d_fullres"]["networks"].values():
        network["topology"]["features"] = [count // 2 for count in network["topology"]["features"]]
    (run / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"of its weights could be moved(.|\n)*other numbers of features(.|\n)*scratch"):
        train(run=run, preset=preset, init=str(source))
    assert not (run / "models").exists()


def test_an_imported_model_of_nnunet_is_a_source(tmp_path):
    """A cascade's second stage, whose input is an image and masks, for two images of a single stage."""
    results, imported = tmp_path / "Dataset900_Test", tmp_path / "imported"
    for name in ("3d_lowres", "3d_cascade_fullres"):
        write(results, name)
    assert import_into(imported, results)[0] == 0
    with pytest.raises(UserError, match="holds 2 trained models"):
        find_source(imported)
    [folder] = [find_source(path) for path in imported.glob("models/*/3d_cascade_fullres")]
    info = read_record(CheckpointInfo, folder / "model.json")
    wanted = NetworkFacts(info.architecture, info.network, (*info.channel_names, "PET"), info.outputs)
    first = read_foreign_weights(folder, (info.architecture, info.network, info.store), (), wanted)
    changed = [move for move in first.transfer.moves if move.action != "copied"]
    assert first.transfer.share == 1 and len(changed) == 1
    assert "PET takes the mean of 1, times 1/2; previous stage: " in changed[0].why
    assert changed[0].why.endswith("not used")
