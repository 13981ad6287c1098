"""Pictures of an evaluation: bars with intervals, probes, dependence on the sentences, confusions, retrieval."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.records import replacing
from vlm.evaluation.records import EvaluationReport, SetReport
from vlm.evaluation.report_tables import DIRECTION_NAMES, METRIC_NAMES
from vlm.model.records import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODALITY_COLORS = {"X-ray": "#1f77b4", "CT": "#2ca02c", "MRI": "#9467bd", "Ultrasound": "#17becf",
                   "Fundus": "#d62728", "Pathology": "#e377c2", "mixed": "#7f7f7f"}
PAPER_MARKS = ("D", "s", "^", "v", "P", "X")
GRAY, BLACK = "#888888", "#111111"
DOTS_PER_INCH = 110
CONFUSION_COLUMNS = 3
LONGEST_CLASS = 26


def draw_all(report: EvaluationReport, folder: Path) -> dict[str, Path]:
    """Write every picture that there is something for; name → its file in `folder`."""
    drawn = {}
    if report.sets:
        drawn["scores"] = _saved(_scores(report), folder / "scores.png")
        drawn["sentences"] = _saved(_sensitivity(report), folder / "sentences.png")
        drawn["confusion"] = _saved(_confusions(report.sets), folder / "confusion.png")
    if any(one.probe for one in report.sets):
        drawn["probes"] = _saved(_probes([one for one in report.sets if one.probe]), folder / "probes.png")
    if report.retrieval:
        drawn["retrieval"] = _saved(_retrieval(report), folder / "retrieval.png")
    return drawn


def _scores(report: EvaluationReport) -> "Figure":
    """Each set's metric with its interval, chance, and what papers print."""
    figure, axes = _page(9.5, 0.42 * len(report.sets) + 1.5)
    models = dict.fromkeys(model for one in report.sets for model in one.published)
    marks = dict(zip(models, cycle(PAPER_MARKS), strict=False))
    for place, one in enumerate(report.sets):
        score = one.scores[one.metric]
        axes.barh(place, 100 * score.value, color=MODALITY_COLORS[one.modality], alpha=0.75, height=0.62)
        _whisker(axes, score, place)
        if score.chance is not None:
            axes.plot([100 * score.chance] * 2, [place - 0.4, place + 0.4], color=BLACK, linewidth=1.6, linestyle=":")
        for model, value in one.published.items():
            axes.plot(100 * value, place, marks[model], color="white", markeredgecolor=BLACK, markersize=6)
    axes.set_yticks(range(len(report.sets)), _set_names(report.sets), fontsize=9)
    axes.plot([], [], color=BLACK, linestyle=":", label="chance")
    for model, mark in marks.items():
        axes.plot([], [], mark, color="white", markeredgecolor=BLACK, label=f"paper: {model}")
    for modality in dict.fromkeys(one.modality for one in report.sets):
        axes.barh([0], [0], color=MODALITY_COLORS[modality], alpha=0.75, label=modality)
    _finish_bars(axes, f"zero-shot{_only_metric(report.sets)}, %, with 95 % intervals")
    return figure


def _probes(sets: Sequence[SetReport]) -> "Figure":
    """Balanced accuracy: zero-shot, probes with few and many labels, thumbnails."""
    figure, axes = _page(9.5, 0.42 * len(sets) + 1.5)
    for place, one in enumerate(sets):
        zero = one.scores["balanced_accuracy"]
        axes.plot(100 * (zero.chance or 0), place, "|", color=BLACK, markersize=13, label="chance" * (place == 0))
        axes.plot(100 * zero.value, place, "o", color="#1f77b4", label="zero-shot" * (place == 0))
        for score, color in zip(one.probe, ("#ffbb78", "#ff7f0e", "#b34700"), strict=False):
            axes.errorbar(100 * score.mean, place, xerr=None if score.std is None else 100 * score.std, fmt="s",
                          color=color, capsize=2,
                          label=f"linear probe, {100 * score.share:g} % of labels" * (place == 0))
        if one.thumbnails is not None:
            axes.plot(100 * one.thumbnails.mean, place, "x", color="#d62728", markersize=9, markeredgewidth=2,
                      label="16 × 16 pixels" * (place == 0))
        axes.axhline(place, color="#eeeeee", zorder=0)
    axes.set_yticks(range(len(sets)), [one.name for one in sets], fontsize=9)
    _finish_bars(axes, "balanced accuracy, %")
    return figure


