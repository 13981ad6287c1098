"""Validation masks of pairs of models, each case by the networks that have not seen it; kept in run/find_best/."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.data.dataset import Case
from autoseg.data.preprocessing import input_identity
from autoseg.errors import all_of
from autoseg.evaluation.pairing import FilePair
from autoseg.evaluation.scoring import score_files
from autoseg.inference.prediction import Destination, PredictSettings, predict_into
from autoseg.inference.ranking import SCORES_NAME, Comparison, Splits, Validated
from autoseg.inference.trained import Reader
from autoseg.labelling import Labelled
from autoseg.networks.checkpoint import MODEL_NAME
from autoseg.progress import ProgressBar, progress
from autoseg.records import Record, content_hash, read_record, storage_error, write_record
from autoseg.schema import CheckpointInfo, Scores

PAIRS_FOLDER, PAIR_NAME = "find_best", "pair.json"


class PairRecord(Record):
    """`pair.json` beside a pair's masks of one fold: what they were made of.

    `weights`: the SHA-256 of every network's; `cases`: the hash of every case's `input_identity`.
    """

    weights: dict[str, str]
    cases: dict[str, str] = {}


@dataclass(frozen=True)
class PairFold:
    """One fold of a pair: where its masks are, and those of its cases that have none yet."""

    pair: tuple[Validated, Validated]
    fold: str
    folder: Path
    missing: tuple[Case, ...]
    record: PairRecord


def pair_folder(run: Path, pair: Sequence[Validated], fold: str) -> Path:
    """Where a pair's validation masks of a fold are kept."""
    name = "+".join(f"{one.model.name}@{one.model.configuration}" for one in pair)
    return run / PAIRS_FOLDER / name / f"fold_{fold}"


def predict_pairs(run: Path, comparison: Comparison, splits: Splits, ending: str, device: torch.device) -> None:
    """Predict every pair's validation masks that are not there yet; a model sees a case once for all its pairs.

    Masks of other weights than today's, or of files that changed, are removed first. May be stopped and called again at
    any time.

    Raises
    ------
    UserError : cases that could not be predicted, all of them; what reading models or writing masks raises.
    """
    folds = [_pair_fold(run, pair, fold, splits[fold], ending)
             for fold in comparison.folds for pair in comparison.pairs]
    left = {fold: [one for one in folds if one.fold == fold and one.missing] for fold in comparison.folds}
    total = sum(len(_cases(todo)) for todo in left.values())
    if not total:
        return
    settings = PredictSettings(device=device, overwrite=True)
    with progress("predict pairs", total, "cases") as bar:
        for fold, todo in left.items():
            if todo:
                _predict_fold(fold, todo, settings, bar)


def score_pair_fold(
    run: Path, pair: Sequence[Validated], fold: str, pairs: Sequence[FilePair], labelled: Labelled,
    annotated: Mapping[str, tuple[str, ...]], workers: int,
) -> Scores:  # fmt: skip
    """The scores of a pair's masks in one fold; kept beside them."""
    path = pair_folder(run, pair, fold) / SCORES_NAME
    if path.is_file():
        kept = read_record(Scores, path, "Remove this file.")
        if {case.id for case in kept.cases} == {one.id for one in pairs}:
            return kept
    scores = score_files(pairs, labelled, workers=workers, annotated=annotated)
    write_record(scores, path)
    return scores


def _pair_fold(run: Path, pair: tuple[Validated, Validated], fold: str, cases: Sequence[Case], ending: str) -> PairFold:
    folder = pair_folder(run, pair, fold)
    record = PairRecord(weights={name: sha for one in pair for name, sha in _weights(run, one, fold).items()},
                        cases={case.id: content_hash(input_identity(case)) for case in cases})
    path = folder / PAIR_NAME
    kept = read_record(PairRecord, path) if path.is_file() else None
    masks = {case.id: folder / f"{case.id}{ending}" for case in cases}
    try:
        if folder.exists() and (kept is None or kept.weights != record.weights):
            shutil.rmtree(folder)
        elif kept is not None:
            for case, identity in record.cases.items():
                if kept.cases.get(case) != identity:
                    masks[case].unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    missing = tuple(case for case in cases if not masks[case.id].is_file())
    return PairFold(pair, fold, folder, missing, record)


def _weights(run: Path, one: Validated, fold: str) -> dict[str, str]:
    """The weights behind a model's masks, those of a cascade's previous stages included."""
    found: dict[str, str] = {}
    folder = one.model.fold_folder(fold)
    while True:
        info = read_record(CheckpointInfo, folder / MODEL_NAME, "Train the previous stage first.")
        found[f"{info.name}@{info.configuration}"] = info.weights_sha256
        if info.previous_stage is None:
            return found
        folder = run / "models" / info.previous_stage.name / info.previous_stage.configuration / f"fold_{fold}"


def _cases(todo: Sequence[PairFold]) -> list[Case]:
    """The cases that any of these pairs lacks."""
    return list({case.id: case for one in todo for case in one.missing}.values())


def _predict_fold(fold: str, todo: Sequence[PairFold], settings: PredictSettings, bar: ProgressBar) -> None:
    models = list({one.model.folder: one for pair_fold in todo for one in pair_fold.pair}.values())
    reader = Reader()
    members = [reader.member(one.model, (fold,), (fold,)) for one in models]
    for one in todo:
        write_record(one.record, one.folder / PAIR_NAME)
        (one.folder / SCORES_NAME).unlink(missing_ok=True)
    destinations = [Destination(one.folder, tuple(models.index(member) for member in one.pair)) for one in todo]
    _, failures = predict_into(_cases(todo), members, destinations, settings, bar)
    if failures:
        raise all_of([f"{failure.id}: {failure.reason}" for failure in failures],
                     f"Fold {fold}: {len(failures)} validation cases could not be predicted:",
                     "Mend the cause and repeat the command: finished masks are kept. Or give --no-ensembles.")
