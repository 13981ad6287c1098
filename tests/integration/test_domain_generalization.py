"""Training on one domain as a user runs it: a CT phantom, and its twins from other devices."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.numpy

from autoseg.commands.plan import plan
from autoseg.commands.predict import predict
from autoseg.commands.train import train
from autoseg.data.preprocessing import nonzero_box, prepare_image
from autoseg.data.volume import read_image
from autoseg.errors import UserError
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo

SHAPE = (48, 48, 10)  # x, y, z in the file
LABELS = {"background": 0, "liver": 1, "spleen": 2}
HU = {"air": -1000, "body": 20, "liver": 110, "spleen": -60}
PRESET = """
epochs = {epochs}
steps_per_epoch = 20
validation_steps = 0
max_batch_size = 8
precision = "float32"
mirror = "none"
[sgd]
learning_rate = 0.05
momentum = 0.9
"""


def write_twins(folder: Path, cases: int = 6) -> tuple[Path, Path]:
    """A CT dataset, and the same bodies as other devices show them: contrast inverted, or another increasing scale."""
    rng = np.random.default_rng(3)
    dataset, twins = folder / "ct", folder / "mr"
    for path in (dataset / "imagesTr", dataset / "labelsTr", twins / "inverted", twins / "brighter"):
        path.mkdir(parents=True)
    x, y, _ = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    for case in range(cases):
        body = ((x - 24) / 21) ** 2 + ((y - 24) / 18) ** 2 < 1
        shift = rng.uniform(-3, 3, 4)
        liver = ((x - 16 - shift[0]) / 8) ** 2 + ((y - 24 - shift[1]) / 9) ** 2 < 1
        spleen = ((x - 35 - shift[2]) / 5) ** 2 + ((y - 25 - shift[3]) / 6) ** 2 < 1
        label = np.where(liver, 1, np.where(spleen, 2, 0)).astype(np.uint8)
        tissue = np.select([liver, spleen], [HU["liver"], HU["spleen"]], HU["body"])
        ct = np.where(body, tissue + rng.normal(0, 12, SHAPE), HU["air"]).astype(np.float32)
        inverted = np.where(body, 1400 - 4 * (ct + 100), 0).astype(np.float32)
        brighter = np.where(body, 40 * np.sqrt(np.maximum(ct + 150, 1)), 0).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(ct, affine), dataset / f"imagesTr/case{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), dataset / f"labelsTr/case{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(inverted, affine), twins / f"inverted/case{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(brighter, affine), twins / f"brighter/case{case}_0000.nii.gz")
    (dataset / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}))
    return dataset, twins


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("twins")
    dataset, twins = write_twins(folder)
    assert plan(dataset, run=folder / "run", configurations="2d", workers=1, architecture="plain") == 0
    thin(folder / "run/plan.json")
    return folder / "run", twins


def thin(path: Path) -> None:
    """Half as many features and stages as planned, so that a training takes seconds."""
    content = json.loads(path.read_text())
    network = content["configurations"]["2d"]["networks"]["plain"]
    depth = 3
    network["topology"] |= {
        "strides": network["topology"]["strides"][:depth], "kernel_sizes": network["topology"]["kernel_sizes"][:depth],
        "features": [8, 16, 32], "encoder_blocks": [1] * depth, "decoder_blocks": [1] * (depth - 1)}
    path.write_text(json.dumps(content))


def preset(folder: Path, epochs: int) -> str:
    path = folder / "small.toml"
    path.write_text(PRESET.format(epochs=epochs))
    return str(path)


def dice_on(run: Path, name: str, images: Path, output: Path) -> float:
    """Mean Dice of both organs over all cases of a folder."""
    assert predict(input=images, output=output, run=run, name=name, device="cpu", tta=False) == 0
    scores = []
    for path in sorted(output.glob("case*.nii.gz")):
        found = np.asarray(nibabel.load(path).dataobj)
        reference = np.asarray(nibabel.load(run.parent / "ct/labelsTr" / path.name).dataobj)
        for value in (1, 2):
            both = ((found == value) & (reference == value)).sum()
            scores.append(2 * both / ((found == value).sum() + (reference == value).sum()))
    return float(np.mean(scores))


def info_of(run: Path, name: str) -> CheckpointInfo:
    return read_record(CheckpointInfo, run / f"models/{name}/2d/fold_0/model.json")


def test_another_device_is_normalized_as_the_model_was_trained(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    run, twins = prepared
    asked = {"run": run, "device": "cpu", "preset": preset(tmp_path, 6)}
    assert train(**asked) == 0
    assert train(**asked, domain_generalization="slaug") == 0
    planned, own = info_of(run, "plain"), info_of(run, "plain+slaug")
    assert [channel.scheme for channel in planned.store.normalization] == ["ct"]
    assert [channel.scheme for channel in own.store.normalization] == ["rank"]
    on_ct = dice_on(run, "plain+slaug", run.parent / "ct/imagesTr", tmp_path / "ct")
    assert on_ct > 0.8
    # Ranks do not change with an increasing scale, so neither do the masks; a window of Hounsfield units is lost.
    assert dice_on(run, "plain+slaug", twins / "brighter", tmp_path / "ranks") > on_ct - 0.02
    assert dice_on(run, "plain", twins / "brighter", tmp_path / "window") < 0.5
    dice_on(run, "plain+slaug", twins / "inverted", tmp_path / "inverted")
    seen = prepare_image(read_image([twins / "inverted/case0_0000.nii.gz"], 1), own.store).image
    source = prepare_image(read_image([run.parent / "ct/imagesTr/case0_0000.nii.gz"], 1), own.store).image
    z, y, x = (slice(*box) for box in nonzero_box(source))
    inside = source[:, z, y, x]
    assert seen.shape == inside.shape and np.corrcoef(seen[inside > 0], inside[inside > 0])[0, 1] < -0.95


@pytest.mark.parametrize(("switches", "name"), [
    ({"domain_generalization": "gin"}, "plain+gin"),
    ({"domain_generalization": "gin", "normalization": "percentile", "text_guided": True},
     "plain+percentile+gin+text"),
    ({"domain_generalization": "slaug", "text_guided": True, "text_geometry": "random"}, "plain+slaug+text-random"),
    ({"domain_generalization": "ccsdg"}, "plain+ccsdg"),
    ({"domain_generalization": "ccsdg", "text_guided": True}, "plain+ccsdg+text"),
    ({"text_guided": True, "text_route": "heads"}, "plain+text-heads"),
    ({"text_guided": True, "text_geometry": "learned"}, "plain+text-learned"),
])
def test_every_switch_trains_and_leaves_an_ordinary_network(
    prepared: tuple[Path, Path], tmp_path: Path, switches: dict[str, object], name: str
) -> None:
    run, twins = prepared
    asked = {"run": run, "device": "cpu", "preset": preset(tmp_path, 1), "steps_per_epoch": 3}
    assert train(**asked) == 0 if not (run / "models/plain/2d/fold_0").exists() else True
    assert train(**asked, **switches) == 0
    info = info_of(run, name)
    ordinary = safetensors.numpy.load_file(run / "models/plain/2d/fold_0/weights.safetensors")
    weights = safetensors.numpy.load_file(run / f"models/{name}/2d/fold_0/weights.safetensors")
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in ordinary.items()}
    if switches.get("text_guided"):
        assert info.text_guidance is not None and info.text_guidance.names == ("liver", "spleen")
        words = safetensors.numpy.load_file(run / f"models/{name}/2d/fold_0/guidance.safetensors")
        assert words["vectors"].shape[0] == 2
    else:
        assert info.text_guidance is None
    (twins / "one").mkdir(exist_ok=True)
    source = twins / "inverted/case0_0000.nii.gz"
    (twins / "one" / source.name).write_bytes(source.read_bytes())
    assert predict(input=twins / "one", output=tmp_path / "masks", run=run, name=name, device="cpu") == 0


def test_angles_between_words_guide_three_labels_and_are_refused_for_two(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--text-route gram compares angles between at least 3 labels"):
        train(run=prepared[0], text_guided=True, text_route="gram", preset=preset(tmp_path, 1), device="cpu")
    assert not (prepared[0] / "models/plain+text-gram").exists()
    dataset, _ = write_twins(tmp_path)
    declared = json.loads((dataset / "dataset.json").read_text())
    declared["labels"]["stomach"] = 3
    (dataset / "dataset.json").write_text(json.dumps(declared))
    for path in sorted((dataset / "labelsTr").iterdir()):
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[:, 24:][voxels[:, 24:] == 1] = 3
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    run = tmp_path / "run"
    assert plan(dataset, run=run, configurations="2d", workers=1, architecture="plain") == 0
    thin(run / "plan.json")
    assert train(run=run, text_guided=True, text_route="gram", preset=preset(tmp_path, 1), steps_per_epoch=3,
                 device="cpu") == 0
    words = safetensors.numpy.load_file(run / "models/plain+text-gram/2d/fold_0/guidance.safetensors")
    assert words["vectors"].shape[0] == 3


def test_words_without_text_guidance_are_refused(prepared: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="--text-geometry: only a text-guided training has words"):
        train(run=prepared[0], text_geometry="raw")