def _sensitivity(report: EvaluationReport) -> "Figure":
    """The range over single sentences, and the value with all."""
    figure, axes = _page(9.5, 0.38 * len(report.sets) + 1.4)
    for place, one in enumerate(report.sets):
        found = one.sensitivity
        low, high = found.one.low or 0.0, found.one.high or 0.0
        axes.plot([100 * low, 100 * high], [place, place], color=GRAY, linewidth=7, alpha=0.4, solid_capstyle="butt",
                  label="one sentence per class: lowest to highest" * (place == 0))
        if found.some is not None:
            axes.plot([100 * (found.some.low or 0.0), 100 * (found.some.high or 0.0)], [place, place], color=GRAY,
                      linewidth=3, solid_capstyle="butt", label="half of the sentences" * (place == 0))
        axes.plot(100 * found.all, place, "o", color=MODALITY_COLORS[one.modality], label="all" * (place == 0))
    axes.set_yticks(range(len(report.sets)), _set_names(report.sets), fontsize=9)
    _finish_bars(axes, f"zero-shot{_only_metric(report.sets)}, %")
    return figure


def _confusions(sets: Sequence[SetReport]) -> "Figure":
    """Of each set, the share of each true class that is called each class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(CONFUSION_COLUMNS, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, one in zip(grid, sets, strict=False):
        counts = np.array(one.confusion, float)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [name if len(name) <= LONGEST_CLASS else f"{name[: LONGEST_CLASS - 1]}…" for name in one.images]
        size = 8 if len(names) <= 8 else 6
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        for (true, called), count in np.ndenumerate(counts):
            if len(names) <= 8 or count:
                axes.text(called, true, f"{count:.0f}", ha="center", va="center", fontsize=size,
                          color="white" if shares[true, called] > 0.55 else BLACK)
        axes.set_title(one.name, fontsize=10, fontweight="bold")
        axes.set_ylabel("true class", fontsize=8)
        axes.set_xlabel("called", fontsize=8)
    for axes in grid[len(sets) :]:
        axes.set_axis_off()
    return figure


def _retrieval(report: EvaluationReport) -> "Figure":
    """Recall at each k, both ways, beside chance."""
    lines = [(f"{one.name}, {DIRECTION_NAMES[direction]}", recalls)
             for one in report.retrieval for direction, recalls in one.recall.items()]
    figure, axes = _page(9.5, 0.62 * len(lines) + 1.2)
    colors = ("#08519c", "#6baed6", "#c6dbef")
    for place, (_, recalls) in enumerate(lines):
        for offset, ((k, score), color) in enumerate(zip(recalls.items(), colors, strict=False)):
            height = place + (offset - 1) * 0.26
            axes.barh(height, 100 * score.value, color=color, height=0.25, label=f"R@{k}" * (place == 0))
            _whisker(axes, score, height)
            axes.plot(100 * (score.chance or 0), height, "|", color="#d62728", markersize=9, markeredgewidth=2,
                      label="chance" * (place == 0 and offset == 0))
    axes.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=9)
    _finish_bars(axes, "recall, %, with 95 % intervals", most=None)
    return figure


def _set_names(sets: Sequence[SetReport]) -> list[str]:
    """With each set's metric where these differ."""
    return [one.name if _only_metric(sets) else f"{one.name}, {METRIC_NAMES[one.metric]}" for one in sets]


def _only_metric(sets: Sequence[SetReport]) -> str:
    """" balanced accuracy", where it is every set's metric; else ""."""
    metrics = {one.metric for one in sets}
    return f" {METRIC_NAMES[metrics.pop()]}" if len(metrics) == 1 else ""


def _whisker(axes: "Axes", score: Score, height: float) -> None:
    if score.low is not None and score.high is not None:
        axes.plot([100 * score.low, 100 * score.high], [height, height], color=BLACK, linewidth=1.3)


def _finish_bars(axes: "Axes", label: str, most: float | None = 100) -> None:
    axes.invert_yaxis()
    axes.set_xlim(0, most)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _page(width: float, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _saved(figure: "Figure", path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return path
