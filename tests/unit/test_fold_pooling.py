"""Pooled scores weigh cases, means over folds weigh folds; the table shows both."""

import statistics

import pytest

from autoseg.evaluation.pooling import format_fold_table, pool_scores
from autoseg.evaluation.scoring import Tolerance, summarize
from autoseg.schema import CaseScores, LabelScores, Scores


def fold(**dice: float | None) -> Scores:
    """Cases named by label "a"'s Dice; label "b" is the same, but absent from the first case."""
    def score(value: float | None) -> LabelScores:
        return LabelScores(dice=value, nsd=value, hd95=None, volume_ml=1.0, reference_volume_ml=1.0)

    cases = [CaseScores(id=name, labels={"a": score(value), "b": score(None if position == 0 else value)})
             for position, (name, value) in enumerate(dice.items())]
    return summarize(cases, ("a", "b"), Tolerance(3.0))


def test_pooling_is_scoring_all_cases_at_once():
    first, second = fold(one=0.5, two=0.7), fold(three=0.9)
    pooled = pool_scores([first, second])
    assert pooled == summarize(sorted((*first.cases, *second.cases), key=lambda case: case.id), ("a", "b"),
                               Tolerance(3.0))
    assert pooled.labels["a"].dice == pytest.approx((0.5 + 0.7 + 0.9) / 3) and pooled.labels["b"].dice == 0.7


def test_the_table_by_hand():
    folds = {"0": fold(one=0.5, two=0.7), "1": fold(three=0.9)}
    lines = format_fold_table(folds, pool_scores(list(folds.values()))).splitlines()
    cells = [line.split("  ") for line in lines]
    table = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert table[0] == ["Dice", "fold 0", "fold 1", "mean ± std", "pooled"]
    assert table[2] == ["a", "0.600", "0.900", f"0.750 ± {statistics.stdev([0.6, 0.9]):.3f}", "0.700"]
    assert table[3] == ["b", "0.700", "–", "0.700", "0.700"]
    assert table[-1] == ["cases", "2", "1", "3"]
