"""The caption checks, against sentences whose faults are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.corpus.captions.checks import LONGEST_TOKENS, check_caption, drop_near_duplicates, tokens_of
from vlm.corpus.captions.tables import load_table
from vlm.corpus.rows import LabelSet

CHEST = load_table("chest_xray")
EFFUSION = LabelSet("X-ray", ("Pleural Effusion",), ("Pneumonia",), ("Pneumothorax",), "chest", "frontal")
GRADES = load_table("diabetic_retinopathy")


@pytest.mark.parametrize("text", [
    "Chest X-ray with a pleural effusion.",
    "Pleural effusions are seen on this chest radiograph.",
    "This radiograph shows fluid in the pleural space; pneumonia cannot be excluded.",
    "Pleural effusion on a frontal radiograph without pneumothorax.",
    "Chest X-ray: pleural effusion. Suspected pneumonia. No pneumothorax.",
    "A pleural effusion is present, whereas a pneumothorax is not seen on this X-ray.",
    "No pneumothorax is seen, but there is a pleural effusion on this X-ray of the chest.",
    "Chest radiograph negative for pneumothorax, with a pleural effusion and possible pneumonia.",
    "X-ray of the chest in which a pleural effusion cannot hide a possible pneumonia.",
    "We cannot rule out pneumonia on this X-ray with pleural effusion.",
    "This X-ray shows no pneumothorax and there is a pleural effusion.",
])
def test_right_captions_pass(text):
    assert check_caption(text, EFFUSION, CHEST) is None


@pytest.mark.parametrize(("text", "told"), [
    ("A pleural effusion is seen.", "does not name the modality, X-ray"),
    ("A chest CT shows a pleural effusion.", "does not name the modality, X-ray"),
    ("Chest X-ray and CT with a pleural effusion.", "names another modality, CT"),
    ("Chest X-ray with a large heart.", "does not name pleural effusion"),
    ("Chest X-ray without pleural effusion.", "denies pleural effusion, which is present"),
    ("Chest X-ray: no pneumothorax or pleural effusion.", "denies pleural effusion, which is present"),
    ("On this X-ray a pleural effusion is not seen.", "denies pleural effusion, which is present"),
    ("Chest X-ray with a pleural effusion and pneumonia.", "states pneumonia as a fact"),
    ("Chest X-ray with a pleural effusion but no pneumonia.", "denies pneumonia, which is uncertain"),
    ("Chest X-ray with a pleural effusion and a pneumothorax.", "asserts pneumothorax, which is absent"),
    ("Chest X-ray with a pleural effusion and a possible pneumothorax.", "asserts pneumothorax, which is absent"),
    ("No fracture, but a pneumothorax and a pleural effusion on this X-ray.", "asserts pneumothorax"),
    ("Normal chest X-ray with a pleural effusion.", "beside a finding"),
    ("Chest X-ray with a pleural effusion and no acute abnormality.", "beside a finding"),
    ("Chest X-ray.", "the fewest"),
    ("chest X-ray with a pleural effusion.", "capital"),
    ("Chest X-ray with a pleural effusion", "period"),
    ("Chest X-ray with an pleural effusion.", "article"),
    ("Chest X-ray with a a pleural effusion.", "doubled word"),
    ("Chest X-ray with a {finding} of pleural effusion.", "template"),
    ("**Chest X-ray** with a pleural effusion.", "markup"),
    ("Sure, a chest X-ray with a pleural effusion.", "about the task"),
    ("Caption of a chest X-ray with a pleural effusion.", "about the task"),
    ("Chest X-ray\nwith a pleural effusion.", "character"),
    ("Chest X-ray with a pleural effusion..", "punctuation"),
    ("Chest X-ray  with a pleural effusion.", "spaces"),
    ("Chest X-ray of None with a pleural effusion.", "placeholder"),
    ("Chest X-ray with a pleural effusion" + ", and more" * 40 + ".", "longer"),
    ("", "fewest"),
])
def test_faults_are_told(text, told):
    assert told in str(check_caption(text, EFFUSION, CHEST))


def test_a_longer_name_is_not_its_shorter_one():
    viral = LabelSet("X-ray", ("viral pneumonia",), absent=("bacterial pneumonia",))
    assert check_caption("X-ray with viral pneumonia, not bacterial pneumonia.", viral, CHEST) is None
    parts = LabelSet("X-ray", ("Pneumonia",), absent=("bacterial pneumonia",))
    assert "does not name" in str(check_caption("X-ray without bacterial pneumonia.", parts, CHEST))


def test_one_of_exclusive_labels_rules_out_the_others():
    labels = LabelSet("Fundus", ("2",))
    fine = "Fundus photograph with moderate nonproliferative diabetic retinopathy."
    assert check_caption(fine, labels, GRADES) is None
    worse = "Fundus photograph with moderate NPDR and severe NPDR."
    assert "asserts severe nonproliferative" in str(check_caption(worse, labels, GRADES))


def test_a_normal_image_must_be_called_normal_and_nothing_else():
    labels = LabelSet("Ultrasound", ("normal breast tissue",))
    table = load_table("breast_ultrasound")
    assert check_caption("Breast ultrasound without abnormality.", labels, table) is None
    assert check_caption("Breast ultrasound image of normal tissue.", labels, table) is None
    assert "is normal" in str(check_caption("This is a breast ultrasound image.", labels, table))
    assert "asserts" in str(check_caption("Normal breast ultrasound with a breast lesion.", labels, table))


def test_a_denial_must_deny():
    labels, table = LabelSet("MRI", ("no tumor",)), load_table("brain_mri")
    assert check_caption("Brain MRI with no evidence of a brain tumor.", labels, table) is None
    assert "asserts" in str(check_caption("Brain MRI with a brain tumor.", labels, table))
    assert "does not name" in str(check_caption("This is a brain MRI.", labels, table))


def test_of_many_findings_five_are_enough():
    names = ("Mass", "Nodule", "Edema", "Emphysema", "Fibrosis", "Atelectasis")
    five = "Chest X-ray with a mass, a nodule, pulmonary edema, emphysema and fibrosis."
    assert check_caption(five, LabelSet("X-ray", names), CHEST) is None
    four = "Chest X-ray with a mass, a nodule, pulmonary edema and emphysema."
    assert "does not name" in str(check_caption(four, LabelSet("X-ray", names), CHEST))


@pytest.mark.parametrize(("modality", "text", "named"), [
    ("Ultrasound", "US of the liver with a liver cyst.", True), ("Ultrasound", "It shows us a liver cyst.", False),
    ("MRI", "MR image with a liver cyst.", True), ("MRI", "Mr Brown has a liver cyst.", False),
    ("Pathology", "Micrograph showing a liver cyst.", True), ("Pathology", "Image showing a liver cyst.", False),
    ("mixed", "Image showing a liver cyst.", True), ("mixed", "CT showing a liver cyst.", True),
])
def test_modalities_are_named_by_their_words(modality, text, named):
    problem = check_caption(text, LabelSet(modality, ("liver cyst",)), None)
    assert (problem is None) is named


@given(st.lists(st.sampled_from(["A mass.", "a Mass", "The mass!", "This mass.", "Two masses.", "No mass."])))
def test_near_duplicates_are_dropped_once_and_in_order(texts):
    kept = drop_near_duplicates(texts)
    assert drop_near_duplicates(kept) == kept and drop_near_duplicates((*kept, *texts)) == kept
    assert [texts.index(text) for text in kept] == sorted(texts.index(text) for text in kept)
    assert len(kept) == len({text.lower().strip(".!").removeprefix("a ").removeprefix("the ").removeprefix("this ")
                             for text in texts})


@given(st.text(max_size=200))
def test_any_text_is_judged(text):
    problem = check_caption(text, EFFUSION, CHEST)
    assert problem is None or problem
    assert len(tokens_of(text)) <= LONGEST_TOKENS or problem
