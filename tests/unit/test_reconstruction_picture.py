"""The picture of the pretext tasks shows what was hidden and which slabs were recognized, and is written whole."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from autoseg.errors import UserError
from autoseg.initialization.picture import HIDDEN_COLOR, RIGHT_COLOR, WRONG_COLOR, Example, draw_reconstructions


def an_example(shape=(12, 10, 16), order=(2, 0, 1), guessed=(2, 0, 1)):
    """The upper half of every plane is hidden."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    masked = image.copy()
    masked[: shape[0] // 2] = np.nan
    shuffled = np.concatenate([np.split(image, len(order))[at] for at in order])
    spacing = (3.0, 1.0, 1.0)[-len(shape):]
    return Example("case a", image, masked, np.zeros_like(image), shuffled, order, guessed, spacing)


def without_order(example):
    return replace(example, shuffled=None, order=None, guessed=None)


def draw(folder, *examples):
    path = folder / "reconstruction.png"
    draw_reconstructions(examples, "title", path)
    assert [entry.name for entry in folder.iterdir()] == ["reconstruction.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def pixels_of(picture, color):
    rgb = [int(color[at:at + 2], 16) for at in (1, 3, 5)]
    return int(np.count_nonzero((np.abs(picture - rgb) < 12).all(axis=-1)))


@pytest.mark.parametrize("shape", [(12, 10, 40), (24, 20)])
def test_half_of_one_plane_has_the_color_of_hidden_voxels(tmp_path, shape):
    example = without_order(an_example(shape))
    picture = draw(tmp_path, example)
    visible = draw(tmp_path, replace(example, masked=example.image))
    added = pixels_of(picture, HIDDEN_COLOR) - pixels_of(visible, HIDDEN_COLOR)
    # A third of the width belongs to each plane; margins and texts take some of it.
    height = example.spacing[0] * shape[0] / shape[-1] / example.spacing[-1]
    plane = (picture.shape[1] / 3) ** 2 * height
    assert 0.35 * plane < added < 0.55 * plane


def test_slabs_are_marked_right_and_wrong(tmp_path):
    right = draw(tmp_path, an_example())
    wrong = draw(tmp_path, an_example(guessed=(2, 1, 0)))
    assert pixels_of(wrong, WRONG_COLOR) > pixels_of(right, WRONG_COLOR)
    assert pixels_of(wrong, RIGHT_COLOR) < pixels_of(right, RIGHT_COLOR)


def test_without_the_order_task_there_is_no_column_for_it(tmp_path):
    example = an_example()
    four, three = draw(tmp_path, example), draw(tmp_path, without_order(example))
    assert three.shape[1] < 0.8 * four.shape[1]
    assert pixels_of(three, RIGHT_COLOR) == 0
    mixed = draw(tmp_path, example, without_order(example))
    assert mixed.shape[1] == four.shape[1] and mixed.shape[0] > 1.5 * four.shape[0]


@pytest.mark.parametrize("shape", [(6, 4, 300), (300, 4, 6), (6, 2, 2), (6, 300)])
def test_odd_shapes_give_a_picture_that_fits_a_screen(tmp_path, shape):
    picture = draw(tmp_path, an_example(shape))
    assert 250 < picture.shape[0] < 900 and 1000 < picture.shape[1] < 1600


def test_constant_and_wholly_hidden_patches_are_drawn(tmp_path):
    example = an_example()
    constant = replace(example, image=np.full_like(example.image, 3.0))
    hidden = replace(example, masked=np.full_like(example.image, np.nan), shuffled=np.full_like(example.image, np.nan))
    picture = draw(tmp_path, constant, hidden)
    assert pixels_of(picture, HIDDEN_COLOR) > 1.8 * pixels_of(draw(tmp_path, constant), HIDDEN_COLOR)


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        draw_reconstructions([an_example()], "title", tmp_path / "file" / "reconstruction.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_closed_folder_is_the_users_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Choose a folder"):
            draw_reconstructions([an_example()], "title", tmp_path / "reconstruction.png")
    finally:
        tmp_path.chmod(0o700)
