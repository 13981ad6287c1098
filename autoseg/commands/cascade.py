"""What a cascade needs before it is trained: its first stage, whose missing folds are trained by the same command."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.commands.beginning import check_name, choose_beginning, model_folder
from autoseg.commands.first_stage import ALL, FirstStage, held_out_by, refuse_unlike_plan
from autoseg.commands.fold_chain import common_name, folds_to_train, is_complete, read_trained, train_missing_folds
from autoseg.commands.fold_training import FoldRequest, TrainedFold, known_architecture, refuse_what_exists
from autoseg.data.dataset import open_dataset
from autoseg.data.splits import splits_of_run, training_cases
from autoseg.errors import UserError
from autoseg.recording import Recording
from autoseg.records import read_record
from autoseg.schema import ArchitectureName, CheckpointInfo, ConfigurationName, PreviousStage

logger = logging.getLogger("autoseg")


def with_first_stage(
    request: FoldRequest, folds: Sequence[str], previous_name: str | None, recording: Recording
) -> FoldRequest:
    """The request with its first stage, of which missing folds are trained now; of other configurations unchanged.

    Every case is segmented by the fold that was not trained on it, so all folds of splits.json are needed, and for
    `--fold all` that one. They are trained as the cascade is: the same name, network, first weights and settings.

    Parameters
    ----------
    folds : of the cascade.
    previous_name : of the first model; None: the cascade's own, by the same rule.
    recording : gets what the first stage's trainings record as "<configuration>.fold_<k>.<name>".

    Raises
    ------
    Stopped : a signal came; the same command, with or without --resume, goes on.
    UserError : no first stage is planned, or it is one of other labels; an option that a cascade cannot have; the
        cascade's own fold exists already.
    """
    configuration = request.plan.configurations[request.configuration].previous_stage
    if configuration is None:
        if previous_name is not None:
            raise UserError(f"--previous-name {previous_name}: {request.configuration} has no previous stage; only "
                            "--configuration 3d_cascade_fullres has.")
        return request
    _refuse_unfit(request, configuration)
    _refuse_folds(request, folds)
    first = _first_request(request, configuration, previous_name)
    needed = (ALL,) if ALL in folds else folds_to_train(request.plan, request.run)
    first = replace(first, name=common_name(first, needed))
    folders = {fold: model_folder(request.run, str(first.name), configuration, fold) for fold in needed}
    begun = any(folder.is_dir() for folder in folders.values())
    request = replace(request, resume=_resumes(request, begun) if len(folds) == 1 else request.resume)
    _announce(request, str(first.name), configuration, [fold for fold in needed if not _is_there(folders[fold])])
    trained = dict(_trained(first, folders, recording))
    stage = FirstStage(request.run, PreviousStage(name=str(first.name), configuration=configuration), trained)
    refuse_unlike_plan(stage, request.plan)
    return replace(request, first_stage=stage)


def _refuse_unfit(request: FoldRequest, configuration: ConfigurationName) -> None:
    if configuration not in request.plan.configurations:
        raise UserError(f"--configuration {request.configuration}: it takes the masks of {configuration}, which the "
                        f"plan does not hold; it holds {', '.join(request.plan.configurations)}.\nPlan it: autoseg "
                        f"plan {request.plan.dataset} --run {request.run} --configurations {request.configuration}")
    method = request.settings.domain_generalization
    if method != "none":
        raise UserError(f"--domain-generalization {method} with {request.configuration}: its views would change the "
                        "channels that hold a mask.\nTrain 3d_fullres with it, or the cascade without.")


def _refuse_folds(request: FoldRequest, folds: Sequence[str]) -> None:
    """UserError for folds that do not exist, or cases without a network that has not seen them."""
    dataset = open_dataset(Path(request.plan.dataset))
    splits = splits_of_run(request.run, dataset.cases)
    for fold in folds:
        train, validation = training_cases(splits, fold, [case.id for case in dataset.cases])
        if fold != ALL:
            held_out_by(splits, fold, (*train, *validation))


def _first_request(
    request: FoldRequest, configuration: ConfigurationName, previous_name: str | None
) -> FoldRequest:  # fmt: skip
    """What `train` would be asked for the first stage."""
    name = request.name if previous_name is None else check_name(previous_name)
    existing = None if previous_name is None else _architecture_of(request.run / "models" / previous_name /
                                                                   configuration)
    planned = request.plan.configurations[configuration].networks
    asked = existing or (request.architecture if request.architecture in planned else None)
    architecture = known_architecture(request.plan, request.run, configuration, asked if asked in planned else None)
    return replace(request, configuration=configuration, name=name, architecture=architecture, resume=False,
                   overwritten=())


def _architecture_of(folder: Path) -> ArchitectureName | None:
    """Of a model that is there already."""
    records = sorted(folder.glob("fold_*/model.json"))
    return read_record(CheckpointInfo, records[0]).architecture if records else None


def _resumes(request: FoldRequest, begun: bool) -> bool:
    """Whether the cascade's own fold is resumed: `--resume` may also mean a first stage that was interrupted.

    Raises
    ------
    UserError : the fold exists and neither --resume nor --overwrite was given; there is nothing to resume.
    """
    name = check_name(choose_beginning(request.asked).model_name)
    folder = model_folder(request.run, name, request.configuration, request.fold)
    resume = request.resume and ((folder / "resume").is_dir() or not begun)
    refuse_what_exists(folder, resume, bool(request.overwritten))
    return resume


def _is_there(folder: Path) -> bool:
    """Whether a fold can segment; one for all cases is never validated, so it has no scores to wait for."""
    return is_complete(folder) or (folder.name == f"fold_{ALL}" and (folder / "model.json").exists())


def _announce(request: FoldRequest, name: str, configuration: ConfigurationName, missing: Sequence[str]) -> None:
    if not missing:
        logger.info("%s takes the masks of %s (%s), which is trained", request.configuration, name, configuration)
        return
    logger.info("%s takes the masks of %s (%s), each case's from a network that was not trained on it%s: %s %s %s "
                "trained first, with the same settings", request.configuration, name, configuration,
                " (with --fold all: from the one trained on all)" * (ALL in missing),
                "folds" if len(missing) > 1 else "fold", ", ".join(missing), "are" if len(missing) > 1 else "is")


def _trained(
    first: FoldRequest, folders: dict[str, Path], recording: Recording
) -> Iterator[tuple[str, tuple[Path, CheckpointInfo]]]:
    part = Recording()
    try:
        for trained in _folds(first, folders, part):
            if trained.scores is not None and trained.scores.mean.dice is not None:
                logger.info("%s, %s, fold %s: Dice %.3f", trained.info.name, first.configuration, trained.fold,
                            trained.scores.mean.dice)
            yield trained.fold, (trained.folder, trained.info)
    finally:
        recording.device = part.device or recording.device
        recording.results |= {f"{first.configuration}.{name}": value for name, value in part.results.items()}
        recording.inputs |= {f"{first.configuration}.{name}": value for name, value in part.inputs.items()}


def _folds(first: FoldRequest, folders: dict[str, Path], part: Recording) -> Iterator[TrainedFold]:
    if ALL in folders and _is_there(folders[ALL]):
        yield read_trained(folders[ALL])
        return
    yield from train_missing_folds(first, tuple(folders), part)
