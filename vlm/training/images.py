"""An image's bytes → the square that training sees: decoded no larger than needed, cropped and changed at random."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlm.corpus.image_files import BadImage, check_size
from vlm.model.images import RESAMPLING, CropSettings, draw_crop
from vlm.model.records import Interpolation
from vlm.training.settings import Augmentation


def decode(data: bytes, needed: tuple[int, int] | None = None) -> Image.Image:
    """An image as RGB. BadImage: it cannot be decoded, or is absurdly large or small.

    needed : (width, height) below which no detail is wanted; a JPEG that is at least twice as large is decoded at a
        half, a quarter or an eighth of its size, which costs accordingly less.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        check_size(*image.size)
        if needed is not None and image.format == "JPEG":
            image.draft("", needed)
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot be decoded ({error})") from None


def training_image(
    data: bytes, size: int, choice: Augmentation, interpolation: Interpolation, rng: np.random.Generator
) -> UInt8[np.ndarray, "3 y x"]:
    """A random crop of an image, resized to `size` × `size` pixels. BadImage: it cannot be decoded."""
    # The smallest crop must still have `size` pixels on each side.
    least = math.ceil(size / math.sqrt(choice.crop_scale[0] * min(choice.crop_ratio[0], 1 / choice.crop_ratio[1])))
    image = decode(data, (least, least))
    if choice.rotation_degrees:
        angle = float(rng.uniform(-choice.rotation_degrees, choice.rotation_degrees))
        image = image.rotate(angle, RESAMPLING["bilinear"])
    crop = CropSettings(scale=choice.crop_scale, ratio=choice.crop_ratio)
    box = draw_crop(image.width, image.height, crop, rng)
    image = image.resize((size, size), RESAMPLING[interpolation], box, reducing_gap=3.0)
    if choice.brightness or choice.contrast:
        image = image.point(_draw_levels(image, choice, rng))
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def _draw_levels(image: Image.Image, choice: Augmentation, rng: np.random.Generator) -> Sequence[int]:
    """What each of the 3 × 256 levels becomes: contrast about the mean level, then brightness."""
    contrast = 1 + rng.uniform(-choice.contrast, choice.contrast)
    brightness = 1 + rng.uniform(-choice.brightness, choice.brightness)
    mean = float(np.asarray(image.convert("L"), np.float32).mean())
    levels = ((np.arange(256) - mean) * contrast + mean) * brightness
    return [int(level) for level in np.clip(np.round(levels), 0, 255)] * 3
