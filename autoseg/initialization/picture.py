"""Draws the pretext tasks: one row per patch with what was hidden, what was put in its place, the slabs' order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from autoseg.records import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

HIDDEN_COLOR = "#2f5f9e"
"""A blue as dark as soft tissue: grey images have no blue, and it does not outshine them."""
OUTLINE_COLOR = "#5aa2ff"
"""The same blue, light enough for a thin line on black."""
RIGHT_COLOR, WRONG_COLOR = "#6fd3ff", "#ffa033"
"""Told apart by color-blind readers; the marks ✓ and ✗ say the same."""
INCHES = 3.1
"""Width of a plane."""
FLATTEST, TALLEST = 0.45, 1.3
"""Bounds of a row's height over the width of its planes: six slab texts fit, and three rows fit on a screen."""
SUPPORTING_TEXT = "#bbbbbb"

Plane = Float[np.ndarray, "row column"]


@dataclass(frozen=True)
class Example:
    """One row of the picture: one channel of one patch in plan order, the axis that is cut into slabs first.

    Attributes
    ----------
    caption : what it is: the case, the channel, its scores.
    image, masked, reconstruction : in original slab order; `masked` has NaN where the network saw nothing.
    shuffled : the patch with its slabs in the order in which the network saw them (NaN is drawn as hidden).
    order, guessed : for each position in `shuffled` the slab's original index, counted from 0, and the guess.
        These three are None without the order task.
    spacing : mm between voxel centres along each axis.
    """

    caption: str
    image: Float[np.ndarray, "*patch"]
    masked: Float[np.ndarray, "*patch"]
    reconstruction: Float[np.ndarray, "*patch"]
    shuffled: Float[np.ndarray, "*patch"] | None
    order: tuple[int, ...] | None
    guessed: tuple[int, ...] | None
    spacing: tuple[float, ...]


def draw_reconstructions(examples: Sequence[Example], title: str, path: Path) -> None:
    """Write a PNG, one row per example (at least one): input, masked, reconstruction, shuffled slabs if any has them.

    A 3-D patch is shown in the middle plane of its second axis, which holds the slab axis; that axis points up.
    A 2-D patch is shown whole, its first axis pointing down. UserError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with_slabs = any(example.shuffled is not None for example in examples)
    columns = 4 if with_slabs else 3
    heights = [INCHES * _flatness(example) + 0.55 for example in examples]
    # The texts beside the slabs need half an inch, title and footer one to two.
    size = (columns * (INCHES + 0.1) + 0.8 * with_slabs, sum(heights) + 1.1 + 0.5 * with_slabs)
    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color="white", fontsize=13)
    rows = figure.subfigures(len(examples), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, example in zip(rows, examples, strict=True):
        _draw_row(row, example, columns)
    _draw_footer(figure, with_slabs, "top" if examples[0].image.ndim == 2 else "bottom")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_row(row: "SubFigure", example: Example, columns: int) -> None:
    row.set_facecolor("black")
    row.suptitle(example.caption, color="white", fontsize=10)
    all_axes = row.subplots(1, columns)
    for axes in all_axes:
        axes.set_axis_off()
    planes = {
        "input": example.image,
        "what the network sees": example.masked,
        "what it reconstructs": example.reconstruction,
    }
    for axes, (heading, values) in zip(all_axes[:3], planes.items(), strict=True):
        _draw_plane(axes, example, values, heading)
    _outline_hidden(all_axes[2], np.isnan(_plane(example.masked)))
    if example.shuffled is not None and example.order is not None and example.guessed is not None:
        _draw_plane(all_axes[3], example, example.shuffled, "slabs shuffled: true → guessed place")
        _label_slabs(all_axes[3], len(example.shuffled), example.order, example.guessed)


def _plane(values: Float[np.ndarray, "*patch"]) -> Plane:
    return values if values.ndim == 2 else values[:, values.shape[1] // 2]


def _flatness(example: Example) -> float:
    """Height of the plane over its width, both in mm, kept within the bounds of a row."""
    rows, columns = _plane(example.image).shape
    return float(np.clip(rows * example.spacing[0] / (columns * example.spacing[-1]), FLATTEST, TALLEST))


def _draw_plane(axes: "Axes", example: Example, values: Float[np.ndarray, "*patch"], heading: str) -> None:
    from matplotlib import colormaps

    low, high = np.percentile(example.image, (1, 99))
    axes.imshow(
        np.ma.masked_invalid(_plane(values)),
        cmap=colormaps["gray"].with_extremes(bad=HIDDEN_COLOR),
        vmin=low,
        vmax=high,
        aspect=example.spacing[0] / example.spacing[-1],
        interpolation="nearest",
        # Patches are 2-D where image rows run downwards; the first axis of a volume mostly runs feet to head.
        origin="upper" if values.ndim == 2 else "lower",
    )
    axes.set_title(heading, color=SUPPORTING_TEXT, fontsize=9)


def _outline_hidden(axes: "Axes", hidden: Bool[np.ndarray, "row column"]) -> None:
    """Lines along the voxel edges between what was hidden and what was visible."""
    from matplotlib.collections import LineCollection

    padded = np.pad(hidden, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    # Points are (column, row); an edge lies half a voxel before the voxel behind it.
    lines = [[(c - 0.5, r - 0.5), (c - 0.5, r + 0.5)] for r, c in upright]
    lines += [[(c - 0.5, r - 0.5), (c + 0.5, r - 0.5)] for r, c in level]
    axes.add_collection(LineCollection(lines, colors=OUTLINE_COLOR, linewidths=0.9), autolim=False)


def _label_slabs(axes: "Axes", length: int, order: Sequence[int], guessed: Sequence[int]) -> None:
    thickness = length / len(order)
    for position, (true, guess) in enumerate(zip(order, guessed, strict=True)):
        if position:
            axes.axhline(position * thickness - 0.5, color="white", linewidth=1.4)
        axes.text(
            1.03,
            (position + 0.5) * thickness - 0.5,
            f"{true + 1} → {guess + 1} {'✓' if true == guess else '✗'}",
            color=RIGHT_COLOR if true == guess else WRONG_COLOR,
            fontsize=10,
            verticalalignment="center",
            transform=axes.get_yaxis_transform(),
        )


def _draw_footer(figure: "Figure", with_slabs: bool, first: str) -> None:
    from matplotlib.patches import Patch

    keys = [Patch(color=HIDDEN_COLOR, label="hidden from the network; outlined where it had to fill in")]
    if with_slabs:
        keys += [
            Patch(color=RIGHT_COLOR, label=f"2 → 2 ✓  this slab belongs at place 2 from the {first}: recognized"),
            Patch(color=WRONG_COLOR, label="2 → 3 ✗  this slab belongs at place 2; the network said 3"),
        ]
    figure.legend(handles=keys, loc="outside lower center", frameon=False, labelcolor="white", fontsize=10)
