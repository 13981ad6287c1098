"""`autoseg predict` from a folder of images to masks, and every way in which it may go wrong."""

import errno
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from command_line import run_command
from PIL import Image
from tiny_models import LABELS, model_info, write_fold, write_nifti

from autoseg.data.dataset import Case, list_images
from autoseg.errors import UserError
from autoseg.inference import computing, prediction
from autoseg.inference.prediction import PredictSettings, predict_cases
from autoseg.inference.trained import choose_folds, choose_model
from autoseg.networks.checkpoint import read_model, write_model


@dataclass(frozen=True)
class Place:
    run: Path
    images: Path
    masks: Path


@pytest.fixture
def place(tmp_path) -> Place:
    """One trained 3-D model and two images."""
    place = Place(tmp_path / "run", tmp_path / "images", tmp_path / "masks")
    write_fold(place.run, model_info())
    for number in range(2):
        write_nifti(place.images / f"case{number}_0000.nii.gz", seed=number)
    return place


def autoseg(place: Place, *options: str, device: str = "cpu") -> int:
    """The exit status of `autoseg predict`; a UserError's message goes to stderr, as in `autoseg.__main__`."""
    arguments = ["-i", str(place.images), "-o", str(place.masks), "--run", str(place.run), "--device", device]
    return run_command("predict", *arguments, *options)[0]


def models_of(place: Place):
    return [read_model(place.run / "models/plain/3d_fullres/fold_0")]


def cpu_settings(**changes) -> PredictSettings:
    return PredictSettings(device=torch.device("cpu"), **changes)


def failures_of(place: Place) -> list[dict[str, str]]:
    return json.loads((place.masks / "failures.json").read_text())


# ---------------------------------------------------------------- what it does
def test_masks_lie_on_the_images_grids_and_hold_the_files_labels(place, capsys):
    assert autoseg(place, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["predicted"], result["failed"], result["output"]) == (2, 0, str(place.masks))
    for number in range(2):
        image = nibabel.load(place.images / f"case{number}_0000.nii.gz")
        mask = nibabel.load(place.masks / f"case{number}.nii.gz")
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asanyarray(mask.dataobj))) <= set(LABELS.values())
    assert json.loads((place.masks / "labels.json").read_text()) == {"labels": LABELS, "regions": [], "ignore": None}
    assert not (place.masks / "failures.json").exists()
    record = json.loads((place.masks / "run.json").read_text())
    assert record["results"]["predicted"] == 2
    assert record["device"] == "cpu"


def test_folds_are_averaged_as_logits_not_as_masks(place):
    """A fold with -1/2 times the first one's logits alone says the opposite; the mean has the first one's mask."""
    network, _ = read_model(place.run / "models/plain/3d_fullres/fold_0")
    with torch.no_grad():
        for parameter in network.decoder[-1].head.parameters():
            parameter.mul_(-0.5)
    write_model(place.run / "models/plain/3d_fullres/fold_1", network, model_info(fold="1"))
    masks = []
    for folds in ("0", "1", "0,1"):
        assert autoseg(place, "--folds", folds, "--overwrite") == 0
        masks.append(np.asanyarray(nibabel.load(place.masks / "case0.nii.gz").dataobj).copy())
    first, second, both = masks
    assert len(np.unique(first)) > 1
    assert (both == first).mean() > 0.999
    assert (second == first).mean() < 0.1


def test_no_tta_changes_the_result(place):
    assert autoseg(place) == 0
    with_tta = np.asanyarray(nibabel.load(place.masks / "case0.nii.gz").dataobj).copy()
    assert autoseg(place, "--no-tta", "--overwrite") == 0
    assert (np.asanyarray(nibabel.load(place.masks / "case0.nii.gz").dataobj) != with_tta).any()


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_pictures_become_png_masks(tmp_path, channels, mode):
    place = Place(tmp_path / "run", tmp_path / "images", tmp_path / "masks")
    write_fold(place.run, model_info(channels=channels, is_2d=True, ending=".png"))
    place.images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 25, 3), np.uint8)
    Image.fromarray(pixels if mode == "RGB" else pixels[..., 0]).save(place.images / "cell_0000.png")
    assert autoseg(place) == 0
    mask = np.asarray(Image.open(place.masks / "cell.png"))
    assert mask.shape == (30, 25)
    assert set(np.unique(mask)) <= set(LABELS.values())


