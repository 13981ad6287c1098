"""Every chance of one training sample, drawn once as numbers: where its patch lies and how it is augmented.

The probabilities and ranges are nnU-Net v2's (`nnUNetTrainer.get_training_transforms`, version 2.8.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoseg.training.mask_draws import MaskDraw
from autoseg.training.placement import rotation_rule

Matrix = tuple[tuple[float, ...], ...]
PerChannel = tuple[float | None, ...]
PerChannelAndAxis = tuple[tuple[float, ...] | None, ...]

_TRAINING_STREAM, _VALIDATION_STREAM = 0, 1

ROTATION_PROBABILITY = 0.2
SCALING_PROBABILITY, SCALING_RANGE = 0.2, (0.7, 1.4)
NOISE_PROBABILITY, NOISE_RANGE = 0.1, (0.0, 0.1)
BLUR_PROBABILITY, BLUR_CHANNEL_PROBABILITY, BLUR_RANGE = 0.2, 0.5, (0.5, 1.0)
BRIGHTNESS_PROBABILITY, BRIGHTNESS_RANGE = 0.15, (0.75, 1.25)
CONTRAST_PROBABILITY, CONTRAST_RANGE = 0.15, (0.75, 1.25)
LOW_RESOLUTION_PROBABILITY, LOW_RESOLUTION_CHANNEL_PROBABILITY, LOW_RESOLUTION_RANGE = 0.25, 0.5, (0.5, 1.0)
INVERTED_GAMMA_PROBABILITY, GAMMA_PROBABILITY, GAMMA_RANGE = 0.1, 0.3, (0.7, 1.5)
MIRROR_PROBABILITY = 0.5


@dataclass(frozen=True)
class DrawSettings:
    """What the draws of a source depend on besides the step and the sample.

    Attributes
    ----------
    mirror_axes : positions in the patch (plan order) that may be mirrored.
    augment : False leaves the patches as they are stored.
    keep_detail : of the intensity changes only those that map values one to one are made (brightness, contrast,
        gamma): none that adds noise or takes detail away, which no network could restore.
    change_intensities : False leaves intensities as they are stored; patches are turned and mirrored all the same.
    is_validation : validation draws come from a stream of their own, so both may use the same seed.
    foreground_fraction : share of a batch that is centered on foreground, rounded as nnU-Net does.
    process, processes : a batch of `processes` times the source's samples is drawn, and the source gives the part of
        `process`: of B samples each, B · process and those after it.
    regions : the labels of each region, where foreground is drawn by region; empty: by label.
    has_ignore : there is an ignore label: patches are centered on voxels of other labels only.
    """

    seed: int
    mirror_axes: tuple[int, ...] = ()
    augment: bool = True
    keep_detail: bool = False
    change_intensities: bool = True
    is_validation: bool = False
    foreground_fraction: float = 0.33
    process: int = 0
    processes: int = 1
    regions: tuple[tuple[int, ...], ...] = ()
    has_ignore: bool = False


@dataclass(frozen=True)
class NoiseDraw:
    """Gaussian noise of one σ on all channels; `seed` starts the generator of its voxels."""

    sigma: float
    seed: int


@dataclass(frozen=True)
class IntensityDraw:
    """Intensity changes of one sample, in the order in which they are applied; None where a channel is left alone.

    Attributes
    ----------
    blur : σ in voxels per patch axis.
    brightness, contrast : factors.
    low_resolution : per patch axis, the share of voxels that is kept.
    inverted_gamma, gamma : exponents, applied to the negated and to the plain image.
    """

    noise: NoiseDraw | None
    blur: PerChannelAndAxis
    brightness: PerChannel
    contrast: PerChannel
    low_resolution: PerChannelAndAxis
    inverted_gamma: PerChannel
    gamma: PerChannel


@dataclass(frozen=True)
class SampleDraw:
    """One sample of a batch.

    Attributes
    ----------
    case : position in the list of cases.
    start : first voxel (z, y, x) of the patch in the stored image; parts outside the image are padding.
    matrix : maps a voxel offset from the patch's center to one in the image, over all three axes or (2 × 2) the
        last two; None leaves the patch unturned.
    mirror : patch axes to flip.
    masks : of a cascade, changes of the previous stage's mask.
    """

    case: int
    start: tuple[int, int, int]
    matrix: Matrix | None = None
    intensity: IntensityDraw | None = None
    mirror: tuple[int, ...] = ()
    masks: MaskDraw | None = None


def sample_generator(settings: DrawSettings, step: int, sample: int) -> np.random.Generator:
    """The source of chance of one sample: a function of (seed, training or validation, step, sample) alone."""
    stream = _VALIDATION_STREAM if settings.is_validation else _TRAINING_STREAM
    return np.random.default_rng([settings.seed, stream, step, sample])


def is_forced_foreground(sample: int, batch_size: int, fraction: float) -> bool:
    """Whether a sample is centered on foreground: the last ones of a batch (two samples at 0.33: one of two)."""
    return sample >= round(batch_size * (1 - fraction))


def draw_matrix(rng: np.random.Generator, patch_shape: Sequence[int]) -> Matrix | None:
    """Rotation and scaling, each with its own chance; scale > 1 makes objects smaller. None when neither is drawn.

    3-D: Rz Ry Rx s, with "x", "y", "z" the array axes 0, 1, 2; in-plane: one rotation of the last two axes.
    """
    rule = rotation_rule(patch_shape)
    turned, scaled = rng.random() < ROTATION_PROBABILITY, rng.random() < SCALING_PROBABILITY
    if not (turned or scaled):
        return None
    count = 1 if rule.in_plane else 3
    angles = rng.uniform(-rule.max_angle, rule.max_angle, count) if turned else np.zeros(count)
    scale = rng.uniform(*SCALING_RANGE) if scaled else 1.0
    rotation = _rotation_2d(angles[0]) if rule.in_plane else _rotation_3d(angles)
    return tuple(tuple(float(value) for value in row) for row in scale * rotation)


def draw_intensity(rng: np.random.Generator, channels: int, patch_shape: Sequence[int]) -> IntensityDraw:
    """All intensity changes of one sample; most are absent."""
    axes = len(patch_shape)
    spared_axes = 1 if axes == 3 and rotation_rule(patch_shape).in_plane else 0
    noise = None
    if rng.random() < NOISE_PROBABILITY:
        noise = NoiseDraw(sigma=float(rng.uniform(*NOISE_RANGE)), seed=int(rng.integers(2**62)))
    blur: PerChannelAndAxis = (None,) * channels
    if rng.random() < BLUR_PROBABILITY:
        blur = tuple(
            tuple(rng.uniform(*BLUR_RANGE, axes).tolist()) if rng.random() < BLUR_CHANNEL_PROBABILITY else None
            for _ in range(channels)
        )
    brightness = _draw_factors(rng, BRIGHTNESS_PROBABILITY, channels, BRIGHTNESS_RANGE)
    contrast = _draw_factors(rng, CONTRAST_PROBABILITY, channels, CONTRAST_RANGE)
    low_resolution: PerChannelAndAxis = (None,) * channels
    if rng.random() < LOW_RESOLUTION_PROBABILITY:
        low_resolution = tuple(
            (1.0,) * spared_axes + (float(rng.uniform(*LOW_RESOLUTION_RANGE)),) * (axes - spared_axes)
            if rng.random() < LOW_RESOLUTION_CHANNEL_PROBABILITY
            else None
            for _ in range(channels)
        )
    return IntensityDraw(
        noise=noise,
        blur=blur,
        brightness=brightness,
        contrast=contrast,
        low_resolution=low_resolution,
        inverted_gamma=_draw_factors(rng, INVERTED_GAMMA_PROBABILITY, channels, GAMMA_RANGE),
        gamma=_draw_factors(rng, GAMMA_PROBABILITY, channels, GAMMA_RANGE),
    )


def without_loss(draw: IntensityDraw) -> IntensityDraw:
    """The draw without noise, blur and lower resolution; the rest is as drawn."""
    nothing: tuple[None, ...] = (None,) * len(draw.brightness)
    return replace(draw, noise=None, blur=nothing, low_resolution=nothing)


def draw_mirror(rng: np.random.Generator, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes to flip, each with a chance of one half."""
    return tuple(axis for axis in axes if rng.random() < MIRROR_PROBABILITY)


def _draw_factors(
    rng: np.random.Generator, probability: float, channels: int, limits: tuple[float, float]
) -> PerChannel:
    """One factor per channel, below and above 1 equally often; all None when the change is not drawn."""
    if rng.random() >= probability:
        return (None,) * channels
    low, high = limits
    return tuple(float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)) for _ in range(channels))


def _rotation_2d(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _rotation_3d(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rz Ry Rx: turns around array axis 0, then 1, then 2."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[np.ix_((first, second), (first, second))] = _rotation_2d(angle)
        total = turn @ total
    return total
