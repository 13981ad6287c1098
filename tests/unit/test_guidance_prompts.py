"""Laws of the sentences: place and side first, enough of them, short, and nothing that no image shows."""

import re
import subprocess
import sys

import pytest

from autoseg.errors import UserError
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.modalities import IMAGES, MODALITIES
from autoseg.guidance.prompts import entries_of_labels, sentences, sentences_of_labels, sentences_of_lexicon

LEXICON = load_lexicon()
ENTRIES = tuple(LEXICON.entries.values())
OTHER = {"left": "right", "right": "left"}

COLORS = ("black", "blue", "brown", "crimson", "gray", "green", "grey", "orange", "pink", "purple", "red", "reddish",
          "scarlet", "violet", "white", "whitish", "yellow", "yellowish", "color", "colored", "colour")
SYMPTOMS = ("ache", "bleeding", "cough", "fatigue", "fever", "jaundice", "nausea", "pain", "painful", "patient",
            "symptom", "symptoms", "vomiting", "weakness", "diagnosis", "treatment", "commonly", "incidence", "risk")
FUNCTIONS = ("absorbs", "carries", "contracts", "controls", "digests", "filters", "function", "hormone", "hormones",
             "produces", "pumps", "responsible", "secretes", "stores")
HISTOLOGY = ("alveoli", "columnar", "endothelium", "glycogen", "hepatocytes", "histology", "lobular", "nephron",
             "nephrons", "squamous", "villi")
NAMES_WITH_A_COLOR = re.compile("white matter|gray matter|white blood cell|red blood cell", re.IGNORECASE)
BROKEN = re.compile(r"[{}_]|  |,,|, \.| ,|\bthe the\b|\ba an?\b|\ban? the\b|\bA [aeio]|\bAn [bcdfgst]")


def all_sentences(entry):
    return [text for modality in (None, *entry.appearance) for text in sentences(entry, modality)]


def test_every_entry_has_at_least_five_different_sentences_for_every_modality():
    for entry in ENTRIES:
        assert entry.appearance, entry.canonical
        for modality in (None, *entry.appearance, "US"):
            texts = sentences(entry, modality)
            assert len(texts) == len(set(texts)) >= 5, (entry.canonical, modality)


def test_sentences_are_short_and_written_as_sentences():
    for entry in ENTRIES:
        for text in all_sentences(entry):
            assert len(text.split()) < 60, text
            assert text[0].isupper() and text.endswith(".") and text.count(".") == 1, text
            assert not BROKEN.search(text), text


def test_every_sentence_names_the_structure():
    for entry in ENTRIES:
        for text in all_sentences(entry):
            assert entry.canonical.lower() in text.lower(), text


def test_no_colors_symptoms_functions_or_histology():
    forbidden = re.compile(rf"\b({'|'.join((*COLORS, *SYMPTOMS, *FUNCTIONS, *HISTOLOGY))})\b", re.IGNORECASE)
    for entry in ENTRIES:
        for text in all_sentences(entry):
            assert not forbidden.search(NAMES_WITH_A_COLOR.sub("x", text)), text


def test_left_sentences_never_say_right_and_the_other_way_around():
    sided = [entry for entry in ENTRIES if entry.mirror is not None]
    for entry in sided:
        for text in all_sentences(entry):
            assert re.search(rf"\b{entry.side}\b", text, re.IGNORECASE), text
            assert not re.search(rf"\b{OTHER[entry.side]}\b", text, re.IGNORECASE), text
    for entry in ENTRIES:
        if entry.side == "both":
            assert not [text for text in all_sentences(entry) if re.search(r"\b(left|right)\b", text, re.IGNORECASE)]


def test_sentences_of_the_two_sides_differ_in_every_template():
    for entry in ENTRIES:
        if entry.mirror is not None:
            twin = LEXICON.entries[entry.mirror]
            for modality in (None, "CT"):
                pairs = zip(sentences(entry, modality), sentences(twin, modality), strict=True)
                assert all(one != other for one, other in pairs)


def test_place_and_side_stand_before_shape_neighbors_and_looks():
    for entry in ENTRIES:
        for text in all_sentences(entry):
            lower = text.lower()
            found = [lower.find(place.lower()) for place in (entry.location, f"in the {entry.region}")]
            place = min((at for at in found if at >= 0), default=-1)
            side = lower.find(entry.side) if entry.mirror is not None else place
            for later in (entry.shape, "next to", *entry.appearance.values()):
                at = lower.find(later.lower())
                if at >= 0 and later not in entry.location:
                    assert 0 <= place < at and 0 <= side < at, text


