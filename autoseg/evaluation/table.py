"""Scores as a plain text table that a person reads."""

import statistics
from collections.abc import Sequence

from autoseg.schema import LabelScores, MeanScores, Scores

SCORE_NAMES = ("dice", "nsd", "hd95")
UNDEFINED = "–"


def format_table(scores: Scores) -> str:
    """Per label: cases, mean ± standard deviation over cases; then what was skipped, and the worst case.

    The deviation is the sample's (n - 1) over the cases that define the score. The last row is the mean over
    labels.
    """
    rows: list[tuple[str, ...]] = [("label", "cases", "Dice", f"NSD {_tolerances(scores)}", "HD95 mm")]
    for name, means in scores.labels.items():
        found = [case.labels[name] for case in scores.cases]
        rows.append(
            (name, str(len(found)), *(_mean_and_spread(means, found, score) for score in SCORE_NAMES))
        )
    rows.append(("mean", "", *(_number(getattr(scores.mean, score), score) for score in SCORE_NAMES)))
    lines = aligned(rows)
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *_remarks(scores)])


def _tolerances(scores: Scores) -> str:
    tolerances = sorted(set(scores.policy.nsd_tolerance_mm.values()))
    return "at " + ", ".join(f"{tolerance:g}" for tolerance in tolerances) + " mm"


def _number(value: float | None, score: str) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:.2f}" if score == "hd95" else f"{value:.3f}"


def _mean_and_spread(means: MeanScores, found: Sequence[LabelScores], score: str) -> str:
    mean = _number(getattr(means, score), score)
    defined = [value for one in found if (value := getattr(one, score)) is not None]
    return f"{mean} ± {_number(statistics.stdev(defined), score)}" if len(defined) > 1 else mean


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with every column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _remarks(scores: Scores) -> list[str]:
    """Where the means rest on fewer cases, and which case to look at first."""
    remarks = []
    for name in scores.labels:
        found = {case.id: case.labels[name] for case in scores.cases}
        if absent := [case_id for case_id, one in found.items() if one.dice is None]:
            remarks.append(f"{name}: in neither mask of {_listed(absent)}; not scored there")
        if one_sided := [case_id for case_id, one in found.items() if _one_empty(one)]:
            remarks.append(
                f"{name}: in only one mask of {_listed(one_sided)}; Dice and NSD 0, HD95 undefined"
            )
    lowest = min(
        (
            (one.dice, case.id, name)
            for case in scores.cases
            for name, one in case.labels.items()
            if one.dice is not None
        ),
        default=None,
    )
    if lowest is not None and len(scores.cases) > 1:
        remarks.append(f"lowest Dice: {lowest[0]:.3f}, {lowest[2]} in {lowest[1]}")
    return remarks


def _one_empty(one: LabelScores) -> bool:
    return one.dice is not None and one.hd95 is None


def _listed(case_ids: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(case_ids) - shown} more" if len(case_ids) > shown else ""
    return f"{len(case_ids)} case{'s' if len(case_ids) > 1 else ''} ({', '.join(case_ids[:shown])}{more})"
