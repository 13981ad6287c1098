"""The label tables: whole, well-formed, and enough for every label of every source card and of the mini sources."""

import csv
from pathlib import Path

import pytest

from autoseg.errors import UserError
from vlm.corpus.captions.saying import adjective, definite, with_article
from vlm.corpus.captions.tables import TABLES, Label, LabelTable, Noun, describe, load_table, looks_plural, words_of
from vlm.corpus.registry import load_cards
from vlm.schema import SourceCard

MINI = Path(__file__).parents[3] / "shared/data/vlm"
NIH = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
       "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding")
RADIMAGENET = {"MRI": 116, "CT": 34, "Ultrasound": 15}


def every_label() -> list[tuple[str, str, Label]]:
    return [(name, key, label) for name in TABLES() for key, label in load_table(name).labels.items()]


def labels_of(card: SourceCard) -> set[str]:
    """The labels that a card's layouts can yield by their renaming and their columns of findings."""
    return {label for layout in card.layouts
            for label in (*layout.rename.values(), *(name for name in layout.findings if name not in layout.rename))
            if label}


def test_the_tables_that_are_asked_for_are_there():
    assert {"chest_xray", "chest_ct", "brain_mri", "body_region", "breast_ultrasound", "lung_ultrasound", "histology",
            "lung_colon_histology", "fundus", "diabetic_retinopathy", "radimagenet", "general"} <= set(TABLES())
    assert list(TABLES()) == sorted(TABLES())


def test_radimagenet_has_its_165_classes():
    modalities = [label.modalities for label in load_table("radimagenet").labels.values()]
    assert {name: modalities.count((name,)) for name in RADIMAGENET} == RADIMAGENET
    assert sum(RADIMAGENET.values()) == 165


@pytest.mark.parametrize("seen", ["mriabd-normal", "af-soft tissue fluid", "lung-Airspace_opacity", "US-liver",
                                  "spine-dural/epidural abn", "thyroid-nodule", "knee-meniscal_abnormality"])
def test_radimagenets_published_spellings_are_found(seen):
    assert load_table("radimagenet").key_of(seen)


@pytest.mark.parametrize("label", NIH)
def test_nih_labels_are_found_as_published(label):
    assert load_table("chest_xray").key_of(label)


def test_every_label_of_a_source_card_has_words():
    cards = [card for card in load_cards().values() if card.label_table]
    missing = [(card.name, label) for card in cards for label in sorted(labels_of(card))
               if load_table(str(card.label_table)).key_of(label) is None]
    assert cards and not missing


@pytest.mark.skipif(not MINI.is_dir(), reason="the mini sources are not on this disk")
def test_every_label_of_the_mini_sources_has_words():
    missing = []
    for card in load_cards().values():
        index = MINI / card.folder / "annotations.csv"
        if card.label_table and index.is_file():
            renames = {old: new for layout in card.layouts for old, new in layout.rename.items()}
            with index.open(encoding="utf-8", newline="") as file:
                labels = {renames.get(row["label"], row["label"]) for row in csv.DictReader(file)} - {""}
            missing += [(card.name, label) for label in labels if not load_table(card.label_table).key_of(label)]
    assert not missing


@pytest.mark.parametrize(("name", "key", "label"), every_label(), ids=lambda value: str(value)[:40])
def test_phrases_are_noun_phrases(name, key, label):
    for noun in (*label.nouns, *label.absences):
        first, rest = (noun.text.split(" ", 1) + [""])[:2]
        assert first not in ("no", "not", "without", "possible")
        if first in ("a", "an"):
            assert noun.text == with_article(rest) and not noun.plural, noun
        assert noun.bare and noun.bare in noun.text
    assert all(noun.plural for noun in label.nouns if noun.text in label.plurals)
    texts = [noun.text for noun in label.nouns]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("phrase", "article"), [
    ("MRI", "an"), ("CT image", "a"), ("X-ray", "an"), ("H&E-stained section", "an"), ("ultrasound image", "an"),
    ("uterine ultrasound image", "a"), ("abdominal CT", "an"), ("frontal radiograph", "a"), ("AP radiograph", "an"),
    ("PA radiograph", "a"), ("sonogram", "a"), ("histologic section", "a"), ("urinary bladder scan", "a"),
    ("MR image", "an"), ("European scan", "a"), ("unremarkable CT", "an"), ("AMD", "an"), ("US image", "a"),
])
def test_articles_follow_the_sound(phrase, article):
    assert with_article(phrase) == f"{article} {phrase}"


def test_nouns_lose_their_article_behind_no_and_possible():
    assert Noun("a pleural effusion").bare == "pleural effusion"
    assert Noun("an infarct").possible == "a possible infarct"
    assert Noun("pleural fluid").possible == "possible pleural fluid"
    assert Noun("the liver").bare == "liver"


@pytest.mark.parametrize(("text", "plural"), [
    ("gallstones", True), ("stenosis", False), ("scars of the retina", True), ("abscess", False), ("hydrops", True),
    ("thrombus", False), ("retinitis", False), ("mass with calcifications", False),
])
def test_plurals_are_guessed_by_the_head(text, plural):
    assert looks_plural(text) is plural


def test_labels_of_no_table_speak_for_themselves():
    assert words_of("Pleural_Thickening", None, "X-ray").phrases == ("pleural thickening",)
    assert words_of("COVID-19", None, "CT").phrases == ("COVID-19",)
    assert words_of("Gallstones", None, "CT").plurals == ("gallstones",)
    assert words_of("no tumor", None, "MRI").denied == ("tumor",)
    assert words_of("NO TUMOR", None, "MRI").denied == ("TUMOR",)
    assert words_of("normal liver", None, "CT").kind == words_of("Normal", None, "CT").kind == "normal"
    assert words_of("肺炎 (CT)", None, "CT").phrases == ("肺炎 (CT)",)
    assert words_of("___", None, "CT").phrases == ("finding",)


def test_words_hold_only_in_their_modality():
    table = load_table("radimagenet")
    assert words_of("knee-fracture", table, "MRI") is table.labels["knee-fracture"]
    assert words_of("knee-fracture", table, "CT").phrases == ("knee-fracture",)


def test_anatomies_stand_before_and_behind():
    assert (adjective("abdomen"), definite("abdomen")) == ("abdominal", "the abdomen")
    assert (adjective("knee"), definite("knee")) == ("knee", "the knee")


def test_a_label_is_described_for_a_model():
    table = load_table("chest_xray")
    assert describe("Effusion", table, "X-ray").startswith("a pleural effusion (or: pleural fluid")
    assert describe("no tumor", load_table("brain_mri"), "MRI") == (
        "no intracranial tumor (or: no brain tumor, no tumor)")
    assert describe("odd_label", None, "X-ray") == "odd label"


@pytest.mark.parametrize("broken", [
    {"labels": {"a": {"kind": "denial"}}},
    {"labels": {"a": {}}},
    {"labels": {"a": {"phrases": ["x."]}}},
    {"labels": {"a": {"phrases": ["an x"], "implies": ["b"]}}},
    {"labels": {"a-b": {"phrases": ["an x"]}, "A b": {"phrases": ["a y"]}}},
    {"labels": {"a": {"phrases": ["an x"]}}, "exclusive": [["a", "b"]]},
    {"images": {"CT": []}},
    {"images": {"PET": ["PET image"]}},
])
def test_tables_that_are_not_whole_are_refused(broken):
    with pytest.raises(ValueError, match="validation error"):
        LabelTable.model_validate({"name": "t", "title": "T", **broken})


def test_a_table_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(UserError, match=r"findings/chest_xrays\.toml does not exist; the label tables are .*chest_ct"):
        load_table("chest_xrays")
