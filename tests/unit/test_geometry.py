"""How labels' vectors lie to each other as words and as controls, and which names stand as wrong answers."""

import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.guidance.banks import label_vectors, open_bank
from autoseg.guidance.distractors import choose_distractors
from autoseg.guidance.geometry import LATERALITY, arrange, collinear_sides
from autoseg.guidance.label_names import content_words, match_key
from autoseg.guidance.records import COLLINEAR, TowerRecord
from autoseg.guidance.text_bank import centered, make_bank

GEOMETRIES = ("centred", "raw", "orthonormal", "random", "shuffled", "rotated")
TOWER = TowerRecord(name="tiny", kind="clip", sha256="0" * 64, licence="CC0")


def unit(count, dimension=16, seed=0):
    """In a cone, as vectors of text are."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension)) + 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def twins(seed=0):
    """Four labels; 1 and 2 are a left and a right that words hardly part."""
    rows = unit(4, seed=seed)
    rows[2] = rows[1] + 0.05 * unit(1, seed=9)[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cosines(rows):
    return rows.astype(np.float64) @ rows.astype(np.float64).T


# ---------------------------------------------------------------- arrangement
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("rows", [unit(2), unit(5), twins()], ids=["two", "five", "twins"])
def test_rows_are_unit_vectors_one_per_label(geometry, rows):
    sided = [(1, 2)] if len(rows) == 4 else []
    arranged = arrange(rows, geometry, 3, sided, unit(6, seed=5))
    assert len(arranged.labels) == len(rows) and arranged.labels.shape[1] == arranged.distractors.shape[1]
    for part in (arranged.labels, arranged.distractors):
        assert part.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
    assert len(arranged.distractors) == (0 if geometry in ("orthonormal", "random") else 6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_chance_is_a_function_of_the_seed(geometry):
    first, again, other = (arrange(unit(5), geometry, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert np.array_equal(first.labels, other.labels) is (geometry in ("centred", "raw"))


def test_raw_and_centred_are_the_words():
    rows = unit(5)
    np.testing.assert_array_equal(arrange(rows, "raw", 0).labels, rows)
    np.testing.assert_array_equal(arrange(rows, "centred", 0).labels, centered(rows))


def test_distractors_lose_what_the_labels_have_in_common():
    rows, others = unit(5), unit(6, seed=5)
    np.testing.assert_array_equal(arrange(rows, "raw", 0, distractors=others).distractors, others)
    rest = others.astype(np.float64) - rows.astype(np.float64).mean(0)
    expected = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    for geometry in ("centred", "shuffled"):
        np.testing.assert_allclose(arrange(rows, geometry, 0, distractors=others).distractors, expected, atol=1e-6)


@pytest.mark.parametrize("rows", [unit(5), twins()], ids=["five", "twins"])
def test_turning_changes_no_angle(rows):
    sided = [(1, 2)] if len(rows) == 4 else []
    straight, turned = (arrange(rows, geometry, 1, sided, unit(6, seed=5)) for geometry in ("centred", "rotated"))
    together = [np.concatenate([one.labels, one.distractors]) for one in (straight, turned)]
    np.testing.assert_allclose(*map(cosines, together), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize(("count", "sided"), [
    (2, []), (2, [(0, 1)]), (3, []), (3, [(0, 1)]), (3, [(2, 0)]), (4, []), (4, [(1, 2)]), (4, [(0, 1), (3, 2)]),
    (5, []), (5, [(0, 3)]), (5, [(4, 0), (1, 3)]),
])  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_shuffling_gives_every_label_anothers_vector(count, sided, seed):
    rows = unit(count)
    straight, shuffled = (arrange(rows, geometry, seed, sided).labels for geometry in ("centred", "shuffled"))
    places = [int(np.flatnonzero((straight == row).all(1))[0]) for row in shuffled]
    assert sorted(places) == list(range(count)) and all(place != row for row, place in enumerate(places))
    for left, right in sided:  # three with one pair change places in a circle: there only one of both gets the other's
        swapped = (places[left] == right, places[right] == left)
        assert all(swapped) if count - 2 * len(sided) != 1 else any(swapped)


def test_orthonormal_vectors_have_no_angle_to_tell_and_need_room():
    np.testing.assert_allclose(cosines(arrange(unit(5), "orthonormal", 0).labels), np.eye(5), atol=1e-6)
    assert arrange(unit(4, dimension=4), "orthonormal", 0).labels.shape == (4, 4)
    with pytest.raises(UserError, match="5 labels.*4 dimensions"):
        arrange(unit(5, dimension=4), "orthonormal", 0)


@pytest.mark.parametrize("geometry", ["centred", "shuffled", "rotated"])
def test_one_label_has_nothing_to_be_centered_by(geometry):
    with pytest.raises(UserError, match="--text-geometry raw") as caught:
        arrange(unit(1), geometry, 0)
    assert f"--text-geometry {geometry}" in str(caught.value)


@pytest.mark.parametrize("geometry", ["raw", "orthonormal", "random"])
def test_one_label_can_stand_alone_elsewhere(geometry):
    assert arrange(unit(1), geometry, 0).labels.shape == (1, 16)


# ---------------------------------------------------------------- left and right
@pytest.mark.parametrize("geometry", ["raw", "centred", "rotated", "shuffled"])
def test_sides_that_words_hardly_part_get_an_axis(geometry):
    rows = twins()
    assert collinear_sides(rows, [(1, 2), (0, 3)]) == [(1, 2)] and cosines(rows)[1, 2] >= COLLINEAR
    arranged = arrange(rows, geometry, 0, [(1, 2)], unit(6, seed=5))
    assert arranged.labels.shape == (4, 17) and arranged.distractors.shape == (6, 17)
    assert cosines(arranged.labels)[1, 2] < COLLINEAR


def test_the_axis_parts_the_sides_and_nothing_else():
    plain, parted = arrange(twins(), "raw", 0), arrange(twins(), "raw", 0, [(1, 2)], unit(6, seed=5))
    length = (1 + LATERALITY**2) ** 0.5
    np.testing.assert_allclose(parted.labels[:, -1], [0, LATERALITY / length, -LATERALITY / length, 0], atol=1e-6)
    np.testing.assert_array_equal(parted.labels[[0, 3], :-1], plain.labels[[0, 3]])
    np.testing.assert_allclose(parted.labels[[1, 2], :-1] * length, plain.labels[[1, 2]], atol=1e-6)
    assert not parted.distractors[:, -1].any()


def test_sides_that_words_part_get_no_axis():
    rows = unit(4)
    assert not collinear_sides(rows, [(1, 2)])
    np.testing.assert_array_equal(arrange(rows, "raw", 0, [(1, 2)]).labels, rows)


def test_which_side_comes_first_decides_the_sign():
    one, other = (arrange(twins(), "raw", 0, [pair]).labels for pair in ((1, 2), (2, 1)))
    np.testing.assert_array_equal(one[:, -1], -other[:, -1])


# ---------------------------------------------------------------- wrong answers
def meaning(name):
    return {match_key(word) for word in content_words(name)}


@pytest.mark.parametrize("labels", [["liver", "tumor"], ["left kidney", "spleen"], ["lung"],
                                    ["hemorrhage", "optic disc"]])
@pytest.mark.parametrize("seed", [0, 1])
def test_distractors_are_of_another_meaning(labels, seed):
    bank = open_bank(None)
    vectors, matched = label_vectors(bank, labels, "X", ["fundus" if "optic disc" in labels else "CT"])
    chosen = choose_distractors(bank, matched, len(bank.names), seed)
    words = set().union(*map(meaning, matched))
    assert len(chosen) > 100 and not set(chosen) & set(matched)
    assert not any(meaning(name) & words for name in chosen)
    rows = [bank.names.index(name) for name in bank.names if name in matched]
    assert (bank.vectors_of(chosen) @ bank.vectors[rows].T < COLLINEAR).all()
    if labels == ["lung"]:
        halves = bank.vectors_of(["left lung", "right lung"])
        assert (bank.vectors_of(chosen) @ halves.T < COLLINEAR).all()


def test_near_vectors_and_shared_words_are_left_out_by_hand():
    rows = np.eye(6, 8, dtype=np.float32)
    rows[3] = (rows[0] + 0.1 * rows[3]) / np.linalg.norm(rows[0] + 0.1 * rows[3])
    names = ("liver", "liver tumor", "spleen", "hepar", "livers", "aorta")
    bank = make_bank(rows, {name: (f"{name}.",) for name in names}, TOWER)
    assert choose_distractors(bank, ["liver"], 9, 0) == ("spleen", "aorta")
    assert choose_distractors(bank, ["liver", "spleen", "aorta"], 9, 0) == ()


def test_the_draw_is_repeatable_and_never_more_than_asked():
    bank = open_bank(None)
    first = choose_distractors(bank, ["liver"], 24, 3)
    assert first == choose_distractors(bank, ["liver"], 24, 3) != choose_distractors(bank, ["liver"], 24, 4)
    assert len(set(first)) == 24 and list(first) == sorted(first, key=bank.names.index)
    assert choose_distractors(bank, ["liver"], 0, 3) == ()
