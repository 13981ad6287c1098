"""Which caption is read: a function of (seed, visit, uid), with the frequencies that the policy says."""

from collections import Counter

import pytest

from vlm.schema import Caption
from vlm.training.captions import choose_caption
from vlm.training.pairs import TrainingPair, label_key, text_key
from vlm.training.settings import CaptionChoice


def pair(kinds, uid="chest_1", source="chest", labels=()):
    captions = tuple(Caption(text=f"{kind} {number}", kind=kind, origin="test") for number, kind in enumerate(kinds))
    return TrainingPair(uid, source, b"", captions, labels)


def drawn(one, choice, visits=4000, seed=0):
    return Counter(choose_caption(one, choice, seed, visit) for visit in range(visits))


def test_uniform_reads_each_caption_equally_often():
    counts = drawn(pair(["template"] * 10), CaptionChoice(policy="uniform"))
    assert len(counts) == 10
    assert all(abs(count - 400) < 80 for count in counts.values())  # 4 standard deviations


def test_first_reads_the_first():
    assert drawn(pair(["native", "template"]), CaptionChoice(policy="first"), 20) == {"native 0": 20}


@pytest.mark.parametrize("report_p", [0.0, 0.3, 1.0])
def test_mixture_reads_the_report_with_its_probability_and_the_others_equally(report_p):
    counts = drawn(pair(["template", "report", "template"]), CaptionChoice(policy="mixture", report_p=report_p))
    assert abs(counts["report 1"] / 4000 - report_p) < 0.03
    assert abs(counts["template 0"] - counts["template 2"]) < 250


@pytest.mark.parametrize("report_p", [0.0, 1.0])
def test_mixture_of_a_pair_without_choice_reads_what_there_is(report_p):
    choice = CaptionChoice(policy="mixture", report_p=report_p)
    assert set(drawn(pair(["template"] * 2), choice, 50)) == {"template 0", "template 1"}
    assert set(drawn(pair(["report"]), choice, 50)) == {"report 0"}


def test_a_source_may_have_its_own_policy():
    choice = CaptionChoice(policy="uniform", sources={"eyes": "first"})
    assert len(drawn(pair(["template"] * 3, source="eyes"), choice, 50)) == 1
    assert len(drawn(pair(["template"] * 3), choice, 50)) == 3


def test_seed_visit_and_uid_decide_and_nothing_else():
    choice, one, other = CaptionChoice(), pair(["template"] * 10), pair(["template"] * 10, uid="chest_2")

    def sequence(which, seed):
        return [choose_caption(which, choice, seed, visit) for visit in range(30)]

    assert sequence(one, 1) == sequence(one, 1)
    assert sequence(one, 1) != sequence(one, 2) and sequence(one, 1) != sequence(other, 1)


def test_pairs_mean_the_same_by_source_and_labels():
    one = pair(["native"], "a_1", "a", ("mass", "effusion"))
    assert label_key(one) == label_key(pair(["native"], "a_2", "a", ("effusion", "mass")))
    assert label_key(one) != label_key(pair(["native"], "b_1", "b", ("mass", "effusion")))
    assert label_key(one) != label_key(pair(["native"], "a_3", "a", ("mass",)))


def test_a_pair_without_labels_means_the_same_as_itself_alone():
    assert label_key(pair(["native"], "a_1")) == label_key(pair(["native"], "a_1"))
    assert label_key(pair(["native"], "a_1")) != label_key(pair(["native"], "a_2"))


def test_captions_are_the_same_whatever_their_case_and_spaces():
    assert text_key("A  normal chest ") == text_key("a normal chest")
    assert text_key("a normal chest") != text_key("an abnormal chest")
