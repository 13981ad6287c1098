"""`autoseg import-nnunet`, `predict` from what it wrote, and every folder that it refuses, leaving nothing behind."""

import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from command_line import run_command
from nnunet_folders import LABELS, TRAINER, configuration, dataset, peer_network, plans, write_results

from autoseg.networks.checkpoint import read_model

NAMES = {"2d": 2, "3d_lowres": 3, "3d_fullres": 3, "3d_cascade_fullres": 3}


def planned(kind: str = "plain") -> dict[str, Any]:
    return plans({
        "2d": configuration(kind, 2), "3d_lowres": configuration(kind, 3, spacing=[5.0, 2.0, 2.5]),
        "3d_fullres": configuration(kind, 3),
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    })


def write(root: Path, name: str, folds: tuple[str, ...] = ("0",), declared: Any = None, **changes: Any) -> Path:
    declared = declared or dataset()
    torch.manual_seed(len(name))
    has_regions = any(isinstance(entry, list) for entry in declared["labels"].values())
    heads = len(declared["labels"]) - has_regions
    inputs = 3 if name == "3d_cascade_fullres" else 1
    described = configuration("plain", NAMES[name])["architecture"]
    networks = {fold: peer_network(described, inputs, heads) for fold in folds}
    return write_results(root, planned(), declared, name, networks, **changes)


def import_into(run: Path, folder: Path, *options: object) -> tuple[int, str]:
    return run_command("import-nnunet", folder, "--run", run, *options)


def test_a_datasets_folder_becomes_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every configuration, folds with numbers and `all`, what training left on record, and run.json."""
    results, run = tmp_path / "Dataset900_Test", tmp_path / "run"
    for name in NAMES:
        write(results, name, ("0", "3", "all") if name == "2d" else ("0",))
    (results / "ensembles").mkdir()
    status, _ = import_into(run, results, "--json")
    assert status == 0
    told = json.loads(capsys.readouterr().out)
    assert {model["configuration"]: model["folds"] for model in told["models"]} == {
        "2d": ["0", "3", "all"], "3d_lowres": ["0"], "3d_fullres": ["0"], "3d_cascade_fullres": ["0"]
    }
    infos = {name: read_model(run / "models" / "nnunet-plain" / name / "fold_0")[1] for name in NAMES}
    assert infos["3d_cascade_fullres"].previous_stage.model_dump() == {
        "name": "nnunet-plain", "configuration": "3d_lowres"
    }
    assert infos["2d"].steps == 500 and infos["2d"].seconds == 90.5 and infos["2d"].training["trainer"] == TRAINER
    record = json.loads((run / "run.json").read_text())
    assert record["command"] == "import-nnunet" and len(record["inputs"]["2d/fold_0"]) == 64
    assert sorted(path.name for path in run.iterdir()) == ["models", "run.json"]


@pytest.mark.parametrize("regions", [False, True])
def test_predict_uses_an_imported_model(regions: bool, tmp_path: Path) -> None:
    """A run folder without plan.json; axes in nnU-Net's order, the grid of the image, painted values."""
    declared = dataset({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2]) if regions else None
    folder, run = write(tmp_path / "results", "3d_fullres", ("0", "1"), declared), tmp_path / "run"
    assert import_into(run, folder)[0] == 0
    voxels = np.random.default_rng(0).normal(100, 9, (18, 15, 12)).astype("f4")
    image = nibabel.Nifti1Image(voxels, np.diag([1, 2, 3, 1]))
    (tmp_path / "images").mkdir()
    nibabel.save(image, tmp_path / "images" / "a_0000.nii.gz")
    status, _ = run_command("predict", "-i", tmp_path / "images", "-o", tmp_path / "masks", "--run", run,
                            "--device", "cpu")
    assert status == 0
    mask = nibabel.load(tmp_path / "masks" / "a.nii.gz")
    np.testing.assert_allclose(mask.affine, image.affine)
    assert mask.shape == image.shape and set(np.unique(mask.dataobj)) <= {0, 1, 2}
    names = json.loads((tmp_path / "masks" / "labels.json").read_text())
    assert names["labels"] == ({"background": 0, "value_1": 1, "core": 2} if regions else LABELS)


def test_existing_models_need_overwrite(tmp_path: Path) -> None:
    folder, run = write(tmp_path, "2d", ("0", "1")), tmp_path / "run"
    assert import_into(run, folder, "--folds", "1", "--name", "old")[0] == 0
    target = run / "models" / "old" / "2d" / "fold_1"
    (target / "scores.json").write_text("{}")
    status, message = import_into(run, folder, "--name", "old")
    assert status == 2 and "1 of 2 folds exist" in message and not target.with_name("fold_0").exists()
    assert import_into(run, folder, "--name", "old", "--overwrite")[0] == 0
    assert sorted(path.name for path in target.iterdir()) == ["model.json", "weights.safetensors"]


def test_a_cascade_takes_its_previous_stage_along_or_says_that_it_is_missing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    cascade = write(results, "3d_cascade_fullres")
    status, message = import_into(tmp_path / "run", cascade)
    assert status == 2 and "needs the masks of 3d_lowres" in message
    lowres = write(results, "3d_lowres")
    assert import_into(tmp_path / "run", cascade)[0] == 0
    assert (tmp_path / "run" / "models" / "nnunet-plain" / "3d_lowres" / "fold_0" / "model.json").is_file()
    # The stage may have been imported before.
    assert import_into(tmp_path / "run", cascade, "--overwrite")[0] == 0
    assert import_into(tmp_path / "third", lowres)[0] == 0 and import_into(tmp_path / "third", cascade)[0] == 0
    assert import_into(tmp_path / "other", lowres)[0] == 0
    lowres.rename(tmp_path / "away")
    assert import_into(tmp_path / "other", cascade)[0] == 0


