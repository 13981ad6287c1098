"""The published protocols on data of the published layout: tiny phantom CTs under the published names.

The path is proved, not the scores: patches are a quarter of the published ones, and trainings have two steps.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from protocol_data import open_published  # noqa: E402
from protocol_files import load_protocol  # noqa: E402
from protocols import run_protocol  # noqa: E402

MONAI_LABELS = ("background", "spleen", "rkid", "lkid", "gall", "eso", "liver", "sto", "aorta", "IVC", "veins",
                "pancreas", "rad", "lad")
ABDOMEN_CASES = ("0005", "0006", "0007", "0001", "0002")
SHAPE, SPACING = (40, 48, 48), (2.5, 1.5, 1.5)


def write_case(image: Path, label: Path, organs: int, seed: int) -> None:
    """A body of water in air, with `organs` cubes of 8 voxels' edge and of 60 HU and more, each at its own place."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    body = ((y - 23.5) / 23) ** 2 + ((x - 23.5) / 23) ** 2 < 1
    labels = np.zeros(SHAPE, np.uint8)
    for organ in range(organs):
        low = (4 + 12 * (organ // 9) % 36 + rng.integers(3), 8 + 12 * (organ // 3 % 3), 8 + 12 * (organ % 3))
        labels[tuple(slice(start, start + 8) for start in low)] = organ + 1
    voxels = np.where(body, 0, -1000) + np.where(labels > 0, 60 + 10 * labels, 0) + rng.normal(0, 10, SHAPE)
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1])
    for path, array in ((image, voxels.astype(np.int16)), (label, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.T, affine), path)


def monai_btcv(folder: Path) -> Path:
    """imagesTr/img0001.nii.gz, labelsTr/label0001.nii.gz, listed in dataset_0.json as MONAI's UNETR has it."""
    pairs = [{"image": f"imagesTr/img{number}.nii.gz", "label": f"labelsTr/label{number}.nii.gz"}
             for number in ABDOMEN_CASES]
    for seed, pair in enumerate(pairs):
        write_case(folder / pair["image"], folder / pair["label"], 13, seed)
    (folder / "dataset_0.json").write_text(json.dumps({
        "name": "btcv", "labels": {str(value): name for value, name in enumerate(MONAI_LABELS)},
        "modality": {"0": "CT"}, "numTraining": 3, "training": pairs[:3], "validation": pairs[3:],
        "test": ["imagesTs/img0061.nii.gz"]}))
    return folder


def nnunet_synapse(folder: Path) -> Path:
    """imagesTr/img0001_0000.nii.gz, labelsTr/img0001.nii.gz, as nnFormer and UNETR++ convert the same cases."""
    for seed, number in enumerate(ABDOMEN_CASES):
        write_case(folder / f"imagesTr/img{number}_0000.nii.gz", folder / f"labelsTr/img{number}.nii.gz", 13, seed)
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 5,
        "labels": load_protocol("synapse-unetr-pp").labels}))
    return folder


def decathlon_lung(folder: Path) -> Path:
    """imagesTr/lung_001.nii.gz, labelsTr/lung_001.nii.gz, as the Decathlon's Task06_Lung."""
    names = [f"lung_{number}.nii.gz" for number in ("004", "005", "006", "001", "003")]
    for seed, name in enumerate(names):
        write_case(folder / "imagesTr" / name, folder / "labelsTr" / name, 1, seed)
    (folder / "dataset.json").write_text(json.dumps({
        "name": "Lung", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "cancer"}, "numTraining": 5,
        "numTest": 0, "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": []}))
    return folder


LAYOUTS = {"btcv-unetr": monai_btcv, "synapse-unetr-pp": nnunet_synapse, "lung-unetr-pp": decathlon_lung}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout_is_opened(name: str, tmp_path: Path) -> None:
    dataset, found = open_published(LAYOUTS[name](tmp_path / "data"), load_protocol(name), tmp_path / "view")
    assert len(dataset.cases) == 5 and found == ("dataset_0.json" if name == "btcv-unetr" else "dataset.json")
    assert all(case.label is not None and case.label.exists() for case in dataset.cases)
    assert dataset.channel_names == ("CT",)


def test_a_second_set_of_labels_is_taken_where_it_has_the_protocols_organs(tmp_path: Path) -> None:
    """As in AbdCT_SABS: four organs in labelsTr, thirteen in labelsTr_13organs."""
    protocol, folder = load_protocol("btcv-unetr"), nnunet_synapse(tmp_path / "data")
    (folder / "labelsTr").rename(folder / "labelsTr_13organs")
    for path in (folder / "labelsTr_13organs").iterdir():
        image = nibabel.load(path)
        few = np.where(np.asarray(image.dataobj) < 3, np.asarray(image.dataobj), 0).astype(np.uint8)
        (folder / "labelsTr").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(few, image.affine), folder / "labelsTr" / path.name)
    manifest = json.loads((folder / "dataset.json").read_text())
    few_names = {"background": 0, "spleen": 1, "right_kidney": 2}
    (folder / "dataset.json").write_text(json.dumps(
        {**manifest, "labels": few_names, "labels_13organs": protocol.labels}))
    dataset, found = open_published(folder, protocol, tmp_path / "view")
    assert found == "labelsTr_13organs" and dataset.labels == protocol.labels
    assert {case.label.parent.name for case in dataset.cases if case.label} == {"labelsTr_13organs"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_protocol_runs_on_the_published_layout(name: str, tmp_path: Path) -> None:
    """Both arms, as commands; UNETR's 88 million weights and five processes of autoseg take a minute or two."""
    data, protocol = LAYOUTS[name](tmp_path / "Task"), load_protocol(name)
    results = tmp_path / "results.jsonl"
    line = run_protocol(name, data, tmp_path / "work", 2, "cpu", results, shrink=4)
    assert line["split"]["published"] and len(line["split"]["train"]) == 3 and len(line["split"]["test"]) == 2
    assert f"3 of {len(protocol.splits.train)} training and 2 of" in line["split"]["said"]
    assert line["shrink"] == 4 and sorted(line["patch"]) == sorted(size // 4 for size in protocol.patch)
    for arm in ("scratch", "lwi"):
        for subset in protocol.metrics.subsets:
            assert 0 <= line["arms"][arm][subset]["dice"] <= 1
    assert line["arms"]["lwi"]["first_weights"]["steps"] == line["pretraining_steps"] == 1
    assert results.read_text().count("\n") == 1
    again = run_protocol(name, data, tmp_path / "work", 2, "cpu", results, shrink=4)
    assert again == line and results.read_text().count("\n") == 1, "a finished run is not made again"
