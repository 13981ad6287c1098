"""The four verbs on real data of every shape: a few steps only, so that the path is proved and not the scores."""

import json
import shutil

import pytest
from conftest import real_dataset

from autoseg.commands.evaluate import evaluate
from autoseg.commands.plan import plan
from autoseg.commands.predict import predict
from autoseg.commands.train import train

CASES_KEPT = 6


def some_cases(name, folder):
    """The first cases of a real dataset, copied: plan and validation stay short."""
    source = real_dataset(name)
    manifest = json.loads((source / "dataset.json").read_text())
    ending = manifest["file_ending"]
    labels = sorted((source / "labelsTr").glob(f"*{ending}"))[:CASES_KEPT]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for label in labels:
        shutil.copy(label, folder / "labelsTr")
        for image in (source / "imagesTr").glob(f"{label.name.removesuffix(ending)}_*{ending}"):
            shutil.copy(image, folder / "imagesTr")
    (folder / "dataset.json").write_text(json.dumps({**manifest, "numTraining": len(labels)}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "configuration"), [
    ("Cardiac_MSCMR_bSSFP", "3d_fullres"), ("Cardiac_MSCMR_bSSFP", "2d"), ("Cardiac_MSCMR_LGE", "2d"),
    ("BraTS2013_2ch", "3d_fullres"), ("WBC_Dataset1", "2d"), ("CXRLung_Montgomery", "2d"), ("AbdCT_SABS", "3d_fullres"),
    ("AbdMR_CHAOS_T2", "3d_fullres"),
])
def test_plan_train_predict_evaluate(tmp_path, name, configuration):
    dataset, run, masks = some_cases(name, tmp_path / "dataset"), tmp_path / "run", tmp_path / "masks"
    assert plan(dataset, run=run, memory_gib=4.0) == 0
    assert train(run=run, configuration=configuration, preset="quick", epochs=1, steps_per_epoch=2, device="cpu") == 0
    assert predict(input=dataset / "imagesTr", output=masks, run=run, tta=False, device="cpu") == 0
    assert evaluate(predictions=masks, references=dataset / "labelsTr", dataset=dataset) == 0
    scores = json.loads((masks / "scores.json").read_text())
    manifest = json.loads((dataset / "dataset.json").read_text())
    assert set(scores["labels"]) == set(manifest["labels"]) - {"background"}
    assert len(scores["cases"]) == manifest["numTraining"]
