"""What a picture goes through: evaluation equals open_clip's transform; a training crop is inside, by a generator."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm.model.images import CropSettings, draw_crop, evaluation_transform
from vlm.model.libraries import import_open_clip
from vlm.model.records import PreprocessConfig


def picture(mode="RGB", size=(60, 40)):
    pixels = np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_evaluation_is_what_open_clip_does(resize_mode):
    open_clip = import_open_clip()
    settings = PreprocessConfig(resize_mode=resize_mode, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    theirs = open_clip.image_transform(32, is_train=False, mean=settings.mean, std=settings.std,
                                       interpolation="bicubic", resize_mode=resize_mode)
    ours = evaluation_transform(32, settings)(picture())
    assert ours.shape == (3, 32, 32)
    torch.testing.assert_close(ours, theirs(picture()))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_any_mode_become_three_channels(mode):
    settings = PreprocessConfig()
    image = picture(mode)
    transformed = evaluation_transform(32, settings)(image)
    torch.testing.assert_close(transformed, evaluation_transform(32, settings)(image.convert("RGB")))


@given(width=st.integers(16, 400), height=st.integers(16, 400), seed=st.integers(0, 99),
       low=st.floats(0.05, 1.0))
def test_crops_are_inside_and_as_large_as_asked(width, height, seed, low):
    settings = CropSettings(scale=(low, 1.0))
    left, top, right, bottom = draw_crop(width, height, settings, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    ratio = (right - left) / (bottom - top)
    assert 3 / 4 * 0.85 <= ratio <= 4 / 3 * 1.15, "up to rounding to whole pixels"
    area = (right - left) * (bottom - top) / (width * height)
    if 3 / 4 <= width / height <= 4 / 3:
        assert area >= low * 0.85
    assert draw_crop(width, height, settings, np.random.default_rng(seed)) == (left, top, right, bottom)


def test_crops_of_many_draws_cover_the_asked_areas_evenly():
    rng = np.random.default_rng(3)
    areas = []
    for _ in range(2000):
        left, top, right, bottom = draw_crop(200, 200, CropSettings(scale=(0.2, 0.5)), rng)
        areas.append((right - left) * (bottom - top) / 200**2)
    assert np.mean(areas) == pytest.approx(0.35, abs=0.01)
    assert min(areas) < 0.21 and max(areas) > 0.49


def test_a_very_long_picture_gets_the_largest_crop_of_allowed_proportions():
    left, top, right, bottom = draw_crop(1000, 30, CropSettings(), np.random.default_rng(0))
    assert (right - left, bottom - top) == (40, 30) and left == 480
