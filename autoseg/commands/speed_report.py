"""What the levels of `predict --speed` cost a model that is trained: measured on its fold's validation cases."""

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.data.dataset import Case
from autoseg.data.parallel import default_workers
from autoseg.errors import UserError
from autoseg.evaluation.pairing import FilePair
from autoseg.evaluation.pooling import pool_scores
from autoseg.evaluation.scoring import score_files
from autoseg.inference.device import name_of
from autoseg.inference.ensembling import Member
from autoseg.inference.precision import fastest_precision
from autoseg.inference.prediction import PredictSettings, predict_members
from autoseg.inference.sliding_window import is_out_of_memory
from autoseg.inference.speed_costs import (
    SPEEDS_NAME,
    SpeedCost,
    SpeedReport,
    compare_speeds,
    in_words,
    level_settings,
    previous_weights,
)
from autoseg.inference.speeds import SPEEDS, SpeedName
from autoseg.progress import readable_seconds
from autoseg.records import write_record
from autoseg.schema import Scores

LARGEST_SHARE = 0.5  # of exact prediction's seconds: more than this the measurement does not take …
LEAST_SECONDS = 30.0  # … unless it is done within these
FIRST_CASES = 1  # they tell how long a case takes
MASKS_PREFIX = ".speeds-"  # of the folder of their masks

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Predicted:
    """Cases that a model has predicted exactly, in `seconds`, and their scores (among others' perhaps)."""

    member: Member
    cases: Sequence[Case]
    seconds: float
    scores: Scores


def report_speeds(
    exact: Predicted, folder: Path, device: torch.device, annotated: Mapping[str, tuple[str, ...]]
) -> dict[str, float | None]:
    """Measure the faster levels on the cases, write `folder`/speeds.json and log it; figures for run.json.

    All cases, or as many of them, spread evenly, as take half as long as exact prediction did. Exact's seconds on those
    are its seconds per case. Where it cannot be measured (a full disk, memory), a warning says so: the model is whole.
    """
    start = time.perf_counter()
    try:
        report = _measure(exact, folder, device, annotated)
        write_record(report, folder / SPEEDS_NAME)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, UserError | OSError) and not is_out_of_memory(error):
            raise
        logger.warning("what --speed balanced and fast cost was not measured: %s", error)
        return {}
    seconds = time.perf_counter() - start
    for name in report.levels:
        logger.info("%s", in_words(SPEEDS[name], report))
    logger.info("measured in %s, %.0f %% of exact validation's time", readable_seconds(seconds),
                100 * seconds / max(exact.seconds, 1e-6))
    figures: dict[str, float | None] = {"speed_report_seconds": round(seconds, 1)}
    for name, cost in report.levels.items():
        figures |= {f"{name}_dice_change": cost.dice_change, f"{name}_times_faster": cost.times_faster}
    return figures


def _measure(
    exact: Predicted, folder: Path, device: torch.device, annotated: Mapping[str, tuple[str, ...]]
) -> SpeedReport:
    start = time.perf_counter()
    precision = fastest_precision([exact.member], device)
    logger.info("faster levels: %s", precision)
    levels: dict[SpeedName, PredictSettings] = {
        name: level_settings(speed, device, precision.dtype) for name, speed in SPEEDS.items() if name != "exact"}
    seconds = dict.fromkeys(levels, 0.0)
    cases = _spread(exact.cases, FIRST_CASES)
    for left in folder.glob(f"{MASKS_PREFIX}*"):  # by a training that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=MASKS_PREFIX, dir=folder) as place:
        def predict(chosen: Sequence[Case]) -> None:
            for name, settings in levels.items():
                begin = time.perf_counter()
                _, failures = predict_members(chosen, [exact.member], Path(place) / name, settings)
                seconds[name] += time.perf_counter() - begin
                if failures:
                    raise UserError(f"{failures[0].id} ({name}): {failures[0].reason}")

        predict(cases)
        budget = max(LEAST_SECONDS, LARGEST_SHARE * exact.seconds) - (time.perf_counter() - start)
        more = max(0, math.floor(budget / (sum(seconds.values()) / len(cases))))
        others = _spread([case for case in exact.cases if case not in cases], more)
        predict(others)
        cases = sorted([*cases, *others], key=lambda case: case.id)
        return _report(exact, cases, (levels, seconds), Path(place), annotated)


def _report(
    exact: Predicted,
    cases: Sequence[Case],
    measured: tuple[Mapping[SpeedName, PredictSettings], Mapping[SpeedName, float]],
    masks: Path,
    annotated: Mapping[str, tuple[str, ...]],
) -> SpeedReport:
    info = exact.member.info
    ids = {case.id for case in cases}
    scores = pool_scores([exact.scores.model_copy(
        update={"cases": tuple(case for case in exact.scores.cases if case.id in ids)})])
    exact_seconds = exact.seconds * len(cases) / len(exact.cases)
    costs: dict[SpeedName, SpeedCost] = {}
    for name, settings in measured[0].items():
        pairs = [FilePair(case.id, masks / name / f"{case.id}{info.file_ending}", case.label)
                 for case in cases if case.label]
        found = score_files(pairs, info, annotated=annotated, workers=default_workers())
        costs[name] = compare_speeds(scores, found, (exact_seconds, measured[1][name]), settings)
    device = next(iter(measured[0].values())).device
    return SpeedReport(
        weights_sha256=info.weights_sha256, previous_sha256=previous_weights(exact.member), fold=info.fold,
        device=name_of(device), threads=torch.get_num_threads(),
        cases=tuple(case.id for case in cases), exact_seconds=round(exact_seconds, 3), exact_dice=scores.mean.dice,
        levels=costs,
    )


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of the cases, evenly spread over their order; all where there are no more."""
    count = min(count, len(cases))
    return [cases[index * len(cases) // count] for index in range(count)]
