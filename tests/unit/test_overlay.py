"""The picture shows what it says: the telling slice, a contour per mask, a readable file."""

import numpy as np
from PIL import Image

from autoseg.commands.overlay import (
    LABEL_COLORS,
    REFERENCE_COLOR,
    OverlayCase,
    draw_overlay,
    most_telling_slice,
)


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[at:at + 2], 16) for at in (1, 3, 5))


def pixels_of(picture: np.ndarray, color: str) -> int:
    return int(np.count_nonzero((np.abs(picture.astype(int) - rgb(color)) < 30).all(axis=-1)))


def test_the_telling_slice_shows_every_label_rather_than_much_of_one():
    labels = np.zeros((12, 20, 20), dtype=np.uint8)
    labels[1:9, 2:15, 2:15] = 1
    labels[7:11, 16:18, 16:18] = 2
    assert most_telling_slice(labels, axis=0) in (7, 8)
    assert most_telling_slice(np.zeros((5, 6, 7), dtype=np.uint8), axis=2) == 3


def test_reference_and_prediction_are_both_drawn_in_their_colors(tmp_path):
    labels = np.zeros((10, 16, 16), dtype=np.uint8)
    labels[3:8, 4:12, 4:12] = 1
    image = np.random.default_rng(0).normal(100, 5, labels.shape).astype(np.float32)
    counts = {}
    for name, prediction in (("right", labels), ("empty", np.zeros_like(labels))):
        path = tmp_path / f"{name}.png"
        row = OverlayCase("case", image, labels, prediction, (3.0, 1.0, 1.0))
        draw_overlay([row], {"organ": 1}, "title", path)
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.shape[1] > 800
        counts[name] = (pixels_of(picture, REFERENCE_COLOR), pixels_of(picture, LABEL_COLORS[0]))
    assert counts["empty"][0] > 500
    assert counts["right"][1] > 3 * counts["empty"][1]  # without a prediction only the legend has its color
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png", "right.png"]
