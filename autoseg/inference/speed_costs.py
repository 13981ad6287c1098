"""speeds.json: what `predict --speed` costs a fold's model in Dice, as `train` measured it; and which fold is best."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from autoseg.inference.prediction import PredictSettings
from autoseg.inference.ranking import SCORES_NAME
from autoseg.inference.speeds import LARGEST_LOSS, Speed, SpeedName
from autoseg.inference.trained import TrainedModel
from autoseg.records import Record, read_record
from autoseg.schema import CaseScores, CheckpointInfo, Scores

SPEEDS_NAME = "speeds.json"
NOT_MEASURED = "not measured for this model"
MARGIN = 1.96  # standard errors: 95 % of a normal distribution


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
    """`speeds.json`, beside the weights that `weights_sha256` names; `device`: where it was measured."""

    version: Literal[1] = 1
    weights_sha256: str
    fold: str
    device: str
    threads: int
    cases: tuple[str, ...]
    exact_seconds: float
    exact_dice: float | None
    levels: dict[SpeedName, SpeedCost]

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
    precision = settings.precision or (torch.float16 if settings.device.type == "cuda" else torch.float32)
    return SpeedCost(
        overlap=settings.overlap, copies=settings.copies, precision=str(precision).removeprefix("torch."),
        seconds=round(seconds[1], 3), times_faster=round(seconds[0] / max(seconds[1], 1e-6), 3),
        dice=other.mean.dice, dice_change=_change(exact.mean.dice, other.mean.dice),
        dice_margin=_margin(list(changes.values())), worst_case=worst,
        worst_change=None if worst is None else changes[worst],
        labels={name: _change(one.dice, other.labels[name].dice) for name, one in exact.labels.items()},
    )


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
    """speeds.json of a fold; None where there is none, or it is of other weights (a training that went on)."""
    path = folder / SPEEDS_NAME
    if not path.is_file():
        return None
    report = read_record(SpeedReport, path, "Remove it: prediction does not need it.")
    return report if report.weights_sha256 == info.weights_sha256 else None


def in_words(speed: Speed, report: SpeedReport | None) -> str:
    """ "balanced: Dice -0.0004 ± 0.0010 on 40 validation cases of fold 0, 9.8 times faster than exact …"."""
    cost = None if report is None else report.cost(speed)
    if report is None or cost is None:
        return f"{speed.name}: what it costs in Dice was {NOT_MEASURED}"
    margin = "" if cost.dice_margin is None else f" ± {cost.dice_margin:.4f}"
    change = "of no label is defined" if cost.dice_change is None else f"{cost.dice_change:+.4f}{margin}"
    cases = f"{len(report.cases)} validation case{'s' * (len(report.cases) != 1)}"
    return (f"{speed.name}: Dice {change} on {cases} of fold {report.fold}, {cost.times_faster:.1f} times faster than "
            f"exact with that fold (measured by train on {report.device})")


# ---------------------------------------------------------------- the fold to take where one is taken
def best_fold(model: TrainedModel, among: Sequence[str]) -> tuple[str, str]:
    """The fold with the best mean Dice on its validation cases, and why; the first where none was validated.

    Equal ones: the first.
    """
    dice: Mapping[str, float] = {fold: value for fold in among if (value := _validation_dice(model, fold)) is not None}
    if len(among) == 1:
        return among[0], "the only one"
    if not dice:
        return among[0], "the first, as none was validated"
    best = max(dice, key=lambda fold: dice[fold])
    return best, f"validation Dice {dice[best]:.4f}, the best of {len(among)}"


def _validation_dice(model: TrainedModel, fold: str) -> float | None:
    path = model.fold_folder(fold) / SCORES_NAME
    if not path.is_file():
        return None
    return read_record(Scores, path, "Remove it, or name a fold with --folds.").mean.dice
