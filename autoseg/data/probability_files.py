"""Probabilities as NIfTI: one volume per class or region on the image's own grid, written through the disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float32

from autoseg.data.disk_arrays import reserved_array
from autoseg.data.nifti import write_channels
from autoseg.data.volume import Volume
from autoseg.records import storage_error

PROBABILITIES = "_probabilities.nii.gz"
"""Stands behind a case's name."""


@contextmanager
def writing_probabilities(
    path: Path, like: Volume, channel_count: int
) -> Iterator[Float32[np.ndarray, "channel z y x"]]:
    """An array on the disk to fill; when the block ends well, `path` (.nii.gz) holds it: (x, y, z, channel), float32.

    In NIfTI the geometry of `like` is kept bit for bit; other formats' grids become scanner coordinates. The array
    lies in a folder beside `path`, which is removed; memory holds one channel while the file is compressed.

    Raises
    ------
    UserError : a full disk, no permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            shape = (channel_count, *like.grid.shape)
            array = reserved_array(Path(folder), shape)
            yield array
            write_channels(array, like.grid, like.header, Path(folder) / path.name)
            del array
            (Path(folder) / path.name).replace(path)
    except OSError as error:
        raise storage_error(error, path) from error