def test_a_renamed_folder_is_known_by_its_checkpoints(tmp_path: Path) -> None:
    folder = write(tmp_path / "results", "2d")
    folder.rename(tmp_path / "shared_model")
    assert import_into(tmp_path / "run", tmp_path / "shared_model")[0] == 0
    assert (tmp_path / "run" / "models" / "nnunet-plain" / "2d" / "fold_0" / "model.json").is_file()


def test_another_checkpoint_may_be_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "2d")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    status, message = import_into(tmp_path / "run", folder)
    assert status == 2 and "fold 0 has no checkpoint_final.pth, but checkpoint_best.pth" in message
    assert import_into(tmp_path / "run", folder, "--checkpoint", "checkpoint_best.pth")[0] == 0


class Planted:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(tmp_path: Path, folder: Path, *options: object) -> str:
    """The message; exit status 2, and nothing was written."""
    status, message = import_into(tmp_path / "run", folder, *options)
    assert status == 2 and not (tmp_path / "run").exists()
    return message


def test_folders_that_are_no_results(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no results of nnU-Net v2" in refused(tmp_path, tmp_path / "empty")
    folder = write(tmp_path, "2d")
    (folder / "dataset.json").unlink()
    assert "lacks dataset.json" in refused(tmp_path, folder)
    (folder / "dataset.json").write_text("{")
    assert "not valid JSON" in refused(tmp_path, folder)
    (tmp_path / "a__b__2d").mkdir()
    assert "lacks plans.json and dataset.json" in refused(tmp_path, tmp_path / "a__b__2d")


def test_an_unknown_network(tmp_path: Path) -> None:
    folder = write(tmp_path, "2d")
    other = planned()
    other["configurations"]["2d"]["architecture"]["network_class_name"] = "dynamic.Primus"
    edit(folder / "plans.json", **other)
    assert "the network is dynamic.Primus" in refused(tmp_path, folder)


def test_regions_without_order(tmp_path: Path) -> None:
    folder = write(tmp_path, "2d")
    edit(folder / "dataset.json", labels={"background": 0, "whole": [1, 2], "core": 2})
    assert "regions_class_order is missing" in refused(tmp_path, folder)


def test_missing_folds(tmp_path: Path) -> None:
    folder = write(tmp_path, "2d", ("0", "1"))
    (folder / "fold_1" / "checkpoint_final.pth").unlink()
    assert "fold 1 has no checkpoint_final.pth" in refused(tmp_path, folder)
    assert "fold 4 is missing; there are 0, 1" in refused(tmp_path, folder, "--folds", "0,4")
    assert import_into(tmp_path / "run", folder, "--folds", "0")[0] == 0


def test_checkpoint_and_folder_disagree(tmp_path: Path) -> None:
    """In spacing, in the number of channels, in the fold, in what the folder is called; all before anything is kept."""
    folder = write(tmp_path, "2d", ("0", "1"))
    (folder / "fold_1").rename(folder / "fold_2")
    assert "it is of fold 1, and lies in fold_2" in refused(tmp_path, folder)
    other = planned()
    other["configurations"]["2d"]["spacing"] = [9.0, 9.0]
    edit(folder / "plans.json", **other)
    message = refused(tmp_path, folder, "--folds", "0")
    assert "store: " in message and "spacing is (None, 1.0, 1.25) in the checkpoint, (None, 9.0, 9.0) in the" in message
    edit(folder / "plans.json", **planned())
    edit(folder / "dataset.json", labels={"background": 0, "organ": 1})
    assert "labelled: " in refused(tmp_path, folder, "--folds", "0")
    edit(folder / "dataset.json", **dataset())
    moved = folder.with_name(folder.name.replace("2d", "3d_fullres"))
    folder.rename(moved)
    assert "it was trained as 2d" in refused(tmp_path, moved, "--folds", "0")


def test_weights_that_are_not_the_networks(tmp_path: Path) -> None:
    """Where the checkpoint says nothing of its plans."""
    folder = write(tmp_path, "2d", init_args={}, network_weights={"encoder.x": torch.ones(1)})
    message = refused(tmp_path, folder)
    assert "encoder.x: not a weight" in message and "decoder.0.head.weight: missing" in message
    empty = write(tmp_path / "empty", "2d", network_weights={})
    assert "holds no `network_weights`" in refused(tmp_path, empty)


def test_a_planted_pickle(tmp_path: Path) -> None:
    folder = write(tmp_path, "2d", logging=Planted(tmp_path / "ran"))
    message = refused(tmp_path, folder)
    assert ".system; tensors, numbers and plain containers were expected" in message and "nothing" in message
    assert not (tmp_path / "ran").exists()


def test_two_folders_for_one_model(tmp_path: Path) -> None:
    results = tmp_path / "results"
    folder = write(results, "2d")
    folder.rename(results / "nnUNetTrainer__otherPlans__2d")
    write(results, "2d")
    message = refused(tmp_path, results)
    assert "would become one model" in message and "nnUNetTrainer__otherPlans__2d as nnunet-plain (2d)" in message


@pytest.mark.parametrize("options", [("--name", "a/b"), ("--folds", ","), ("--checkpoint", "../x.pth")])
def test_options_that_make_no_sense(options: tuple[str, str], tmp_path: Path) -> None:
    assert options[1] in refused(tmp_path, write(tmp_path / "results", "2d"), *options)
