"""What the folds of one model came to together: a table of Dice, figures for run.json, pooled scores."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.commands.fold_training import TrainedFold
from autoseg.evaluation.pooling import format_fold_table, pool_scores
from autoseg.inference.ranking import SCORES_NAME
from autoseg.launch import launched
from autoseg.records import write_record
from autoseg.schema import Scores


@dataclass(frozen=True)
class FoldSummary:
    """All folds of one model.

    Attributes
    ----------
    folder : of the model's configuration; its scores.json holds the pooled scores.
    table : Dice by label and fold, its mean and deviation over folds, and over the pooled cases.
    figures : for run.json. content : the same and more, for --json.
    """

    folder: Path
    table: str
    figures: dict[str, float | None]
    content: dict[str, object]


def summarize_folds(folds: Sequence[TrainedFold]) -> FoldSummary:
    """Summarize finished folds of one model and write their pooled scores beside the folds."""
    folder = folds[0].folder.parent
    scored = {one.fold: one.scores for one in folds if one.scores is not None}
    if not scored:
        table, figures, pooled = f"No fold of {folder} has scores.", {}, None
    else:
        pooled = pool_scores(list(scored.values()))
        if launched().is_first:
            write_record(pooled, folder / SCORES_NAME)
        unscored = [one.fold for one in folds if one.scores is None]
        table = format_fold_table(scored, pooled) + f"\nwithout scores: fold {', '.join(unscored)}" * bool(unscored)
        figures = _figures(scored, pooled)
    content: dict[str, object] = {
        "folds": {one.fold: _facts(one) for one in folds},
        "pooled": None if pooled is None else _means(pooled),
        **{name: value for name, value in figures.items() if not name.startswith("fold_")},
    }
    return FoldSummary(folder, table, figures, content)


def _figures(scored: dict[str, Scores], pooled: Scores) -> dict[str, float | None]:
    dice = [scores.mean.dice for scores in scored.values() if scores.mean.dice is not None]
    return {
        **{f"fold_{fold}.dice": scores.mean.dice for fold, scores in scored.items()},
        "dice": pooled.mean.dice, "nsd": pooled.mean.nsd, "hd95": pooled.mean.hd95,
        "dice_mean_over_folds": statistics.fmean(dice) if dice else None,
        "dice_std_over_folds": statistics.stdev(dice) if len(dice) > 1 else None,
    }


def _facts(trained: TrainedFold) -> dict[str, object]:
    scores = {} if trained.scores is None else _means(trained.scores)
    return {"model": str(trained.folder), "steps": trained.info.steps, "training_seconds": trained.info.seconds,
            **scores}


def _means(scores: Scores) -> dict[str, object]:
    return {"cases": len(scores.cases), **scores.mean.model_dump(),
            "labels": {name: one.model_dump() for name, one in scores.labels.items()}}
