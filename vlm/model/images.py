"""What a picture goes through: for evaluation open_clip's own transform, for training a crop that a generator draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm.model.libraries import import_open_clip
from vlm.model.records import ModelRecord, PreprocessConfig

CROP_TRIES = 10
"""Draws of a crop's area and proportions before the largest one of allowed proportions is taken (as torchvision)."""

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

ImageTransform = Callable[[Image.Image], Float[Tensor, "3 y x"]]


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """A random crop. scale : its share of the picture's area, from and to. ratio : width by height, from and to."""

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def image_transform(record: ModelRecord) -> ImageTransform:
    """What a model's pictures go through before they are embedded; open_clip's own code."""
    return evaluation_transform(record.image_size, record.preprocess)


def evaluation_transform(size: int, preprocess: PreprocessConfig) -> ImageTransform:
    """Resize to `size` pixels as `preprocess` says, then normalize. Pictures of any mode become RGB first."""
    transform = import_open_clip().image_transform(
        size, is_train=False, mean=preprocess.mean, std=preprocess.std, interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode)

    def apply(image: Image.Image) -> Float[Tensor, "3 y x"]:
        tensor: Tensor = transform(image.convert("RGB"))
        return tensor

    return apply


def draw_crop(
    width: int, height: int, settings: CropSettings, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop in pixels: area uniform, proportions uniform in their logarithm."""
    low, high = (math.log(value) for value in settings.ratio)
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*settings.scale)
        ratio = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - tall + 1))
            return left, top, left + wide, top + tall
    ratio = min(max(width / height, settings.ratio[0]), settings.ratio[1])
    wide, tall = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall
