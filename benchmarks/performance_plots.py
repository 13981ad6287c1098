"""Pictures of the measurement: ratios, stages of prediction, scaling of decoding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from performance_figures import OURS, THEIRS, Spread, failure, ratio, spread, values
from performance_tables import STAGES, named

Row = Mapping[str, Any]
COLORS = {OURS: "#0072B2", THEIRS: "#D55E00", f"{OURS} ragged": "#56B4E9"}
STAGE_COLORS = ("#56B4E9", "#009E73", "#999999", "#E69F00", "#CC79A7")
MARKERS = {OURS: "o", THEIRS: "s", f"{OURS} ragged": "v"}


def draw_scaling(rows: Sequence[Row], path: Path) -> None:
    """Seconds and memory of decoding against voxels and against labels; a cross at the top where a side died.

    Seconds are logarithmic; the gray line shows how they would rise in proportion.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    cells = figure.subplots(2, 2)
    axes_of = {"volume": ("voxels", "million voxels of the image", 1e6), "labels": ("labels", "labels", 1.0)}
    for column, (along, (key, label, unit)) in enumerate(axes_of.items()):
        points = [row for row in rows if row.get("along") == along and "skipped" not in row]
        for line, (name, title) in enumerate((("decode", "seconds"), ("peak_mib", "peak memory, MiB"))):
            axes = cells[line][column]
            for side in COLORS:
                _draw_line(axes, [(row[key] / unit, row[side]) for row in points], name, side)
            axes.set_xlabel(label)
            axes.set_ylabel(title)
            if name == "decode" and points:
                _draw_proportion(axes, [(row[key] / unit, row[OURS]) for row in points])
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter("")
                axes.yaxis.set_major_formatter("{x:g}")
            else:
                axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize="small")
            if points:
                fixed = f"{points[0]['labels']} labels" if along == "volume" else points[0]["data"].partition(",")[0]
                axes.set_title(fixed, fontsize="small", loc="left")
    _save(figure, path)


def _draw_line(axes: Any, points: Sequence[tuple[float, Sequence[Any]]], name: str, side: str) -> None:
    ended = [(at, found) for at, samples in points if (found := spread(values(samples, name))) is not None]
    axes.plot([at for at, _ in ended], [found.median for _, found in ended], color=COLORS[side], marker=MARKERS[side],
              markersize=4, label=side)
    for at, found in ended:
        axes.plot([at, at], [found.low, found.high], color=COLORS[side], linewidth=3, alpha=0.4)
    for number, at in enumerate(at for at, samples in points if failure(samples) is not None):
        axes.plot(at, 0.97, "x", color=COLORS[side], transform=axes.get_xaxis_transform(), markersize=9,
                  markeredgewidth=2, label=None if number else f"{side} did not end")


def _draw_proportion(axes: Any, points: Sequence[tuple[float, Sequence[Any]]]) -> None:
    """From our first point on."""
    first, last = points[0], points[-1]
    found = spread(values(first[1], "decode"))
    if found is not None:
        axes.plot([first[0], last[0]], [found.median, found.median * last[0] / first[0]], color="#999999",
                  linewidth=1, linestyle=":", label="in proportion")


def draw_stages(rows: Sequence[Row], path: Path) -> None:
    """Per dataset two bars, ours and theirs, made of the stages' seconds; a line where the network alone would end."""
    from matplotlib.figure import Figure

    kept = [row for row in rows if row.get("what") == "stages"]
    figure = Figure(figsize=(10, 1.0 + 1.15 * len(kept)), layout="constrained")
    for axes, row in zip(figure.subplots(max(1, len(kept)), 1, squeeze=False)[:, 0], kept, strict=False):
        for height, side in enumerate((THEIRS, OURS)):
            died = failure(row[side])
            if died is not None:
                axes.text(0, height, f" {died}", va="center", fontsize="small", color=COLORS[side])
                continue
            left = 0.0
            for stage, color in zip(STAGES, STAGE_COLORS, strict=True):
                found = spread(values(row[side], stage))
                width = found.median if found else 0.0
                axes.barh(height, width, left=left, color=color, label=stage if height else None)
                left += width
            alone = spread(values(row[side], "ceiling"))
            if alone is not None:
                axes.plot([alone.median] * 2, [height - 0.45, height + 0.45], color="black", linewidth=1.5)
        axes.set_ylim(-0.6, 1.6)
        axes.set_yticks([0, 1], [THEIRS, OURS], fontsize="small")
        axes.set_title(named(row), fontsize="small", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    if kept:
        axes.set_xlabel("seconds; the black line: the network alone, on windows that are there already")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=5, frameon=False, fontsize="small")
    _save(figure, path)


def draw_ratios(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """How many times as fast as nnunetv2, and how many times less memory: median and range of every row."""
    from matplotlib.figure import Figure

    found = [(label, faster, smaller) for label, faster, smaller in _ratios(results) if faster is not None]
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    for height, (_, faster, smaller) in enumerate(reversed(found)):
        for one, color, marker, shift in ((faster, COLORS[OURS], "o", 0.1), (smaller, "#009E73", "D", -0.15)):
            if one is not None:
                axes.plot([one.low, one.high], [height + shift] * 2, color=color, linewidth=2, alpha=0.5)
                axes.plot(one.median, height + shift, marker, color=color, markersize=5)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), [label for label, _, _ in reversed(found)], fontsize="small")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("times as fast as nnunetv2 (blue), times less peak memory (green)", fontsize="small")
    axes.grid(axis="x", alpha=0.25)
    _save(figure, path)


def _ratios(results: Mapping[str, Sequence[Row]]) -> list[tuple[str, Spread | None, Spread | None]]:
    lines: list[tuple[str, Spread | None, Spread | None]] = []
    for part, rows in results.items():
        for row in rows:
            if "skipped" in row or part in ("scaling", "speeds") or row["what"].startswith("stages"):
                continue
            if part == "train":
                lines.append((f"training steps, {row['precision']}", ratio(row[OURS], row[THEIRS], "steps_per_second"),
                              ratio(row[THEIRS], row[OURS], "peak_mib")))
            else:
                lines.append((f"{row['what']}, {row['data']}", ratio(row[THEIRS], row[OURS], "seconds"),
                              ratio(row[THEIRS], row[OURS], "peak_mib")))
    return lines


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
