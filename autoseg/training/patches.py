"""From a store to the raw voxels of one training step: the regions that the draws need, nothing more.

Runs in worker processes: numpy and blosc2 only, no torch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from autoseg.data.store import CaseArrays
from autoseg.training import draws, placement
from autoseg.training.draws import DrawSettings, IntensityDraw, SampleDraw
from autoseg.training.mask_draws import draw_masks

Position = tuple[int, int, int]


@dataclass(frozen=True)
class RawSample:
    """One sample before augmentation.

    Attributes
    ----------
    image, labels : the patch itself (zero outside the stored image), or, when the draw turns or scales it, the
        part of the stored image that the turned patch covers.
    origin : stored coordinates (z, y, x) of the region's first voxel.
    previous : of a cascade, the previous stage's mask like `labels`.
    """

    draw: SampleDraw
    case_id: str
    image: Float[np.ndarray, "channel z y x"]
    labels: Integer[np.ndarray, "z y x"]
    origin: Position
    previous: Integer[np.ndarray, "z y x"] | None = None


@dataclass(frozen=True)
class StepReader:
    """Reads the samples of any step: the same numbers in whichever process and order it is asked.

    Attributes
    ----------
    open_case : the arrays of the case at a position, in memory or memory-mapped.
    channels : of the image. masks: of a cascade, the foreground labels of its previous stage; else 0.
    """

    open_case: Callable[[int], CaseArrays]
    case_count: int
    channels: int
    patch_shape: tuple[int, ...]
    batch_size: int
    settings: DrawSettings
    masks: int = 0

    def read(self, step: int) -> tuple[RawSample, ...]:
        """All samples of a step, in order; of several processes, this one's."""
        first = self.batch_size * self.settings.process
        return tuple(self._read_sample(step, sample) for sample in range(first, first + self.batch_size))

    def _read_sample(self, step: int, sample: int) -> RawSample:
        rng = draws.sample_generator(self.settings, step, sample)
        position = int(rng.integers(self.case_count))
        case = self.open_case(position)
        draw = draw_sample(rng, self, sample, position, case)
        start, stop = region_box(draw, self.patch_shape, case.info.shape)
        image, labels = read_region(case, start, stop)
        previous = None if case.previous is None else read_box(case.previous, start, stop)
        return RawSample(draw=draw, case_id=case.info.id, image=image, labels=labels, origin=start, previous=previous)


def draw_sample(
    rng: np.random.Generator, reader: StepReader, sample: int, position: int, case: CaseArrays
) -> SampleDraw:
    """The whole draw of a sample of a case: first the place, so that it does not depend on `augment`."""
    settings, patch_shape = reader.settings, reader.patch_shape
    voxel = None
    if draws.is_forced_foreground(sample, reader.batch_size * settings.processes, settings.foreground_fraction):
        offsets = case.info.foreground_offsets[: -1 if settings.has_ignore else None]
        voxel = placement.draw_voxel(rng, case.foreground, offsets, settings.regions)
    if settings.has_ignore and voxel is None:
        voxel = placement.draw_annotated_voxel(rng, case.foreground, case.info.foreground_offsets)
    patch = placement.as_3d(patch_shape)
    # nnU-Net's validation loader places the patch itself, as nothing is turned there.
    placed = patch if settings.is_validation else placement.enlarged_shape(patch_shape)
    start = placement.draw_start(rng, case.info.shape, patch, placed, voxel)
    if not settings.augment:
        return SampleDraw(case=position, start=start)
    matrix = draws.draw_matrix(rng, patch_shape)
    # Drawn in any case, so that the mirroring does not depend on it.
    intensity = draws.draw_intensity(rng, reader.channels, patch_shape)
    return SampleDraw(
        case=position,
        start=start,
        matrix=matrix,
        intensity=_kept(intensity, settings),
        mirror=draws.draw_mirror(rng, settings.mirror_axes),
        masks=draw_masks(rng, reader.masks) if reader.masks else None,
    )


def _kept(intensity: IntensityDraw, settings: DrawSettings) -> IntensityDraw | None:
    if not settings.change_intensities:
        return None
    return draws.without_loss(intensity) if settings.keep_detail else intensity


def patch_center(draw: SampleDraw, patch_shape: Sequence[int]) -> tuple[float, float, float]:
    """Stored coordinates (z, y, x) of the middle of a patch; voxel centers have whole coordinates."""
    z, y, x = (first + (length - 1) / 2 for first, length in zip(draw.start, placement.as_3d(patch_shape), strict=True))
    return z, y, x


def region_box(draw: SampleDraw, patch_shape: Sequence[int], shape: Sequence[int]) -> tuple[Position, Position]:
    """Start and stop (z, y, x) of what must be read for a draw.

    An unturned patch: exactly the patch. Otherwise, along the turned axes, the bounding box of the turned patch with
    the neighbors that linear interpolation needs, within the image (at least one voxel).
    """
    patch = placement.as_3d(patch_shape)
    start, stop = list(draw.start), [first + length for first, length in zip(draw.start, patch, strict=True)]
    if draw.matrix is not None:
        center = patch_center(draw, patch_shape)
        turned = range(3 - len(draw.matrix), 3)
        for axis, row in zip(turned, draw.matrix, strict=True):
            reach = sum(abs(value) * (patch[other] - 1) / 2 for value, other in zip(row, turned, strict=True))
            # Voxel coordinates are computed in float32 later on: a thousandth covers their rounding.
            low, high = math.floor(center[axis] - reach - 1e-3), math.floor(center[axis] + reach + 1e-3) + 2
            start[axis] = min(max(low, 0), shape[axis] - 1)
            stop[axis] = max(min(high, shape[axis]), start[axis] + 1)
    (z0, y0, x0), (z1, y1, x1) = start, stop
    return (z0, y0, x0), (z1, y1, x1)


def read_region(
    case: CaseArrays, start: Position, stop: Position
) -> tuple[Float[np.ndarray, "channel z y x"], Integer[np.ndarray, "z y x"]]:
    """Image and labels of a box of a case; zero (and background) outside the stored image."""
    return read_box(case.image, start, stop), read_box(case.labels, start, stop)


def read_box(array: Any, start: Position, stop: Position) -> np.ndarray:
    """A box of a stored array (…, z, y, x), np.ndarray or blosc2.NDArray; zero outside of it."""
    leading = (slice(None),) * (array.ndim - 3)
    inside = tuple(
        slice(max(first, 0), max(min(last, extent), 0))
        for first, last, extent in zip(start, stop, array.shape[-3:], strict=True)
    )
    part: np.ndarray = array[(*leading, *inside)]
    extents = tuple(last - first for first, last in zip(start, stop, strict=True))
    if part.shape[-3:] == extents:
        return part
    padded = np.zeros((*part.shape[:-3], *extents), part.dtype)
    target = tuple(
        slice(kept.start - first, kept.start - first + length)
        for kept, first, length in zip(inside, start, part.shape[-3:], strict=True)
    )
    padded[(*leading, *target)] = part
    return padded