def test_a_2d_model_predicts_volumes_slice_by_slice(tmp_path):
    place = Place(tmp_path / "run", tmp_path / "images", tmp_path / "masks")
    write_fold(place.run, model_info(is_2d=True).model_copy(update={"is_2d": False}))
    write_nifti(place.images / "case_0000.nii.gz")
    assert autoseg(place) == 0
    assert nibabel.load(place.masks / "case.nii.gz").shape == (20, 17, 14)


# ---------------------------------------------------------------- one bad case
def test_a_bad_case_is_named_and_the_others_are_written(place, capsys):
    (place.images / "broken_0000.nii.gz").write_bytes(b"\x1f\x8b not really gzip")
    assert autoseg(place, "--json") == 3
    assert json.loads(capsys.readouterr().out)["failed"] == 1
    (failure,) = failures_of(place)
    assert failure["id"] == "broken"
    assert failure["file"] == str(place.images / "broken_0000.nii.gz")
    assert failure["file"] in failure["reason"]
    assert sorted(path.name for path in place.masks.glob("*.nii.gz")) == ["case0.nii.gz", "case1.nii.gz"]


def test_a_stale_failures_file_goes_when_nothing_fails(place):
    broken = place.images / "broken_0000.nii.gz"
    broken.write_bytes(b"")
    assert autoseg(place) == 3
    broken.unlink()
    assert autoseg(place, "--overwrite") == 0
    assert not (place.masks / "failures.json").exists()


def test_all_cases_failing_is_one_message_that_names_them(place, capsys):
    for path in place.images.iterdir():
        path.write_bytes(b"")
    assert autoseg(place) == 2
    message = capsys.readouterr().err
    assert "none of the 2 cases" in message
    assert "case0_0000.nii.gz is empty" in message and "case1_0000.nii.gz is empty" in message
    assert [failure["id"] for failure in failures_of(place)] == ["case0", "case1"]


def test_a_missing_channel_fails_its_case(place):
    write_fold(place.run, model_info(channels=2))
    write_nifti(place.images / "case0_0001.nii.gz", seed=5)
    assert autoseg(place) == 3
    (failure,) = failures_of(place)
    assert failure["id"] == "case1"
    assert "case1_0001.nii.gz" in failure["reason"]


def test_a_4d_file_for_a_one_channel_model_fails_its_case(place):
    write_nifti(place.images / "case1_0000.nii.gz", shape=(20, 17, 14, 2))
    assert autoseg(place) == 3
    assert failures_of(place)[0]["id"] == "case1"


def test_running_out_of_memory_fails_the_case_alone(monkeypatch, place):
    whole = computing.stream_logits_of
    calls = []

    def exhausted(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments)

    monkeypatch.setattr(computing, "stream_logits_of", exhausted)
    assert autoseg(place) == 3
    assert "memory" in failures_of(place)[0]["reason"]
    assert (place.masks / "case1.nii.gz").exists()


def test_a_bug_is_not_a_failed_case(monkeypatch, place):
    def bug(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(computing, "stream_logits_of", bug)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict_cases(list_images(place.images, 1, ".nii.gz"), models_of(place), place.masks, cpu_settings())


def test_logits_that_are_not_finite_fail_the_case(place):
    ((network, info),) = models_of(place)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    _, failures = predict_cases(list_images(place.images, 1, ".nii.gz"), [(network, info)], place.masks, cpu_settings())
    assert len(failures) == 2
    assert "NaN" in failures[0].reason


# ---------------------------------------------------------------- what the user can mend: exit 2, nothing written
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "hybrid"], ["--name hybrid", "--name plain"]),
        (["--configuration", "2d"], ["--configuration 2d", "3d_fullres"]),
        (["--folds", "0,3"], ["fold 3", "it holds 0"]),
        (["--folds", "all,7"], ["fold all", "it holds 0"]),
        (["--folds", ","], ["no fold"]),
    ],
)
def test_a_model_that_does_not_exist(place, capsys, options, words):
    assert autoseg(place, *options) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not place.masks.exists()


