"""Datasets that a user must mend: each problem is named with file, value, expectation and next step."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.data.dataset import Dataset, open_dataset
from autoseg.data.integrity import CaseProblems, load_case, raise_problems
from autoseg.errors import UserError

MANIFEST = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "tumor": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2, 3, 1]) if affine is None else affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound dataset of two cases and two channels."""
    folder = tmp_path / "Dataset001"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        for channel in range(2):
            save(folder / "imagesTr" / f"{case}_000{channel}.nii.gz", rng.normal(size=(4, 5, 6)).astype(np.float32))
        save(folder / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 2, (4, 5, 6)).astype(np.uint8))
    (folder / "dataset.json").write_text(json.dumps(MANIFEST))
    return folder


def change(folder: Path, **keys: object) -> None:
    content = {**MANIFEST, **keys}
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content))


def message(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(folder)
    return str(caught.value)


def problems(folder: Path, case: int = 0) -> str:
    """All problems of a case, checked to begin with a path each."""
    dataset = open_dataset(folder)
    found = load_case(dataset.cases[case], dataset)
    assert isinstance(found, CaseProblems)
    assert all(problem.startswith(str(folder)) for problem in found.problems)
    return "\n".join(found.problems)


# ------------------------------------------------------------------------------------------------ dataset.json
def test_no_folder(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "none") and "imagesTr" in message(tmp_path / "none")


def test_no_dataset_json_explains_the_layout(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    text = message(folder)
    assert "dataset.json does not exist" in text
    assert all(name in text for name in ("imagesTr/", "labelsTr/", "_0000", "channel_names"))
    (folder / "dataset.json").write_text(json.dumps(MANIFEST))
    assert "Dataset001" in message(folder.parent)  # one folder too high


@pytest.mark.parametrize("content", ["{", "", "\xff\xfe", "[1]", '"text"'])
def test_not_json_or_no_object(content: str, folder: Path) -> None:
    (folder / "dataset.json").write_bytes(content.encode("latin-1"))
    text = message(folder)
    assert str(folder / "dataset.json") in text and ("JSON" in text or "expected" in text)


def test_missing_keys_are_named_together(folder: Path) -> None:
    change(folder, labels=None, channel_names=None)
    assert "labels" in message(folder).splitlines()[0] and "channel_names" in message(folder).splitlines()[0]


@pytest.mark.parametrize(("keys", "needles"), [
    ({"numTraining": 260}, ("numTraining is 260", "2 cases")),
    ({"labels": {"background": 0, "x": 1, "y": 1}}, ("'x' and 'y'", "same value 1")),
    ({"labels": {"0": "background", "1": "x", "2": "x"}}, ("'x' stands 2 times",)),
    ({"labels": {"tumor": 1}}, ("no 'background'",)),
    ({"labels": {"bg": 0, "tumor": 1}}, ("no 'background'", "'bg'", "rename")),
    ({"labels": {"background": 0}}, ("only background",)),
    ({"labels": {"background": 5, "tumor": 1}}, ("background has value 5; 0 was expected",)),
    ({"labels": {"5": "background", "0": "tumor"}}, ("background has value 5; 0 was expected",)),
    ({"labels": {"background": 0, "x": "many"}}, ("'x': 'many'", "integer")),
    ({"labels": {"background": 0, "whole": [1, 2], "x": 1}}, ("regions_class_order is missing", "whole, x")),
    ({"labels": {"background": 0, "whole": [1, 2], "x": 1}, "regions_class_order": [1]}, ("has 1 values", "2 regions")),
    ({"labels": {"background": 0, "whole": [1, 2], "x": 1}, "regions_class_order": [1, 7]}, ("holds 7",)),
    ({"labels": {"background": 0, "whole": []}}, ("'whole' is an empty list",)),
    ({"labels": {"background": 0, "x": 2, "ignore": 1}}, ("'ignore' is 1", "Give it 3")),
    ({"labels": {"background": 0, "x": 1, "ignore": [2, 3]}}, ("'ignore' is 2, 3", "one value above")),
    ({"annotated_labels": {"case1": ["nothing"]}}, ("annotated_labels: case 'case1': 'nothing' is none of",)),
    ({"annotated_labels": {"case1": []}}, ("has no annotated label",)),
    ({"patients": {"nobody": "p"}}, ("patients: 'nobody' is no case",)),
    ({"channel_names": {"0": "a", "2": "b"}}, ("channel numbers are 0, 2", "without gaps")),
    ({"modality": {"0": "MR"}}, ("contradicts modality",)),
    ({"channel_names": {}}, ("channel numbers are missing",)),
    ({"file_ending": "nii.gz"}, ("must begin with a dot",)),
    ({"file_ending": ".jpg"}, ("'.jpg'", ".nii.gz")),
    ({"file_ending": ".mha"}, ("no file ending in '.mha'", "'.nii.gz' (4)")),
    ({"labels": {"background": 0, "x": {"a": 1}}}, ("labels",)),
    ({"numTraining": "two"}, ("numTraining",)),
])
def test_contradictions(keys: dict[str, object], needles: tuple[str, ...], folder: Path) -> None:
    change(folder, **keys)
    text = message(folder)
    assert "dataset.json" in text or str(folder) in text
    for needle in needles:
        assert needle in text


def test_all_problems_come_together(folder: Path) -> None:
    (folder / "imagesTr" / "a_0001.nii.gz").unlink()
    (folder / "labelsTr" / "b.nii.gz").rename(folder / "labelsTr" / "c.nii.gz")
    save(folder / "imagesTr" / "d.nii.gz", np.zeros((2, 2, 2), np.uint8))
    save(folder / "imagesTr" / "e_0000.nii", np.zeros((2, 2, 2), np.uint8))
    save(folder / "imagesTr" / "a_0002.nii.gz", np.zeros((2, 2, 2), np.uint8))
    change(folder, numTraining=9, labels={"background": 0, "x": 1, "y": 1})
    text = message(folder)
    assert text.startswith("8 problems in the dataset")
    for needle in (
        "same value 1", "a_0001.nii.gz is missing: 2 channels are declared", "a_0002.nii.gz: channel 2 is not",
        "b.nii.gz is missing: case 'b' has images but no labels", "c.nii.gz: labels without an image",
        "d.nii.gz: no channel number", "e_0000.nii: ends in '.nii'", "numTraining is 9",
    ):
        assert needle in text, needle


def test_missing_folders_and_no_cases(folder: Path) -> None:
    for path in (*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()):
        path.unlink()
    assert "holds no file ending in '.nii.gz'; there are no files" in message(folder)
    (folder / "labelsTr").rmdir()
    assert "labelsTr does not exist" in message(folder)
    change(folder, channel_names=None, file_ending=None, modality={"0": "MR"}, training=[])
    assert "no cases" in message(folder) or "no files" in message(folder)


def test_listed_files_that_do_not_exist(folder: Path) -> None:
    listed = {"one": {"images": ["imagesTr/a_0000.nii.gz", "imagesTr/x.nii.gz"], "label": "$HOME/a.nii.gz"}}
    change(folder, dataset=listed, numTraining=1)
    text = message(folder)
    assert "x.nii.gz does not exist" in text and "environment variables are not expanded" in text
    listed["one"] = {"images": ["imagesTr/a_0000.nii.gz"] * 3, "label": "labelsTr/a.nii.gz"}
    change(folder, dataset=listed, numTraining=1)
    assert "lists 3 images; 2 channels are declared" in message(folder)
    change(folder, dataset={"one": {"images": ["a.nii.gz"]}})
    assert "dataset.one.label" in message(folder)


@pytest.mark.parametrize("case", ["", "a/b", "../a", "a\\b", ".a", "..", "/tmp/a"])
def test_case_ids_that_cannot_name_files(case: str, folder: Path) -> None:
    images = [f"imagesTr/a_000{channel}.nii.gz" for channel in range(2)]
    change(folder, dataset={case: {"images": images, "label": "labelsTr/a.nii.gz"}}, numTraining=1)
    text = message(folder)
    assert f"case id '{case}' cannot name files" in text and text.startswith("1 problem in")


@pytest.mark.parametrize("name", [".nii.gz", ".a.nii.gz", "a\\b.nii.gz"])
def test_case_ids_of_training_lists_that_cannot_name_files(name: str, folder: Path) -> None:
    (folder / "labelsTr" / "a.nii.gz").rename(folder / "labelsTr" / name)
    change(folder, channel_names=None, file_ending=None, modality={"0": "MR"}, numTraining=1,
           training=[{"image": "imagesTr/a_0000.nii.gz", "label": f"labelsTr/{name}"}])
    assert f"case id '{name.removesuffix('.nii.gz')}' cannot name files" in message(folder)


@pytest.mark.parametrize("locked", ["", "imagesTr", "labelsTr"])
def test_folders_that_may_not_be_read(locked: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == folder / locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    text = message(folder)
    assert str(folder / locked) in text and "cannot be listed: Permission denied" in text and "permissions" in text


def test_training_lists(folder: Path) -> None:
    keys = {"channel_names": None, "modality": {"0": "MR"}, "file_ending": None}
    change(folder, **keys, training=[{"image": "imagesTr/none.nii.gz", "label": "labelsTr/a.nii.gz"}, {"image": "x"}])
    text = message(folder)
    assert "none.nii.gz does not exist" in text and "lacks 'image' or 'label'" in text


# ------------------------------------------------------------------------------------------------ the files
@pytest.mark.parametrize(("affine", "topic"), [
    (np.diag([1.0, 2, 3.01, 1]), "spacing"),
    (np.diag([-1.0, 2, 3, 1]), "direction"),
    (np.array([[1.0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]), "origin"),
])
@pytest.mark.parametrize("victim", ["imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"])
def test_grids_that_differ(victim: str, affine: np.ndarray, topic: str, folder: Path) -> None:
    save(folder / victim, np.zeros((4, 5, 6), np.uint8), affine)
    text = problems(folder)
    assert victim in text and topic in text and "against" in text and "export" in text


@pytest.mark.parametrize("victim", ["imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"])
def test_shapes_that_differ_and_everything_that_differs_is_stated(victim: str, folder: Path) -> None:
    save(folder / victim, np.zeros((4, 5, 7), np.uint8), np.diag([1.0, 2.5, 3, 1]))
    text = problems(folder)
    assert "shape (7, 5, 4) against (6, 5, 4)" in text and "spacing (3.0, 2.5, 1.0) against (3.0, 2.0, 1.0)" in text


def test_undeclared_values_are_counted(folder: Path) -> None:
    labels = np.zeros((4, 5, 6), np.int16)
    labels[0, 0, :3], labels[1, 1, 1] = 7, -1
    save(folder / "labelsTr" / "a.nii.gz", labels)
    text = problems(folder)
    assert "a.nii.gz" in text and "-1 (1 voxels), 7 (3 voxels)" in text and "1 (tumor)" in text


def _nan(folder: Path) -> str:
    save(folder / "imagesTr" / "a_0000.nii.gz", np.full((4, 5, 6), np.nan, np.float32))
    return "120 NaN"


def _not_integers(folder: Path) -> str:
    save(folder / "labelsTr" / "a.nii.gz", np.full((4, 5, 6), 0.5, np.float32))
    return "0.5"


def _truncated(folder: Path) -> str:
    path = folder / "labelsTr" / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    return "cannot be read as gzip-compressed NIfTI"


def _empty(folder: Path) -> str:
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    return "empty (0 bytes)"


def _wrong_content(folder: Path) -> str:
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkUInt8), str(folder / "x.nrrd"))
    (folder / "x.nrrd").rename(folder / "imagesTr" / "a_0000.nii.gz")
    return "looks like NRRD"


def _four_axes(folder: Path) -> str:
    save(folder / "imagesTr" / "a_0000.nii.gz", np.zeros((4, 5, 6, 3), np.uint8))
    return "3-D image was expected"


@pytest.mark.parametrize("damage", [_nan, _not_integers, _truncated, _empty, _wrong_content, _four_axes])
def test_bad_files(damage: Callable[[Path], str], folder: Path) -> None:
    assert damage(folder) in problems(folder)


def test_problems_of_image_and_labels_come_together_and_sound_cases_pass(folder: Path) -> None:
    _nan(folder)
    save(folder / "labelsTr" / "a.nii.gz", np.full((4, 5, 6), 3, np.uint8))
    assert len(problems(folder).splitlines()) == 2
    dataset = open_dataset(folder)
    assert not isinstance(load_case(dataset.cases[1], dataset), CaseProblems)


def test_many_problems_are_cut_and_counted(folder: Path) -> None:
    dataset: Dataset = open_dataset(folder)
    many = [CaseProblems(f"c{number}", ("one thing", "another")) for number in range(30)]
    with pytest.raises(UserError) as caught:
        raise_problems(many, dataset)
    lines = str(caught.value).splitlines()
    assert "60 problems in 30 of 2 cases" in lines[0] and str(folder) in lines[0]
    assert len(lines) == 23 and "40 more" in lines[-2]
