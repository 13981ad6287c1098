"""Tables and the picture of the study in initialization.py, from the lines of its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

REFERENCE = "scratch-long"
PRIMARY = "lwi"
DRAWS = 10_000
STYLES = {
    "scratch": ("#999999", "o", ":"), "scratch-long": ("#000000", "s", "-"), "lwi": ("#0072B2", "D", "-"),
    "mim": ("#009E73", "^", "--"), "order": ("#E69F00", "v", "--"), "scrambled": ("#D55E00", "X", ":"),
    "lwi-own": ("#CC79A7", "P", "-."),
}  # fmt: skip
"""Color (Okabe and Ito's, told apart without red and green), marker and line of every arm, in the tables' order."""
MEASURES = {
    "learned_from": "{:.0f}", "steps": "{:.0f}", "seconds": "{:.0f}", "steps_per_second": "{:.2f}",
    "masked_error": "{:.3f}", "inpainting_error": "{:.3f}", "order_accuracy": "{:.1%}", "order_chance": "{:.1%}",
    "border_matching_accuracy": "{:.1%}",
}  # fmt: skip
"""Fields of a pretraining's line, as the second table shows them."""
DODGE = 0.075
"""Between arms beside each other, of the distance between two numbers of labelled cases."""
LABEL_DISTANCE = 0.045
"""Between direct labels, as a share of the panel's height."""


# ---------------------------------------------------------------- statistics
def paired_differences(ones: Sequence[dict], others: Sequence[dict]) -> Float[np.ndarray, "seed case"]:
    """Dice points of `ones` minus `others`, for the seeds that both have; (0, 0) where there is none."""
    by_seed = {line["seed"]: line for line in others}
    pairs = [(line, by_seed[line["seed"]]) for line in sorted(ones, key=lambda one: one["seed"])
             if line["seed"] in by_seed]
    if not pairs:
        return np.empty((0, 0))
    ids = sorted(pairs[0][0]["case_dice"])
    return np.array([[100 * (one["case_dice"][case] - other["case_dice"][case]) for case in ids]
                     for one, other in pairs])


def hierarchical_interval(differences: Float[np.ndarray, "seed case"]) -> tuple[float, float, float]:
    """Mean and 95 % interval from 10,000 draws of seeds, then of cases (one draw of cases for all its seeds)."""
    rng = np.random.default_rng(0)
    seeds, cases = differences.shape
    drawn_seeds, drawn_cases = rng.integers(0, seeds, (DRAWS, seeds)), rng.integers(0, cases, (DRAWS, cases))
    means = differences[drawn_seeds[:, :, None], drawn_cases[:, None, :]].mean(axis=(1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def wilcoxon_p(differences: Float[np.ndarray, "seed case"]) -> float:
    """Two-sided signed-rank test over cases, seeds averaged; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    means = differences.mean(axis=0)
    return float(wilcoxon(means).pvalue) if means.any() else 1.0


# ---------------------------------------------------------------- tables
def print_tables(lines: Sequence[dict], primary_cases: int) -> None:
    """Dice per number of cases and arm; what the pretrainings learned; the primary comparison in a sentence."""
    trainings = grouped(line for line in lines if line["kind"] == "training")
    columns = ("labelled cases", "arm", "Dice per seed", "mean", "NSD", f"difference from {REFERENCE} [95 %]",
               "Wilcoxon p", "steps", "s, pretraining included")
    print_row(columns)
    print_row(["---"] * len(columns))
    for (cases, arm), members in trainings.items():
        print_row([str(cases), arm, *dice_cells(members), *difference_cells(members, trainings.get((cases, REFERENCE))),
                   " / ".join(str(line["steps"]) for line in members),
                   f"{np.mean([line['seconds'] + line['pretraining_seconds'] for line in members]):.0f}"])
    print()
    print_pretrainings(grouped(line for line in lines if line["kind"] == "pretraining"))
    differences = paired_differences(trainings.get((primary_cases, PRIMARY), ()),
                                     trainings.get((primary_cases, REFERENCE), ()))
    if differences.size:
        print(f"\n{verdict(differences, primary_cases)}")


def grouped(lines: Any) -> dict[tuple[int | None, str], list[dict]]:
    """Lines by number of cases and arm, in the tables' order; each group by seed."""
    arms = list(STYLES)
    found: dict[tuple[int | None, str], list[dict]] = {}
    for line in sorted(lines, key=lambda one: (one["cases"] or 0, arms.index(one["arm"]), one["seed"])):
        found.setdefault((line["cases"], line["arm"]), []).append(line)
    return found


def verdict(differences: Float[np.ndarray, "seed case"], cases: int) -> str:
    """The declared decision: only an interval above 0 counts as a benefit."""
    mean, low, high = hierarchical_interval(differences)
    said = "a benefit" if low > 0 else "no benefit shown" if high >= 0 else "a loss"
    return (f"Primary comparison, {PRIMARY} − {REFERENCE} at {cases} labelled cases, {len(differences)} seeds × "
            f"{differences.shape[1]} cases: {mean:+.2f} Dice points [{low:+.2f}, {high:+.2f}], Wilcoxon p = "
            f"{wilcoxon_p(differences):.3g}: {said}.")


def dice_cells(members: Sequence[dict]) -> list[str]:
    return [" / ".join(f"{100 * line['dice']:.2f}" for line in members),
            f"{100 * np.mean([line['dice'] for line in members]):.2f}",
            f"{100 * np.mean([line['nsd'] for line in members]):.2f}"]


def difference_cells(members: Sequence[dict], reference: Sequence[dict] | None) -> list[str]:
    """The difference with its interval, and p; dashes for the reference itself, and where it has no run yet."""
    differences = paired_differences(members, reference or ())
    if members is reference or not differences.size:
        return ["–", "–"]
    mean, low, high = hierarchical_interval(differences)
    few = "" if len(differences) > 1 else " (cases only: one seed)"
    return [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{few}", f"{wilcoxon_p(differences):.3g}"]


def print_pretrainings(groups: dict[tuple[int | None, str], list[dict]]) -> None:
    """Means over seeds of what the pretext tasks came to, on images held back from them."""
    columns = ("pretraining", "seeds", "images", "steps", "s", "steps/s", "masked error", "linear inpainting",
               "order in place", "guessing", "matching borders")
    print_row(columns)
    print_row(["---"] * len(columns))
    for (_, arm), members in groups.items():
        print_row([arm, str(len(members)), *(mean_of(members, name, form) for name, form in MEASURES.items())])


def mean_of(members: Sequence[dict], name: str, form: str) -> str:
    values = [line[name] for line in members if line[name] is not None]
    return form.format(np.mean(values)) if values else "–"


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |")


# ---------------------------------------------------------------- picture
def draw_plot(lines: Sequence[dict], curve_cases: int, path: Path) -> None:
    """Dice against labelled cases, and pseudo-Dice against steps at `curve_cases`; arms are named at their lines."""
    from matplotlib.figure import Figure

    trainings = grouped(line for line in lines if line["kind"] == "training")
    figure = Figure(figsize=(12, 5), layout="constrained")
    budgets, steps = figure.subplots(1, 2, width_ratios=(1, 1))
    _draw_budgets(budgets, trainings)
    _draw_curves(steps, {arm: members for (cases, arm), members in trainings.items() if cases == curve_cases})
    steps.set_title(f"{curve_cases} labelled cases, mean over seeds", loc="left", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_budgets(axes: Any, trainings: dict[tuple[int | None, str], list[dict]]) -> None:
    """Lines are means over seeds, points the seeds; arms stand a little beside each other to be told apart."""
    numbers, ends = sorted({cases for cases, _ in trainings if cases is not None}), {}
    for position, (arm, (color, marker, line)) in enumerate(STYLES.items()):
        mine = {cases: members for (cases, name), members in trainings.items() if name == arm and cases is not None}
        if not mine:
            continue
        shift = DODGE * (position - (len(STYLES) - 1) / 2)
        places, means = [numbers.index(cases) + shift for cases in mine], list[float]()
        for place, members in zip(places, mine.values(), strict=True):
            dice = [100 * one["dice"] for one in members]
            means.append(float(np.mean(dice)))
            axes.plot([place] * len(dice), dice, marker, color=color, markersize=4, alpha=0.45, markeredgewidth=0)
        axes.plot(places, means, line, marker=marker, color=color, markersize=6, linewidth=1.6)
        ends[arm] = (places[-1], means[-1])
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlim(-0.5, len(numbers) - 0.05)
    axes.set_xlabel("labelled cases")
    axes.set_ylabel("Dice of the validation cases (%)")
    axes.set_title("small points: seeds; line: their mean", loc="left", fontsize="medium")
    axes.grid(axis="y", alpha=0.25)
    _label_ends(axes, ends)


def _draw_curves(axes: Any, arms: dict[str, list[dict]]) -> None:
    ends, last = {}, 0
    for arm, members in arms.items():
        length = min(len(one["curve"]) for one in members)  # scratch-long's seeds differ in length
        dice = [[np.nan if value is None else 100 * value for _, value in one["curve"][:length]] for one in members]
        places, means = [step for step, _ in members[0]["curve"][:length]], np.mean(dice, axis=0)
        color, _, line = STYLES[arm]
        axes.plot(places, means, line, color=color, linewidth=1.6)
        ends[arm], last = (places[-1], float(means[-1])), max(last, places[-1])
    axes.set_xlim(0, last * 1.25)
    axes.set_xlabel("supervised steps")
    axes.set_ylabel("pseudo-Dice of random validation patches (%)")
    axes.grid(axis="y", alpha=0.25)
    _label_ends(axes, ends)


def _label_ends(axes: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Each arm's name right of its last point; names that would overlap are moved apart, with a thin line back."""
    groups: dict[float, list[str]] = {}
    for arm, (place, _) in ends.items():
        near = 0.15 * (axes.get_xlim()[1] - axes.get_xlim()[0])
        key = next((other for other in groups if abs(other - place) < near), place)
        groups.setdefault(key, []).append(arm)
    low, high = axes.get_ylim()
    high += 2 * LABEL_DISTANCE * (high - low)
    axes.set_ylim(low, high)
    least = LABEL_DISTANCE * (high - low)
    for members in groups.values():
        order = sorted(members, key=lambda arm: ends[arm][1])
        heights = spread([ends[arm][1] for arm in order], least)
        right = max(ends[arm][0] for arm in order)
        for arm, height in zip(order, heights, strict=True):
            axes.annotate(arm, ends[arm], xytext=_beside(axes, right, height), color=STYLES[arm][0], va="center",
                          fontsize="small", fontweight="bold",
                          bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.85},
                          arrowprops={"arrowstyle": "-", "color": STYLES[arm][0], "linewidth": 0.7})


def _beside(axes: Any, right: float, height: float) -> tuple[float, float]:
    """A place for a name, a fortieth of the panel's width to the right."""
    to_panel = axes.transData + axes.transAxes.inverted()
    across, up = to_panel.transform((right, height))
    place, level = to_panel.inverted().transform((across + 0.025, up))
    return float(place), float(level)


def spread(heights: Sequence[float], least: float) -> list[float]:
    """Rising heights moved apart to at least this distance, each as little as pooling neighbors allows."""
    shifted = [height - least * index for index, height in enumerate(heights)]
    blocks: list[list[float]] = []  # isotonic regression: neighbors that would cross are pooled at their mean
    for value in shifted:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [float(np.mean(block)) for block in blocks for _ in block]
    return [level + least * index for index, level in enumerate(levels)]
