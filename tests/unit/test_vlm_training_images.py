"""What training sees of an image: all of it that matters, never mirrored, the same for the same draw."""

import io

import numpy as np
import pytest
from PIL import Image

from vlm.corpus.image_files import BadImage
from vlm.training.images import decode, training_image
from vlm.training.settings import Augmentation

STRONG = Augmentation(crop_scale=(0.7, 1.0), rotation_degrees=15, brightness=0.2, contrast=0.2)


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def halves(left=230, right=20, size=(96, 80)):
    pixels = np.full((size[1], size[0], 3), right, np.uint8)
    pixels[:, : size[0] // 2] = left
    return Image.fromarray(pixels)


def test_left_stays_left_in_every_draw():
    data = encoded(halves())
    for draw in range(200):
        image = training_image(data, 32, STRONG, "bicubic", np.random.default_rng(draw)).astype(float)
        assert image[:, 8:24, 4:10].mean() > image[:, 8:24, 22:28].mean() + 50


def test_a_draw_is_a_function_of_its_generator():
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (60, 70, 3), np.uint8)))
    first, again, other = (
        training_image(data, 32, STRONG, "bicubic", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert first.shape == (3, 32, 32) and first.dtype == np.uint8


def test_without_changes_the_image_is_only_resized():
    still = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).resize((64, 64))
    found = training_image(encoded(image), 32, still, "bicubic", np.random.default_rng(0))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (found == expected).all()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize((800, 600))
    data = encoded(smooth, "JPEG", quality=95)
    small = decode(data, (90, 90))
    assert small.size == (200, 150)
    difference = np.asarray(small.resize((64, 48)), float) - np.asarray(decode(data).resize((64, 48)), float)
    assert abs(difference).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_mode_become_rgb(mode):
    data = encoded(halves().convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert training_image(data, 32, Augmentation(), "bicubic", np.random.default_rng(0)).shape == (3, 32, 32)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(halves(), "JPEG")[:300], encoded(halves())[:120]])
def test_what_cannot_be_decoded_is_refused(data):
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(data)
