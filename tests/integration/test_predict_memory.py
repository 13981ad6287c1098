"""`predict` where memory or the disk is short, and images of one slice: what it says, and what it leaves."""

import errno
import json
import logging

import nibabel
import numpy as np
import pytest
import torch
from tiny_models import model_info, write_fold, write_nifti

from autoseg.data.dataset import list_images
from autoseg.errors import UserError
from autoseg.inference import computing, needs, prediction, sliding_window
from autoseg.inference.prediction import Destination, PredictSettings, predict_into, predict_members
from autoseg.inference.trained import Reader, list_models
from autoseg.labelling import Region
from autoseg.progress import progress

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        write_nifti(tmp_path / "images" / f"case{number}_0000.nii.gz", seed=number)
    return tmp_path / "images"


def members_of(run):
    reader = Reader()
    return [reader.member(model, model.folds) for model in list_models(run)]


def predict(run, images, masks, **changes):
    settings = PredictSettings(device=CPU, tta=False, **changes)
    return predict_members(list_images(images, 1, ".nii.gz"), members_of(run), masks, settings)


def voxels_of(path):
    return np.asanyarray(nibabel.load(path).dataobj)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------- memory
def test_a_case_that_cannot_fit_fails_alone_and_says_what_it_needs(monkeypatch, tmp_path, images):
    write_fold(tmp_path / "run", model_info())
    write_nifti(images / "case1_0000.nii.gz", shape=(70, 60, 50), seed=1)
    monkeypatch.setattr(needs, "reachable_memory_bytes", lambda: 3_000_000)
    written, (failure,) = predict(tmp_path / "run", images, tmp_path / "masks")
    assert [path.name for path in written] == ["case0.nii.gz", "case2.nii.gz"]
    assert failure.id == "case1"
    assert "GiB are free" in failure.reason and "3 classes" in failure.reason


def test_an_image_too_large_to_prepare_is_not_read(monkeypatch, tmp_path, images):
    write_fold(tmp_path / "run", model_info())
    monkeypatch.setattr(prediction, "reachable_memory_bytes", lambda: 1000)
    monkeypatch.setattr(prediction, "preparation_bytes", lambda case, _: 2000 if case.id == "case0" else 0)
    written, (failure,) = predict(tmp_path / "run", images, tmp_path / "masks")
    assert len(written) == 2
    assert failure.id == "case0" and "reading and preparing" in failure.reason


def test_sums_of_a_long_image_need_no_more_memory_than_those_of_a_short_one():
    info = model_info()
    windows = computing.window_settings(info, CPU, 0.5)
    short, long = (needs.stream_bytes(info, (n, 40, 40), windows, 8, None) for n in (32, 3200))
    assert short == long


@pytest.mark.parametrize("regions", [False, True])
def test_logits_of_several_models_go_to_the_disk_where_they_are_too_large(
    monkeypatch, tmp_path, images, caplog, regions
):
    changes = dict(regions=(Region(name="whole", values=(4, 200), painted=4),
                            Region(name="lesion", values=(200,), painted=200))) if regions else {}
    for name in ("one", "two"):
        write_fold(tmp_path / "run", model_info(name=name, **changes), seed=len(name))
    predict(tmp_path / "run", images, tmp_path / "masks", save_probabilities=True)
    monkeypatch.setattr(computing, "LOGITS_SHARE", 1e-9)
    with caplog.at_level(logging.INFO, "autoseg"):
        written, failures = predict(tmp_path / "run", images, tmp_path / "again", save_probabilities=True)
    assert len(written) == 3 and not failures
    assert caplog.text.count("go to the disk") == 6
    for path in written:
        np.testing.assert_array_equal(voxels_of(path), voxels_of(tmp_path / "masks" / path.name))
    assert not leftovers(tmp_path / "again")


def test_a_models_own_mask_is_the_same_alone_and_beside_a_combination(tmp_path, images):
    """Alone it is streamed, beside a combination decoded from whole logits."""
    for name in ("one", "two"):
        write_fold(tmp_path / "run", model_info(name=name), seed=len(name))
    cases, members = list_images(images, 1, ".nii.gz"), members_of(tmp_path / "run")
    both = [Destination(tmp_path / "one", (0,)), Destination(tmp_path / "both", (0, 1))]
    with progress("predict", len(cases), "cases") as bar:
        predict_into(cases, members, both, PredictSettings(device=CPU, tta=False), bar)
        predict_into(cases, members, [Destination(tmp_path / "alone", (0,))],
                     PredictSettings(device=CPU, tta=False), bar)
    for case in cases:
        one, alone = (voxels_of(tmp_path / folder / f"{case.id}.nii.gz") for folder in ("one", "alone"))
        np.testing.assert_array_equal(one, alone)


