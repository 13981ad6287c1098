"""`train --configuration 3d_cascade_fullres`: one command trains what is missing, goes on where it was stopped."""

import json
import shutil
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
from test_training import same, stop_in, weights_of, write_dataset

from autoseg.cli import app
from autoseg.commands import fold_training
from autoseg.commands.first_stage import held_out_by
from autoseg.commands.plan import plan
from autoseg.commands.pretrain_init import pretrain_init
from autoseg.commands.train import train
from autoseg.data.labels import to_internal
from autoseg.data.preprocessing import labels_on_grid
from autoseg.data.previous_masks import placement_of
from autoseg.data.store import open_store
from autoseg.data.volume import read_labels
from autoseg.errors import UserError
from autoseg.networks.checkpoint import read_model
from autoseg.planning.configurations import with_cascade
from autoseg.recording import RunRecord
from autoseg.records import read_record, write_record
from autoseg.schema import CheckpointInfo, Plan, PreviousStage, Split

SHORT = {"preset": "quick", "epochs": 2, "steps_per_epoch": 1, "device": "cpu"}
CASCADE, LOWRES = "3d_cascade_fullres", "3d_lowres"
LABELS = {"background": 0, "ball": 7, "heart": 9}


def plan_cascade(folder: Path) -> Path:
    """A planned dataset that is too small for a 3d_lowres of its own and gets one at 1.5 times its spacing."""
    plan(write_dataset(folder / "dataset", cases=3, labels=LABELS), run=folder / "run", workers=1)
    path = folder / "run/plan.json"
    decided = read_record(Plan, path)
    full = decided.configurations["3d_fullres"]
    coarse = full.model_copy(update={
        "spacing": tuple(1.5 * mm for mm in full.spacing), "next_stage": CASCADE,
        "median_shape": tuple(float(round(size / 1.5)) for size in full.median_shape),
    })
    configurations = with_cascade({**decided.configurations, LOWRES: coarse}, len(LABELS))
    write_record(decided.model_copy(update={"configurations": configurations}), path)
    return folder / "run"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return plan_cascade(tmp_path_factory.mktemp("cascade"))


@pytest.fixture
def run(planned, tmp_path):
    return shutil.copytree(planned, tmp_path / "run")


@pytest.fixture(scope="module")
def trained(planned, tmp_path_factory):
    run = shutil.copytree(planned, tmp_path_factory.mktemp("trained") / "run")
    assert train(run=run, configuration=CASCADE, **SHORT) == 0
    return run


def folds_of(run: Path, configuration: str) -> list[Path]:
    return sorted((run / "models").glob(f"*/{configuration}/fold_*"))


def test_one_command_trains_both_stages(trained):
    assert [folder.name for folder in folds_of(trained, LOWRES)] == ["fold_0", "fold_1", "fold_2"]
    (folder,) = folds_of(trained, CASCADE)
    network, info = read_model(folder)
    assert info.previous_stage == PreviousStage(name=info.name, configuration=LOWRES)
    assert info.input_channels == 3
    assert next(value for value in network.state_dict().values() if value.ndim == 5).shape[1] == 3
    results = read_record(RunRecord, trained / "run.json").results
    assert results["steps"] == 2 and [results[f"3d_lowres.fold_{fold}.steps"] for fold in range(3)] == [2, 2, 2]
    assert not (trained / "preprocessed" / CASCADE / "store.json").exists()
    assert json.loads((folder / "scores.json").read_text())["cases"]


def test_every_mask_is_of_the_fold_that_has_not_seen_the_case(trained):
    info = read_record(CheckpointInfo, folds_of(trained, CASCADE)[0] / "model.json")
    (folder,) = (trained / "preprocessed/3d_fullres").iterdir()
    store = open_store(folder)
    splits = json.loads((trained / "splits.json").read_text())
    seen = set()
    for fold, split in enumerate(splits):
        for case in split["val"]:
            (stored,) = trained.glob(f"preprocessed/{CASCADE}/*/fold_{fold}/{case}.previous.b2nd")
            mask = read_labels(folds_of(trained, LOWRES)[fold] / f"validation/{case}.nii.gz").voxels[0]
            internal = to_internal(mask, list(LABELS.values()))
            expected = labels_on_grid(internal, placement_of(store.cases[case], info.store.axes))
            assert np.array_equal(blosc2.open(str(stored))[:], expected)
            assert expected.shape == store.cases[case].shape
            seen.add(case)
    assert seen == set(store.cases)
    assert len(list(trained.glob(f"preprocessed/{CASCADE}/*/fold_*/*.b2nd"))) == len(seen)


