"""The goals that were set before anything was measured, and what became of them; one that was missed says so."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from performance_data import HIPPOCAMPUS, PHANTOM
from performance_figures import OURS, THEIRS, Spread, failure, number, ratio, spread
from performance_tables import markdown, scaled, text

Row = Mapping[str, Any]
Results = Mapping[str, Sequence[Row]]
"""Part → its rows."""
Of = Callable[[Row], Spread | None]


@dataclass(frozen=True)
class Goal:
    """`least` : what a figure must reach on "cpu" and on "cuda" (None: no goal there). `unit`: "×", "%" or none.

    rows : which rows of `part` it is about; `of`: the figure of one row.
    """

    what: str
    part: str
    rows: Callable[[Row], bool]
    of: Of
    least: Mapping[str, float | None]
    unit: str = "×"


def times_of(name: str) -> Of:
    """How many times as much of a figure nnunetv2 takes."""
    return lambda row: ratio(row[THEIRS], row[OURS], name)


def share_of(part: str, whole: str) -> Of:
    """One figure of ours over another, in percent."""
    return lambda row: scaled(ratio(row[OURS], row[OURS], part, whole), 100)


def is_hippocampus(row: Row) -> bool:
    return str(row["data"]).startswith(HIPPOCAMPUS)


def is_phantom(row: Row, many: bool | None = None) -> bool:
    """many : only those of more than 100 labels, or only the others."""
    found = PHANTOM.fullmatch(str(row["data"]))
    return found is not None and many in (None, int(found[4]) > 100)


def _is(row: Row, what: str) -> bool:
    return bool(row["what"] == what)


FASTER_TRAINING: Of = lambda row: ratio(row[OURS], row[THEIRS], "steps_per_second")  # noqa: E731
OF_NETWORK: Of = lambda row: scaled(ratio(row[OURS], row[f"{OURS} alone"], "steps_per_second"), 100)  # noqa: E731

GOALS = (
    Goal("plan + preprocess", "plan", is_hippocampus, times_of("seconds"), {"cpu": 5, "cuda": 10}),
    Goal("plan + preprocess", "plan", is_phantom, times_of("seconds"), {"cpu": 10, "cuda": 20}),
    Goal("plan + preprocess, peak memory of nnunetv2 over ours", "plan", lambda _: True, times_of("peak_mib"),
         {"cpu": 4, "cuda": None}),
    Goal("training steps in bfloat16", "train", lambda row: row["precision"] == "bfloat16", FASTER_TRAINING,
         {"cpu": 2, "cuda": 2}),
    Goal("training steps, of the network alone", "train", lambda _: True, OF_NETWORK, {"cpu": 95, "cuda": 90}, "%"),
    Goal("predict exact with mirrored copies without its start, of the network alone", "predict",
         lambda row: _is(row, "predict") and row["tta"], share_of("ceiling", "without_start"),
         {"cpu": 95, "cuda": None}, "%"),
    Goal("predict where resampling and export dominate, 24 labels", "predict",
         lambda row: _is(row, "predict") and is_phantom(row, many=False), times_of("seconds"), {"cpu": 3, "cuda": 5}),
    Goal("predict where resampling and export dominate, 117 labels", "predict",
         lambda row: _is(row, "predict") and is_phantom(row, many=True), times_of("seconds"), {"cpu": 3, "cuda": 10}),
    Goal("predict, peak memory of nnunetv2 over ours, 117 labels", "predict",
         lambda row: _is(row, "predict") and is_phantom(row, many=True), times_of("peak_mib"),
         {"cpu": 4, "cuda": None}),
    Goal("predict, peak memory of nnunetv2 over ours, 117 labels, the network as planned", "predict",
         lambda row: _is(row, "predict (network as planned)"), times_of("peak_mib"), {"cpu": 4, "cuda": None}),
    Goal("predict `balanced`, one fold in both", "predict",
         lambda row: _is(row, "predict --speed balanced") and row["tta"], times_of("seconds"), {"cpu": 10, "cuda": 20}),
    Goal("predict `balanced`, one of five folds against the mean of all", "predict",
         lambda row: _is(row, "predict --speed balanced, against five folds"), times_of("seconds"),
         {"cpu": 10, "cuda": 20}),
    Goal("predict `balanced`, Dice − exact's", "speeds", lambda row: row["level"] == "balanced",
         lambda row: spread([cost["dice_change"] for cost in row[OURS]]), {"cpu": -0.002, "cuda": -0.002}, ""),
    Goal("start to first mask", "startup", lambda _: True, times_of("seconds"), {"cpu": 3, "cuda": 3}),
)


def goals_table(results: Results, device: str) -> str:
    """Every goal for the device with each row it is about: the goal, what was measured, reached or missed."""
    lines = [line for goal in GOALS if goal.least[device] is not None for line in _lines(goal, results, device)]
    return markdown(["what", "data", "goal", "measured", ""], lines)


def _lines(goal: Goal, results: Results, device: str) -> list[list[str]]:
    least = goal.least[device]
    assert least is not None
    asked = f"≥ {number(least)}{' %' if goal.unit == '%' else goal.unit}"
    rows = [row for row in results.get(goal.part, ()) if "skipped" not in row and goal.rows(row)]
    if not rows:
        return [[goal.what, "–", asked, "–", "not measured"]]
    return [[goal.what, _data(row), asked, *_judged(goal, row, least)] for row in rows]


def _data(row: Row) -> str:
    return f"{row['data']}, {row['precision']}" if "precision" in row else str(row["data"])


def _judged(goal: Goal, row: Row, least: float) -> list[str]:
    """By the median."""
    died = failure(row.get(THEIRS, ()))
    if failure(row[OURS]) is not None:
        return [f"autoseg: {failure(row[OURS])}", "**missed**"]
    found = goal.of(row)
    if found is None:
        return [f"nnunetv2: {died}; autoseg ended" if died else "–", "no ratio" if died else "not measured"]
    return [text(found, 3, " %" if goal.unit == "%" else goal.unit),
            "reached" if found.median >= least else "**missed**"]
