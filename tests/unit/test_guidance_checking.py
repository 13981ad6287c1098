"""Sentences are checked before they become vectors: the lexicon's pass, and what a person gets wrong is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.guidance.checking import LONGEST, check_labels, check_sentences, read_prompts
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.prompts import match_labels, sentences

LEXICON = load_lexicon()
ENTRIES = LEXICON.entries


def findings(prompts):
    return check_sentences(prompts, match_labels(tuple(prompts), LEXICON)[0])


@pytest.mark.parametrize("modality", [None, "CT", "US"])
def test_the_lexicons_own_sentences_have_no_findings(modality):
    found = check_sentences({name: sentences(entry, modality) for name, entry in ENTRIES.items()}, ENTRIES)
    assert found.errors == () and found.warnings == ()


@pytest.mark.parametrize(("prompts", "told"), [
    ({"liver": []}, ("'liver'", "no sentence")),
    ({"liver": ["The liver.", "  "]}, ("'liver'", "empty sentence")),
    ({"liver": ["The liver " + "x" * LONGEST]}, ("'liver'", f"at most {LONGEST}")),
    ({"background": ["Everything else."]}, ("'background'", "no sentences")),
    ({"left_kidney": ["The kidney on the right."]}, ("'left_kidney'", "says right")),
    ({"RK": ["Kidney beside the left adrenal gland."]}, ("'RK'", "says left")),
    ({"left_flurb": ["A flurb on the right."]}, ("'left_flurb'", "says right")),
    ({"RK": ["The left kidney in the right half of the abdomen."]}, ("names the left kidney", "right kidney")),
    ({"liver": ["An organ."], "spleen": ["Spleen.", "An organ."]}, ("'spleen'", "'An organ.'", "'liver'")),
])
def test_what_cannot_stand_for_a_label_is_an_error(prompts, told):
    found = findings(prompts)
    assert len(found.errors) == 1 and all(part in found.errors[0] for part in told)


@pytest.mark.parametrize("text", [
    "The right kidney, opposite the left kidney.", "Kidney.", "Right of the spine and behind the liver: a kidney.",
    "RK", "Bean-shaped organs such as the kidneys",
])
def test_what_is_true_of_the_label_is_no_error(text):
    found = findings({"right_kidney": [text]})
    assert found.errors == () and found.warnings == ()


def test_a_sentence_that_does_not_name_its_structure_is_a_warning():
    found = findings({"liver": ["A large organ under the diaphragm.", "The liver.", "The hepar."]})
    assert found.errors == ()
    assert "'A large organ under the diaphragm.' does not name the liver" in found.warnings[0]


def test_a_generic_label_may_use_its_own_words_or_the_structures():
    assert findings({"liver": ["Liver."], "tumor": ["A tumor.", "A dark mass within: the liver tumor."]}).warnings == ()


def test_labels_that_the_lexicon_does_not_know_may_use_any_words():
    assert findings({"flurb": ["A round thing."], "label_1": ["An implant."]}) == check_sentences({}, {})


def test_all_errors_are_told_together(tmp_path):
    found = findings({"liver": [], "left_kidney": ["On the right."], "spleen": ["The spleen."]})
    with pytest.raises(UserError) as caught:
        found.refuse_errors(tmp_path / "p.json")
    assert "2 problems" in str(caught.value) and "'liver'" in str(caught.value) and "'left_kidney'" in str(caught.value)
    findings({"spleen": ["The spleen."]}).refuse_errors(tmp_path / "p.json")


@given(st.dictionaries(st.text(max_size=12), st.lists(st.text(max_size=20), max_size=3), max_size=4))
def test_any_sentences_can_be_checked(prompts):
    found = check_sentences(prompts, {})
    if any(not texts or not all(text.strip() for text in texts) for texts in prompts.values()):
        assert found.errors
    assert found.warnings == ()


def test_labels_of_a_file_are_those_of_the_dataset():
    assert check_labels(("liver", "spleen"), ("spleen", "liver")) == []
    problems = check_labels(("livr", "spleen", "background"), ("liver", "spleen"))
    assert len(problems) == 2 and "'liver' is missing" in problems[0] and "did you mean 'liver'" in problems[1]


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[]", "expected"), ('{"a": "b"}', "expected"),
                                            ('{"a": [1]}', "expected")])
def test_files_of_another_form_are_refused_with_the_form(tmp_path, text, said):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_prompts(tmp_path / "p.json")
    assert "label → list of sentences" in str(caught.value)
