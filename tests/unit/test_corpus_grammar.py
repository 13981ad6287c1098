"""The caption grammar: its sentences pass the checks for every label, differ, repeat, and are English."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.corpus.captioning import asked_of
from vlm.corpus.captions.checks import check_caption, drop_near_duplicates, normalized
from vlm.corpus.captions.grammar import grammar_captions
from vlm.corpus.captions.patterns import FINDINGS
from vlm.corpus.captions.saying import said_of
from vlm.corpus.captions.tables import TABLES, load_table
from vlm.corpus.registry import load_cards
from vlm.corpus.rows import LabelSet, SourceRow
from vlm.schema import Modality

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import print_captions  # noqa: E402

CHEST = load_table("chest_xray")
MODALITIES: tuple[Modality, ...] = ("X-ray", "CT", "MRI", "Ultrasound", "Pathology", "Fundus", "mixed")


def problems(labels, table, count=10):
    sentences = grammar_captions(labels, table, count)
    found = [f"{text}: {reason}" for text in sentences if (reason := check_caption(text, labels, table))]
    said = said_of(labels, table)
    if said.present + said.uncertain + said.absent and len(sentences) < count:
        found.append(f"{len(sentences)} sentences")
    if len(drop_near_duplicates(sentences)) < len(sentences):
        found.append("near duplicates")
    return found


@pytest.mark.parametrize("name", TABLES())
@pytest.mark.parametrize("part", ["present", "uncertain", "absent"])
def test_every_label_of_every_table_has_ten_sentences_that_pass_the_checks(name, part):
    table = load_table(name)
    found = []
    for key, label in table.labels.items():
        for modality in label.modalities or tuple(table.images):
            found += problems(LabelSet(modality, **{part: (key,)}), table)
    assert not found


@pytest.mark.parametrize("name", TABLES())
def test_present_labels_always_have_sentences(name):
    table = load_table(name)
    for key, label in table.labels.items():
        modality = (label.modalities or tuple(table.images))[0]
        assert len(grammar_captions(LabelSet(modality, (key,)), table)) == 10


def label_sets(keys, modality):
    some = st.lists(st.sampled_from(keys), unique=True)
    return st.builds(LabelSet, st.just(modality), some.map(tuple), some.map(lambda names: tuple(names[:4])),
                     some.map(tuple), st.sampled_from([None, "chest"]), st.sampled_from([None, "frontal", "PA", "L"]))


@settings(max_examples=150, deadline=None)
@given(label_sets(list(CHEST.labels), "X-ray"))
def test_any_chest_label_set_passes_the_checks(labels):
    assert not problems(labels, CHEST)


@settings(max_examples=60, deadline=None)
@given(label_sets(list(load_table("fundus").labels), "Fundus"))
def test_any_fundus_label_set_passes_the_checks(labels):
    assert not problems(labels, load_table("fundus"))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MODALITIES).flatmap(lambda modality: label_sets(
    ["liver_cyst", "Gallstones", "no stone", "normal kidney", "Stenosis", "COVID-19", "pT1 tumor", "mass"], modality)))
def test_labels_of_no_table_pass_the_checks(labels):
    assert not problems(labels, None)


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "captions.md").read_text(encoding="utf-8")
    assert print_captions.document() == page, "write it anew: python benchmarks/print_captions.py"


def test_no_model_is_asked_about_labels_that_no_sentence_can_be_made_of():
    card = load_cards()["medpix2"]
    assert asked_of(SourceRow(0, "a.jpg", "CT", absent=("head",)), card) is None
    assert asked_of(SourceRow(0, "a.jpg", "CT", labels=("head",)), card) is not None


def test_where_nothing_is_known_nothing_is_said():
    assert grammar_captions(LabelSet("X-ray", anatomy="chest"), CHEST) == ()
    assert grammar_captions(LabelSet("X-ray", absent=("No Finding",)), CHEST) == ()
    assert grammar_captions(LabelSet("X-ray", ("Mass",)), CHEST, 0) == ()


def test_sentences_differ_in_structure():
    """Without the words of the finding and of the image, at least nine of ten skeletons are different."""
    labels = LabelSet("X-ray", ("Cardiomegaly",), anatomy="chest")
    words = {word for label in said_of(labels, CHEST).findings for name in label.names for word in normalized(name)}
    image = {word for phrase in CHEST.images["X-ray"] for word in normalized(phrase)}
    skeletons = {tuple("x" if word in words | image else word for word in normalized(text))
                 for text in grammar_captions(labels, CHEST)}
    assert len(skeletons) >= 9
    assert len(set(FINDINGS)) == len(FINDINGS)


def test_more_sentences_begin_with_fewer():
    labels = LabelSet("X-ray", ("Edema", "Pleural Effusion"))
    many = grammar_captions(labels, CHEST, 25)
    assert len(many) == 25 and many[:10] == grammar_captions(labels, CHEST, 10)


def test_equal_labels_give_equal_sentences_in_another_process():
    labels = LabelSet("X-ray", ("Edema", "Mass"), ("Pneumonia",), ("Pneumothorax",), "chest", "frontal")
    program = ("from vlm.corpus.captions.grammar import *; from vlm.corpus.captions.tables import load_table; "
               f"from vlm.corpus.rows import LabelSet; print(grammar_captions({labels!r}, load_table('chest_xray')))")
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == repr(grammar_captions(labels, CHEST))


def test_long_label_sets_are_named_five_at_a_time_and_all_over_ten_sentences():
    names = ("Mass", "Nodule", "Edema", "Emphysema", "Fibrosis", "Pneumothorax", "Atelectasis", "Hernia")
    sentences = " ".join(grammar_captions(LabelSet("X-ray", names), CHEST)).lower()
    assert all(any(name.lower() in sentences for name in CHEST.labels[label].names) for label in names)


def test_contradictory_labels_are_read_with_care():
    labels = LabelSet("X-ray", ("No Finding", "Mass"), absent=("Mass", "Edema"))
    text = " ".join(grammar_captions(labels, CHEST)).lower()
    assert "normal" not in text and "unremarkable" not in text
    said = said_of(LabelSet("X-ray", ("COVID-19 pneumonia",), ("Pneumonia",), ("viral pneumonia",)), CHEST)
    assert not said.uncertain and not said.absent
    grades = said_of(LabelSet("Fundus", ("2",), absent=("3", "0")), load_table("diabetic_retinopathy"))
    assert not grades.absent


def test_a_normal_image_with_a_device_is_called_normal():
    for text in grammar_captions(LabelSet("X-ray", ("No Finding", "Support Devices")), CHEST):
        assert "devices" in text and ("normal" in text or "no abnormality" in text or "unremarkable" in text)


def test_regions_are_no_findings():
    sentences = grammar_captions(LabelSet("CT", ("thorax",)), load_table("body_region"))
    assert not any(word in text for text in sentences for word in ("patient", "evidence", "abnormal", "normal"))


def test_uncertain_findings_are_said_in_some_and_absent_ones_in_few():
    labels = LabelSet("X-ray", ("Cardiomegaly",), ("Pneumonia",), ("Pneumothorax",))
    sentences = grammar_captions(labels, CHEST)
    uncertain = sum("pneumoni" in text.lower() for text in sentences)
    absent = sum("pneumothorax" in text.lower() or "pleural space" in text.lower() for text in sentences)
    assert 4 <= uncertain <= 6 and 1 <= absent <= 3


def test_captions_of_a_known_label_set_cost_next_to_nothing():
    """Above a hundred thousand rows a second from the cache: it must not be what a build waits for."""
    labels = LabelSet("X-ray", ("Edema", "Mass"), ("Pneumonia",), ("Pneumothorax",), "chest", "frontal")
    grammar_captions(labels, CHEST)
    start = time.perf_counter()
    for _ in range(2000):
        grammar_captions(labels, CHEST)
    assert time.perf_counter() - start < 1.0
