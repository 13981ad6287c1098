"""Near pairs and near duplicates against comparing every pair."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.corpus import near, thinning
from vlm.corpus.facts import MODALITIES
from vlm.corpus.fingerprints import hamming
from vlm.corpus.near import LARGEST_THRESHOLD, near_pairs
from vlm.corpus.thinning import Looks, most_alike, pair_limits, thin


def scattered(rng: np.random.Generator, count: int, centers: int, most_bits: int) -> np.ndarray:
    """Hashes around a few centers, each with up to `most_bits` bits flipped; half of the bits never differ."""
    hashes = rng.integers(0, 2**64, (centers, 4), np.uint64)[rng.integers(0, centers, count)]
    for row in hashes:
        for bit in rng.choice(256, rng.integers(0, most_bits + 1), replace=False):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return hashes


def listed(found) -> list[tuple[int, int, int]]:
    return [(int(query), int(reference), int(bits)) for pairs in found
            for query, reference, bits in zip(pairs.queries, pairs.references, pairs.distances, strict=True)]


@pytest.mark.parametrize(("looks_up", "block"), [("equal bands", near.BLOCK), ("equal bands", 5),
                                               ("bands but for one bit", near.BLOCK)])
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), threshold=st.integers(0, 40))
def test_every_pair_within_the_threshold_is_found_once(monkeypatch_module, looks_up, block, seed, threshold) -> None:
    monkeypatch_module.setattr(near, "BLOCK", block)
    monkeypatch_module.setattr(near, "NANOSECONDS_PER_PROBE", 1e12 if looks_up == "equal bands" else 0.0)
    rng = np.random.default_rng(seed)
    hashes = scattered(rng, int(rng.integers(0, 40)), 4, 25)
    queries = scattered(rng, int(rng.integers(0, 30)), 2, 30)
    if len(hashes) and len(queries):
        queries[: len(hashes) // 2] = hashes[: len(queries)][: len(hashes) // 2]
    inside = hamming(hashes[:, None], hashes[None])
    across = hamming(queries[:, None], hashes[None])
    assert sorted(listed(near_pairs(hashes, threshold))) == sorted(
        (i, j, int(inside[i, j])) for i, j in zip(*np.nonzero(np.tril(inside <= threshold, -1)), strict=True))
    assert sorted(listed(near_pairs(hashes, threshold, queries))) == sorted(
        (i, j, int(across[i, j])) for i, j in zip(*np.nonzero(across <= threshold), strict=True))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("threshold", [4, 5, 6])
def test_no_pair_at_exactly_the_threshold_is_missed(threshold) -> None:
    """Of 3000 pairs, hundreds differ in every band but one: with one band less they would be lost."""
    rng = np.random.default_rng(threshold)
    hashes = rng.integers(0, 2**64, (3000, 4), np.uint64)
    copies = hashes.copy()
    for row in copies:
        for bit in rng.choice(256, threshold, replace=False):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    assert sorted(listed(near_pairs(hashes, threshold, copies))) == [(k, k, threshold) for k in range(3000)]


def test_a_memory_map_gives_what_the_array_gives(tmp_path) -> None:
    hashes = scattered(np.random.default_rng(1), 500, 20, 8)
    np.save(tmp_path / "hashes.npy", hashes)
    assert listed(near_pairs(np.load(tmp_path / "hashes.npy", mmap_mode="r"), 12)) == listed(near_pairs(hashes, 12))


def test_a_bucket_with_thousands_of_hashes_is_compared_in_blocks() -> None:
    hashes = scattered(np.random.default_rng(2), 3000, 1, 2)
    pieces = [len(pairs.queries) for pairs in near_pairs(hashes, 4)]
    assert sum(pieces) == 3000 * 2999 // 2
    assert max(pieces) <= near.BLOCK


@pytest.mark.parametrize("threshold", [-1, LARGEST_THRESHOLD + 1])
def test_a_threshold_out_of_range_is_refused(threshold) -> None:
    with pytest.raises(ValueError, match="0 to 63"):
        list(near_pairs(np.zeros((2, 4), np.uint64), threshold))


def looks(rng: np.random.Generator, count: int) -> Looks:
    plain = scattered(rng, count, 3, 12)
    mirrored = np.where(rng.random((count, 1)) < 0.2, plain[rng.integers(0, count, count)],
                        rng.integers(0, 2**64, (count, 4), np.uint64))
    return Looks(plain, mirrored, rng.choice(np.array([0, 1, 6], np.int8), count))


def alike(images: Looks, limits: np.ndarray, later: int, earlier: int) -> bool:
    bits = min(hamming(hashes[later], images.plain[earlier]) for hashes in (images.plain, images.mirrored))
    return bool(bits <= limits[images.modality[later], images.modality[earlier]])


@pytest.mark.parametrize(("listed_pairs", "crowd"), [
    (thinning.LISTED_PAIRS, thinning.CROWD), (20, thinning.CROWD), (0, thinning.CROWD), (0, 3), (20, 2)])
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_thinning_keeps_what_going_in_order_keeps(monkeypatch_module, listed_pairs, crowd, seed) -> None:
    monkeypatch_module.setattr(thinning, "LISTED_PAIRS", listed_pairs)
    monkeypatch_module.setattr(thinning, "CROWD", crowd)
    rng = np.random.default_rng(seed)
    images = looks(rng, int(rng.integers(1, 40)))
    thresholds = {"X-ray": int(rng.integers(0, 20)), "CT": 9, "mixed": int(rng.integers(0, 12))}
    limits = pair_limits(thresholds)
    kept: list[int] = []
    for later in range(len(images)):
        if not any(alike(images, limits, later, earlier) for earlier in kept):
            kept.append(later)
    found = thin(images, thresholds)
    assert np.flatnonzero(found.of < 0).tolist() == kept
    for dropped in np.flatnonzero(found.of >= 0):
        assert found.of[dropped] in kept
        assert found.of[dropped] < dropped
        assert alike(images, limits, int(dropped), int(found.of[dropped]))


def test_thousands_of_images_that_all_look_alike_lose_to_the_first_without_comparing_all() -> None:
    count = 20_000
    rng = np.random.default_rng(3)
    mirrored = rng.integers(0, 2**64, (count, 4), np.uint64)
    images = Looks(scattered(rng, count, 1, 2), mirrored, np.zeros(count, np.int8))
    start = time.process_time()
    found = thin(images, {"X-ray": 8})
    assert found.of.tolist() == [-1] + [0] * (count - 1)
    assert time.process_time() - start < 5, "200 million comparisons take longer"


def test_a_chain_loses_only_its_middle() -> None:
    chain = np.zeros((3, 4), np.uint64)
    chain[1, 0], chain[2, 0] = 0b1111, 0b11111111
    strangers = np.random.default_rng(0).integers(0, 2**64, (3, 4), np.uint64)
    assert thin(Looks(chain, strangers, np.zeros(3, np.int8)), {"X-ray": 4}).of.tolist() == [-1, 0, -1]


def test_modalities_are_compared_with_themselves_and_mixed_ones_with_all_by_the_smaller_threshold() -> None:
    limits = pair_limits({"X-ray": 12, "CT": 4, "mixed": 8})
    xray, ct, mri, mixed = (MODALITIES.index(name) for name in ("X-ray", "CT", "MRI", "mixed"))
    assert limits[xray, xray] == 12
    assert limits[xray, mixed] == limits[mixed, xray] == limits[mixed, mixed] == 8
    assert limits[ct, mixed] == 4
    assert limits[xray, ct] == limits[mri, mri] == limits[mri, mixed] == -1


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_most_alike_is_the_least_different_within_the_limit(seed) -> None:
    rng = np.random.default_rng(seed)
    images, others = looks(rng, int(rng.integers(1, 20))), looks(rng, int(rng.integers(1, 20)))
    thresholds = {"X-ray": 14, "CT": 3, "mixed": 8}
    limits = pair_limits(thresholds)[images.modality[:, None], others.modality[None]]
    bits = np.minimum(hamming(images.plain[:, None], others.plain[None]),
                      hamming(images.mirrored[:, None], others.plain[None]))
    allowed = np.where(bits <= limits, bits, 999)
    found = most_alike(images, others, thresholds)
    expected = np.where(allowed.min(axis=1) < 999, allowed.argmin(axis=1), -1)
    assert found.of.tolist() == expected.tolist()
    assert found.distance.tolist() == np.where(expected < 0, -1, allowed.min(axis=1)).tolist()
