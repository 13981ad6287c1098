"""Which trained models can be compared, on which folds, and how they rank: by mean Dice on validation cases."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.evaluation.pooling import pool_scores
from autoseg.inference.best import Candidate, LeftOut, ModelName
from autoseg.inference.trained import ALL_FOLD, TrainedModel
from autoseg.networks.checkpoint import MODEL_NAME
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo, Plan, Scores

SCORES_NAME, VALIDATION = "scores.json", "validation"
TIE = 1e-6  # mean Dice closer than this are equal: the simpler candidate wins

Splits = Mapping[str, Sequence[Case]]
"""Fold → its validation cases."""


@dataclass(frozen=True)
class Validated:
    """A model and the folds that were validated on the cases that splits.json names, with their scores."""

    model: TrainedModel
    scores: dict[str, Scores]

    @property
    def name(self) -> ModelName:
        """As best.json names it."""
        return ModelName.model_validate({"name": self.model.name, "configuration": self.model.configuration})

    def mask(self, fold: str, case_id: str, ending: str) -> Path:
        """The mask of a validation case."""
        return self.model.fold_folder(fold) / VALIDATION / f"{case_id}{ending}"


@dataclass(frozen=True)
class Comparison:
    """What is compared, on which folds, and what is not, with reasons."""

    models: tuple[Validated, ...]
    folds: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def pairs(self) -> list[tuple[Validated, Validated]]:
        """Every pair."""
        return list(combinations(self.models, 2))


def compare(
    models: Sequence[TrainedModel], plan: Plan, splits: Splits, folds: Sequence[str] | None = None
) -> Comparison:
    """The models that were validated on all of `folds`; the others are left out, each with its reason.

    Parameters
    ----------
    folds : None: those of the model with the most validated folds (of several sets as large, the one that most models
        have, then the first).
    """
    validated, left_out = [], []
    for model in models:
        found = _validated(model, plan, splits)
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            validated.append(found)
    folds = _common_folds(validated) if folds is None else tuple(folds)
    for one, why in validated:
        if missing := [fold for fold in folds if fold not in one.scores]:
            reasons = "; ".join(why.get(fold, f"fold {fold} is not trained") for fold in missing)
            left_out.append(LeftOut(name=one.model.name, configuration=one.model.configuration, reason=reasons))
    kept = tuple(one for one, _ in validated if all(fold in one.scores for fold in folds))
    return Comparison(kept, folds, tuple(left_out))


def _validated(
    model: TrainedModel, plan: Plan, splits: Splits
) -> tuple[Validated, dict[str, str]] | LeftOut:
    """The model's validated folds, and why its other folds are not."""
    scores, why = {}, {}
    for fold in model.folds:
        if fold == ALL_FOLD:
            continue
        found = _fold_scores(model, fold, plan, splits)
        if isinstance(found, Scores):
            scores[fold] = found
        else:
            why[fold] = found
    if scores:
        return Validated(model, scores), why
    reason = "; ".join(why.values()) or f"fold {ALL_FOLD} has no validation cases"
    return LeftOut(name=model.name, configuration=model.configuration, reason=reason)


def _fold_scores(model: TrainedModel, fold: str, plan: Plan, splits: Splits) -> Scores | str:
    """The scores of a fold's validation cases, or why it cannot be compared."""
    folder = model.fold_folder(fold)
    if fold not in splits:
        return f"fold {fold} is none of splits.json"
    info = read_record(CheckpointInfo, folder / MODEL_NAME)
    facts = ("labels", "regions", "ignore", "channel_names", "file_ending")
    if other := [fact for fact in facts if getattr(info, fact) != getattr(plan, fact)]:
        return f"fold {fold} was trained with other {', '.join(other)} than the plan's"
    if not (folder / SCORES_NAME).is_file():
        return f"fold {fold} has no scores.json: its validation cases were not predicted"
    scores = read_record(Scores, folder / SCORES_NAME, "Remove it, and train with --resume to validate again.")
    scored, expected = {case.id for case in scores.cases}, {case.id for case in splits[fold]}
    if scored != expected:
        return (f"fold {fold} was scored on other cases than splits.json's ({len(scored - expected)} more, "
                f"{len(expected - scored)} missing)")
    masks = [folder / VALIDATION / f"{case}{plan.file_ending}" for case in sorted(expected)]
    if absent := [path for path in masks if not path.is_file()]:
        return f"fold {fold}: {len(absent)} validation masks are absent, the first is {absent[0]}"
    return scores


def _common_folds(validated: Sequence[tuple[Validated, dict[str, str]]]) -> tuple[str, ...]:
    sets = [tuple(one.scores) for one, _ in validated]
    return max(sets, key=lambda folds: (len(folds), sets.count(folds), [-int(fold) for fold in folds]), default=())


# ---------------------------------------------------------------- ranks
def candidate(members: Sequence[Validated], scores: Mapping[str, Scores]) -> Candidate:
    """How one model or pair did; `scores`: fold → its scores."""
    pooled = pool_scores(list(scores.values()))
    by_fold = {fold: one.mean.dice for fold, one in scores.items()}
    defined = [dice for dice in by_fold.values() if dice is not None]
    return Candidate(
        members=tuple(member.name for member in members),
        dice=pooled.mean.dice,
        nsd=pooled.mean.nsd,
        labels={name: one.dice for name, one in pooled.labels.items()},
        fold_dice=by_fold,
        dice_std=statistics.stdev(defined) if len(defined) > 1 else None,
    )


def ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The best mean Dice first; of those that tie with the best, one model before a pair."""
    by_dice = sorted(candidates, key=lambda one: (-_dice(one), len(one.members), one.members_text))
    best = _dice(by_dice[0])
    tied = [one for one in by_dice if best - _dice(one) <= TIE]
    return (*sorted(tied, key=lambda one: (len(one.members), -_dice(one))), *by_dice[len(tied) :])


def _dice(one: Candidate) -> float:
    return -math.inf if one.dice is None else one.dice
