"""Logits of a whole image from a network that sees one window at a time, plane by plane as they are finished."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from autoseg.inference.accumulating import Finished, RollingMean
from autoseg.inference.joint_head import JointHead, joint_head
from autoseg.inference.windows import WindowGrid, lay_windows

logger = logging.getLogger("autoseg")

CONSTANT = 1e-4  # of a channel's range: what resampling makes of one value differs by less

Members = Sequence[tuple[nn.Module, Sequence[int]]]
Piece = tuple[int, Tensor]  # first plane, and logits (class, planes, y, x) from there on
Advance = Callable[[int, int], None]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How windows are laid and computed.

    Attributes
    ----------
    device : where the network runs (the network must be there already).
    precision : float32 is exact; float16 or bfloat16 switch autocast on for the forward passes. Logits or features
        are accumulated in float32 always.
    overlap : windows overlap their neighbors by at least this fraction of the patch; nnU-Net takes 0.5.
    batch_voxels : windows and their mirrored copies are computed together until a batch holds so many voxels
        (at least one window).
    copies : of every window at most so many mirrored copies, 1 or 2, others for its neighbors (`mirrored_copies`);
        None: all mirrorings.
    constant_logits : windows in which every channel has one value are not computed, and these are the logits, one per
        class, of voxels that no other window reaches. Empty: all windows are computed.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    overlap: float = 0.5
    batch_voxels: int = 1
    copies: int | None = None
    constant_logits: tuple[float, ...] = ()

    def windows_together(self, grid: WindowGrid) -> int:
        """Windows and mirrored copies in a batch."""
        return max(self.batch_voxels // math.prod(grid.shape), 1)

    def copies_of(self, mirrorings: int) -> int:
        """Copies of a window that are computed where so many are possible."""
        return min(mirrorings, self.copies or mirrorings)


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
    network : (batch, channel, *patch) to logits (batch, class, *patch); in evaluation mode, on the device. Of a
        `Segmenter` with more classes than features `finest_features` is called instead; the head sees their mean.
    image : prepared image in plan order (z, y, x).
    patch_shape : 3 lengths, or 2 for a network that sees slices (then every slice has its own windows).
    mirror_axes : positions in the patch that may be mirrored; all 2^n subsets are averaged. Empty: none.

    Windows, padding and importance follow nnU-Net v2 (`nnunetv2/inference`): its results to rounding.
    """
    return ensemble_logits([(network, mirror_axes)], image, patch_shape, settings)


def ensemble_logits(
    members: Members,
    image: Float[Tensor, "channel z y x"],
    patch_shape: Sequence[int],
    settings: WindowSettings,
    advance: Advance | None = None,
) -> Float[Tensor, "class z y x"]:
    """As `predict_logits`, averaged over several (network, mirror axes): all that `stream_logits` gives."""
    return collect(stream_logits(members, image, patch_shape, settings, advance), image.shape[1])


@torch.inference_mode()
def collect(pieces: Iterable[Piece], depth: int) -> Float[Tensor, "class z y x"]:
    """The pieces of a volume of `depth` planes as one tensor, on their device."""
    result: Tensor | None = None
    for first, planes in pieces:
        if planes.shape[1] == depth:
            return planes.contiguous()
        if result is None:
            result = planes.new_empty((len(planes), depth, *planes.shape[2:]))
        result[:, first : first + planes.shape[1]] = planes
    assert result is not None
    return result


def stream_logits(
    members: Members,
    image: Float[Tensor, "channel z y x"],
    patch_shape: Sequence[int],
    settings: WindowSettings,
    advance: Advance | None = None,
) -> Iterator[Piece]:
    """Mean logits over several (network, mirror axes), in pieces along z: (first plane, (class, planes, y, x)).

    Windows are computed row by row along z, each row by all networks; what no later row reaches is handed on, and
    its memory used again: sums are held for as many planes as a row has, of the networks' features where these are
    fewer than the classes (`joint_head`). A piece must be used before the next is asked for. `advance(done, total)` is
    called after every batch; both count windows and their mirrored copies.

    Raises
    ------
    torch.OutOfMemoryError : one window at a time, with sums in host memory, is still too much: its forward pass, or
        mirroring its map back and weighting it.
    """
    grid = lay_windows(tuple(image.shape[1:]), patch_shape, settings.overlap)
    axes = [[axis + 3 - len(patch_shape) for axis in mirrored] for _, mirrored in members]
    loop = _Loop(members, axes, grid, settings, advance)
    yield from loop.run(image.to(torch.float32), len(patch_shape))


Axes = tuple[int, ...]
_Copy = tuple[tuple[int, ...], Axes]  # (corner of the window, mirrored axes of (z, y, x))


