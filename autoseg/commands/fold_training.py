"""One fold, from a planned run to a scored model."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.beginning import (
    Asked,
    announce_beginning,
    check_name,
    choose_beginning,
    model_folder,
)
from autoseg.commands.first_stage import FirstStage
from autoseg.commands.options import DeviceName
from autoseg.commands.speed_report import Predicted, report_speeds
from autoseg.commands.spread_cases import outcome_of_all, share_of
from autoseg.commands.stopping import stop_on_signals
from autoseg.commands.training_method import name_of_method, plan_to_train
from autoseg.data.dataset import Case, Dataset, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.splits import splits_of_run, training_cases
from autoseg.data.store import Store, open_store, store_folder
from autoseg.errors import UserError, all_of
from autoseg.evaluation.pairing import FilePair
from autoseg.evaluation.scoring import score_files
from autoseg.inference.device import choose_device
from autoseg.inference.prediction import PredictSettings, predict_members
from autoseg.inference.ranking import SCORES_NAME, VALIDATION
from autoseg.inference.trained import Reader, TrainedModel
from autoseg.initialization.transfer import with_warmup
from autoseg.networks.weight_transfer import NetworkFacts, input_names
from autoseg.planning.optimizers import RECIPES
from autoseg.planning.planner import store_record
from autoseg.recording import Recording, versions
from autoseg.records import storage_error, write_record
from autoseg.schema import ArchitectureName, CheckpointInfo, ConfigurationName, NetworkPlan, Plan, Scores
from autoseg.training.freezing import refuse_freezing
from autoseg.training.optimization import resolve_optimizer
from autoseg.training.processes import ALONE, Processes
from autoseg.training.session import Session, read_resume_settings, train_session
from autoseg.training.settings import TrainSettings, override

if TYPE_CHECKING:
    from autoseg.training.guiding import Words

logger = logging.getLogger("autoseg")


class Stopped(UserError):
    """A signal ended a training after a step, in all its processes; its state is written."""

    in_all = True


@dataclass(frozen=True, kw_only=True)
class FoldRequest:
    """What `train` was asked for, for one fold.

    Attributes
    ----------
    name : None where the user gave none; then the model is called after network, first weights and method.
    settings : the preset's with `choices` put in. `choices`: settings that the command line names, else None.
    preset : None where the user gave none; a training that is resumed then keeps the settings it was begun with.
    overwritten : folds of this model that are deleted as this training starts, if any.
    first_stage : of a cascade (`autoseg.commands.cascade`).
    processes : those that train together; each is asked for the same.
    speed_report : measure at the end what the levels of `predict --speed` cost.
    """

    run: Path
    plan: Plan
    configuration: ConfigurationName
    architecture: ArchitectureName
    fold: str
    name: str | None
    settings: TrainSettings
    choices: Mapping[str, object]
    preset: str | None
    text_bank: str | None
    init: str
    resume: bool
    overwritten: tuple[str, ...]
    device: DeviceName
    seed: int
    first_stage: FirstStage | None = None
    processes: Processes = ALONE
    speed_report: bool = True

    @property
    def asked(self) -> Asked:
        """What decides how the training begins."""
        return Asked(self.run, self.name, self.architecture, self.configuration, self.fold, self.init, self.resume,
                     name_of_method(self.settings))


@dataclass(frozen=True)
class TrainedFold:
    """A finished fold. `scores`: of its validation cases, None where it has none (or they were never predicted)."""

    fold: str
    folder: Path
    info: CheckpointInfo
    scores: Scores | None


def train_fold(request: FoldRequest, recording: Recording) -> TrainedFold:
    """Train one fold to its end, then predict its validation cases as `predict` would and score them.

    `recording` gets inputs, device, results and the exit status: 3 where a validation case failed.

    Raises
    ------
    Stopped : a signal came; the training can be resumed.
    UserError : what was asked for does not fit the run, or nothing of what was asked is left to do.
    """
    session, held_out = prepare_fold(request, recording)
    folder = session.folder
    request.processes.wait()  # until nobody looks for older models any more
    if request.processes.is_first:
        for fold in request.overwritten:
            clear_folder(folder.with_name(f"fold_{fold}"))
        if held_out:  # what the folds came to together is no longer true
            (folder.parent / SCORES_NAME).unlink(missing_ok=True)
    request.processes.wait()
    with stop_on_signals() as stop:
        info = train_session(session, request.resume, stop)
    if info is None:
        raise Stopped("Training was stopped; nothing is lost.\nContinue with the same command and --resume "
                      f"(state: {folder / 'resume'}).")
    recording.inputs["weights"] = info.weights_sha256
    recording.results.update(steps=info.steps, training_seconds=round(info.seconds, 1))
    scores = _validate(held_out, session, recording, request.speed_report) if held_out else None
    return TrainedFold(request.fold, folder, info, scores)


def prepare_fold(request: FoldRequest, recording: Recording) -> tuple[Session, list[Case]]:
    """All that a training needs, and the cases that it will be validated on; nothing of an older model is touched.

    Raises
    ------
    UserError : what was asked for does not fit the run, or nothing of what was asked is left to do.
    """
    beginning = choose_beginning(request.asked)
    announce_beginning(request.asked, beginning)
    name = check_name(beginning.model_name)
    folder = model_folder(request.run, name, request.configuration, request.fold)
    dataset = open_dataset(Path(request.plan.dataset))
    cases = {case.id: case for case in dataset.cases}
    split = training_cases(splits_of_run(request.run, dataset.cases), request.fold, list(cases))
    settings = request.settings
    if request.resume and request.preset is None:
        settings = _resumed(settings, folder, request.choices)
    planned = request.plan.configurations[request.configuration].networks[request.architecture]
    held_out = [] if request.fold == "all" else [cases[case] for case in split[1]]
    record = store_record(request.plan, request.configuration)
    wanted = _wanted(request, planned)
    first = beginning.read((request.architecture, planned, record), wanted, held_out)
    refuse_freezing(settings, first is None, wanted)
    plan = plan_to_train(request.plan, request.configuration, settings)
    words = _words(request, plan, settings)
    with request.processes.first_goes_ahead():
        store = training_store(request.run, dataset, plan, request.configuration)
    used = resolve_optimizer(planned.optimizer, RECIPES, settings)
    device = request.processes.device(choose_device(request.device))
    recording.device = str(device)
    refuse_what_exists(folder, request.resume, bool(request.overwritten))
    used_ids = tuple(dict.fromkeys((*split[0], *(case.id for case in held_out))))
    masks = None
    if request.first_stage is not None:
        with request.processes.first_goes_ahead():
            masks = request.first_stage.masks(request.fold, used_ids, dataset, store, device)
        store = replace(store, previous=masks.files)
    session = Session(
        plan=plan, configuration=request.configuration, architecture=request.architecture, name=name,
        fold=request.fold, settings=settings, optimizer=used if first is None else with_warmup(used),
        seed=request.seed, store=store, train_ids=split[0], validation_ids=tuple(case.id for case in held_out),
        folder=folder, device=device, versions=versions(), first_weights=first, words=words, previous=masks,
        processes=request.processes, annotated=dataset.annotated,
    )
    recording.inputs.update(dataset=str(dataset.root), plan=session.plan_hash,
                            init="scratch" if first is None else first.sha256)
    recording.results.update({} if first is None else first.figures)
    _warn_of_a_long_training(request, session)
    return session, held_out


def _wanted(request: FoldRequest, planned: NetworkPlan) -> NetworkFacts:
    """The network to train, for weights that are to be moved into it."""
    previous = request.plan.configurations[request.configuration].previous_stage
    channels = input_names(request.plan.channel_names, tuple(request.plan.labels) if previous else ())
    return NetworkFacts(request.architecture, planned, channels, request.plan.outputs)


def known_architecture(
    plan: Plan, run: Path, configuration: ConfigurationName, architecture: ArchitectureName | None
) -> ArchitectureName:
    """The network asked for, or the plan's own choice; UserError where the plan does not hold it."""
    if configuration not in plan.configurations:
        raise UserError(f"--configuration {configuration}: the plan holds {', '.join(plan.configurations)}.\n"
                        "Name one of these, or run `autoseg plan` with --configurations.")
    planned = plan.configurations[configuration]
    if architecture is None:
        return planned.architecture
    if architecture not in planned.networks:
        raise UserError(f"--architecture {architecture}: the plan of {configuration} holds "
                        f"{', '.join(planned.networks)}.\nAdd it with `autoseg plan {plan.dataset} --run {run} "
                        f"--architecture {architecture}`.")
    return architecture


