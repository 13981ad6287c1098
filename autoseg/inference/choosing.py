"""From comparable models to the best of them, with its postprocessing."""

from collections.abc import Sequence
from pathlib import Path

import torch

from autoseg.data.dataset import Case, annotated_in
from autoseg.errors import UserError
from autoseg.evaluation.pairing import FilePair
from autoseg.inference.best import Best, Candidate, ChosenModel
from autoseg.inference.pairs import pair_folder, predict_pairs, score_pair_fold
from autoseg.inference.postprocessing import ReferencedMask, choose_postprocessing, dice_after
from autoseg.inference.ranking import Comparison, Splits, Validated, candidate, ranked
from autoseg.schema import Plan

Members = tuple[Validated, ...]


def choose(
    run: Path, comparison: Comparison, splits: Splits, plan: Plan, ensembles: bool, means: tuple[torch.device, int]
) -> Best:
    """Rank the models and, with `ensembles`, every pair; then judge postprocessing on the winner's masks.

    means : the device that predicts pairs, and the processes that score.

    Raises
    ------
    UserError : no candidate has a Dice; pairs that cannot be predicted, masks that cannot be read or written.
    """
    device, workers = means
    if ensembles and comparison.pairs:
        predict_pairs(run, comparison, splits, plan.file_ending, device)
    found: list[tuple[Members, Candidate]] = [
        ((one,), candidate((one,), {fold: one.scores[fold] for fold in comparison.folds}))
        for one in comparison.models
    ]
    for pair in comparison.pairs if ensembles else ():
        scores = {
            fold: score_pair_fold(run, pair, fold, _pairs(run, pair, fold, splits[fold], plan.file_ending), plan,
                                  annotated_in(splits[fold]), workers)
            for fold in comparison.folds
        }
        found.append((pair, candidate(pair, scores)))
    order = ranked([one for _, one in found])
    members = next(members for members, one in found if one is order[0])
    return _best(run, members, order, comparison, splits, plan, workers)


def _best(  # noqa: PLR0913
    run: Path, members: Members, order: Sequence[Candidate], comparison: Comparison, splits: Splits, plan: Plan,
    workers: int,
) -> Best:  # fmt: skip
    dice = order[0].dice
    if dice is None:
        raise UserError("No label occurs in any validation case: nothing can be ranked.\nCheck the dataset's labels.")
    masks = [
        ReferencedMask(case.id, _mask(run, members, fold, case, plan.file_ending), case.label,
                       case.annotated)
        for fold in comparison.folds for case in splits[fold] if case.label is not None
    ]
    steps = choose_postprocessing(masks, plan, workers)
    accepted = [step.of for step in steps if step.accepted]
    after = dice_after(masks, plan, accepted, workers) if accepted else dice
    return Best(
        members=tuple(_chosen(one) for one in members),
        postprocessing=steps,
        folds=comparison.folds,
        cases=sum(len(splits[fold]) for fold in comparison.folds),
        dice=dice,
        dice_postprocessed=dice if after is None else after,
        candidates=tuple(order),
        left_out=comparison.left_out,
    )


def _chosen(one: Validated) -> ChosenModel:
    """The model with all its folds, also those that were not compared: more networks are averaged."""
    folds = one.model.averaged
    return ChosenModel(name=one.name.name, configuration=one.name.configuration, folds=folds)


def _mask(run: Path, members: Members, fold: str, case: Case, ending: str) -> Path:
    if len(members) == 1:
        return members[0].mask(fold, case.id, ending)
    return pair_folder(run, members, fold) / f"{case.id}{ending}"


def _pairs(run: Path, members: Members, fold: str, cases: Sequence[Case], ending: str) -> list[FilePair]:
    return [FilePair(case.id, _mask(run, members, fold, case, ending), case.label)
            for case in cases if case.label is not None]