def test_without_a_modality_no_device_is_preferred():
    texts = " ".join(sentences(LEXICON.find("liver")))
    assert "CT image" in texts and "MR image" in texts
    fundus = " ".join(sentences(LEXICON.find("optic cup")))
    assert "fundus photograph" in fundus and "CT" not in fundus
    for entry in ENTRIES:
        told = " ".join(sentences(entry)).lower()
        assert [one for one in MODALITIES if IMAGES[one].lower() in told] == [
            one for one in MODALITIES if one in entry.appearance], entry.canonical


def test_with_a_modality_its_looks_are_told_and_no_other_device_is_named():
    liver = LEXICON.find("liver")
    for modality in ("CT", "MR"):
        texts = " ".join(sentences(liver, modality))
        assert liver.appearance[modality] in texts
    assert "CT" not in " ".join(sentences(liver, "MRI")) and sentences(liver, "MRI") == sentences(liver, "MR")
    with pytest.raises(UserError, match="no modality"):
        sentences(liver, "taste")


def test_different_structures_share_no_sentence():
    seen = {}
    for entry in ENTRIES:
        for text in sentences(entry):
            assert seen.setdefault(text, entry.canonical) == entry.canonical, text


def test_equal_labels_give_equal_sentences_in_another_process():
    labels = ["liver", "right_kidney", "tumor"]
    program = ("from autoseg.guidance.lexicon import load_lexicon; from autoseg.guidance.prompts import *; "
               f"print(sentences_of_labels({labels!r}, load_lexicon(), 'CT'))")
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == repr(sentences_of_labels(labels, LEXICON, "CT"))


def test_labels_keep_their_names_and_order_and_background_has_no_sentences():
    labels = ["background", "spleen", "kidney_R", "Liver", "ignore"]
    found = sentences_of_labels(labels, LEXICON)
    assert list(found) == ["spleen", "kidney_R", "Liver"]
    assert found["kidney_R"] == sentences(LEXICON.find("right kidney"))


def test_the_device_of_the_images_helps_to_understand_labels_and_is_not_what_is_said():
    found = sentences_of_labels(["hemorrhage"], LEXICON, images="fundus")
    assert found == {"hemorrhage": sentences(LEXICON.find("retinal hemorrhages"))}
    assert sentences_of_labels(["liver"], LEXICON, images="CT") == sentences_of_labels(["liver"], LEXICON)
    assert sentences_of_labels(["liver"], LEXICON, "MR", images="CT") == sentences_of_labels(["liver"], LEXICON, "MR")


def test_the_order_of_labels_does_not_change_their_sentences():
    labels = ["liver", "tumor", "left_kidney", "right_kidney"]
    assert sentences_of_labels(labels, LEXICON) == sentences_of_labels(labels[::-1], LEXICON)


def test_the_kind_of_device_helps_to_understand_a_name():
    assert entries_of_labels(["hemorrhage"], LEXICON, "fundus")["hemorrhage"].canonical == "retinal hemorrhages"
    with pytest.raises(UserError, match="intracerebral hemorrhage"):
        entries_of_labels(["hemorrhage"], LEXICON, "CT")


def test_all_wrong_labels_are_told_together():
    with pytest.raises(UserError) as caught:
        sentences_of_labels(["liver", "livr", "label_3", "spleeen"], LEXICON)
    told = str(caught.value)
    assert "3 of 4 labels" in told and all(name in told for name in ("livr", "label_3", "spleeen", "'spleen'"))


def test_two_labels_with_one_meaning_are_refused():
    with pytest.raises(UserError, match="'left_kidney' are both 'left kidney'"):
        sentences_of_labels(["left_kidney", "kidney (L)"], LEXICON)


def test_a_bank_of_the_lexicon_needs_no_sentences_of_paired_structures_without_side():
    found = sentences_of_lexicon(LEXICON)
    assert "left kidney" in found and "liver" in found and "kidney" not in found
    assert all(texts == sentences(LEXICON.entries[name]) for name, texts in found.items())


def test_reading_the_lexicon_imports_no_torch():
    program = ("import sys; from autoseg.guidance import prompts, text_bank; "
               "from autoseg.guidance.lexicon import load_lexicon; load_lexicon(); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
