"""Laws of what is kept: no leak, no equal or alike images, no patient in two splits, no article in two sources."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.corpus.facts import first_of_equals, sha256_words
from vlm.corpus.fingerprints import hamming
from vlm.corpus.leaks import EvaluationSet
from vlm.corpus.pairing import FACTS, MODALITIES, Fate, assign_split, decide, load_thresholds, name_hash

THRESHOLDS = {"X-ray": 8, "CT": 4, "mixed": 4}
TRAIN, VAL, TEST = 0, 1, 2


def facts_of(count: int, **columns) -> np.ndarray:
    """Images that have nothing in common, but for the given columns."""
    rng = np.random.default_rng(99)
    facts = np.zeros(count, FACTS)
    facts["row"] = np.arange(count)
    for name in ("sha256", "phash", "mirrored"):
        facts[name] = rng.integers(0, 2**64, (count, 4), np.uint64)
    for name, values in columns.items():
        facts[name] = values
    return facts


def crowded(seed: int) -> np.ndarray:
    """Images among which everything that is decided about happens often."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    facts = facts_of(count)
    pool = rng.integers(0, 2**64, (12, 4), np.uint64)
    facts["sha256"] = np.where(rng.random((count, 1)) < 0.4, pool[rng.integers(0, 12, count)], facts["sha256"])
    alike = pool[rng.integers(0, 12, count)]
    alike[:, 0] ^= np.uint64(1) << rng.integers(0, 10, count).astype(np.uint64)
    facts["phash"] = np.where(rng.random((count, 1)) < 0.4, alike, facts["phash"])
    facts["source"] = np.sort(rng.integers(0, 3, count))
    facts["modality"] = rng.choice([0, 1, 6], count)
    facts["split"] = rng.integers(0, 3, count)
    facts["patient"] = rng.integers(0, 25, count)
    facts["article"] = rng.integers(0, 25, count) * (rng.random(count) < 0.3)
    return facts


