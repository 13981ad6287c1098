"""Perceptual hashes against imagehash, the law of the mirrored hash, and distances."""

import io

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm.corpus.fingerprints import hamming, hash_from_hex, hash_hex, perceptual_hashes

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4)


def smooth(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Blobs with some noise: an image that, unlike white noise, has a hash which compression leaves alone."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12)).astype(np.uint8))
    pixels = np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), float) + rng.normal(0, 3, shape)
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("shape", [(64, 64), (200, 168), (40, 300), (17, 16), (512, 777)])
def test_hash_is_that_of_imagehash(seed, shape):
    for gray in (smooth(seed, shape), np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)):
        phash, _ = perceptual_hashes(gray)
        expected = imagehash.phash(Image.fromarray(gray), hash_size=16)
        assert hash_hex(phash) == str(expected)
        assert np.array_equal(np.unpackbits(phash.astype(">u8").view(np.uint8)), expected.hash.ravel())


@pytest.mark.parametrize("seed", range(10))
def test_mirrored_hash_is_the_hash_of_the_mirrored_image(seed):
    gray = smooth(seed, (64, 64))  # at 64 × 64 nothing is resampled
    phash, mirrored = perceptual_hashes(gray)
    flipped, twice = perceptual_hashes(np.ascontiguousarray(gray[:, ::-1]))
    assert np.array_equal(mirrored, flipped) and np.array_equal(twice, phash)
    assert hamming(phash, mirrored) > 40
    larger = smooth(seed, (230, 301))
    _, mirrored = perceptual_hashes(larger)
    assert hamming(mirrored, perceptual_hashes(np.ascontiguousarray(larger[:, ::-1]))[0]) <= 6  # rounding of Pillow


def test_images_without_horizontal_structure_have_no_noise_in_their_hash():
    column = np.repeat(smooth(1, (64, 1)), 64, axis=1)
    assert np.array_equal(*perceptual_hashes(column))
    assert hamming(perceptual_hashes(column)[0], perceptual_hashes(column // 2 + 30)[0]) <= 8


def test_floats_hash_as_the_bytes_they_stand_for():
    gray = smooth(2, (90, 70))
    assert hamming(perceptual_hashes(gray)[0], perceptual_hashes(gray.astype(np.float64))[0]) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_compressed_and_smaller_copies_are_near_and_other_images_far(seed):
    gray = smooth(seed, (300, 260))
    phash, _ = perceptual_hashes(gray)
    stream = io.BytesIO()
    Image.fromarray(gray).resize((130, 150), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=60)
    copy = np.asarray(Image.open(stream))
    assert hamming(phash, perceptual_hashes(copy)[0]) <= 16
    assert hamming(phash, perceptual_hashes(smooth(seed + 100, (300, 260)))[0]) > 80


@given(WORDS)
def test_hexadecimal_digits_and_back(words):
    phash = np.array(words, np.uint64)
    digits = hash_hex(phash)
    assert digits == "".join(f"{word:016x}" for word in words)
    assert np.array_equal(hash_from_hex(digits), phash)


@pytest.mark.parametrize("digits", ["", "0" * 63, "g" * 64])
def test_what_is_no_hash_is_refused(digits):
    with pytest.raises(ValueError):
        hash_from_hex(digits)


@given(WORDS, WORDS, WORDS)
def test_hamming_counts_bits_row_by_row(one, other, third):
    def count(a: list[int], b: list[int]) -> int:
        return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))

    a, b = np.array([one, other], np.uint64), np.array([other, third], np.uint64)
    assert hamming(a, b).tolist() == [count(one, other), count(other, third)]
    assert hamming(a, b[1]).tolist() == [count(one, third), count(other, third)]
