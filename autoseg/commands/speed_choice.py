"""What `predict --speed` takes: the networks of a level, its settings, and what `train` measured of its cost."""

import logging
from collections.abc import Sequence

import torch

from autoseg.inference.best import Chosen
from autoseg.inference.ensembling import Member
from autoseg.inference.precision import fastest_precision
from autoseg.inference.prediction import PredictSettings
from autoseg.inference.speed_costs import best_fold, differences, in_words, level_settings, read_report
from autoseg.inference.speeds import LARGEST_LOSS, Speed
from autoseg.inference.trained import Reader, TrainedModel, find_previous
from autoseg.networks.checkpoint import MODEL_NAME
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo

Figures = dict[str, str | float | None]

logger = logging.getLogger("autoseg")


def read_members(chosen: Chosen, speed: Speed, may_choose: bool) -> list[Member]:
    """The networks that a level takes of the chosen models, in their order.

    Parameters
    ----------
    may_choose : the person named no folds: a level of one fold takes the one that validated best.

    A level of one fold takes the same one of a cascade's first stage, also where the person named a single one.

    Raises
    ------
    UserError : as `Reader.member`.
    """
    reader = Reader()
    if speed.name == "exact":
        return [reader.member(model, folds) for model, folds in chosen.models]
    members = []
    for model, asked in chosen.models:
        if speed.single_fold and (may_choose or len(asked) == 1):
            fold = _one_fold(model, asked) if may_choose else asked[0]
            members.append(reader.member(model, (fold,), _previous_fold(model, fold)))
        else:
            members.append(reader.member(model, asked))
    return members


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


def tell_costs(chosen: Chosen, members: Sequence[Member], speed: Speed, settings: PredictSettings) -> Figures:
    """Log what the level costs every network that is taken, as measured with the run's `settings`.

    members : what `read_members` took of the chosen models.

    Returns
    -------
    For run.json and --json; figures are those of the network that loses most. Empty for `exact`.
    """
    if speed.name == "exact":
        return {}
    lines, costs = [], []
    for (model, asked), member in zip(chosen.models, members, strict=True):
        prefix = f"{model.name} {model.configuration}: " if len(members) > 1 else ""
        for _, info in member.folds:
            report = read_report(model.fold_folder(info.fold), info)
            differs = [] if report is None else differences(report, speed, member, settings)
            cost = None if report is None or differs else report.cost(speed)
            lines.append(prefix + in_words(speed, report, differs))
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
