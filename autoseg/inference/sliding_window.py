"""Logits of a whole image from a network that sees one window at a time."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

PEAK = 10.0  # nnU-Net's value_scaling_factor: the importance of a window's center


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How windows are laid and computed.

    Attributes
    ----------
    device : where the network runs (the network must be there already).
    precision : float32 is exact; float16 or bfloat16 switch autocast on for the forward passes. Logits are
        accumulated in float32 always.
    overlap : windows overlap their neighbors by at least this fraction of the patch; nnU-Net takes 0.5.
    batch_voxels : windows and their mirrored copies are computed together until a batch holds so many voxels
        (at least one window).
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    overlap: float = 0.5
    batch_voxels: int = 1


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows lie in the padded image; axes (z, y, x) in plan order.

    Attributes
    ----------
    shape : voxels of a window; a 2-D patch is a window of one slice.
    padding : zeros (before, after) each axis that make the image at least as large as the window.
    starts : first voxel of each window along each axis of the padded image.
    """

    shape: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def corners(self) -> list[tuple[int, ...]]:
        """The first voxel of every window, x fastest."""
        return list(itertools.product(*self.starts))


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    image: Float[Tensor, "channel z y x"],
    patch_shape: Sequence[int],
    mirror_axes: Sequence[int],
    settings: WindowSettings,
) -> Float[Tensor, "class z y x"]:
    """Gaussian-weighted mean of the windows' logits, each the mean over all mirrorings; float32.

    Parameters
    ----------
    network : (batch, channel, *patch) to logits (batch, class, *patch); in evaluation mode, on the device.
    image : prepared image in plan order (z, y, x).
    patch_shape : 3 lengths, or 2 for a network that sees slices (then every slice has its own windows).
    mirror_axes : positions in the patch that may be mirrored; all 2^n subsets are averaged. Empty: none.

    Windows, padding and importance follow nnU-Net v2 (`nnunetv2/inference`): its results to rounding.
    """
    return ensemble_logits([(network, mirror_axes)], image, patch_shape, settings)