@pytest.mark.parametrize(("stage", "fold"), [(LOWRES, "1"), (CASCADE, "0")])
@pytest.mark.slow
def test_a_stopped_chain_goes_on_and_equals_one_in_one_go(run, trained, monkeypatch, stage, fold):
    if stage == CASCADE:
        shutil.copytree(trained / "models", run / "models")
        shutil.rmtree(folds_of(run, CASCADE)[0])
    stop_in(monkeypatch, stage, fold)
    with pytest.raises(UserError, match="stopped"):
        train(run=run, configuration=CASCADE, **SHORT)
    assert train(run=run, configuration=CASCADE, resume=True, **SHORT) == 0
    for configuration in (LOWRES, CASCADE):
        for ours, theirs in zip(folds_of(run, configuration), folds_of(trained, configuration), strict=True):
            assert same(weights_of(ours), weights_of(theirs))


def test_a_cascade_predicts_images(trained, tmp_path):
    (tmp_path / "images").mkdir()
    dataset = Path(read_record(Plan, trained / "plan.json").dataset)
    shutil.copy(dataset / "imagesTr/case0_0000.nii.gz", tmp_path / "images")
    arguments = ["predict", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "masks"), "--run", str(trained),
                 "--configuration", CASCADE, "--device", "cpu", "--no-tta"]
    assert app(arguments, result_action="return_value") == 0
    mask = nibabel.load(tmp_path / "masks/case0.nii.gz")
    assert set(np.unique(np.asanyarray(mask.dataobj))) <= set(LABELS.values())


@pytest.mark.slow
def test_all_folds_share_one_first_stage_and_are_validated_with_the_same_fold_of_it(run, trained, monkeypatch):
    shutil.copytree(trained / "models", run / "models")
    before = {path: path.read_bytes() for path in (run / "models").rglob("weights.safetensors")}
    seen = []
    real = fold_training.predict_members

    def remembered(cases, members, output, settings):
        seen.extend(info.fold for _, info in members[0].previous.folds)
        return real(cases, members, output, settings)

    monkeypatch.setattr(fold_training, "predict_members", remembered)
    assert train(run=run, configuration=CASCADE, fold="all-folds", **SHORT) == 0
    assert seen == ["1", "2"] and len(before) == 4
    assert {path: path.read_bytes() for path in before} == before
    assert [folder.name for folder in folds_of(run, CASCADE)] == ["fold_0", "fold_1", "fold_2"]


@pytest.mark.slow
def test_all_cases_take_masks_of_the_network_that_was_trained_on_all(run):
    assert train(run=run, configuration=CASCADE, fold="all", **SHORT) == 0
    assert [folder.name for folder in folds_of(run, LOWRES)] == ["fold_all"]
    info = read_record(CheckpointInfo, folds_of(run, LOWRES)[0] / "model.json")
    masks = folds_of(run, LOWRES)[0] / "training_cases" / info.weights_sha256[:8]
    assert len(list(masks.glob("*.nii.gz"))) == 3
    assert len(list(run.glob(f"preprocessed/{CASCADE}/*/fold_all/*.b2nd"))) == 3
    # Again, longer: the first stage stays as it is.
    before = weights_of(folds_of(run, LOWRES)[0])
    assert train(run=run, configuration=CASCADE, fold="all", resume=True, **{**SHORT, "epochs": 3}) == 0
    assert same(weights_of(folds_of(run, LOWRES)[0]), before)
    assert read_record(CheckpointInfo, folds_of(run, CASCADE)[0] / "model.json").steps == 3


def test_masks_that_are_missing_or_of_other_weights_are_made_again(run, trained, caplog):
    shutil.copytree(trained / "models", run / "models")
    lost = next((folds_of(run, LOWRES)[1] / "validation").glob("*.nii.gz"))
    lost.unlink()
    with caplog.at_level("INFO", logger="autoseg"):
        assert train(run=run, configuration=CASCADE, fold="1", **SHORT) == 0
    assert lost.is_file() and any("masks of 1 case for" in line for line in caplog.messages)
    records = {path: path.stat().st_mtime_ns for path in run.glob(f"preprocessed/{CASCADE}/*/fold_*/*.json")}
    assert train(run=run, configuration=LOWRES, fold="1", overwrite=True, seed=8, **SHORT) == 0
    assert train(run=run, configuration=CASCADE, fold="2", **SHORT) == 0
    changed = {path.parent.name for path, before in records.items() if path.stat().st_mtime_ns != before}
    assert changed == {"fold_1"}
    with pytest.raises(UserError, match="previous stage's masks"):
        train(run=run, configuration=CASCADE, fold="1", resume=True, **SHORT)


