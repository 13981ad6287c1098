"""Several models, cascades and probabilities, from a run folder to files."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from command_line import run_command
from scipy.special import softmax
from tiny_models import LABELS, model_info, write_fold, write_nifti

from autoseg.data.dataset import list_images
from autoseg.data.preprocessing import labels_on_grid, prepare_image
from autoseg.data.previous_stage import one_hot
from autoseg.data.resampling import linear_operators, resample_linear
from autoseg.data.volume import read_image
from autoseg.errors import UserError
from autoseg.evaluation.pairing import pair_files
from autoseg.inference.computing import window_settings
from autoseg.inference.decoding import decode_labels
from autoseg.inference.ensembling import Member
from autoseg.inference.prediction import PredictSettings, predict_members
from autoseg.inference.sliding_window import ensemble_logits
from autoseg.inference.trained import Reader, list_models
from autoseg.labelling import Region
from autoseg.schema import PreviousStage

CPU = torch.device("cpu")


def settings(**changes) -> PredictSettings:
    return PredictSettings(**{"device": CPU, "tta": False, **changes})


def members_of(run: Path) -> list[Member]:
    reader = Reader()
    return [reader.member(model, model.folds) for model in list_models(run)]


def predict(run: Path, images: Path, masks: Path, *options: str) -> int:
    arguments = ["-i", str(images), "-o", str(masks), "--run", str(run), "--device", "cpu", "--no-tta"]
    return run_command("predict", *arguments, *options)[0]


def logits_of(member: Member, image: np.ndarray) -> np.ndarray:
    """The mean over folds, from the window level."""
    networks = [(network.eval(), ()) for network, _ in member.folds]
    patch = member.info.network.patch_shape
    return ensemble_logits(networks, torch.from_numpy(image), patch, window_settings(member.info, CPU, 0.5)).numpy()


def probabilities_of(member: Member, path: Path) -> np.ndarray:
    """One model's softmax on the image's grid (channel, z, y, x), all at once."""
    prepared = prepare_image(read_image([path], 1), member.info.store)
    where = prepared.placement
    operators = linear_operators(where.shape, where.spacing, where.cropped_shape, where.cropped_spacing)
    logits = np.stack([resample_linear(channel, operators) for channel in logits_of(member, prepared.image)])
    return softmax(logits, axis=0).transpose(0, *(where.axes.index(axis) + 1 for axis in range(3)))


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for number in range(2):
        write_nifti(folder / f"case{number}_0000.nii.gz", seed=number)
    return folder


# ---------------------------------------------------------------- several models
def test_models_average_probabilities_and_their_folds_logits(tmp_path, images):
    run = tmp_path / "run"
    write_fold(run, model_info())
    write_fold(run, model_info(fold="1"))
    write_fold(run, model_info(is_2d=True, name="flat").model_copy(update={"is_2d": False}), seed=7)
    members = members_of(run)
    assert [len(member.folds) for member in members] == [1, 2]
    cases = list_images(images, 1, ".nii.gz")
    written, failures = predict_members(cases, members, tmp_path / "masks", settings(save_probabilities=True))
    assert (len(written), failures) == (2, [])
    for case in cases:
        expected = np.mean([probabilities_of(member, case.images[0]) for member in members], axis=0)
        found = np.asanyarray(nibabel.load(tmp_path / "masks" / f"{case.id}_probabilities.nii.gz").dataobj).T
        np.testing.assert_allclose(found, expected, atol=1e-5)
        mask = np.asanyarray(nibabel.load(tmp_path / "masks" / f"{case.id}.nii.gz").dataobj).T
        values = np.array(list(LABELS.values()))
        assert (mask == values[expected.argmax(0)]).mean() > 0.999


@pytest.mark.parametrize("change", [
    {"labels": {"background": 0, "organ": 4, "tumour": 200}}, {"file_ending": ".nrrd"}, {"channel_names": ("CT",)},
])  # fmt: skip
def test_models_of_other_data_are_not_combined(tmp_path, images, change):
    run = tmp_path / "run"
    write_fold(run, model_info())
    write_fold(run, model_info(name="other", **change))
    with pytest.raises(UserError, match=r"plain \(3d_fullres\): " + next(iter(change))):
        predict_members(list_images(images, 1, ".nii.gz"), members_of(run), tmp_path / "masks", settings())
    assert not (tmp_path / "masks").exists()


# ---------------------------------------------------------------- probabilities and regions
def test_probabilities_beside_a_mask_that_stays_the_same(tmp_path, images):
    write_fold(tmp_path / "run", model_info())
    assert predict(tmp_path / "run", images, tmp_path / "plain") == 0
    assert predict(tmp_path / "run", images, tmp_path / "both", "--save-probabilities") == 0
    names = json.loads((tmp_path / "both/labels.json").read_text())
    assert list(names["labels"]) == list(LABELS)
    for number in range(2):
        plain, both = (nibabel.load(tmp_path / kind / f"case{number}.nii.gz") for kind in ("plain", "both"))
        np.testing.assert_array_equal(np.asanyarray(plain.dataobj), np.asanyarray(both.dataobj))
        file = nibabel.load(tmp_path / "both" / f"case{number}_probabilities.nii.gz")
        np.testing.assert_array_equal(file.affine, both.affine)
        winners = np.array(list(LABELS.values()))[np.asanyarray(file.dataobj).argmax(-1)]
        assert (winners == np.asanyarray(both.dataobj)).mean() > 0.999


def test_masks_with_probabilities_beside_them_can_be_evaluated(tmp_path, images):
    write_fold(tmp_path / "run", model_info())
    assert predict(tmp_path / "run", images, tmp_path / "masks", "--save-probabilities") == 0
    assert [pair.id for pair in pair_files(tmp_path / "masks", tmp_path / "masks")] == ["case0", "case1"]


def test_regions_are_painted_with_the_files_values(tmp_path, images):
    regions = (Region(name="all", values=(4, 200), painted=4), Region(name="lesion", values=(200,), painted=200))
    write_fold(tmp_path / "run", model_info(regions=regions))
    assert predict(tmp_path / "run", images, tmp_path / "masks", "--save-probabilities") == 0
    file = np.asanyarray(nibabel.load(tmp_path / "masks/case0_probabilities.nii.gz").dataobj)
    mask = np.asanyarray(nibabel.load(tmp_path / "masks/case0.nii.gz").dataobj)
    assert file.shape == (*mask.shape, 2)
    expected = np.where(file[..., 1] > 0.5, 200, np.where(file[..., 0] > 0.5, 4, 0))
    assert (mask == expected).mean() > 0.999
    assert len(np.unique(mask)) > 1
    names = json.loads((tmp_path / "masks/labels.json").read_text())
    assert [region["name"] for region in names["regions"]] == ["all", "lesion"]


# ---------------------------------------------------------------- cascades
def write_cascade(run: Path, **second) -> None:
    low = model_info(configuration="3d_lowres", name="low")
    write_fold(run, low.model_copy(update={"store": low.store.model_copy(update={"spacing": (3.0, 2.0, 2.0)})}))
    previous = PreviousStage(name="low", configuration="3d_lowres")
    write_fold(run, model_info(configuration="3d_cascade_fullres", previous_stage=previous, **second), seed=5)


def test_a_cascade_sees_the_first_stages_mask(tmp_path, images):
    run = tmp_path / "run"
    write_cascade(run)
    assert predict(run, images, tmp_path / "masks", "--configuration", "3d_cascade_fullres") == 0
    low, cascade = (Reader().member(model, ("0",)) for model in list_models(run))
    low, cascade = (low, cascade) if low.previous is None else (cascade, low)
    for number in range(2):
        volume = read_image([images / f"case{number}_0000.nii.gz"], 1)
        first = prepare_image(volume, low.info.store)
        mask = decode_labels(logits_of(low, first.image), first.placement)
        second = prepare_image(volume, cascade.info.store)
        channels = one_hot(labels_on_grid(mask, second.placement), len(LABELS))
        assert channels.any()
        logits = logits_of(cascade, np.concatenate([second.image, channels]))
        expected = np.array(list(LABELS.values()))[decode_labels(logits, second.placement)]
        found = np.asanyarray(nibabel.load(tmp_path / "masks" / f"case{number}.nii.gz").dataobj).T
        assert (found == expected).mean() > 0.999
    record = json.loads((tmp_path / "masks/run.json").read_text())
    assert {"low/3d_lowres/fold_0", "plain/3d_cascade_fullres/fold_0"} <= set(record["inputs"])


def test_a_cascade_without_its_first_stage_says_what_to_train(tmp_path, images, capsys):
    run = tmp_path / "run"
    write_cascade(run)
    (run / "models/low/3d_lowres/fold_0/model.json").unlink()
    assert predict(run, images, tmp_path / "masks") == 2
    assert "autoseg train --run" in (message := capsys.readouterr().err)
    assert "--name low --configuration 3d_lowres" in message
    assert not (tmp_path / "masks").exists()


def test_a_cascade_of_other_labels_than_its_first_stage(tmp_path, images, capsys):
    run = tmp_path / "run"
    write_cascade(run, labels={"background": 0, "organ": 4, "tumour": 200})
    assert predict(run, images, tmp_path / "masks", "--configuration", "3d_cascade_fullres") == 2
    assert "labels differ" in capsys.readouterr().err