def evaluation_from(facts: np.ndarray, seed: int) -> tuple[EvaluationSet, ...]:
    """Two sets: some of the facts' files, and others that only look like some facts and list a patient."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(facts))
    equal, looking = facts[chosen[:2]], facts[chosen[2:4]].copy()
    looking["sha256"] += np.uint64(1)
    return (EvaluationSet("equal", "X-ray", equal["sha256"], equal["phash"], ("a.png", "b.png")[: len(equal)]),
            EvaluationSet("looking", "CT", looking["sha256"], looking["phash"], ("c.png", "d.png")[: len(looking)],
                          patients=np.array([5], np.uint64)))


@given(seed=st.integers(0, 10**6))
def test_the_laws_hold_for_what_is_kept(seed) -> None:
    facts = crowded(seed)
    evaluation = evaluation_from(facts, seed)
    decisions = decide(facts, THRESHOLDS, evaluation)
    kept = facts[decisions.fate == Fate.KEPT]
    digests = {tuple(row) for row in kept["sha256"].tolist()}
    assert len(digests) == len(kept), "two equal files are kept"
    assert not digests & {tuple(row) for known in evaluation for row in known.sha256.tolist()}, "a file leaks"
    assert 5 not in kept["patient"], "a listed patient leaks"
    leaked = (facts["sha256"][:, None] == evaluation[0].sha256[None]).all(axis=2).any(axis=1)
    assert not set(kept["patient"].tolist()) & set(facts["patient"][leaked].tolist()) - {0}, "an equal file's patient"
    for patient in set(kept["patient"].tolist()) - {0}:
        assert len(set(kept["split"][kept["patient"] == patient])) == 1, "a patient is in two splits"
    for article in set(kept["article"].tolist()) - {0}:
        assert len(set(kept["source"][kept["article"] == article])) == 1, "an article is in two sources"
    for modality, threshold in ((0, 8), (1, 4), (6, 4)):
        same = kept[kept["modality"] == modality]["phash"]
        bits = hamming(same[:, None], same[None])
        assert not (np.tril(bits <= threshold, -1) & np.tril(np.ones_like(bits, bool), -1)).any(), "two look alike"


@given(seed=st.integers(0, 10**6))
def test_every_drop_names_its_reason_and_never_a_weaker_one(seed) -> None:
    facts = crowded(seed)
    decisions = decide(facts, THRESHOLDS, evaluation_from(facts, seed))
    for position, (fate, of) in enumerate(zip(decisions.fate, decisions.of, strict=True)):
        if fate in (Fate.EXACT, Fate.NEAR, Fate.ARTICLE, Fate.PATIENT_SPLIT):
            assert facts["split"][of] >= facts["split"][position], "test lost to train"
            assert of != position
        if fate == Fate.NEAR:
            assert decisions.fate[of] == Fate.KEPT
            assert 0 <= decisions.distance[position] <= 8
        if fate == Fate.EXACT:
            assert (facts["sha256"][of] == facts["sha256"][position]).all()
        assert (decisions.evaluation[position] >= 0) == (fate in (Fate.LEAK_IMAGE, Fate.LEAK_PATIENT, Fate.LEAK_ID))
        assert (of >= 0) == (fate not in (Fate.KEPT, Fate.LEAK_PATIENT, Fate.LEAK_ID))


@given(seed=st.integers(0, 10**6))
def test_exact_copies_lose_the_same_number_in_any_order(seed) -> None:
    facts = crowded(seed)
    facts["patient"] = facts["article"] = 0
    mixed = facts[np.random.default_rng(seed).permutation(len(facts))]
    kept = [decide(one, {}, evaluation_from(facts, seed)[:1]).fate == Fate.KEPT for one in (facts, mixed)]
    files = [Counter(map(tuple, one["sha256"][keep].tolist())) for one, keep in zip((facts, mixed), kept, strict=True)]
    assert files[0] == files[1]


def test_the_test_copy_stays_and_the_training_copy_goes() -> None:
    facts = facts_of(4, split=[TRAIN, VAL, TEST, TRAIN])
    facts["sha256"][2] = facts["sha256"][0]
    facts["phash"][3] = facts["phash"][1]
    decisions = decide(facts, THRESHOLDS)
    assert decisions.fate.tolist() == [Fate.EXACT, Fate.KEPT, Fate.KEPT, Fate.NEAR]
    assert decisions.of.tolist() == [2, -1, -1, 1]


def test_a_mirrored_copy_is_found_and_another_modality_is_not_compared() -> None:
    facts = facts_of(3, modality=[0, 0, 1])
    facts["mirrored"][1] = facts["phash"][0]
    facts["phash"][2] = facts["phash"][0]
    assert decide(facts, THRESHOLDS).fate.tolist() == [Fate.KEPT, Fate.NEAR, Fate.KEPT]
    assert decide(facts, THRESHOLDS, near_duplicates=False).fate.tolist() == [Fate.KEPT] * 3


def test_a_patient_stays_in_the_strongest_split_and_takes_equal_files_of_other_sources_along() -> None:
    facts = facts_of(4, split=[TRAIN, TEST, VAL, TRAIN], patient=[7, 7, 8, 9], source=[0, 0, 0, 1])
    facts["sha256"][3] = facts["sha256"][0]
    decisions = decide(facts, THRESHOLDS)
    assert decisions.fate.tolist() == [Fate.PATIENT_SPLIT, Fate.KEPT, Fate.KEPT, Fate.PATIENT_SPLIT]
    assert decisions.of.tolist() == [1, -1, -1, 1]


def test_an_article_belongs_to_the_first_source_that_has_it() -> None:
    facts = facts_of(5, source=[0, 0, 1, 1, 2], article=[3, 3, 3, 4, 4])
    decisions = decide(facts, THRESHOLDS)
    assert decisions.fate.tolist() == [Fate.KEPT, Fate.KEPT, Fate.ARTICLE, Fate.KEPT, Fate.ARTICLE]
    assert decisions.of.tolist() == [-1, -1, 0, -1, 3]


def test_a_listed_image_takes_its_copies_and_its_patient_along() -> None:
    facts = facts_of(5, patient=[1, 1, 2, 2, 0], source=[0, 0, 1, 1, 1])
    facts["sha256"][2] = facts["sha256"][0]
    listed = np.array([0, -1, -1, -1, -1], np.int16)
    decisions = decide(facts, THRESHOLDS, (EvaluationSet("set", "X-ray"),), listed)
    assert decisions.fate.tolist() == [
        Fate.LEAK_ID, Fate.LEAK_PATIENT, Fate.LEAK_ID, Fate.LEAK_PATIENT, Fate.KEPT]
    assert decisions.evaluation.tolist() == [0, 0, 0, 0, -1]


def test_copies_of_a_leaked_patients_images_leak_where_the_patient_is_not_known() -> None:
    facts = facts_of(4, patient=[1, 1, 0, 3], source=[0, 0, 1, 2])
    facts["sha256"][2] = facts["sha256"][3] = facts["sha256"][1]
    listed = np.array([0, -1, -1, -1], np.int16)
    decisions = decide(facts, THRESHOLDS, (EvaluationSet("set", "X-ray"),), listed)
    assert decisions.fate.tolist() == [Fate.LEAK_ID] + [Fate.LEAK_PATIENT] * 3
    assert decisions.evaluation.tolist() == [0] * 4


def test_an_image_that_only_looks_like_one_of_a_set_does_not_condemn_its_patient() -> None:
    facts = facts_of(3, patient=[1, 1, 2])
    known = EvaluationSet("set", "X-ray", facts["sha256"][2:] + np.uint64(1), facts["phash"][:1], ("a.png",))
    decisions = decide(facts, THRESHOLDS, (known,))
    assert decisions.fate.tolist() == [Fate.LEAK_IMAGE, Fate.KEPT, Fate.KEPT]
    assert decisions.of[0] == 0
    assert decisions.distance[0] == 0


def test_no_facts_give_no_decisions() -> None:
    assert len(decide(facts_of(0), THRESHOLDS).fate) == 0


def test_a_memory_map_is_decided_like_the_array(tmp_path) -> None:
    facts = crowded(3)
    np.save(tmp_path / "facts.npy", facts)
    mapped = decide(np.load(tmp_path / "facts.npy", mmap_mode="r"), THRESHOLDS)
    assert mapped.fate.tolist() == decide(facts, THRESHOLDS).fate.tolist()


def test_shares_of_splits_are_met_and_a_group_is_never_divided() -> None:
    splits = Counter(assign_split(0, "source", f"patient {k}", {"val": 0.1, "test": 0.2}) for k in range(5000))
    assert splits["test"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert splits["val"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert assign_split(4, "a", "b", {"val": 0.5}) == assign_split(4, "a", "b", {"val": 0.5})
    assert {assign_split(seed, "a", "b", {"val": 0.5}) for seed in range(20)} == {"train", "val"}
    assert assign_split(0, "a", "b", {"test": 1.0}) == "test"
    assert assign_split(0, "a", "b", {}) == "train"
    with pytest.raises(ValueError, match="exceed 1"):
        assign_split(0, "a", "b", {"val": 0.6, "test": 0.6})


def test_a_larger_share_only_adds_groups() -> None:
    names = [f"patient {k}" for k in range(300)]
    small, large = ({name for name in names if assign_split(1, "s", name, {"test": share}) == "test"}
                    for share in (0.1, 0.3))
    assert small < large


def test_names_and_digests_become_numbers() -> None:
    assert name_hash("a", "b") != name_hash("ab", "") != 0
    digest = "0123456789abcdef" * 4
    assert sha256_words(digest).tolist() == [0x0123456789ABCDEF] * 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_first_of_equals_is_the_first(rows) -> None:
    columns = [np.array([row[k] for row in rows], np.int64) for k in (0, 1)]
    assert first_of_equals(columns).tolist() == [rows.index(row) for row in rows]


def test_every_modality_has_a_threshold_that_is_searched_without_gaps() -> None:
    thresholds = load_thresholds()
    assert set(thresholds) == set(MODALITIES)
    assert all(0 < bits <= 31 for bits in thresholds.values())
