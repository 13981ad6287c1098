"""`autoseg evaluate` as a user runs it: files in, scores.json, table or JSON, exit status and messages."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from autoseg.commands.evaluate import evaluate, parse_tolerance
from autoseg.errors import UserError
from autoseg.evaluation.scoring import Tolerance
from autoseg.recording import RunRecord
from autoseg.records import read_record
from autoseg.schema import Scores


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(3):
        reference = np.zeros((12, 14, 9), dtype=np.uint8)  # file axes x, y, z
        reference[2:8, 3:10, 2:7] = 1
        reference[9:11, 3:10, 2:7] = 2
        prediction = np.roll(reference, 1, axis=1)
        prediction[rng.random(prediction.shape) < 0.01] = 0
        for folder, labels in (("masks", prediction), ("references", reference)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.0, 1.5, 3.0, 1.0])),
                         tmp_path / folder / f"case_{index}.nii.gz")
    return tmp_path


def test_scores_are_written_and_shown_as_a_table(folders, capsys):
    (folders / "masks" / "labels.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2}}')
    assert evaluate(predictions=folders / "masks", references=folders / "references", workers=1) == 0
    scores = read_record(Scores, folders / "masks" / "scores.json")
    assert [case.id for case in scores.cases] == ["case_0", "case_1", "case_2"]
    assert list(scores.labels) == ["liver", "spleen"]
    assert scores.mean.dice == pytest.approx((scores.labels["liver"].dice + scores.labels["spleen"].dice) / 2)
    assert scores.cases[0].labels["liver"].reference_volume_ml == pytest.approx(6 * 7 * 5 * 4.5 / 1000)
    text = capsys.readouterr().out
    assert f"{scores.labels['liver'].dice:.3f} ±" in text
    assert str(folders / "masks" / "scores.json") in text
    record = read_record(RunRecord, folders / "masks" / "run.json")
    assert (record.command, record.exit_status, record.results["dice"]) == ("evaluate", 0, scores.mean.dice)
    # A second run finds its own scores.json and run.json beside the masks and is not confused by them.
    assert evaluate(predictions=folders / "masks", references=folders / "references", workers=1) == 0


def test_json_is_one_object_on_stdout_and_the_contracts_keys(folders, capsys):
    output = folders / "elsewhere" / "scores.json"
    evaluate(predictions=folders / "masks", references=folders / "references", output=output, json=True)
    shown = json.loads(capsys.readouterr().out)
    written = json.loads(output.read_text())
    assert shown["mean"] == written["mean"]
    assert set(written["mean"]) == {"dice", "nsd", "hd95"}
    assert set(written["labels"]) == {"label_1", "label_2"}
    assert set(written["cases"][0]["labels"]["label_1"]) == {"dice", "nsd", "hd95", "volume_ml",
                                                             "reference_volume_ml"}
    assert not (folders / "masks" / "scores.json").exists()


def test_names_come_from_dataset_json_and_tolerances_from_the_command_line(folders):
    (folders / "dataset").mkdir()
    (folders / "dataset" / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "numTraining": 3,
        "file_ending": ".nii.gz"}))
    evaluate(predictions=folders / "masks", references=folders / "references", dataset=folders / "dataset",
             tolerance_mm=("1.0", "liver=4.5"), workers=1)
    scores = read_record(Scores, folders / "masks" / "scores.json")
    assert scores.policy.nsd_tolerance_mm == {"liver": 4.5, "spleen": 1.0}


def test_tolerances_are_numbers_of_mm_for_all_labels_or_one():
    assert parse_tolerance(()) == Tolerance(2.0)
    assert parse_tolerance(("3", "a=b=1.5")) == Tolerance(3.0, {"a=b": 1.5})
    for wrong in ("two", "liver=", "=2", "-1", "nan", "inf", ""):
        with pytest.raises(UserError, match="--tolerance-mm"):
            parse_tolerance((wrong,))


def test_bad_input_is_one_message_exit_2_and_nothing_written(folders):
    (folders / "masks" / "case_1.nii.gz").unlink()
    before = sorted(path.name for path in (folders / "masks").iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "autoseg", "evaluate", "-p", folders / "masks", "-r", folders / "references"],
        capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "case_1.nii.gz has no prediction" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in (folders / "masks").iterdir() if path.name != "run.json") == before


def test_the_command_line_writes_only_its_result_on_stdout(folders):
    result = subprocess.run(
        [sys.executable, "-m", "autoseg", "evaluate", "-p", folders / "masks", "-r", folders / "references",
         "--tolerance-mm", "1", "--tolerance-mm", "label_2=3", "--workers", "1", "--json"],
        capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["cases"] == 3
