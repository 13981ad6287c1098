"""CT-like phantoms of any size and any number of labels, as a dataset in nnU-Net's raw layout; for measuring speed.

A body of soft tissue lies in air; each label is one ellipsoid in a cell of its own, so that all are there whatever
their number, and no two touch. `autoseg.data.phantom` is the other kind: small, and hard to segment.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from jaxtyping import Int16, UInt8

AIR, TISSUE, NOISE = -1000, 40, 12
BODY = (0.5, 0.40, 0.46)
"""Semi-axes of the body along (z, y, x), as shares of the image; it does not end along z."""
CASE = "phantom_{:02d}"
Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Phantom:
    """`image` in HU and `labels` (0 background, then 1 to the number of organs), both (z, y, x)."""

    image: Int16[np.ndarray, "z y x"]
    labels: UInt8[np.ndarray, "z y x"]


def make_phantom(shape: Triple, label_count: int, rng: np.random.Generator) -> Phantom:
    """One case. shape : (z, y, x). label_count : organs, at most 254; ValueError where they find no room."""
    image, labels = np.full(shape, AIR, np.float32), np.zeros(shape, np.uint8)
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[1:])
    inside = (rows[:, None] / (2 * BODY[1])) ** 2 + (columns[None] / (2 * BODY[2])) ** 2 <= 1
    image[:, inside] = TISSUE
    size, corners = cells(shape, label_count)
    for label, corner in enumerate(corners, start=1):
        radii = [max(0.75, n * rng.uniform(0.30, 0.48)) for n in size]
        box = tuple(slice(start, start + n) for start, n in zip(corner, size, strict=True))
        organ = _ellipsoid(size, radii)
        labels[box][organ] = label
        image[box][organ] = rng.uniform(-60, 400)
    image += NOISE * rng.standard_normal(shape, np.float32)
    return Phantom(np.rint(image).astype(np.int16), labels)


def write_phantoms(
    folder: Path, shape: Triple, label_count: int, spacings: Sequence[Spacing], seed: int = 0
) -> Path:
    """A dataset with one case per spacing ((z, y, x), mm), all of one shape (z, y, x); kept where it is there."""
    described = folder / "dataset.json"
    if described.exists():
        return folder
    for number, spacing in enumerate(spacings):
        phantom = make_phantom(shape, label_count, np.random.default_rng([seed, number]))
        case = CASE.format(number)
        _write(phantom.image, spacing, folder / "imagesTr" / f"{case}_0000.nii.gz")
        _write(phantom.labels, spacing, folder / "labelsTr" / f"{case}.nii.gz")
    names = {"background": 0} | {f"organ_{label:03d}": label for label in range(1, label_count + 1)}
    described.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": names, "numTraining": len(spacings),
                                     "file_ending": ".nii.gz"}))
    return folder


def cells(shape: Triple, count: int) -> tuple[Triple, list[Triple]]:
    """The size of equal cells in the largest box within the body, and the first corners of `count` of them."""
    inner = [math.floor(n * (1 if axis == 0 else math.sqrt(2) * BODY[axis])) for axis, n in enumerate(shape)]
    edge = (math.prod(inner) / count) ** (1 / 3)
    while math.prod(n // math.ceil(edge) for n in inner) < count:
        edge -= 1
        if edge < 3:
            raise ValueError(f"{count} organs find no room in {shape} voxels")
    grid = [n // math.ceil(edge) for n in inner]
    size = tuple(n // cells for n, cells in zip(inner, grid, strict=True))
    first = [(whole - n) // 2 for whole, n in zip(shape, inner, strict=True)]
    places = np.stack(np.unravel_index(np.arange(count), grid), axis=1)
    corners = [tuple(int(start + at * n) for start, at, n in zip(first, place, size, strict=True)) for place in places]
    return size, corners  # type: ignore[return-value]


def _ellipsoid(size: Triple, radii: Sequence[float]) -> np.ndarray:
    lines = [((np.arange(n) - (n - 1) / 2) / radius) ** 2 for n, radius in zip(size, radii, strict=True)]
    return lines[0][:, None, None] + lines[1][:, None] + lines[2] <= 1


def _write(voxels: np.ndarray, spacing: Spacing, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    SimpleITK.WriteImage(image, str(path), True)
