"""How much memory preparing a case takes, from the headers of its files: nothing is decompressed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.data.metaimage import itk_extent
from autoseg.data.nifti import nifti_extent
from autoseg.data.volume import ending_of, files_of
from autoseg.geometry import SpacingMm, permuted
from autoseg.schema import StoreRecord

BYTES_PER_VALUE = 4  # float32
SMALL_FILE_BYTES = 1 << 18  # gzip shrinks to a thousandth at best: such a file holds less than 300 MB
COPIES_OF_A_CHANNEL = 4  # beside input and result; measured (the test holds the estimate to it)


@dataclass(frozen=True)
class Extent:
    """What a header says: `values` per file (voxels times channels) and the spacing in mm, (z, y, x)."""

    values: int
    spacing: SpacingMm


def reading_bytes(case: Case) -> int:
    """Bytes for reading a case, its image as float32 and its labels; 0 where no header can be read."""
    extents = [extent for path in _files(case) if (extent := read_extent(path)) is not None]
    return BYTES_PER_VALUE * sum(extent.values for extent in extents)


def preparation_bytes(case: Case, store: StoreRecord) -> int:
    """Bytes for reading a case and putting it on the store's grid; 0 where no header can be read.

    The input, the result (whose voxels grow by the product of spacing ratios) and some copies of one channel.
    """
    extent = read_extent(case.images[0])
    if extent is None:
        return 0
    own = permuted(extent.spacing, store.axes)
    growth = math.prod(mm / (target or mm) for mm, target in zip(own, store.spacing, strict=True))
    channels = len(store.normalization)
    voxels = extent.values * len(case.images) / channels
    return int(BYTES_PER_VALUE * voxels * (channels * (1 + growth) + COPIES_OF_A_CHANNEL * max(1.0, growth)))


def read_extent(path: Path) -> Extent | None:
    """Of NIfTI and ITK's formats; None for other files, small ones, and those that reading will report as broken.

    A broken header may raise anything (nibabel's errors, zlib's); whoever reads the file says what is wrong with it.
    """
    try:
        if sum(file.stat().st_size for file in files_of(path)) < SMALL_FILE_BYTES:
            return None
        ending = ending_of(path)
        if ending.startswith((".nii", ".hdr")):
            return _extent(*nifti_extent(path))
        return _extent(*itk_extent(path)) if ending.startswith((".nrrd", ".nhdr", ".mha", ".mhd", ".gipl")) else None
    except Exception:  # noqa: BLE001 (as above)
        return None


def _files(case: Case) -> tuple[Path, ...]:
    return (*case.images, *((case.label,) if case.label else ()))


def _extent(shape: Sequence[int], spacing: Sequence[float]) -> Extent | None:
    """From file order (x, y[, z]); a slice has a spacing of 1 along z."""
    if not all(mm > 0 for mm in spacing[:3]):
        return None
    x, y, z = (*spacing[:3], 1.0)[:3]
    return Extent(math.prod(shape), (z, y, x))
