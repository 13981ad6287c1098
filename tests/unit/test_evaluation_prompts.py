"""The prompt presets: whole, balanced, each naming modality, organ and finding, and no sentence of training."""

import re
from itertools import chain, product

import numpy as np
import pytest
from pydantic import ValidationError

from vlm.corpus.captions.checks import MODALITY_WORDS
from vlm.corpus.captions.grammar import grammar_captions
from vlm.corpus.captions.tables import TABLES, load_table
from vlm.corpus.rows import LabelSet
from vlm.evaluation.leak_flags import plain
from vlm.evaluation.prompt_sensitivity import prompt_sensitivity
from vlm.evaluation.suite_files import read_prompts, read_suite
from vlm.evaluation.suite_records import PromptSet
from vlm.evaluation.zero_shot import class_scores, class_vectors, unit

PLANS = {plan.name: plan for name in ("unimed21", "mini") for plan in read_suite(name)[1] if plan.classes}
ORGANS = {
    "chexpert_5x200": r"chest|thorax", "rsna_pneumonia": r"chest|lung", "thyroid_us": "thyroid", "breast_us": "breast",
    "acl_mri": "knee", "meniscal_mri": "knee", "lc25000_lung": "lung", "lc25000_colon": "colon|bowel",
    "pcam": "lymph node", "nck_crc": "colon|colorectal|bowel", "bach": "breast", "osteo": "osteosarcoma|bone",
    "skin_cancer": "skin", "skin_tumor": "skin", "kermany_cxr": "chest", "covid_ct": "chest|lung",
    "iq_oth_nccd": "chest|lung", "brain_tumor_mri": "brain", "busi": "breast", "pocovid": "lung",
    "lc25000": "colon|lung", "dr_regular": "fundus|retina", "refuge_retina": "fundus|retina|optic",
    "five_retina": "fundus|retina", "odir_retina": "fundus|retina", "odir5k": "fundus|retina",
    "ct_axial": "trunk|organ|heart|lung|liver|spleen|pancreas|kidney|bladder|femoral",
}
ORGANS |= {"ct_coronal": ORGANS["ct_axial"], "ct_sagittal": ORGANS["ct_axial"]}


@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_sets_sentences_are_balanced_and_name_modality_and_organ(name):
    plan = PLANS[name]
    assert set(plan.prompts) == set(plan.classes)
    counts = {len(sentences) for sentences in plan.prompts.values()}
    assert len(counts) == 1 and 4 <= counts.pop() <= 10
    sentences = list(chain.from_iterable(plan.prompts.values()))
    assert len(set(sentences)) == len(sentences), "a sentence tells one class"
    modalities = ("CT", "MRI") if plan.modality == "mixed" else (plan.modality,)
    for sentence in sentences:
        assert any(re.search(MODALITY_WORDS[one], sentence, re.IGNORECASE) for one in modalities), sentence
        assert name not in ORGANS or re.search(ORGANS[name], sentence, re.IGNORECASE), sentence
        assert sentence[0].isupper() and sentence.endswith(".") and "  " not in sentence and len(sentence) < 160


@pytest.mark.parametrize("name", ["ct_axial", "ct_coronal", "ct_sagittal"])
def test_planes_and_sides_are_said(name):
    plane = name.removeprefix("ct_")
    for label, sentences in PLANS[name].prompts.items():
        assert all(plane in sentence for sentence in sentences)
        for side in ("left", "right"):
            assert all((side in sentence) == label.startswith(side) for sentence in sentences)


def test_no_sentence_is_one_that_training_images_get_from_their_labels():
    written = set()
    for table in map(load_table, TABLES()):
        for label, modality in product(table.labels, table.images):
            written |= set(map(plain, grammar_captions(LabelSet(modality, present=(label,)), table, 10)))
    assert len(written) > 1000
    asked = {plain(sentence) for plan in PLANS.values() for one in plan.prompts.values() for sentence in one}
    assert not asked & written


def test_presets_name_themselves_and_their_templates_are_filled():
    for name in PLANS:
        prompts = read_prompts(name)
        assert prompts.name == name
    filled = PromptSet(name="a", templates=("A CT of {}.", "{} on CT."), phrases={"x": ("the x",), "y": ("a y",)},
                       sentences={"x": ("More of x.",)}).by_class()
    assert filled == {"x": ("A CT of the x.", "the x on CT.", "More of x."), "y": ("A CT of a y.", "a y on CT.")}


@pytest.mark.parametrize("content", [
    {"templates": ["A CT of {}."]}, {"phrases": {"x": ["the x"]}}, {}, {"sentences": {"x": []}},
    {"templates": ["A CT."], "phrases": {"x": ["the x"]}}, {"templates": ["{} and {}"], "phrases": {"x": ["the x"]}},
])
def test_prompts_that_say_nothing_are_refused(content):
    with pytest.raises(ValidationError):
        PromptSet.model_validate({"name": "a", **content})


def vectors(seed, count, dimension=6):
    return unit(np.random.default_rng(seed).normal(size=(count, dimension)))


def test_a_class_is_the_mean_direction_of_its_sentences():
    first, second = vectors(0, 3), vectors(1, 5)
    found = class_vectors([first, second])
    for row, sentences in zip(found, (first, second), strict=True):
        expected = sum(sentence / np.sqrt(sentence @ sentence) for sentence in sentences)
        assert row == pytest.approx(expected / np.sqrt(expected @ expected))
    assert class_vectors([7 * first, second[::-1]]) == pytest.approx(found), "lengths and order do not count"
    assert class_vectors([np.stack([first[0], -first[0]])]) == pytest.approx(np.zeros((1, 6)))
    assert class_scores(found, found).diagonal() == pytest.approx(np.ones(2))


def test_equal_sentences_make_no_difference():
    images, targets = vectors(2, 40), np.arange(40) % 3
    same = [np.repeat(vectors(3 + place, 1), 4, 0) for place in range(3)]
    found = prompt_sensitivity("balanced_accuracy", images, targets, same, np.random.default_rng(0))
    assert found.leave_one_out_std == 0 and found.some_size == 2
    assert {found.all, found.one.value, found.one.low, found.one.high, found.some.low, found.some.high} == {found.all}


def test_sensitivity_is_what_each_choice_of_sentences_gives():
    images, targets = vectors(2, 50), np.arange(50) % 2
    sentences = [vectors(8, 2), vectors(9, 3)]
    found = prompt_sensitivity("accuracy", images, targets, sentences, np.random.default_rng(0))

    def accuracy(first, second):
        rows = class_vectors([first, second])
        return np.mean([int((image @ rows[1]) > (image @ rows[0])) == target
                        for image, target in zip(images, targets, strict=True)])

    single = [accuracy(sentences[0][i : i + 1], sentences[1][i : i + 1]) for i in range(2)]
    assert [found.one.value, found.one.low, found.one.high] == pytest.approx(
        [np.mean(single), min(single), max(single)])
    without = [accuracy(np.delete(sentences[0], i, 0), sentences[1]) for i in range(2)]
    without += [accuracy(sentences[0], np.delete(sentences[1], i, 0)) for i in range(3)]
    assert found.leave_one_out_std == pytest.approx(np.std(without)) and found.leave_one_out_std > 0
    assert found.all == pytest.approx(accuracy(*sentences))
    assert found.sentences == 2 and found.some is None, "half of two is one"
    alone = prompt_sensitivity("accuracy", images, targets, [vectors(8, 1), vectors(9, 3)], np.random.default_rng(0))
    assert alone.leave_one_out_std is None
