"""Regions, an ignore label and partly annotated cases from the dataset to the scores."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_training import write_dataset

from autoseg.commands.evaluate import evaluate
from autoseg.commands.plan import plan
from autoseg.commands.predict import predict
from autoseg.commands.train import train
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo, LabelNames, Plan, Scores

SHORT = {"preset": "quick", "epochs": 1, "steps_per_epoch": 2, "device": "cpu"}


def redeclare(dataset: Path, **keys: object) -> None:
    """Change keys of dataset.json."""
    path = dataset / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def values_in(folder: Path) -> set[int]:
    return {int(value) for file in folder.glob("*.nii.gz") for value in np.unique(nibabel.load(file).dataobj)}


@pytest.mark.parametrize("kind", ["regions", "ignore", "partial"])
def test_from_dataset_to_scores(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "dataset", cases=3, labels={"background": 0, "ball": 7, "core": 8})
    labels = {name: value for name, value in json.loads((dataset / "dataset.json").read_text())["labels"].items()
              if value != 0}
    first, last = min(labels.values()), max(labels.values())
    names = set(labels)
    if kind == "regions":
        redeclare(dataset, labels={"background": 0, "whole": sorted(labels.values()), "part": [last]},
                  regions_class_order=[first, last])
        names = {"whole", "part"}
    elif kind == "ignore":
        redeclare(dataset, labels={"background": 0, **labels, "ignore": last + 1})
        for file in (dataset / "labelsTr").glob("*.nii.gz"):
            image = nibabel.load(file)
            voxels = np.asarray(image.dataobj).copy()
            voxels[..., ::2] = last + 1
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), file)
    else:
        case = sorted((dataset / "labelsTr").glob("*.nii.gz"))[0].name.removesuffix(".nii.gz")
        redeclare(dataset, annotated_labels={case: [next(iter(labels))]})
    run = tmp_path / "run"
    plan(dataset, run=run, workers=1)
    planned = read_record(Plan, run / "plan.json")
    assert set(planned.foreground) == names and planned.ignore == (last + 1 if kind == "ignore" else None)
    assert train(run=run, **SHORT) == 0
    folder = next(run.glob("models/*/3d_fullres/fold_0"))
    info = read_record(CheckpointInfo, folder / "model.json")
    assert (info.labels, info.regions, info.ignore) == (planned.labels, planned.regions, planned.ignore)
    assert set(read_record(Scores, folder / "scores.json").labels) == names
    predict(input=dataset / "imagesTr", output=tmp_path / "masks", run=run, device="cpu", save_probabilities=True)
    assert values_in(folder / "validation") <= {0, *labels.values()}
    assert read_record(LabelNames, tmp_path / "masks" / "labels.json").foreground == planned.foreground
    probabilities = nibabel.load(next((tmp_path / "masks").glob("*_probabilities.nii.gz")))
    assert probabilities.shape[-1] == len(planned.outputs)
    given = dataset if kind == "partial" else None
    assert evaluate(predictions=tmp_path / "masks", references=dataset / "labelsTr", dataset=given, workers=1) == 0
    scores = read_record(Scores, tmp_path / "masks" / "scores.json")
    assert set(scores.labels) == names and len(scores.cases) == 3
    if kind == "partial":
        hidden = [name for name in names if name not in read_annotated(dataset, case)]
        of_case = next(one for one in scores.cases if one.id == case).labels
        assert hidden and all(of_case[name].dice is None for name in hidden)


def read_annotated(dataset: Path, case: str) -> list[str]:
    return json.loads((dataset / "dataset.json").read_text())["annotated_labels"][case]
