"""`autoseg prompts` shows labels in words, writes a file that stays as it was edited, and refuses what says nothing."""

import json

import numpy as np
import pytest

from autoseg.cli import app
from autoseg.commands.prompts import prompts
from autoseg.errors import UserError
from autoseg.guidance.banks import label_vectors, open_bank
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.prompts import sentences
from autoseg.guidance.records import TowerRecord
from autoseg.guidance.text_bank import make_bank, write_bank
from autoseg.records import read_json, write_json

LABELS = ("liver", "right_kidney", "left_kidney", "spleen")
TOWER = TowerRecord(name="tiny", kind="clip", sha256="0" * 64, licence="CC0")


def dataset_of(folder, *labels):
    write_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, **{name: value for value, name in
                enumerate(labels, 1)}}, "file_ending": ".nii.gz", "numTraining": 0}, folder / "dataset.json")
    return folder


@pytest.fixture
def dataset(tmp_path):
    return dataset_of(tmp_path / "data", *LABELS)


def shown(capsys, **options):
    assert prompts(**options, json=True) == 0
    return json.loads(capsys.readouterr().out)


def test_every_label_is_shown_with_its_entry_and_sentences(tmp_path, dataset, capsys):
    report = shown(capsys, dataset=dataset, run=tmp_path / "run")
    assert [word["label"] for word in report["labels"]] == list(LABELS)
    assert [word["side"] for word in report["labels"]] == ["none", "right", "left", "none"]
    for word in report["labels"]:
        assert tuple(word["sentences"]) == sentences(load_lexicon().find(word["label"])) and not word["own"]
    assert read_json(tmp_path / "run" / "prompts.json") == {
        word["label"]: word["sentences"] for word in report["labels"]}
    assert read_json(tmp_path / "run" / "run.json")["results"]["labels"] == 4


@pytest.mark.parametrize("bank", ["lexicon-clip", "lexicon-orthonormal"])
def test_the_cosines_are_those_of_the_vectors_that_train(tmp_path, dataset, capsys, bank):
    cosines = shown(capsys, dataset=dataset, run=tmp_path / "run", text_bank=bank)["cosines"]
    vectors, _ = label_vectors(open_bank(bank), LABELS, "data", ["CT"])
    np.testing.assert_allclose(cosines["raw"], vectors @ vectors.T, atol=1e-4)
    rest = vectors - vectors.mean(0)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines["centered"], rest @ rest.T, atol=2e-4)


def test_labels_that_words_hardly_part_are_warned_of(tmp_path, dataset, capsys):
    warned = shown(capsys, dataset=dataset, run=tmp_path / "run")["warnings"]
    assert len(warned) == 1 and "right_kidney and left_kidney" in warned[0] and "axis that parts left from" in warned[0]
    assert shown(capsys, dataset=dataset, run=tmp_path / "run", text_bank="lexicon-random")["warnings"] == []


def test_the_text_tells_the_same(tmp_path, dataset, capsys):
    prompts(dataset=dataset, run=tmp_path / "run")
    text = capsys.readouterr().out
    assert "left_kidney → left kidney (region: abdomen; side: left)" in text and "  - Left kidney." in text
    assert "Warning: right_kidney and left_kidney" in text and "autoseg train --run" in text
    assert "written to" in text and str(tmp_path / "run" / "prompts.json") in text
    assert all(len(row.split()) == 6 for row in text.splitlines() if row.startswith("  1 liver"))


def test_an_edited_file_stays_and_asks_to_be_encoded(tmp_path, dataset, capsys):
    file = tmp_path / "own.json"
    prompts(dataset=dataset, output=file)
    edited = {**read_json(file), "liver": ["The liver under the right half of the diaphragm."]}
    write_json(edited, file)
    capsys.readouterr()
    report = shown(capsys, dataset=dataset, output=file)
    assert not report["written"] and read_json(file) == edited and report["stale"] == ["liver"]
    assert [word["own"] for word in report["labels"]] == [True, False, False, False]
    assert report["next"][0].startswith("vlm encode-labels --lexicon --prompts") and len(report["next"]) == 2
    assert any("made from other sentences for 'liver'" in text for text in report["warnings"])
    again = shown(capsys, dataset=dataset, output=file, overwrite=True)
    assert again["written"] and not again["stale"] and read_json(file) != edited and len(again["next"]) == 1


def test_a_bank_of_the_edited_sentences_is_up_to_date(tmp_path, dataset, capsys):
    file = tmp_path / "own.json"
    write_json({label: [f"{label}."] for label in LABELS}, file)
    own = make_bank(np.eye(4, 8, dtype=np.float32), {label: (f"{label}.",) for label in LABELS}, TOWER)
    write_bank(own, tmp_path / "bank")
    report = shown(capsys, dataset=dataset, output=file, text_bank=str(tmp_path / "bank"))
    assert not report["stale"] and not report["missing"] and report["warnings"] == []
    assert report["next"] == [f"autoseg train --text-guided --text-bank {tmp_path / 'bank'}"]


def test_unknown_labels_are_told_together_and_wait_in_the_file(tmp_path, capsys):
    dataset = dataset_of(tmp_path, "livr", "label_2", "spleen", "lien")
    file = tmp_path / "own.json"
    with pytest.raises(UserError) as caught:
        prompts(dataset=dataset, output=file)
    text = str(caught.value)
    assert "'livr' is not in" in text and "'liver'" in text and "'label_2' does not say" in text and "both" in text
    assert "empty list" in text and str(file) in text
    content = read_json(file)
    assert content["livr"] == content["label_2"] == content["lien"] == [] and len(content["spleen"]) > 4
    write_json({**content, "livr": ["The liver."], "label_2": ["A stent."], "lien": ["An extra spleen."]}, file)
    report = shown(capsys, dataset=dataset, output=file)
    assert report["missing"] == ["livr", "label_2"] and report["labels"][0]["canonical"] is None
    assert report["next"][0].startswith("vlm encode-labels")


def test_a_file_of_other_labels_is_refused(tmp_path, dataset):
    file = tmp_path / "own.json"
    write_json({"liver": ["The liver."], "right_kidney": ["The left kidney."], "left_kidne": ["x"], "spleen": []}, file)
    with pytest.raises(UserError) as caught:
        prompts(dataset=dataset, output=file)
    text = str(caught.value)
    assert "4 problems" in text and "'left_kidney' is missing" in text and "did you mean 'left_kidney'" in text
    assert "says left" in text and "'spleen': no sentence" in text and "--overwrite" in text


def test_one_label_and_many_labels_are_shown_too(tmp_path, capsys):
    prompts(dataset=dataset_of(tmp_path / "one", "liver"), output=tmp_path / "one.json")
    assert "Cosines" not in capsys.readouterr().out
    names = [name for name, entry in load_lexicon().entries.items() if entry.halves is None][:30]
    prompts(dataset=dataset_of(tmp_path / "many", *names), output=tmp_path / "many.json")
    assert "the closest of 30 labels" in capsys.readouterr().out


def test_without_a_plan_the_run_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="autoseg plan DATASET"):
        app(["prompts"], result_action="return_value")
    assert list(tmp_path.iterdir()) == []
