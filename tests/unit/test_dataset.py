"""Sound datasets in every dialect: which files belong to which case, and what the labels mean."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import real_dataset
from PIL import Image

from autoseg.data.dataset import Dataset, list_images, open_dataset
from autoseg.data.integrity import LoadedCase, load_case
from autoseg.errors import UserError

LABELS = {"background": 0, "tumor": 1, "organ": 2}


def save(path: Path, voxels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(24).reshape(2, 3, 4) if voxels is None else voxels
    if path.suffix == ".png":
        Image.fromarray(voxels.astype(np.uint8)).save(path)
    else:
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([1.0, 2, 3, 1])), path)


def write_manifest(folder: Path, **keys: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(keys))


def load_all(dataset: Dataset) -> list[LoadedCase]:
    loaded = [load_case(case, dataset) for case in dataset.cases]
    assert all(isinstance(case, LoadedCase) for case in loaded), loaded
    return [case for case in loaded if isinstance(case, LoadedCase)]


def test_nnunet_v2(tmp_path: Path) -> None:
    for case in ("b", "a"):
        for channel in range(2):
            save(tmp_path / "imagesTr" / f"{case}_000{channel}.nii.gz")
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", np.arange(24).reshape(2, 3, 4) % 3)
    save(tmp_path / "imagesTr" / "._a_0000.nii.gz")  # macOS
    (tmp_path / "imagesTr" / "README.txt").write_text("ignored")
    write_manifest(tmp_path, channel_names={"1": "T2", "0": "T1"}, labels=LABELS, numTraining=2,
                   file_ending=".nii.gz", training=[], name="Two", licence="any")
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.channel_names, dataset.labels) == ("Two", ("T1", "T2"), LABELS)
    assert [case.id for case in dataset.cases] == ["a", "b"] and not dataset.channels_in_one_file
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    for loaded in load_all(dataset):
        assert loaded.image.voxels.shape == (2, 4, 3, 2) and loaded.labels.dtype == np.uint8
        np.testing.assert_array_equal(loaded.labels, (np.arange(24).reshape(2, 3, 4) % 3).T)


def test_msd_with_four_axes_and_labels_by_value(tmp_path: Path) -> None:
    save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", np.zeros((2, 3, 4, 2)))
    save(tmp_path / "imagesTr" / "._BRATS_001.nii.gz")
    save(tmp_path / "labelsTr" / "BRATS_001.nii.gz", np.full((2, 3, 4), 2))
    write_manifest(tmp_path, name="BRATS", modality={"0": "FLAIR", "1": "T1w"}, numTraining=1,
                   labels={"0": "background", "1": "tumor", "2": "organ"}, test=["./imagesTs/BRATS_485.nii.gz"],
                   training=[{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}])
    dataset = open_dataset(tmp_path)
    assert (dataset.channels_in_one_file, dataset.file_ending) == (True, ".nii.gz")
    assert dataset.labels == LABELS and dataset.cases[0].id == "BRATS_001"
    assert load_all(dataset)[0].image.voxels.shape == (2, 4, 3, 2)


def test_nnunet_v1_lists_files_without_channel_numbers(tmp_path: Path) -> None:
    save(tmp_path / "imagesTr" / "a_0000.nii.gz")
    save(tmp_path / "imagesTr" / "a_0001.nii.gz")
    save(tmp_path / "labelsTr" / "a.nii.gz", np.zeros((2, 3, 4)))
    write_manifest(tmp_path, modality={"0": "CT", "1": "PET"}, labels={"0": "background", "1": "tumor"},
                   numTraining=1, training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}])
    dataset = open_dataset(tmp_path)
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert not dataset.channels_in_one_file
    load_all(dataset)


def test_explicit_lists_absolute_and_relative(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.nii.gz")
    save(tmp_path / "set" / "masks" / "x.nii.gz", np.ones((2, 3, 4)))
    write_manifest(tmp_path / "set", channel_names={"0": "CT"}, labels={"background": 0, "tumor": 1},
                   numTraining=1, file_ending=".nii.gz",
                   dataset={"one": {"images": [str(tmp_path / "elsewhere" / "x.nii.gz")],
                                    "label": "masks/x.nii.gz"}})
    dataset = open_dataset(tmp_path / "set")
    assert dataset.cases[0].id == "one"
    assert load_all(dataset)[0].labels.all()


@pytest.mark.parametrize("values", [(0, 7, -3), (0, 1000, 40000), (0, 5, 2), (0, 70000, -70000)])
def test_any_integers_are_labels_and_become_consecutive(values: tuple[int, ...], tmp_path: Path) -> None:
    names = ("background", "tumor", "organ")
    order = np.argsort(values[1:])
    stored = np.array(values)[np.arange(24).reshape(2, 3, 4) % 3]
    save(tmp_path / "imagesTr" / "a_0000.nii.gz")
    nib.save(nib.Nifti1Image(stored.astype(np.int32), np.diag([1.0, 2, 3, 1])), tmp_path / "l.nii.gz")
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "l.nii.gz").rename(tmp_path / "labelsTr" / "a.nii.gz")
    write_manifest(tmp_path, channel_names={"0": "CT"}, labels=dict(zip(names, values, strict=True)),
                   file_ending=".nii.gz")
    dataset = open_dataset(tmp_path)
    assert list(dataset.labels) == ["background", *(names[1 + index] for index in order)]
    loaded = load_all(dataset)[0]
    np.testing.assert_array_equal(np.array(list(dataset.labels.values()))[loaded.labels], stored.T)
    assert loaded.labels.max() == 2 and loaded.labels.dtype == np.uint8


def test_color_pictures_hold_all_channels_in_one_file(tmp_path: Path) -> None:
    save(tmp_path / "imagesTr" / "a_0000.png", np.random.default_rng(0).integers(0, 255, (5, 6, 3)))
    save(tmp_path / "labelsTr" / "a.png", np.zeros((5, 6)))
    write_manifest(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, numTraining=1, file_ending=".png",
                   labels={"background": 0, "cell": 1})
    loaded = load_all(open_dataset(tmp_path))[0]
    assert loaded.image.voxels.shape == (3, 1, 5, 6) and loaded.image.grid.is_2d


def test_a_one_entry_list_is_a_label_and_background_may_be_capitalized(tmp_path: Path) -> None:
    save(tmp_path / "imagesTr" / "a_0000.nii.gz")
    save(tmp_path / "labelsTr" / "a.nii.gz", np.zeros((2, 3, 4)))
    write_manifest(tmp_path, channel_names={"0": "CT"}, labels={"Background": 0, "tumor": [1]})
    assert open_dataset(tmp_path).labels == {"background": 0, "tumor": 1}


# ------------------------------------------------------------------------------------------------ list_images
def test_images_to_predict_are_grouped_by_case(tmp_path: Path) -> None:
    for name in ("b_0000", "b_0001", "a_0000", "a_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    cases = list_images(tmp_path, 2, ".nii.gz")
    assert [case.id for case in cases] == ["a", "b"] and all(case.label is None for case in cases)
    assert [path.name for path in cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_a_missing_channel_fails_its_case_only(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0002", "b_0000", "b_0001", "b_0002"):
        save(tmp_path / f"{name}.nii.gz")
    one, other = list_images(tmp_path, 3, ".nii.gz")
    assert [path.name for path in one.images] == ["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"]
    assert not one.images[1].exists() and all(path.exists() for path in other.images)


def test_surplus_channels_stay_visible(tmp_path: Path) -> None:
    """So that predicting two-channel images with a one-channel model fails instead of dropping a channel."""
    for name in ("a_0000", "a_0001"):
        save(tmp_path / f"{name}.nii.gz")
    assert [len(case.images) for case in list_images(tmp_path, 1, ".nii.gz")] == [2]


@pytest.mark.parametrize(("names", "ending", "channels"), [
    (("p12.nii.gz", "p13_0000.nii.gz"), ".nii.gz", 1),
    (("p12.png", "p13_0000.png"), ".png", 3),
    (("p12_2004.nii.gz", "p13.nii.gz"), ".nii.gz", 1),
])
def test_plain_names_are_cases(names: tuple[str, ...], ending: str, channels: int, tmp_path: Path) -> None:
    for name in (*names, "notes.txt", ".hidden.nii.gz"):
        (tmp_path / name).touch()
    cases = list_images(tmp_path, channels, ending)
    assert [case.images for case in cases] == [(tmp_path / name,) for name in names]


@pytest.mark.parametrize(("names", "needle"), [
    ((), "no image ending in '.nii.gz'"),
    (("a.png",), "'.png'"),
    (("a_0000.nii.gz", "b_0000.nii"), "b_0000.nii"),
    (("a_0000.nii.gz", "a.nii.gz"), "both case 'a'"),
])
def test_folders_that_cannot_be_predicted(names: tuple[str, ...], needle: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=needle):
        list_images(tmp_path, 1, ".nii.gz")


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "none", 1, ".nii.gz")


# ------------------------------------------------------------------------------------------------ real data
@pytest.mark.parametrize(("name", "count", "shape"), [
    ("Cardiac_MSCMR_LGE", 10, (1, 3)), ("WBC_Dataset1", 150, (3, 2)), ("BraTS2013_2ch", 3, (2, 3)),
])
def test_real_datasets_open_and_load(name: str, count: int, shape: tuple[int, int]) -> None:
    dataset = open_dataset(real_dataset(name))
    assert len(dataset.cases) == count
    loaded = load_case(dataset.cases[0], dataset)
    assert isinstance(loaded, LoadedCase)
    assert (loaded.image.voxels.shape[0], 2 if loaded.image.grid.is_2d else 3) == shape
