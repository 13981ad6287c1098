"""speeds.json: what `predict --speed` costs a fold's model in Dice, as `train` measured it; and which fold is best."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import field_validator

from autoseg.errors import UserError
from autoseg.inference.ensembling import Member
from autoseg.inference.prediction import PredictSettings
from autoseg.inference.ranking import SCORES_NAME
from autoseg.inference.speeds import LARGEST_LOSS, SPEEDS, Speed, SpeedName
from autoseg.inference.trained import TrainedModel
from autoseg.records import AnyRecord, Record, read_record
from autoseg.schema import CaseScores, CheckpointInfo, Scores

SPEEDS_NAME = "speeds.json"
NOT_MEASURED = "not measured for this model"
OTHER_SETTING = "not measured for this setting"
MARGIN = 1.96  # standard errors: 95 % of a normal distribution

logger = logging.getLogger("autoseg")


class SpeedCost(Record):
    """One level beside exact prediction, on the same cases and with the same one fold.

    Attributes
    ----------
    overlap, copies, precision : how it computed; `copies` of every window.
    seconds : for all cases, from reading the images to written masks. times_faster : exact's seconds / these.
    dice : mean over labels of the labels' means over cases. dice_change : that minus exact's.
    dice_margin : 1.96 standard errors of the mean over cases of a case's change (the mean over its labels); None of
        fewer than two cases.
    worst_case, worst_change : the case that lost most, and how much.
    labels : label → change of its mean Dice.
    """

    overlap: float
    copies: int | None
    precision: str
    seconds: float
    times_faster: float
    dice: float | None
    dice_change: float | None
    dice_margin: float | None
    worst_case: str | None
    worst_change: float | None
    labels: dict[str, float | None]

    @property
    def is_large(self) -> bool:
        """Whether more than `LARGEST_LOSS` Dice was lost."""
        return self.dice_change is not None and -self.dice_change > LARGEST_LOSS


class SpeedReport(Record):
    """`speeds.json`, beside the weights that `weights_sha256` names; `device`: where it was measured.

    `previous_sha256`: of a cascade, the weights of the earlier stages (`previous_weights`). Levels that exist no more
    are left out when it is read.
    """

    version: Literal[1] = 1
    weights_sha256: str
    previous_sha256: tuple[str, ...] = ()
    fold: str
    device: str
    threads: int
    cases: tuple[str, ...]
    exact_seconds: float
    exact_dice: float | None
    levels: dict[SpeedName, SpeedCost]

    @field_validator("levels", mode="before")
    @classmethod
    def _existing(cls, levels: object) -> object:
        return {name: cost for name, cost in levels.items() if name in SPEEDS} if isinstance(levels, dict) else levels

    def cost(self, speed: Speed) -> SpeedCost | None:
        """Of a level as it is now; None where it was not measured, or meant something else then."""
        cost = self.levels.get(speed.name)
        same = cost is not None and (cost.overlap, cost.copies) == (speed.overlap, speed.copies)
        return cost if same else None


# ---------------------------------------------------------------- measuring
def level_settings(
    speed: Speed, device: torch.device, precision: torch.dtype | None, tta: bool = True
) -> PredictSettings:
    """What a level is to the prediction; `precision`: what `fastest_precision` chose."""
    return PredictSettings(device=device, tta=tta, copies=speed.copies, overlap=speed.overlap,
                           precision=precision if speed.fastest_precision else None)


def compare_speeds(
    exact: Scores, other: Scores, seconds: tuple[float, float], settings: PredictSettings
) -> SpeedCost:
    """A level's cost; both scores are of the same cases, `seconds` are exact's and the level's."""
    changes = _case_changes(exact.cases, other.cases)
    worst = min(changes, key=lambda case: changes[case], default=None)
    return SpeedCost(
        overlap=settings.overlap, copies=settings.copies, precision=settings.precision_name,
        seconds=round(seconds[1], 3), times_faster=round(seconds[0] / max(seconds[1], 1e-6), 3),
        dice=other.mean.dice, dice_change=_change(exact.mean.dice, other.mean.dice),
        dice_margin=_margin(list(changes.values())), worst_case=worst,
        worst_change=None if worst is None else changes[worst],
        labels={name: _change(one.dice, other.labels[name].dice) for name, one in exact.labels.items()},
    )


def previous_weights(member: Member) -> tuple[str, ...]:
    """Hashes of the weights of a cascade's stages before the last, stage by stage and fold by fold."""
    return tuple(info.weights_sha256 for stage in member.stages[:-1] for _, info in stage.folds)


