"""Ranks and recalls of retrieval: against a loop over pairs, for encoders that know nothing, and their chance."""

import numpy as np
import pytest

from vlm.model.retrieval import DIRECTIONS, Ranks, bootstrap_interval, rank_pairs


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_case(seed, pairs=40, captions=15, dimension=5):
    rng = np.random.default_rng(seed)
    number = rng.integers(captions, size=pairs)
    texts = unit(rng.standard_normal((captions, dimension)))[number]
    return unit(rng.standard_normal((pairs, dimension))), texts, [f"caption {one}" for one in number]


@pytest.mark.parametrize("seed", range(3))
def test_ranks_against_a_loop_over_pairs(seed):
    images, texts, captions = random_case(seed)
    found = rank_pairs(images, texts, captions)
    of_caption = {caption: text for caption, text in zip(captions, texts, strict=True)}
    for own, caption in enumerate(captions):
        order = sorted(of_caption, key=lambda other: -float(images[own] @ of_caption[other]))
        assert found.image_to_text[own] == order.index(caption) + 1
        order = sorted(range(len(captions)), key=lambda other: -float(images[other] @ of_caption[caption]))
        assert found.text_to_image[own] == 1 + min(
            place for place, other in enumerate(order) if captions[other] == caption)
        assert found.twins[own] == captions.count(caption)
    assert found.captions == len(set(captions))


def test_identical_captions_count_as_correct():
    images, texts = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 2, 0]]
    found = rank_pairs(images[[3, 1, 2, 0]], texts, ["a", "b", "c", "a"])
    assert found.image_to_text.tolist() == found.text_to_image.tolist() == [1, 1, 1, 1]


def test_an_encoder_that_gives_everything_one_embedding_finds_nothing():
    same = np.ones((6, 1))
    found = rank_pairs(same, same, list("abcdef"))
    assert found.image_to_text.tolist() == found.text_to_image.tolist() == [6] * 6
    assert all(found.hits(direction, 5).sum() == 0 for direction in DIRECTIONS)


def test_an_encoder_whose_numbers_are_none_finds_nothing():
    broken = np.full((6, 2), np.nan)
    found = rank_pairs(broken, broken, list("abcdef"))
    assert found.image_to_text.tolist() == found.text_to_image.tolist() == [6] * 6


@pytest.mark.parametrize("k", [1, 5, 10])
def test_chance_is_what_random_embeddings_reach(k):
    found = [rank_pairs(*random_case(seed)) for seed in range(300)]
    for direction in DIRECTIONS:
        reached = np.mean([ranks.hits(direction, k).mean() for ranks in found])
        assert reached == pytest.approx(np.mean([ranks.chance(direction, k) for ranks in found]), abs=0.02)
    assert np.mean([ranks.mean_chance(k) for ranks in found]) == pytest.approx(
        np.mean([ranks.mean_hits(k).mean() for ranks in found]), abs=0.02)


def test_chance_of_a_case_by_hand():
    # Two of four images have caption a: a random one of them comes first with 1/2; with 5/6 one is among two.
    ranks = Ranks(np.ones(4, np.int64), np.ones(4, np.int64), np.array([2, 2, 1, 1]), captions=3)
    assert ranks.chance("image_to_text", 1) == pytest.approx(1 / 3)
    assert ranks.chance("text_to_image", 1) == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4)
    assert ranks.chance("text_to_image", 2) == pytest.approx((5 / 6 + 5 / 6 + 0.5 + 0.5) / 4)
    assert ranks.chance("text_to_image", 10) == ranks.chance("image_to_text", 10) == 1


def test_the_interval_holds_the_mean_and_is_as_wide_as_theory_says():
    values = (np.arange(400) % 4 == 0).astype(np.float64)
    low, high = bootstrap_interval(values)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - half, abs=0.01) and high == pytest.approx(0.25 + half, abs=0.01)


def test_pairs_of_one_patient_count_as_one_observation():
    # Ten equal pairs of each patient: the interval is that of the patients alone.
    patients = (np.arange(40) % 4 == 0).astype(np.float64)
    assert bootstrap_interval(np.repeat(patients, 10), np.repeat(np.arange(40), 10)) == bootstrap_interval(patients)