def clear_folder(folder: Path) -> None:
    """Delete a fold's folder; UserError where that is not allowed."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise storage_error(error, folder) from error


def training_store(run: Path, dataset: Dataset, plan: Plan, configuration: ConfigurationName) -> Store:
    """The preprocessed cases of a configuration; made now where `plan` did not make them."""
    record = store_record(plan, configuration)
    folder = store_folder(run, configuration, record)
    preprocess_dataset(dataset, record, folder, default_workers())
    return open_store(folder)


def _resumed(asked: TrainSettings, folder: Path, choices: Mapping[str, object]) -> TrainSettings:
    """What the training in a folder was started with, with this command's choices; `asked` where there is none."""
    started = read_resume_settings(folder)
    return asked if started is None else override(started, **choices)


def _words(request: FoldRequest, plan: Plan, settings: TrainSettings) -> "Words | None":
    if not settings.text_guided:
        return None
    from autoseg.training.guiding import read_words

    return read_words(plan, request.text_bank, settings, request.seed, request.run / "prompts.json")


def _warn_of_a_long_training(request: FoldRequest, session: Session) -> None:
    asked_for = request.preset is not None or request.choices.get("epochs") is not None
    if session.device.type == "cpu" and session.settings.max_minutes is None and not asked_for:
        logger.warning("%d epochs of %d steps may take weeks on a CPU; --preset quick is made for it",
                       session.settings.epochs, session.settings.steps_per_epoch)