def _case_changes(exact: Sequence[CaseScores], other: Sequence[CaseScores]) -> dict[str, float]:
    """Case → the mean over its labels of the change of Dice; labels that one of the two leaves out are skipped."""
    by_id = {case.id: case for case in other}
    changes = {}
    for case in exact:
        found = [_change(one.dice, by_id[case.id].labels[name].dice) for name, one in case.labels.items()]
        if defined := [change for change in found if change is not None]:
            changes[case.id] = statistics.fmean(defined)
    return changes


def _change(exact: float | None, other: float | None) -> float | None:
    return None if exact is None or other is None else other - exact


def _margin(changes: Sequence[float]) -> float | None:
    return MARGIN * statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None


# ---------------------------------------------------------------- reading
def read_report(folder: Path, info: CheckpointInfo) -> SpeedReport | None:
    """speeds.json of a fold; None where there is none, or it is of other weights (a training that went on).

    A damaged one is none too, with a warning.
    """
    report = _read_if_whole(SpeedReport, folder / SPEEDS_NAME)
    return report if report is not None and report.weights_sha256 == info.weights_sha256 else None


def differences(report: SpeedReport, speed: Speed, member: Member, settings: PredictSettings) -> list[str]:
    """In what a run of these settings differs from the one that a fold's report tells of, in words; none: in nothing.

    member : the fold among the networks that are taken, with its earlier stages.
    """
    cost = report.cost(speed)
    found = []
    mirrors = any(info.mirror_axes for stage in member.stages for _, info in stage.folds)
    if mirrors and not settings.tta:
        found.append("it was measured with mirrored copies, this is --no-tta")
    if settings.skip_constant:
        found.append("it was measured with all windows, this is --skip-empty")
    if cost is not None and cost.precision != (now := settings.precision_name):
        found.append(f"it was measured in {cost.precision}, this computes in {now}")
    if report.previous_sha256 != previous_weights(member):
        found.append("it was not measured with these weights and folds of the cascade's first stage")
    return found


def in_words(speed: Speed, report: SpeedReport | None, differs: Sequence[str] = ()) -> str:
    """ "balanced: Dice -0.0004 ± 0.0010 on 40 validation cases of fold 0, 9.8 times faster than exact …".

    differs : the `differences` of a run.
    """
    cost = None if report is None else report.cost(speed)
    if report is None or cost is None:
        return f"{speed.name}: what it costs in Dice was {NOT_MEASURED}"
    if differs:
        return f"{speed.name}: what it costs in Dice was {OTHER_SETTING}: {'; '.join(differs)}"
    margin = "" if cost.dice_margin is None else f" ± {cost.dice_margin:.4f}"
    change = "of no label is defined" if cost.dice_change is None else f"{cost.dice_change:+.4f}{margin}"
    cases = f"{len(report.cases)} validation case{'s' * (len(report.cases) != 1)}"
    return (f"{speed.name}: Dice {change} on {cases} of fold {report.fold}, {cost.times_faster:.1f} times faster than "
            f"exact with that fold (measured by train on {report.device})")


# ---------------------------------------------------------------- the fold to take where one is taken
def best_fold(model: TrainedModel, among: Sequence[str]) -> tuple[str, str]:
    """The fold with the best mean Dice on its validation cases, and why; the first where none was validated.

    Equal ones: the first. Damaged scores are none, with a warning.
    """
    if len(among) == 1:
        return among[0], "the only one"
    dice: Mapping[str, float] = {fold: value for fold in among if (value := _validation_dice(model, fold)) is not None}
    if not dice:
        return among[0], "the first, as none was validated"
    best = max(dice, key=lambda fold: dice[fold])
    return best, f"validation Dice {dice[best]:.4f}, the best of {len(among)}"


def _validation_dice(model: TrainedModel, fold: str) -> float | None:
    scores = _read_if_whole(Scores, model.fold_folder(fold) / SCORES_NAME)
    return None if scores is None else scores.mean.dice


def _read_if_whole(kind: type[AnyRecord], path: Path) -> AnyRecord | None:
    """A record that prediction can do without; None where it is not there or, with a warning, damaged."""
    if not path.is_file():
        return None
    try:
        return read_record(kind, path)
    except UserError as error:
        logger.warning("%s\nIt is left aside: prediction does not need it.", error)
        return None
