"""Banks are opened by name or folder, and give each label of a dataset the vector of what it means there."""

import subprocess
import sys

import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.guidance.banks import (
    DEFAULT_BANK,
    label_vectors,
    names_in,
    of_other_sentences,
    open_bank,
    shipped_banks,
)
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.prompts import sentences
from autoseg.guidance.records import TowerRecord
from autoseg.guidance.text_bank import make_bank, mean_direction, write_bank

LEXICON = load_lexicon()
TOWER = TowerRecord(name="tiny", kind="clip", sha256="0" * 64, licence="CC0")


def bank_of(prompts):
    return make_bank(np.eye(len(prompts), 12, dtype=np.float32), prompts, TOWER)


def test_four_banks_come_with_autoseg_and_are_whole():
    assert shipped_banks() == ["lexicon-clip", "lexicon-minilm", "lexicon-orthonormal", "lexicon-random"]
    for name in shipped_banks():
        bank = open_bank(name)
        assert set(bank.names) == {key for key, entry in LEXICON.entries.items() if entry.halves is None}


def test_no_choice_is_the_default_and_a_folder_is_read(tmp_path):
    assert open_bank(None).record == open_bank(DEFAULT_BANK).record
    write_bank(bank_of({"liver": ("Liver.",)}), tmp_path / "bank")
    assert open_bank(tmp_path / "bank").names == open_bank(str(tmp_path / "bank")).names == ("liver",)


def test_a_name_goes_before_a_folder_and_a_path_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bank(bank_of({"liver": ("Liver.",)}), tmp_path / "lexicon-clip")
    assert len(open_bank("lexicon-clip").names) > 600 and open_bank("./lexicon-clip").names == ("liver",)


@pytest.mark.parametrize(("choice", "said"), [("lexicon-mini", "Did you mean lexicon-minilm"), ("no/one", "clip")])
def test_a_bank_that_is_not_there_says_which_are(choice, said):
    with pytest.raises(UserError, match=said) as caught:
        open_bank(choice)
    assert choice in str(caught.value) and "vlm encode-labels" in str(caught.value)


@pytest.mark.parametrize("name", ["lexicon-clip", "lexicon-minilm", "lexicon-random", "lexicon-orthonormal"])
def test_labels_get_the_vectors_of_what_they_mean(name):
    bank = open_bank(name)
    labels = ["Liver", "RK", "kidney_left", "lung"]
    vectors, names = label_vectors(bank, labels, "Abdomen", ["CT"])
    assert names == ("liver", "right kidney", "left kidney", "lung")
    np.testing.assert_array_equal(vectors[:3], [bank.vectors[bank.names.index(one)] for one in names[:3]])
    sides = [bank.vectors[bank.names.index(one)] for one in ("left lung", "right lung")]
    np.testing.assert_allclose(vectors[3], mean_direction(np.stack(sides)), atol=1e-6)


def test_the_order_of_labels_is_kept_and_changes_no_vector():
    labels = ["liver", "spleen", "left_kidney"]
    vectors, names = label_vectors(open_bank(None), labels, "", ["MR"])
    turned, turned_names = label_vectors(open_bank(None), labels[::-1], "", ["MR"])
    assert turned_names == names[::-1]
    np.testing.assert_array_equal(turned[::-1], vectors)


def test_the_dataset_tells_which_tumor_is_meant():
    bank = open_bank(None)
    assert label_vectors(bank, ["liver", "tumor"], "X", ["CT"])[1] == ("liver", "liver tumor")
    assert label_vectors(bank, ["tumor"], "X", ["CT"])[1] == ("tumor",)
    assert label_vectors(bank, ["hemorrhage"], "X", ["fundus"])[1] == ("retinal hemorrhages",)


def test_the_labels_own_sentences_go_before_the_lexicons():
    bank = bank_of({"tumor": ("Own.",), "liver": ("Liver.",), "RK": ("Right kidney.",), "flurb": ("A flurb.",)})
    assert label_vectors(bank, ["tumor", "liver", "RK", "flurb"], "X", ["CT"])[1] == ("tumor", "liver", "RK", "flurb")
    both = bank_of({"tumor": ("Own.",), "liver tumor": ("Another.",), "liver": ("Liver.",)})
    assert label_vectors(both, ["tumor", "liver tumor", "liver"], "X", ["CT"])[1] == ("tumor", "liver tumor", "liver")


def test_all_labels_that_are_missing_are_told_with_what_is_near():
    with pytest.raises(UserError) as caught:
        label_vectors(open_bank(None), ["livr", "spleen", "label_1"], "X", ["CT"])
    text = str(caught.value)
    assert "2 of 3 labels" in text and "'livr' (nearest: liver" in text and "'label_1'" in text
    assert "autoseg prompts" in text and "'spleen'" not in text


def test_labels_that_mean_the_same_are_refused():
    with pytest.raises(UserError, match="both 'spleen'"):
        label_vectors(open_bank(None), ["spleen", "lien"], "X", ["CT"])


def test_edited_sentences_are_noticed():
    labels = ["liver", "left_kidney", "kidney"]
    bank = open_bank("lexicon-clip")
    matched = names_in(bank, labels, "X", ["CT"])
    usual = {label: sentences(LEXICON.find(label)) for label in labels}
    assert of_other_sentences(bank, matched, usual) == []
    for label in labels:
        assert of_other_sentences(bank, matched, {**usual, label: ("Something else.",)}) == [label]
    random = open_bank("lexicon-random")
    assert of_other_sentences(random, names_in(random, labels, "X", ["CT"]), dict.fromkeys(labels, ("Else.",))) == []


def test_banks_need_no_torch():
    code = ("import sys; from autoseg.guidance.banks import *; label_vectors(open_bank(None), ['liver'], '', ['CT']); "
            "assert not {'torch', 'transformers'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
