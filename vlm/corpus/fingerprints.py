"""Perceptual hashes: 256 bits that change little when an image is compressed, resized or brightened.

The hash is `imagehash.phash(image, hash_size=16)`: the 16 × 16 lowest coefficients of the cosine transform of the image
at 64 × 64 pixels, each compared with their median. Bit 0 (the highest of the first word, and of the first hexadecimal
digit) is the mean brightness; bits go on along the horizontal frequencies, row by row.
"""

import numpy as np
from jaxtyping import Float, Int16, UInt8, UInt64
from PIL import Image

BITS = 256
DIGITS = BITS // 4
WORDS = BITS // 64

PIXELS = 64
FREQUENCIES = 16
"""imagehash.phash(hash_size=16) has these two sizes: 16 frequencies of four times as many pixels."""

TIE = 1e-6
"""Coefficients nearer than this to each other are equal: in an image without horizontal (or vertical) structure all of
some coefficients are 0 but for rounding, and their bits would be noise. Coefficients of images are of the order 1e3."""

_ANGLES = np.pi * np.outer(np.arange(FREQUENCIES), 2 * np.arange(PIXELS) + 1) / (2 * PIXELS)
_COSINES = 2 * np.cos(_ANGLES)  # type II of scipy.fft.dct, not normalized
_MIRROR = np.where(np.arange(FREQUENCIES) % 2 == 0, 1.0, -1.0)

Hash = UInt64[np.ndarray, "4"]


def perceptual_hashes(gray: UInt8[np.ndarray, "y x"] | Float[np.ndarray, "y x"]) -> tuple[Hash, Hash]:
    """The hash of an image, and the hash of the image flipped left to right.

    Flipping changes the sign of the odd horizontal frequencies and nothing else: one transform serves both.

    Parameters
    ----------
    gray : brightness, 0 … 255; at least 1 × 1.
    """
    whole = gray if gray.dtype == np.uint8 else gray.astype(np.float32)
    small = Image.fromarray(whole).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, np.float64)
    coefficients = _COSINES @ pixels @ _COSINES.T
    return _bits(coefficients), _bits(coefficients * _MIRROR)


def hash_hex(phash: Hash) -> str:
    """64 hexadecimal digits, as `str(imagehash.phash(…))`."""
    return phash.astype(">u8").tobytes().hex()


def hash_from_hex(digits: str) -> Hash:
    """The four words of `hash_hex`. ValueError: not 64 hexadecimal digits."""
    if len(digits) != DIGITS:
        raise ValueError(f"{digits!r} has {len(digits)} characters; {DIGITS} hexadecimal digits were expected")
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


def hamming(a: UInt64[np.ndarray, "*rows 4"], b: UInt64[np.ndarray, "*others 4"]) -> Int16[np.ndarray, "..."]:
    """Number of differing bits, 0 … 256, row by row: [n, 4] with [n, 4] or [4]; of two hashes an array of no axes."""
    return np.asarray(np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int16))


def _bits(coefficients: Float[np.ndarray, "16 16"]) -> Hash:
    ordered = np.sort(coefficients, axis=None)
    median = (ordered[BITS // 2 - 1] + ordered[BITS // 2]) / 2
    return np.packbits(coefficients > median + TIE).view(">u8").astype(np.uint64)