def test_no_model_at_all(place, capsys):
    unfinished = place.run / "models/plain/3d_fullres/fold_0/model.json"
    unfinished.unlink()
    assert autoseg(place) == 2
    assert "autoseg train" in capsys.readouterr().err


def test_several_models_must_be_told_apart(place, capsys):
    write_fold(place.run, model_info(name="other"))
    assert autoseg(place) == 2
    message = capsys.readouterr().err
    assert "--name other" in message
    assert "--name plain" in message
    assert autoseg(place, "--name", "other") == 0


def test_folds_of_different_trainings(place, capsys):
    info = model_info(fold="1")
    write_fold(place.run, info.model_copy(update={"store": info.store.model_copy(update={"spacing": (2, 2, 2)})}))
    assert autoseg(place) == 2
    assert "fold 1: store" in capsys.readouterr().err


def test_the_fold_named_all_is_taken_where_it_is_asked_for_or_alone(place, caplog):
    """It has seen every case, and nnU-Net does not average it with the folds of the cross-validation either."""
    write_fold(place.run, model_info(fold="all"))
    model = choose_model(place.run, None, None)
    assert model.folds == ("0", "all")
    with caplog.at_level("INFO", "autoseg"):
        assert choose_folds(model, None) == ("0",)
    assert "fold all, trained on every case, is left out" in caplog.text
    assert choose_folds(model, "all") == ("all",) and choose_folds(model, "0,all") == ("0", "all")
    shutil.rmtree(model.fold_folder("0"))
    assert choose_folds(choose_model(place.run, None, None), None) == ("all",)
    assert autoseg(place, "--folds", "all") == 0


def test_masks_that_exist_are_not_replaced_unasked(place, capsys):
    place.masks.mkdir()
    (place.masks / "case1.nii.gz").write_text("precious")
    assert autoseg(place) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (place.masks / "case1.nii.gz").read_text() == "precious"
    assert not (place.masks / "case0.nii.gz").exists()


@pytest.mark.parametrize("state", ["missing", "empty", "a file", "another format"])
def test_an_input_folder_without_images(place, capsys, state):
    for path in place.images.iterdir():
        path.unlink()
    if state in ("missing", "a file"):
        place.images.rmdir()
    if state == "a file":
        place.images.write_text("")
    if state == "another format":
        (place.images / "case_0000.mha").write_text("")
    assert autoseg(place) == 2
    assert str(place.images) in capsys.readouterr().err
    assert not place.masks.exists()


def test_the_images_own_folder_is_refused_as_output(place, capsys):
    before = sorted(place.images.iterdir())
    assert autoseg(Place(place.run, place.images, place.images)) == 2
    assert "another output folder" in capsys.readouterr().err
    assert sorted(place.images.iterdir()) == before


def test_a_mask_never_replaces_the_image_it_is_made_from(place):
    plain = place.images / "case0.nii.gz"
    (place.images / "case0_0000.nii.gz").rename(plain)
    with pytest.raises(UserError, match="replace the images"):
        predict_cases([Case("case0", (plain,), None)], models_of(place), place.images, cpu_settings(overwrite=True))


