"""Scores of several folds together: pooled over their cases, and as a table of Dice by label and fold."""

import statistics
from collections.abc import Mapping, Sequence

from autoseg.evaluation.scoring import Tolerance, summarize
from autoseg.evaluation.table import UNDEFINED, aligned
from autoseg.schema import MeanScores, Scores


def pool_scores(folds: Sequence[Scores]) -> Scores:
    """Means over the cases of all folds, every case weighing the same; folds of one dataset and one policy."""
    first = folds[0]
    cases = sorted((case for scores in folds for case in scores.cases), key=lambda case: case.id)
    names = tuple(dict.fromkeys(name for scores in folds for name in scores.labels))
    pooled = summarize(cases, names, Tolerance(by_label=first.policy.nsd_tolerance_mm))
    return pooled.model_copy(update={"policy": first.policy})


def format_fold_table(folds: Mapping[str, Scores], pooled: Scores) -> str:
    """Dice by label (rows; the last is their mean) and fold, mean ± standard deviation over folds, and pooled.

    The deviation is the sample's (n - 1) of the folds' means; "pooled" is the mean over all cases.
    """
    rows = [("Dice", *(f"fold {fold}" for fold in folds), "mean ± std", "pooled")]
    for name in pooled.labels:
        means = [scores.labels.get(name) for scores in folds.values()]
        rows.append((name, *_cells(means, pooled.labels[name])))
    last = ("mean", *_cells([scores.mean for scores in folds.values()], pooled.mean))
    counts = ("cases", *(str(len(scores.cases)) for scores in folds.values()), "", str(len(pooled.cases)))
    lines = aligned([*rows, last, counts])
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def _cells(means: Sequence[MeanScores | None], pooled: MeanScores) -> tuple[str, ...]:
    values = [None if one is None else one.dice for one in means]
    defined = [value for value in values if value is not None]
    spread = UNDEFINED if not defined else f"{statistics.fmean(defined):.3f}"
    if len(defined) > 1:
        spread += f" ± {statistics.stdev(defined):.3f}"
    return (*map(_number, values), spread, _number(pooled.dice))


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"