def refuse_what_exists(folder: Path, resume: bool, overwrite: bool) -> None:
    """UserError where a fold's folder holds what the options do not speak of, or nothing to resume."""
    started, finished = (folder / "resume").is_dir(), (folder / "model.json").exists()
    if overwrite:
        return
    if finished and not resume:
        raise UserError(f"{folder} holds a finished model.\nGive --overwrite to train it anew, --resume to train it "
                        "longer, or --name for another model beside it.")
    if started and not resume:
        raise UserError(f"{folder} holds a training that was interrupted.\nGive --resume to continue it or --overwrite "
                        "to start anew.")
    if resume and not started:
        raise UserError(f"--resume: {folder} holds no training to continue.\nRun without --resume to start one.")


def _validate(cases: list[Case], session: Session, recording: Recording, speed_report: bool) -> Scores:
    """Predict the fold's validation cases as `predict` would, score them, write scores.json; 3 when a case failed.

    A cascade's masks are those of the same fold of its first stage: the others have seen these cases. With
    `speed_report`, the first process measures on its share of the cases what the faster levels cost.
    """
    plan, output = session.plan, session.folder / VALIDATION
    trained = TrainedModel(session.name, session.configuration, (session.fold,), session.folder.parent)
    settings = PredictSettings(device=session.device, overwrite=True)
    member = Reader().member(trained, trained.folds, trained.folds)
    share = share_of(cases, session.processes)
    start = time.perf_counter()
    own = predict_members(share, [member], output, settings) if share else ([], [])
    seconds = time.perf_counter() - start
    written, failures = outcome_of_all(own, output, session.processes)
    if not written:
        raise all_of([f"{failure.id}: {failure.reason}" for failure in failures],
                     f"{session.folder} is trained, but none of its validation cases could be predicted:",
                     "The model can be used all the same. Mend the cause, then give --resume to predict them again.")
    masks = {path.name.removesuffix(plan.file_ending): path for path in written}
    pairs = [FilePair(case.id, masks[case.id], case.label) for case in cases if case.id in masks and case.label]

    def score() -> Scores:
        scores = score_files(pairs, plan, annotated=session.annotated, workers=default_workers())
        write_record(scores, session.folder / SCORES_NAME)
        return scores

    scores = session.processes.from_first(score, Scores)
    recording.results.update(dice=scores.mean.dice, nsd=scores.mean.nsd, hd95=scores.mean.hd95, failed=len(failures))
    recording.exit_status = 3 if failures else recording.exit_status
    if speed_report and session.processes.is_first and own[0]:
        done = {path.name.removesuffix(plan.file_ending) for path in own[0]}
        predicted = Predicted(member, [case for case in share if case.id in done], seconds, scores)
        recording.results.update(report_speeds(predicted, session.folder, settings.device, session.annotated))
    return scores