def test_cuda_asked_for_and_absent(monkeypatch, place, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert autoseg(place, device="cuda") == 2
    assert "--device cpu" in capsys.readouterr().err
    assert not place.masks.exists()


@pytest.mark.parametrize("occupied", ["the folder", "its parent"])
def test_an_output_folder_that_cannot_be_made(place, capsys, occupied):
    file = place.masks
    file.write_text("a file")
    masks = file if occupied == "the folder" else file / "inside"
    assert autoseg(Place(place.run, place.images, masks)) == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(place, capsys):
    place.masks.mkdir(mode=0o500)
    assert autoseg(place) == 2
    assert str(place.masks) in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_mask(monkeypatch, place, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nibabel.save", full)
    monkeypatch.setattr("autoseg.data.volume.WRITERS", {".nii.gz": full})
    assert autoseg(place) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not list(place.masks.glob("*.nii.gz"))
    assert not [path for path in place.masks.iterdir() if path.name.startswith(".")]


def test_an_unknown_speed_is_an_unknown_option(place):
    assert autoseg(place, "--speed", "turbo") != 0


# ---------------------------------------------------------------- reading, computing and writing at once
def test_stages_overlap_and_reading_stays_a_few_cases_ahead(monkeypatch, place):
    """While one case is written another is read, and few images wait in memory."""
    for number in range(2, 10):
        write_nifti(place.images / f"case{number}_0000.nii.gz", shape=(8, 8, 8))
    read, write, compute = prediction.read_image, prediction.write_labels, computing.stream_logits_of
    reading, writing, computed, ahead = [], [], [], []

    def slow(function, spans):
        def timed(*arguments):
            spans.append([time.perf_counter(), float("inf")])
            time.sleep(0.05)
            result = function(*arguments)
            spans[-1][1] = time.perf_counter()
            return result

        return timed

    def noted_compute(*arguments):
        ahead.append(len(reading) - len(computed))
        computed.append(1)
        return compute(*arguments)

    monkeypatch.setattr(prediction, "read_image", slow(read, reading))
    monkeypatch.setattr(computing, "stream_logits_of", noted_compute)
    monkeypatch.setattr(prediction, "write_labels", slow(write, writing))
    cases = list_images(place.images, 1, ".nii.gz")
    written, failures = predict_cases(cases, models_of(place), place.masks, cpu_settings(tta=False))
    assert (len(written), len(failures)) == (10, 0)
    assert any(one[0] < other[1] and other[0] < one[1] for one in reading for other in writing)
    assert max(ahead) <= prediction.READ_AHEAD + 1


# ---------------------------------------------------------------- the way there and back
class AboveMean(torch.nn.Module):
    """Says "organ" where a z-scored image is above its mean: a network whose masks are known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), x, torch.full_like(x, -9.0)], dim=1)


@pytest.mark.parametrize(("spacing", "agreement"), [((2.0, 1.0, 1.5), 1.0), ((2.6, 0.7, 1.2), 0.97)])
def test_masks_find_their_way_back_through_crop_permutation_and_resampling(place, spacing, agreement):
    """File axes (x, y, z) of spacing (1, 1.5, 2) mm; array (z, y, x); plan (z, x, y); a border of zeros."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(8, 30, (6, 3))
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 36, 34)], indexing="ij"), -1)
    image = 50 + 200 * sum(np.exp(-((grid - center) ** 2).sum(-1) / 40) for center in centers)
    image[:3] = image[:, 32:] = image[:, :, :5] = 0
    path = place.images / "case0_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.diag([1, 1.5, 2, 1])), path)
    info = model_info()
    info = info.model_copy(update={"store": info.store.model_copy(update={"axes": (0, 2, 1), "spacing": spacing})})
    case = Case("case0", (path,), None)
    predict_cases([case], [(AboveMean(), info)], place.masks, cpu_settings(overwrite=True))
    expected = np.zeros(image.shape, bool)
    inside = (slice(3, None), slice(None, 32), slice(5, None))
    expected[inside] = image[inside] > image[inside].mean()
    mask = np.asanyarray(nibabel.load(place.masks / "case0.nii.gz").dataobj)
    overlap = 2 * (expected & (mask == 4)).sum() / (expected.sum() + (mask == 4).sum())
    assert set(np.unique(mask)) == {0, 4}
    assert overlap >= agreement