def mirrored_copies(
    grid: WindowGrid, corner: Sequence[int], subsets: Sequence[Axes], count: int | None
) -> Sequence[Axes]:
    """The mirrorings of one window: all `subsets` of the axes, or, with a `count`, others than its neighbors'.

    One copy is mirrored along those axes along which the window's number is odd, so that with an overlap of half a
    window every voxel inside the image is seen in all mirrorings once. A second one is mirrored along the other axes.
    """
    if count is None or len(subsets) <= count:
        return subsets
    odd = {axis for axis, start in enumerate(corner) if grid.starts[axis].index(start) % 2}
    return [tuple(axis for axis in subsets[-1] if (axis in odd) is mirrored) for mirrored in (True, False)][:count]


@dataclass(frozen=True)
class _Network:
    """One network of several.

    Attributes
    ----------
    map : windows (batch, channel, *patch) to what is summed of them: logits or features.
    subsets : mirrorings, as axes of (z, y, x).
    copies : of a window that are computed.
    share : of one copy in the sums.
    first : channel of the sums.
    """

    map: Callable[[Tensor], Tensor]
    subsets: Sequence[Axes]
    copies: int
    share: float
    first: int


class _Loop:
    """The windows of one image; batches shrink, and sums move to the host, where memory is short."""

    def __init__(
        self, members: Members, axes: Sequence[Sequence[int]], grid: WindowGrid, settings: WindowSettings,
        advance: Advance | None,
    ) -> None:  # fmt: skip
        networks = [network for network, _ in members]
        self._head = head = joint_head(networks)
        self._room: Tensor | None = None  # for the logits of a few planes
        self._networks = []
        for index, (network, own) in enumerate(zip(networks, axes, strict=True)):
            subsets = [subset for n in range(len(own) + 1) for subset in itertools.combinations(own, n)]
            copies = settings.copies_of(len(subsets))
            if head is None:
                self._networks.append(_Network(network, subsets, copies, 1 / copies / len(networks), 0))
            else:
                features = head.networks[index].finest_features
                self._networks.append(_Network(features, subsets, copies, 1 / copies, head.starts[index]))
        self._grid, self._settings, self._advance = grid, settings, advance
        self._batch = settings.windows_together(grid)
        self._done = self._total = 0

    def run(self, image: Tensor, dimensions: int) -> Iterator[Piece]:
        """The image's pieces."""
        grid = self._grid
        padded = self._padded(image)
        left_out = self._constant(padded) if self._settings.constant_logits else frozenset()
        rows = grid.rows(min(network.copies for network in self._networks), self._batch)
        classes = len(self._settings.constant_logits) or None
        channels = classes if self._head is None else self._head.channels
        sums = RollingMean(grid, image.shape[1:], grid.depth(rows), self._settings.device, channels, bool(left_out))
        self._total = (len(grid.corners) - len(left_out)) * sum(network.copies for network in self._networks)
        for row, following in itertools.zip_longest(rows, rows[1:]):
            corners = [corner for corner in grid.corners_at(row) if corner not in left_out]
            for corner in corners:
                sums.count(corner)
            for network in self._networks:
                copies = [(corner, subset) for corner in corners
                          for subset in mirrored_copies(grid, corner, network.subsets, self._settings.copies)]
                self._compute(network, copies, padded, dimensions, sums)
            stop = row[-1] + grid.shape[0] if following is None else following[0]
            yield from self._pieces(sums.finished(stop))
            if following is not None:
                sums.forget(stop)

    def _pieces(self, finished: Finished) -> Iterator[Piece]:
        depth, plane = finished.planes.shape[1], finished.planes[0, 0].numel()
        step = depth if self._head is None else self._head.planes(plane)
        for start in range(0, depth, step):
            planes = finished.planes[:, start : start + step]
            logits = planes if self._head is None else self._apply(self._head, planes, step * plane)
            if finished.unreached is not None:
                _fill(logits, finished.unreached[start : start + step], self._settings.constant_logits)
            yield finished.first + start, logits

    def _apply(self, head: JointHead, features: Tensor, voxels: int) -> Tensor:
        """Logits of features, in memory that every piece uses again; `voxels` that the largest has."""
        try:
            if self._room is None or self._room.device != features.device:
                self._room = features.new_empty(len(head.matrix) * voxels)
            return head(features, self._room)
        except RuntimeError as error:
            if not is_out_of_memory(error) or features.device.type == "cpu":
                raise
        logger.info("the GPU's memory is too small for logits beside the sums: the last layer is applied on the host")
        self._room = None
        return self._apply(head, features.cpu(), voxels)

    @torch.inference_mode()  # not around the generator: it would hold for whoever takes the pieces
    def _compute(
        self, network: _Network, copies: list[_Copy], padded: Tensor, dimensions: int, sums: RollingMean
    ) -> None:
        position = 0

        def forward(batch: list[_Copy]) -> Tensor:
            return _forward(network.map, _windows(padded, self._grid, batch).to(self._settings.device), dimensions)

        with _autocast(self._settings):  # around the loop: it keeps the converted weights
            while position < len(copies):
                added = self._add(copies[position : position + self._batch], forward, network, sums)
                position += added
                self._done += added
                if added and self._advance is not None:
                    self._advance(self._done, self._total)

    def _add(
        self, batch: list[_Copy], forward: Callable[[list[_Copy]], Tensor], network: _Network, sums: RollingMean
    ) -> int:
        """How many of a batch's copies, from the first on, are in the sums: all, or less where memory was too short.

        A window's copies are added together and once: whatever may fail for want of memory comes before.
        """
        added = 0
        maps = self._attempt(partial(forward, batch), len(batch), sums)
        if maps is None:
            return 0
        for corner, group in itertools.groupby(zip(batch, maps, strict=True), key=_corner):
            mirrored = list(group)
            add = self._attempt(partial(_adding, mirrored, sums, corner, network), len(batch), sums)
            if add is None:
                break
            add()
            added += len(mirrored)
        return added

    def _attempt(self, work: Callable[[], Result], windows: int, sums: RollingMean) -> Result | None:
        """What `work` gives; None where memory was too short, and less of it will be needed the next time."""
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error) or not self._can_save(windows, sums):
                raise
        # Outside the handler: its traceback holds tensors.
        self._save(windows, sums)
        return None

    def _can_save(self, windows: int, sums: RollingMean) -> bool:
        return windows > 1 or sums.device.type != "cpu"

    def _save(self, windows: int, sums: RollingMean) -> None:
        if windows > 1:
            self._batch = windows // 2
            logger.info("memory is too small for %d windows at a time: from here on %d", windows, self._batch)
        else:
            logger.info("the GPU's memory is too small for a window beside the sums: these move to the host")
            sums.to_host()
        if self._settings.device.type == "cuda":
            torch.cuda.empty_cache()

    def _padded(self, image: Tensor) -> Tensor:
        """The padded image on the device; in host memory where it does not fit, and windows are sent one by one."""
        padding = self._grid.padding
        if any(before or after for before, after in padding):
            image = functional.pad(image, [amount for axis in reversed(padding) for amount in axis])
        try:
            return image.to(self._settings.device)
        except torch.OutOfMemoryError:
            logger.info("the GPU's memory is too small for the image: its windows are sent one by one")
            return image

    @torch.inference_mode()
    def _constant(self, padded: Tensor) -> frozenset[tuple[int, ...]]:
        """The corners of the windows in which every channel has one value, up to rounding."""
        low, high = padded.flatten(1).aminmax(dim=1)
        rounding = CONSTANT * (high - low)
        found = set()
        for corner in self._grid.corners:
            low, high = padded[(slice(None), *_span(corner, self._grid))].flatten(1).aminmax(dim=1)
            if bool((high - low <= rounding).all()):
                found.add(corner)
        if found:
            logger.info("%d of %d windows hold one value: left out", len(found), len(self._grid.corners))
        return frozenset(found)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a device or the host, could not be had."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _span(corner: Sequence[int], grid: WindowGrid) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(corner, grid.shape, strict=True))