@pytest.mark.slow
def test_a_first_stage_of_another_name(run, trained):
    shutil.copytree(trained / "models", run / "models")
    (folder,) = {fold.parents[1] for fold in folds_of(run, LOWRES)}
    shutil.rmtree(folder / CASCADE)
    folder.rename(folder.with_name("coarse"))
    for path in folder.with_name("coarse").rglob("model.json"):
        write_record(read_record(CheckpointInfo, path).model_copy(update={"name": "coarse"}), path)
    assert train(run=run, configuration=CASCADE, name="fine", previous_name="coarse", **SHORT) == 0
    assert {fold.parents[1].name for fold in folds_of(run, LOWRES)} == {"coarse"}
    info = read_record(CheckpointInfo, folds_of(run, CASCADE)[0] / "model.json")
    assert (info.name, info.previous_stage.name) == ("fine", "coarse")


# ---------------------------------------------------------------- bad requests
def test_a_first_stage_of_other_labels_is_refused(run, trained):
    shutil.copytree(trained / "models", run / "models")
    shutil.rmtree(folds_of(run, CASCADE)[0])
    path = folds_of(run, LOWRES)[1] / "model.json"
    info = read_record(CheckpointInfo, path)
    write_record(info.model_copy(update={"labels": {"background": 0, "heart": 9, "ball": 7}}), path)
    with pytest.raises(UserError, match=r"(?s)fold 1: labels background 0, heart 9, ball 7; the plan .*previous-name"):
        train(run=run, configuration=CASCADE, **SHORT)
    assert not folds_of(run, CASCADE)


@pytest.mark.parametrize(("asked", "why"), [
    ({"configuration": "3d_fullres", "previous_name": "x"}, "has no previous stage"),
    ({"configuration": CASCADE, "domain_generalization": "gin"}, "gin with 3d_cascade_fullres"),
    ({"configuration": CASCADE, "resume": True}, "no training to continue"),
    ({"configuration": CASCADE, "previous_name": "../x"}, "--name"),
    ({"configuration": CASCADE, "fold": "7"}, "fold 7 does not exist"),
])
def test_what_a_cascade_cannot_do_is_said_before_anything_is_trained(run, asked, why):
    with pytest.raises(UserError, match=why):
        train(run=run, **{**SHORT, **asked})
    assert not (run / "models").exists()


def test_a_cascade_without_its_parts_in_the_plan(run):
    path = run / "plan.json"
    decided = read_record(Plan, path)
    without = {name: entry for name, entry in decided.configurations.items() if name != LOWRES}
    write_record(decided.model_copy(update={"configurations": without}), path)
    with pytest.raises(UserError, match="which the plan does not hold"):
        train(run=run, configuration=CASCADE, **SHORT)
    write_record(decided.model_copy(update={
        "configurations": {"3d_fullres": decided.configurations["3d_fullres"]}}), path)
    with pytest.raises(UserError, match="the plan holds 3d_fullres"):
        train(run=run, configuration=CASCADE, **SHORT)


def test_a_finished_cascade_is_not_trained_again_unasked(run, trained):
    shutil.copytree(trained / "models", run / "models")
    shutil.rmtree(folds_of(run, LOWRES)[2])
    with pytest.raises(UserError, match="finished model"):
        train(run=run, configuration=CASCADE, **SHORT)
    assert len(folds_of(run, LOWRES)) == 2, "nothing is trained for a request that cannot be granted"


def test_first_weights_are_not_pretrained_for_a_cascade(run):
    with pytest.raises(UserError, match="Pretrain for 3d_fullres"):
        pretrain_init(run=run, configuration=CASCADE, device="cpu")


def test_cases_belong_to_the_fold_that_validates_on_them():
    splits = [Split(train=("b", "c"), val=("a", "d")), Split(train=("a",), val=("b", "d"))]
    assert held_out_by(splits, "0", ["a", "b", "d"]) == {"a": "0", "b": "1", "d": "0"}
    assert held_out_by(splits, "1", ["a", "b", "d"]) == {"a": "0", "b": "1", "d": "1"}
    with pytest.raises(UserError, match="'c'"):
        held_out_by(splits, "0", ["a", "b", "c"])
