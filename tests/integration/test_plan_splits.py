"""Where a run's folds come from: given files, patients, rare labels; and every file that must be refused."""

import json
import shutil
from pathlib import Path

import pytest
from test_training import write_dataset

from autoseg.commands.plan import plan
from autoseg.commands.pretrain_init import pretrain_init
from autoseg.commands.train import train
from autoseg.data.splits import make_splits
from autoseg.errors import UserError

GIVEN = [{"train": ["case0", "case1", "case2"], "val": ["case3", "case4"]},
         {"train": ["case2", "case3", "case4"], "val": ["case0", "case1"]}]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("splits") / "dataset")


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def with_patients(dataset: Path, folder: Path, patients: dict[str, str]) -> Path:
    copy = shutil.copytree(dataset, folder)
    declared = json.loads((copy / "dataset.json").read_text())
    write(copy / "dataset.json", {**declared, "patients": patients})
    return copy


def written(run: Path) -> object:
    return json.loads((run / "splits.json").read_text())


def prepared(dataset: Path, run: Path, **options: object) -> Path:
    assert plan(dataset, run=run, workers=1, preprocess=False, **options) == 0
    return run


def test_given_folds_are_copied_and_kept_until_others_are_given(dataset, tmp_path, capsys):
    run = prepared(dataset, tmp_path / "run", splits=write(tmp_path / "given.json", GIVEN))
    assert written(run) == GIVEN and "Folds: as in" in capsys.readouterr().out
    assert written(prepared(dataset, run)) == GIVEN
    other = write(tmp_path / "other.json", GIVEN[::-1])
    assert written(prepared(dataset, run, splits=other)) == GIVEN[::-1]


def test_folds_that_models_were_trained_with_are_not_replaced(dataset, tmp_path):
    run = prepared(dataset, tmp_path / "run")
    fold = run / "models" / "plain" / "2d" / "fold_0"
    (fold / "resume").mkdir(parents=True)
    before, given = written(run), write(tmp_path / "given.json", GIVEN)
    with pytest.raises(UserError, match=r"(?s)1 were trained.*fold_0.*--run"):
        prepared(dataset, run, splits=given)
    assert written(run) == before
    prepared(dataset, run, splits=write(tmp_path / "same.json", before))
    shutil.move(fold, fold.with_name("fold_all"))
    assert written(prepared(dataset, run, splits=given)) == GIVEN


def test_nnunets_file_in_the_dataset_folder_is_taken(dataset, tmp_path, caplog):
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    write(copy / "splits_final.json", GIVEN)
    with caplog.at_level("INFO", logger="autoseg"):
        assert written(prepared(copy, tmp_path / "run")) == GIVEN
    assert any("splits_final.json" in line for line in caplog.messages)
    other = write(tmp_path / "other.json", GIVEN[::-1])
    assert written(prepared(copy, tmp_path / "other", splits=other)) == GIVEN[::-1]


def test_cases_left_out_of_given_folds_stay_out_and_added_cases_are_noticed(dataset, tmp_path, caplog):
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    given = [{"train": ["case0", "case1"], "val": ["case3"]}]
    run = prepared(copy, tmp_path / "run", splits=write(tmp_path / "given.json", given))
    assert any("names 3 of 5 cases" in line and "case2, case4" in line for line in caplog.messages)
    assert written(prepared(copy, run)) == given
    shutil.copy(copy / "imagesTr/case0_0000.nii.gz", copy / "imagesTr/case9_0000.nii.gz")
    shutil.copy(copy / "labelsTr/case0.nii.gz", copy / "labelsTr/case9.nii.gz")
    declared = json.loads((copy / "dataset.json").read_text())
    write(copy / "dataset.json", {**declared, "numTraining": 6})
    with pytest.raises(UserError, match=r"does not name case9 \(cases added"):
        prepared(copy, run)


@pytest.mark.parametrize(("content", "needles"), [
    ([{"train": ["case0", "case1", "nobody"], "val": ["case1", "case2"]}, {"train": ["case3"], "val": []}],
     ["unknown case 'nobody'", "'case1' is both", "fold 1: val is empty", "patient 'p' is on both sides"]),
    ([], ["holds no fold"]),
    ({"0": {"train": ["case0"], "val": ["case1"]}}, ["list"]),
    ([{"train": ["case0"]}], ["0.val"]),
    (None, ["does not exist"]),
])
def test_bad_files_are_refused_before_anything_is_measured(dataset, tmp_path, content, needles):
    copy = with_patients(dataset, tmp_path / "dataset", {"case0": "p", "case2": "p"})
    path = tmp_path / "given.json"
    if content is not None:
        write(path, content)
    with pytest.raises(UserError) as caught:
        prepared(copy, tmp_path / "run", splits=path)
    for needle in (*needles, str(path)):
        assert needle in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_cases_of_a_patient_stay_together_and_a_leak_written_by_hand_is_refused(dataset, tmp_path, capsys):
    copy = with_patients(dataset, tmp_path / "dataset", {"case0": "p", "case3": "p"})
    run = prepared(copy, tmp_path / "run")
    assert "leave-one-out over 4 patients" in capsys.readouterr().out
    assert [split["val"] for split in written(run)] == [["case0", "case3"], ["case1"], ["case2"], ["case4"]]
    write(run / "splits.json", [{"train": ["case0", "case1"], "val": ["case2", "case3"]}])
    for command in (train, pretrain_init):
        with pytest.raises(UserError, match=r"fold 0: patient 'p' is on both sides: train has case0, val has case3"):
            command(run=run, preset="quick", device="cpu")
    with pytest.raises(UserError, match="patient 'p'"):
        train(run=run, preset="quick", device="cpu", fold="all-folds")


def test_unknown_cases_among_the_patients_are_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="patients.*'case7'"):
        prepared(with_patients(dataset, tmp_path / "dataset", {"case7": "p"}), tmp_path / "run")


def test_rare_labels_are_spread_unless_nnunets_folds_are_asked_for(tmp_path, capsys):
    """Ten cases, a second label in the five that nnU-Net's folds would put into fewer than five."""
    ids = [f"case{number}" for number in range(10)]
    plain = make_splits(ids)
    having = {case for split in plain[:2] for case in split.val} | {plain[2].val[0]}
    dataset = tmp_path / "dataset"
    write_dataset(dataset, cases=10, labels={"background": 0, "ball": 7, "spot": 2})
    import nibabel
    import numpy as np

    for case in ids:
        path = dataset / "labelsTr" / f"{case}.nii.gz"
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[:3, :3, :3] = 7
        voxels[voxels == 2] = 2 if case in having else 0
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    run = prepared(dataset, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "stratified by which labels a case has: nnU-Net's folds 3, 4 would" in said
    assert "how many each fold validates: spot: 1, 1, 1, 1, 1" in said
    assert all(len(having & set(split["val"])) == 1 for split in written(run))
    parity = prepared(dataset, tmp_path / "parity", nnunet_parity=True)
    assert written(parity) == [split.model_dump(mode="json") for split in plain]
    capsys.readouterr()
    shutil.rmtree(tmp_path / "run")
    assert prepared(dataset, run, json=True)
    folds = json.loads(capsys.readouterr().out)["folds"]
    assert folds["count"] == 5 and folds["rare_labels"] == {"spot": [1, 1, 1, 1, 1]}
    # Kept by a second planning, which still says why.
    prepared(dataset, run)
    assert "stratified" in capsys.readouterr().out