def _corner(item: tuple[_Copy, Tensor]) -> tuple[int, ...]:
    return item[0][0]


def _windows(padded: Tensor, grid: WindowGrid, batch: list[_Copy]) -> Tensor:
    """(batch, channel, z, y, x): the windows of a batch, each mirrored as its copy asks."""
    return torch.stack([_mirrored(padded[(slice(None), *_span(corner, grid))], axes) for corner, axes in batch])


def _mirrored(array: Tensor, axes: Sequence[int]) -> Tensor:
    """(channel, z, y, x), mirrored along some of (z, y, x)."""
    return array.flip([axis + 1 for axis in axes]) if axes else array


def _adding(
    group: Iterable[tuple[_Copy, Tensor]], sums: RollingMean, corner: Sequence[int], network: _Network
) -> Callable[[], object]:
    """What adds one window's maps (channel, z, y, x), each mirrored back; one mirrored copy at a time is held."""
    together = reduce(torch.add, (_mirrored(one, axes) for (_, axes), one in group))
    return sums.adding(together, corner, network.share, network.first)


@torch.inference_mode()
def _fill(logits: Tensor, where: Tensor, values: Sequence[float]) -> None:
    """Give voxels (z, y, x) one logit per class, in place."""
    for one, value in zip(logits, values, strict=True):
        one.masked_fill_(where, value)


def _forward(compute: Callable[[Tensor], Tensor], windows: Tensor, dimensions: int) -> Tensor:
    """Maps (batch, channel, z, y, x), float32; a 2-D network is shown its windows without their z axis."""
    maps = compute(windows if dimensions == 3 else windows.squeeze(2))
    return maps.float() if dimensions == 3 else maps.float().unsqueeze(2)


def _autocast(settings: WindowSettings) -> AbstractContextManager[object]:
    if settings.precision == torch.float32:
        return nullcontext()
    return torch.autocast(settings.device.type, dtype=settings.precision)
