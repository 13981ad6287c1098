"""Folds of one model, one after another: finished ones are kept, interrupted ones continued, missing ones trained."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.commands.beginning import check_name, choose_beginning, model_folder
from autoseg.commands.fold_training import FoldRequest, Stopped, TrainedFold, train_fold
from autoseg.data.dataset import open_dataset
from autoseg.data.splits import splits_of_run, training_cases
from autoseg.errors import UserError
from autoseg.inference.ranking import SCORES_NAME
from autoseg.recording import Recording
from autoseg.records import read_record
from autoseg.schema import CheckpointInfo, Plan, Scores

logger = logging.getLogger("autoseg")


def train_missing_folds(
    request: FoldRequest, folds: Sequence[str], recording: Recording
) -> Iterator[TrainedFold]:
    """The folds of one model, each as it is finished: trained where it is missing, continued where it was interrupted.

    `request.fold` and `request.resume` say nothing here; with `request.overwritten` all are trained anew. What
    `train_fold` records stands in `recording` as "fold_<k>.<name>".

    Raises
    ------
    Stopped, UserError : as `train_fold`; Stopped says how the chain goes on.
    """
    request = replace(request, name=common_name(request, folds))
    overwritten = bool(request.overwritten)
    for fold in folds:
        folder = model_folder(request.run, str(request.name), request.configuration, fold)
        one = replace(request, fold=fold, resume=not request.overwritten and (folder / "resume").is_dir())
        if not request.overwritten and is_complete(folder):
            logger.info("fold %s: finished, skipped (--fold %s --resume trains it longer)", fold, fold)
            yield _kept(request, folder)
            continue
        logger.info("fold %s of %s: %s", fold, ", ".join(folds), "continued" if one.resume else "training")
        part = Recording()
        try:
            trained = train_fold(one, part)
        except Stopped:
            without = " without --overwrite" * overwritten
            raise Stopped(f"Training was stopped in fold {fold}; nothing is lost.\nContinue with the same "
                          f"command{without}: finished folds are skipped, fold {fold} goes on where it was "
                          f"stopped (state: {folder / 'resume'}).") from None
        finally:
            _merge(recording, part, fold)
        # All older folds are gone by now, so that a chain that is cut short leaves no mixture.
        request = replace(request, overwritten=())
        yield trained


def folds_to_train(plan: Plan, run: Path) -> tuple[str, ...]:
    """The folds of a run's splits.json; UserError where there are none."""
    cases = open_dataset(Path(plan.dataset)).cases
    splits = splits_of_run(run, cases)
    if not splits:
        raise UserError(f"--fold all-folds: with {len(cases)} case{'s' * (len(cases) != 1)} there are no folds "
                        f"({run / 'splits.json'}).\nTrain with --fold all, or add cases.")
    return tuple(map(str, range(len(splits))))


def is_complete(folder: Path) -> bool:
    """Whether a fold's folder holds a model with its scores, or one whose training cannot be continued."""
    return (folder / "model.json").exists() and ((folder / SCORES_NAME).exists() or not (folder / "resume").is_dir())


def read_trained(folder: Path) -> TrainedFold:
    """A finished fold as it lies in its folder."""
    info = read_record(CheckpointInfo, folder / "model.json")
    path = folder / SCORES_NAME
    return TrainedFold(info.fold, folder, info, read_record(Scores, path) if path.exists() else None)


def common_name(request: FoldRequest, folds: Sequence[str]) -> str:
    """The one name of the folds' model; UserError where some folds have first weights and others do not."""
    names = {fold: choose_beginning(replace(request.asked, fold=fold, resume=False)).model_name for fold in folds}
    if len(set(names.values())) > 1:
        raise UserError(f"--init {request.init}: with first weights for some folds and not for others there would be "
                        f"two models: {', '.join(f'fold {fold} {name}' for fold, name in names.items())}.\nRun "
                        "`autoseg pretrain-init` for the other folds, or give --init scratch.")
    return check_name(next(iter(names.values())))


def _kept(request: FoldRequest, folder: Path) -> TrainedFold:
    """A finished fold; UserError where its scores are of other cases, a warning where its settings were others."""
    trained = read_trained(folder)
    dataset = open_dataset(Path(request.plan.dataset))
    splits = splits_of_run(request.run, dataset.cases)
    _, validation = training_cases(splits, trained.fold, [case.id for case in dataset.cases])
    if trained.scores is not None and (others := {case.id for case in trained.scores.cases} - set(validation)):
        raise UserError(f"{folder} was validated on {', '.join(sorted(others)[:5])}; {request.run / 'splits.json'} "
                        f"lists other cases for fold {trained.fold}.\nRestore it, or train all folds anew with "
                        "--overwrite.")
    then = trained.info.training
    changed = [f"{name} {then[name]} (now {now})" for name, now in request.settings.flat().items()
               if then.get(name, now) != now]
    if changed:
        logger.warning("fold %s was trained with other settings: %s", trained.fold, ", ".join(changed[:8]))
    return trained


def _merge(recording: Recording, part: Recording, fold: str) -> None:
    recording.device = part.device or recording.device
    recording.exit_status = max(recording.exit_status, part.exit_status)
    recording.results |= {f"fold_{fold}.{name}": value for name, value in part.results.items()}
    for name, value in part.inputs.items():
        recording.inputs[name if name in ("dataset", "plan") else f"fold_{fold}.{name}"] = value
