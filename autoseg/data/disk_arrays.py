"""Arrays on the disk whose space is reserved first: a full disk is an error then, not a process that is killed."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np


def reserved_array(folder: Path, shape: Sequence[int]) -> np.memmap:
    """A new float32 array of zeros, mapped from a file in `folder` that has no name there (on NFS a hidden one).

    Its space is free again as soon as nobody holds the array, also where the process is killed.

    Raises
    ------
    OSError : the disk is full, no permission.
    """
    size = 4 * math.prod(shape)
    with TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS: a full disk shows when pages are written
            file.truncate(size)
        return np.memmap(file, np.float32, "r+", shape=tuple(shape))
