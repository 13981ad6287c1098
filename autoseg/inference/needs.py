"""What one case needs in memory, before anything is computed."""

import math
from collections.abc import Sequence

from autoseg.data.free_memory import reachable_memory_bytes
from autoseg.errors import UserError
from autoseg.inference.accumulating import sums_fit
from autoseg.inference.ensembling import Ensemble
from autoseg.inference.joint_head import JointHead, joint_head
from autoseg.inference.sliding_window import WindowSettings
from autoseg.inference.windows import lay_windows
from autoseg.schema import CheckpointInfo

FLOAT = 4
LABEL_COPIES = 3  # the mask, its values in the user's files, and what is written
GIB = 1 << 30


def refuse_too_large(ensemble: Ensemble, shape: Sequence[int], original: Sequence[int],
                     windows: WindowSettings) -> None:  # fmt: skip
    """Raise where even a stream of planes does not fit in the memory that this process can have.

    shape, original : voxels of the prepared image and of the file.

    Raises
    ------
    UserError : how much is needed and how much is there.
    """
    info = ensemble.info
    mirrors = min(windows.copies_of(2 ** len(axes)) for _, axes in ensemble.members)
    head = joint_head([network for network, _ in ensemble.members])
    needed = stream_bytes(info, shape, windows, mirrors, head) + LABEL_COPIES * math.prod(original)
    available = reachable_memory_bytes()
    if needed > available:
        raise UserError(
            f"Predicting this image takes about {needed / GIB:.1f} GiB beside the image itself ({len(info.outputs)} "
            f"classes, {' × '.join(map(str, shape))} voxels at the network's spacing), and {available / GIB:.1f} GiB "
            "are free.\nClose other programs, use a machine with more memory, or cut the image into parts."
        )


def stream_bytes(
    info: CheckpointInfo, shape: Sequence[int], windows: WindowSettings, mirrors: int, head: JointHead | None
) -> int:
    """Host memory for the sums of one row of windows, one batch's logits or features, and the padded image.

    mirrors : copies of each window. head : where features are summed; then a few planes of them and of logits are
    there too.
    """
    patch = info.network.patch_shape
    grid = lay_windows(shape, patch, windows.overlap)
    batch = min(windows.windows_together(grid), mirrors * len(grid.corners))
    padded = grid.padded(shape)
    classes = len(info.outputs)
    depth, plane = grid.depth(grid.rows(mirrors, batch)), math.prod(padded[1:])
    summed, window = (classes, classes) if head is None else (head.channels, head.widest)
    sums = FLOAT * summed * depth * plane
    pieces = 0 if head is None else FLOAT * (classes + summed) * min(head.planes(plane), depth) * plane
    image = FLOAT * info.input_channels * math.prod(padded) if padded != tuple(shape) else 0
    if windows.device.type == "cuda":
        return image + (0 if sums_fit(windows.device, sums) else sums + pieces)
    return image + sums + pieces + FLOAT * window * batch * math.prod(grid.shape)
