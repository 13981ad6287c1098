"""What `predict --speed` takes: the networks of a level, its settings, and what `train` measured of its cost."""

import logging
from collections.abc import Sequence

import torch

from autoseg.inference.best import Chosen
from autoseg.inference.ensembling import Member
from autoseg.inference.precision import fastest_precision
from autoseg.inference.prediction import PredictSettings
from autoseg.inference.speed_costs import best_fold, in_words, level_settings, read_report
from autoseg.inference.speeds import LARGEST_LOSS, Speed
from autoseg.inference.trained import Reader, TrainedModel, find_previous
from autoseg.networks.checkpoint import MODEL_NAME
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo

Figures = dict[str, str | float | None]

logger = logging.getLogger("autoseg")


def read_members(chosen: Chosen, speed: Speed, may_choose: bool) -> tuple[list[Member], Figures]:
    """The networks that a level takes of the chosen models, and what the level costs, for run.json and --json.

    Parameters
    ----------
    may_choose : the person named no folds: a level of one fold takes the one that validated best.

    Raises
    ------
    UserError : as `Reader.member`.
    """
    reader = Reader()
    if speed.name == "exact":
        return [reader.member(model, folds) for model, folds in chosen.models], {}
    taken = []
    for model, asked in chosen.models:
        if may_choose and speed.single_fold:
            fold = _one_fold(model, asked)
            member = reader.member(model, (fold,), _previous_fold(model, fold))
        else:
            member = reader.member(model, asked)
        taken.append((model, asked, member))
    return [member for _, _, member in taken], _tell_costs(taken, speed)


def settings_of(speed: Speed, members: Sequence[Member], device: torch.device, tta: bool) -> PredictSettings:
    """The level's settings on a device; a CPU's fastest precision is measured now."""
    if not speed.fastest_precision:
        return level_settings(speed, device, None, tta)
    precision = fastest_precision(members, device)
    logger.info("%s", precision)
    return level_settings(speed, device, precision.dtype, tta)


def _one_fold(model: TrainedModel, among: Sequence[str]) -> str:
    fold, why = best_fold(model, among)
    logger.info("%s %s: fold %s (%s)", model.name, model.configuration, fold, why)
    return fold


def _previous_fold(model: TrainedModel, fold: str) -> tuple[str, ...] | None:
    """Of a cascade: the same fold of its first stage, which it was measured with, or else its best."""
    needed = read_record(CheckpointInfo, model.fold_folder(fold) / MODEL_NAME).previous_stage
    if needed is None:
        return None
    first = find_previous(model, needed)
    return (fold,) if fold in first.folds else (_one_fold(first, first.folds),)


def _tell_costs(taken: Sequence[tuple[TrainedModel, Sequence[str], Member]], speed: Speed) -> Figures:
    """Log what the level costs every network that is taken; figures are those of the network that loses most."""
    lines, costs = [], []
    for model, asked, member in taken:
        prefix = f"{model.name} {model.configuration}: " if len(taken) > 1 else ""
        for _, info in member.folds:
            report = read_report(model.fold_folder(info.fold), info)
            cost = None if report is None else report.cost(speed)
            lines.append(prefix + in_words(speed, report))
            if cost is None:
                logger.info("%s", lines[-1])
                continue
            costs.append(cost)
            large = cost.is_large
            logger.log(logging.WARNING if large else logging.INFO, "%s%s", lines[-1],
                       f"; that is more than {LARGEST_LOSS}: consider --speed exact" * large)
        if len(asked) > len(member.folds):
            logger.info("%sexact would average %d folds; what the others add is not measured", prefix, len(asked))
    worst = min((cost for cost in costs if cost.dice_change is not None), default=None,
                key=lambda cost: cost.dice_change or 0.0)
    return {"speed_cost": "; ".join(lines), "speed_dice_change": None if worst is None else worst.dice_change,
            "speed_times_faster": None if worst is None else worst.times_faster}