@pytest.mark.parametrize("is_2d", [False, True])
def test_many_labels_are_predicted_from_sums_of_features(monkeypatch, tmp_path, images, is_2d):
    """Masks and probabilities are those of summed logits, of two folds."""
    info = model_info(is_2d=is_2d, labels={"background": 0, **{f"organ {value}": value for value in range(1, 20)}})
    for fold in ("0", "1"):
        write_fold(tmp_path / "run", info.model_copy(update={"fold": fold}))
    assert sliding_window.joint_head([members_of(tmp_path / "run")[0].folds[fold][0] for fold in (0, 1)]) is not None
    arrays = {}
    for name, head in (("features", sliding_window.joint_head), ("logits", lambda _: None)):
        monkeypatch.setattr(sliding_window, "joint_head", head)
        monkeypatch.setattr(needs, "joint_head", head)
        written, failures = predict(tmp_path / "run", images, tmp_path / name, save_probabilities=True)
        assert len(written) == 3 and not failures
        arrays[name] = [voxels_of(path) for path in sorted((tmp_path / name).rglob("*.nii.gz"))]
    assert len(arrays["features"]) == len(arrays["logits"]) >= 6
    for one, other in zip(arrays["features"], arrays["logits"], strict=True):
        assert len(np.unique(one)) > 2
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, atol=1e-3)
        else:
            assert (one != other).mean() < 1e-3  # random weights: near ties


# ---------------------------------------------------------------- the disk
@pytest.mark.parametrize("when", ["reserved", "compressed"])
def test_a_disk_that_fills_up_while_probabilities_are_written(monkeypatch, tmp_path, images, when):
    write_fold(tmp_path / "run", model_info())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("autoseg.data.probability_files." + {
        "reserved": "reserved_array", "compressed": "write_channels"}[when], full)
    with pytest.raises(UserError, match=r"case0_probabilities.nii.gz: the disk is full"):
        predict(tmp_path / "run", images, tmp_path / "masks", save_probabilities=True)
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["labels.json"]


def test_a_disk_too_small_for_logits_fails_the_case(monkeypatch, tmp_path, images):
    for name in ("one", "two"):
        write_fold(tmp_path / "run", model_info(name=name))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(computing, "LOGITS_SHARE", 1e-9)
    monkeypatch.setattr(computing, "reserved_array", full)
    written, failures = predict(tmp_path / "run", images, tmp_path / "masks")
    assert not written and "the disk is full" in failures[0].reason
    assert not leftovers(tmp_path / "masks")


def test_a_case_that_fails_leaves_no_probabilities(tmp_path, images):
    write_fold(tmp_path / "run", model_info())
    (member,) = members_of(tmp_path / "run")
    with torch.no_grad():
        next(member.folds[0][0].parameters()).fill_(float("nan"))
    settings = PredictSettings(device=CPU, tta=False, save_probabilities=True)
    written, failures = predict_members(list_images(images, 1, ".nii.gz"), [member], tmp_path / "masks", settings)
    assert not written and len(failures) == 3 and "NaN" in failures[0].reason
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["failures.json", "labels.json"]


# ---------------------------------------------------------------- thin images
@pytest.mark.parametrize("shape", [(20, 17, 1), (1, 17, 14), (20, 17), (1, 1, 1)])
@pytest.mark.parametrize("is_2d", [False, True])
def test_images_of_one_slice(tmp_path, shape, is_2d):
    """Along any axis, for networks of volumes and of slices, with probabilities."""
    write_fold(tmp_path / "run", model_info(is_2d=is_2d).model_copy(update={"is_2d": False}))
    write_nifti(tmp_path / "images" / "case_0000.nii.gz", shape=shape)
    (path,), failures = predict(tmp_path / "run", tmp_path / "images", tmp_path / "masks", save_probabilities=True)
    assert not failures
    assert voxels_of(path).shape == shape
    probabilities = voxels_of(tmp_path / "masks" / "case_probabilities.nii.gz")
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_a_volume_without_thickness_is_refused_with_its_name(tmp_path, images):
    write_fold(tmp_path / "run", model_info())
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 17, 0), np.float32), np.eye(4)), images / "case1_0000.nii.gz")
    written, (failure,) = predict(tmp_path / "run", images, tmp_path / "masks")
    assert len(written) == 2
    assert failure.id == "case1" and "case1_0000.nii.gz" in failure.reason


# ---------------------------------------------------------------- windows of one value
def test_empty_windows_are_left_out_only_on_request(tmp_path, caplog):
    write_fold(tmp_path / "run", model_info())
    path = tmp_path / "images" / "case_0000.nii.gz"
    write_nifti(path, shape=(40, 40, 60))
    image = nibabel.load(path)
    voxels = image.get_fdata()
    voxels[..., 20:] = 50
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), image.affine), path)
    with caplog.at_level(logging.INFO, "autoseg"):
        ((mask,), _), text = predict(tmp_path / "run", path.parent, tmp_path / "all"), caplog.text
        assert "left out" not in text
        ((sparse,), _) = predict(tmp_path / "run", path.parent, tmp_path / "some", skip_constant=True)
    assert "hold one value: left out" in caplog.text
    assert (voxels_of(sparse)[..., 45:] == 0).all()
    np.testing.assert_array_equal(voxels_of(sparse)[..., :12], voxels_of(mask)[..., :12])
    assert json.loads((tmp_path / "some" / "labels.json").read_text())["labels"]["organ"] == 4