@torch.inference_mode()
def ensemble_logits(
    members: Sequence[tuple[nn.Module, Sequence[int]]],
    image: Float[Tensor, "channel z y x"],
    patch_shape: Sequence[int],
    settings: WindowSettings,
    advance: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "class z y x"]:
    """As `predict_logits`, averaged over several (network, mirror axes) with one accumulator for all.

    `advance(done, total)` is called after every batch; both count windows and their mirrored copies.
    """
    grid = lay_windows(tuple(image.shape[1:]), patch_shape, settings.overlap)
    padded = _padded(image.to(settings.device, torch.float32), grid.padding)
    accumulator = _Accumulator(grid, tuple(padded.shape[1:]), settings.device)
    jobs = [_copies(grid, [axis + 3 - len(patch_shape) for axis in axes]) for _, axes in members]
    total, done = sum(len(copies) for copies in jobs), 0
    for (network, _), copies in zip(members, jobs, strict=True):
        share = len(grid.corners) / len(copies) / len(members)
        with _autocast(settings):  # around the loop: it keeps the converted weights
            for batch in _batches(copies, settings.batch_voxels // math.prod(grid.shape)):
                logits = _forward(network, _windows(padded, grid, batch), len(patch_shape))
                for corner, group in itertools.groupby(zip(batch, logits, strict=True), key=_corner):
                    accumulator.add(_mirrored_sum(group), corner, share)
                done += len(batch)
                if advance is not None:
                    advance(done, total)
    return accumulator.mean(tuple(image.shape[1:]))


def lay_windows(shape: Sequence[int], patch_shape: Sequence[int], overlap: float) -> WindowGrid:
    """The windows that cover an image of `shape` (z, y, x); `patch_shape` has 2 or 3 lengths.

    Along an axis of I voxels, windows of P voxels: ceil((I - P) / (P (1 - overlap))) + 1 of them, evenly
    spaced from 0 to I - P, rounded (halves to even).
    """
    sliced = len(patch_shape) == 2
    window = (1, *patch_shape) if sliced else tuple(patch_shape)
    missing = [max(p - n, 0) for n, p in zip(shape, window, strict=True)]
    padding = tuple((m // 2, m - m // 2) for m in missing)
    starts = [_starts(n + m, p, overlap) for n, m, p in zip(shape, missing, window, strict=True)]
    if sliced:
        starts[0] = tuple(range(shape[0]))
    return WindowGrid((window[0], window[1], window[2]), padding, tuple(starts))


def importance(length: int) -> Float[Tensor, " voxel"]:
    """One axis of the importance of a window's voxels: a Gaussian of sigma length / 8, center 1; float64.

    The center is voxel length // 2. A window's importance is `PEAK` times the product over its axes; it is
    positive everywhere, since the Gaussian never ends inside the window.
    """
    offset = torch.arange(length, dtype=torch.float64) - length // 2
    return torch.exp(-0.5 * (offset / (length / 8)) ** 2)


def window_importance(patch_shape: Sequence[int]) -> Float[Tensor, "..."]:
    """`PEAK` times the product of the axes' `importance`; float32, shape `patch_shape`."""
    weight = torch.tensor(PEAK, dtype=torch.float64)
    for length in patch_shape:
        weight = weight[..., None] * importance(length)
    return weight.to(torch.float32)


class _Accumulator:
    """The weighted sum of logits over windows: one float32 array (class, z, y, x) for all networks."""

    def __init__(self, grid: WindowGrid, shape: tuple[int, ...], device: torch.device) -> None:
        self._grid, self._shape, self._device = grid, shape, device
        self._weight = window_importance(grid.shape).to(device)
        self._sum: Tensor | None = None

    def add(self, logits: Float[Tensor, "class z y x"], corner: Sequence[int], share: float) -> None:
        """Add one window's logits times its importance times `share`."""
        if self._sum is None:
            self._allocate(len(logits))
        assert self._sum is not None
        where = tuple(slice(start, start + n) for start, n in zip(corner, self._grid.shape, strict=True))
        weighted = logits * (self._weight * share)
        self._sum[(slice(None), *where)] += weighted.to(self._sum.device)

    def mean(self, shape: Sequence[int]) -> Float[Tensor, "class z y x"]:
        """The weighted mean, without the padding: (class, *shape)."""
        assert self._sum is not None
        before = [axis[0] for axis in self._grid.padding]
        inner = tuple(slice(start, start + n) for start, n in zip(before, shape, strict=True))
        result = self._sum[(slice(None), *inner)]
        axes = range(3)
        for axis, starts, length, kept in zip(axes, self._grid.starts, self._grid.shape, inner, strict=True):
            # The importance is a product over axes and so is its sum over a grid of windows.
            coverage = torch.zeros(self._shape[axis], dtype=torch.float64)
            for start in starts:
                coverage[start : start + length] += importance(length)
            scale = (PEAK if axis == 0 else 1.0) * coverage[kept]
            view = [-1 if other == axis else 1 for other in axes]
            result.div_(scale.to(result.device, torch.float32).view(view))
        return result.contiguous()

    def _allocate(self, class_count: int) -> None:
        device = self._device
        size = 4 * class_count * math.prod(self._shape)
        if device.type == "cuda" and size > 0.5 * _free_bytes(device):
            device = torch.device("cpu")
        self._sum = torch.zeros((class_count, *self._shape), dtype=torch.float32, device=device)


def _free_bytes(device: torch.device) -> int:
    """Bytes that tensors on a GPU may still take: unreserved, or reserved by torch and unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def _starts(length: int, patch: int, overlap: float) -> tuple[int, ...]:
    count = math.ceil((length - patch) / (patch * (1 - overlap))) + 1
    if count == 1:
        return (0,)
    return tuple(round((length - patch) / (count - 1) * index) for index in range(count))


def _padded(image: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    if not any(before or after for before, after in padding):
        return image
    return functional.pad(image, [amount for axis in reversed(padding) for amount in axis])


_Copy = tuple[tuple[int, ...], tuple[int, ...]]  # (corner of the window, mirrored axes of (z, y, x))


def _copies(grid: WindowGrid, axes: Sequence[int]) -> list[_Copy]:
    subsets = [subset for n in range(len(axes) + 1) for subset in itertools.combinations(axes, n)]
    return [(corner, subset) for corner in grid.corners for subset in subsets]


def _corner(item: tuple[_Copy, Tensor]) -> tuple[int, ...]:
    return item[0][0]


def _batches(copies: list[_Copy], size: int) -> list[list[_Copy]]:
    size = max(size, 1)
    return [copies[start : start + size] for start in range(0, len(copies), size)]


def _windows(padded: Tensor, grid: WindowGrid, batch: list[_Copy]) -> Tensor:
    """(batch, channel, z, y, x): the windows of a batch, each mirrored as its copy asks."""
    windows = []
    for corner, axes in batch:
        where = tuple(slice(start, start + n) for start, n in zip(corner, grid.shape, strict=True))
        windows.append(_mirrored(padded[(slice(None), *where)], axes))
    return torch.stack(windows)


def _mirrored(array: Tensor, axes: Sequence[int]) -> Tensor:
    """(channel, z, y, x), mirrored along some of (z, y, x)."""
    return array.flip([axis + 1 for axis in axes]) if axes else array


def _mirrored_sum(group: Iterable[tuple[_Copy, Tensor]]) -> Tensor:
    """The sum of one window's logits (class, z, y, x), each mirrored back."""
    first, *others = [_mirrored(logits, axes) for (_, axes), logits in group]
    for other in others:
        first = first + other
    return first


def _forward(network: nn.Module, windows: Tensor, dimensions: int) -> Tensor:
    """Logits (batch, class, z, y, x), float32; a 2-D network is shown its windows without their z axis."""
    logits: Tensor = network(windows if dimensions == 3 else windows.squeeze(2))
    return logits.float() if dimensions == 3 else logits.float().unsqueeze(2)


def _autocast(settings: WindowSettings) -> AbstractContextManager[object]:
    if settings.precision == torch.float32:
        return nullcontext()
    return torch.autocast(settings.device.type, dtype=settings.precision)
