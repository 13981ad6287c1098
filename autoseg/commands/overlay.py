"""Draws masks over images: one row per case, one column per plane, reference and prediction as contours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Integer

from autoseg.records import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LabelArray = Integer[np.ndarray, "z y x"]

PLANES = ("axial (z)", "coronal (y)", "sagittal (x)")
# Dashes of a warm color on a blue line: told apart on dark and bright tissue, and by color-blind readers.
REFERENCE_COLOR = "#00b7ff"
LABEL_COLORS = ("#ff9500", "#ff3df2", "#ffe600", "#7bd34d", "#c9a0ff", "#ff5a4f")
INCHES = 3.1


@dataclass(frozen=True)
class OverlayCase:
    """One row of the picture: arrays (z, y, x) on one grid, spacing in mm (z, y, x), a caption."""

    caption: str
    image: Float[np.ndarray, "z y x"]
    reference: LabelArray
    prediction: LabelArray
    spacing: tuple[float, ...]


def draw_overlay(cases: Sequence[OverlayCase], labels: Mapping[str, int], title: str, path: Path) -> None:
    """Write a PNG with one row per case and the three planes that show the reference best.

    `labels`: name → value in both label arrays; 0 is not drawn. Axes are named as for files whose voxel axes
    run right-left, front-back, feet-head. UserError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    foreground = {name: value for name, value in labels.items() if value != 0}
    figure = Figure(
        figsize=(3 * INCHES, len(cases) * (INCHES + 0.25) + 1.1), facecolor="black", layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, color="white", fontsize=13)
    rows = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
    for row, case in zip(rows, cases, strict=True):
        row.set_facecolor("black")
        row.suptitle(case.caption, color="white", fontsize=10)
        for axis, axes in enumerate(row.subplots(1, 3)):
            _draw_plane(axes, case, axis, foreground)
    _draw_legend(figure, foreground)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def most_telling_slice(labels: LabelArray, axis: int) -> int:
    """The slice along `axis` where the labels' areas, each relative to its own largest, add up to most."""
    across = tuple(other for other in range(3) if other != axis)
    total = np.zeros(labels.shape[axis])
    for value in np.unique(labels[labels != 0]):
        areas = np.count_nonzero(labels == value, axis=across)
        total += areas / areas.max()
    return int(total.argmax()) if total.any() else labels.shape[axis] // 2


def _draw_plane(axes: "Axes", case: OverlayCase, axis: int, labels: Mapping[str, int]) -> None:
    index = most_telling_slice(case.reference, axis)
    image, reference, prediction = (
        np.take(array, index, axis) for array in (case.image, case.reference, case.prediction)
    )
    low, high = np.percentile(case.image, (1, 99.5))
    height, width = (step for other, step in enumerate(case.spacing) if other != axis)
    # Image rows run front to back in the axial plane (drawn downwards) and feet to head in the others.
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=high,
        aspect=height / width,
        interpolation="nearest",
        origin="upper" if axis == 0 else "lower",
    )
    for color, value in zip(_colors(labels), labels.values(), strict=True):
        _outline(axes, reference == value, REFERENCE_COLOR, "solid", 2.2)
        _outline(axes, prediction == value, color, "dashed", 1.7)
    axes.set_title(f"{PLANES[axis]} {index}", color="#bbbbbb", fontsize=8)
    axes.set_axis_off()


def _outline(
    axes: "Axes", mask: Bool[np.ndarray, "row column"], color: str, style: str, width: float
) -> None:
    if mask.any():
        # A margin of background closes the contours of masks that touch the border of the image.
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        axes.contour(
            columns, rows, np.pad(mask, 1), levels=[0.5], colors=[color], linestyles=style, linewidths=width
        )


def _draw_legend(figure: "Figure", labels: Mapping[str, int]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=REFERENCE_COLOR, linewidth=2.2, label="reference (right answer)")]
    lines += [
        Line2D([], [], color=color, linewidth=1.7, linestyle="dashed", label=f"prediction: {name}")
        for color, name in zip(_colors(labels), labels, strict=True)
    ]
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=min(4, len(lines)),
        frameon=False,
        labelcolor="white",
        fontsize=10,
    )


def _colors(labels: Mapping[str, int]) -> list[str]:
    return [LABEL_COLORS[position % len(LABEL_COLORS)] for position in range(len(labels))]
