"""Published figures: the corrected headings are those that reproduce the averages."""

import pytest

from vlm.corpus.evaluation_sets import load_evaluation_cards
from vlm.evaluation.published import average_of_groups, of_average, of_modality, of_set
from vlm.evaluation.suite_files import read_published
from vlm.evaluation.suite_records import PublishedModel

PRINTED = read_published("unimed21")
WEIGHTS = {"X-ray": 2, "CT": 3, "MRI": 2, "Ultrasound": 2, "Fundus": 4, "Pathology": 8}
AVERAGES = {"UniMed-CLIP B/16": 61.63, "BiomedCLIP": 49.02, "PMC-CLIP": 53.37}


def test_weights_are_the_sets_of_each_modality():
    used = [card for card in load_evaluation_cards().values() if not card.skipped]
    assert {modality: sum(card.modality == modality for card in used) for modality in WEIGHTS} == WEIGHTS


@pytest.mark.parametrize("model", sorted(AVERAGES))
def test_group_means_reproduce_the_average(model):
    assert average_of_groups(PRINTED.models[model], WEIGHTS) == pytest.approx(AVERAGES[model], abs=0.006)
    assert PRINTED.models[model].average == AVERAGES[model]


@pytest.mark.parametrize("model", sorted(AVERAGES))
def test_with_the_printed_headings_they_do_not(model):
    means = PRINTED.models[model].groups
    shifted = PublishedModel(groups=dict(zip(
        ("X-ray", "Fundus", "CT", "MRI", "Ultrasound", "Pathology"), means.values(), strict=True)))
    assert abs(average_of_groups(shifted, WEIGHTS) - AVERAGES[model]) > 0.9


@pytest.mark.parametrize("model", sorted(AVERAGES))
def test_single_sets_reproduce_their_groups(model):
    cards, found = load_evaluation_cards(), PRINTED.models[model]
    for modality in ("X-ray", "CT", "MRI", "Ultrasound"):
        values = [value for name, value in found.sets.items() if cards[name].modality == modality]
        assert len(values) == WEIGHTS[modality]
        assert sum(values) / len(values) == pytest.approx(found.groups[modality], abs=0.011)


def test_figures_are_handed_out_as_fractions_where_there_are_any():
    assert of_set(PRINTED, "acl_mri") == pytest.approx(
        {"UniMed-CLIP B/16": 0.8582, "BiomedCLIP": 0.4789, "PMC-CLIP": 0.6709})
    assert of_set(PRINTED, "pcam") == {} and of_set(None, "acl_mri") == {}
    assert of_modality(PRINTED, "Fundus")["BiomedCLIP"] == pytest.approx(0.492)
    assert of_average(PRINTED)["UniMed-CLIP L/14-336, base text"] == pytest.approx(0.6484)
