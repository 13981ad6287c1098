"""Logits of any size for measuring decoders, never held as a whole."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32
from phantoms import cells
from scipy.ndimage import gaussian_filter

Triple = tuple[int, int, int]
Kind = Literal["organs", "ragged"]
PATTERNS, DEPTH, SMOOTH = 4, 16, 4.0
CONFIDENT, UNEVEN = 8.0, 0.3
"""Organs: a trained network's logits are so far apart, and so uneven."""
ABOVE = 1.0
"""Ragged: background lies so many standard deviations above the rest."""
PIECE = 8  # planes that are there at once


def coarser_shape(shape: Sequence[int], coarser: float) -> Triple:
    """The grid of the logits for an image of `shape` (z, y, x), voxels `coarser` times as wide."""
    z, y, x = (max(2, round(n / coarser)) for n in shape)
    return z, y, x


class SyntheticLogits:
    """Float32 logits (class, z, y, x) that are made where they are asked for; memory does not grow with the classes.

    organs : each class but the background is positive in one ellipsoid, as in `phantoms`, with smooth noise upon it.
    ragged : each class is smooth noise (a few random patterns, turned and shifted along z), so that small patches of
        all classes lie side by side: what networks of random weights give.
    """

    def __init__(self, classes: int, shape: Triple, kind: Kind = "organs", seed: int = 0) -> None:
        self.shape, self._kind = (classes, *shape), kind
        noise = np.random.default_rng(seed).standard_normal((PATTERNS, DEPTH, *shape[1:]), np.float32)
        smooth = gaussian_filter(noise, (0, SMOOTH, SMOOTH, SMOOTH), mode="wrap")
        self._patterns: Float32[np.ndarray, "pattern z y x"] = smooth / smooth.std()
        if kind == "organs":
            self._size, self._corners = cells(shape, classes - 1)

    def planes(self, index: int, start: int, stop: int) -> Float32[np.ndarray, "z y x"]:
        """One class between two planes."""
        depth = (np.arange(start, stop) + 5 * (index // 32)) % DEPTH
        noise = self._patterns[index % PATTERNS][depth]
        y, x, sign = (1 - 2 * (index // 2**power % 2) for power in (2, 3, 4))
        noise = noise[:, ::y, ::x] * np.float32(sign)
        if self._kind == "ragged":
            return noise + np.float32(ABOVE) if index == 0 else noise
        noise *= np.float32(UNEVEN)
        if index == 0:
            return noise
        lines = [(((np.arange(n) - low - (size - 1) / 2) / (0.45 * size)) ** 2).astype(np.float32)
                 for n, low, size in zip(self.shape[1:], self._corners[index - 1], self._size, strict=True)]
        plane = lines[1][:, None] + lines[2]
        noise += np.maximum(-CONFIDENT, CONFIDENT * (1 - lines[0][start:stop, None, None] - plane))
        return noise

    def pieces(self) -> Iterator[tuple[int, Float32[np.ndarray, "class z y x"]]]:
        """(first plane, a few planes of all classes), in order along z; the next overwrites them."""
        room = np.empty((self.shape[0], PIECE, *self.shape[2:]), np.float32)
        for start in range(0, self.shape[1], PIECE):
            stop = min(start + PIECE, self.shape[1])
            for index in range(self.shape[0]):
                room[index, : stop - start] = self.planes(index, start, stop)
            yield start, room[:, : stop - start]
