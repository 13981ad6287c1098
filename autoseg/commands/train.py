"""`autoseg train`: one fold of a planned dataset, then its validation cases predicted and scored."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from autoseg.commands.beginning import Asked, check_name, choose_beginning, model_folder
from autoseg.commands.options import DEFAULT_RUN, DEFAULT_SEED, DeviceOption, JsonOption, RunOption, SeedOption
from autoseg.commands.plan import default_configuration, read_plan
from autoseg.commands.stopping import stop_on_signals
from autoseg.commands.training_method import name_of_method, plan_to_train, refuse_unfit
from autoseg.data.dataset import Case, Dataset, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.splits import read_splits, training_cases
from autoseg.data.store import Store, open_store, store_folder
from autoseg.errors import UserError, all_of
from autoseg.evaluation.pairing import FilePair
from autoseg.evaluation.scoring import score_files
from autoseg.evaluation.table import format_table
from autoseg.inference.device import choose_device
from autoseg.inference.prediction import PredictSettings, predict_cases
from autoseg.initialization.transfer import with_warmup
from autoseg.networks.checkpoint import read_model
from autoseg.output import write_json_object, write_stdout
from autoseg.planning.optimizers import RECIPES
from autoseg.planning.planner import store_record
from autoseg.progress import readable_seconds
from autoseg.recording import Recording, recorded, versions
from autoseg.records import storage_error, write_record
from autoseg.schema import (
    ArchitectureName,
    CheckpointInfo,
    ConfigurationName,
    NormalizationChoice,
    Plan,
    Scores,
)
from autoseg.training.optimization import resolve_optimizer
from autoseg.training.session import Session, read_resume_settings, train_session
from autoseg.training.settings import (
    DomainGeneralization,
    MirrorChoice,
    OptimizerChoice,
    TextGeometry,
    TextRoute,
    TrainSettings,
    load_preset,
    override,
)

if TYPE_CHECKING:
    from autoseg.training.guiding import Words

logger = logging.getLogger("autoseg")


def train(  # noqa: PLR0913 (a command's options)
    *,
    run: RunOption = DEFAULT_RUN,
    configuration: Annotated[
        ConfigurationName | None, Parameter(help="By default 3d_fullres, or 2d where the data are flat.")
    ] = None,
    architecture: Annotated[
        ArchitectureName | None, Parameter(help="A network of the plan; by default the plan's own choice.")
    ] = None,
    fold: Annotated[str, Parameter(help="A fold of splits.json (0, 1, …), or `all`: every case, no validation.")] = "0",
    name: Annotated[str | None, Parameter(help="The model's name; by default its architecture.")] = None,
    preset: Annotated[
        str | None, Parameter(help="`default` (nnU-Net's recipe), `quick` (CPU), or a .toml file.")
    ] = None,
    epochs: Annotated[int | None, Parameter(help="Length of the schedule.")] = None,
    steps_per_epoch: Annotated[int | None, Parameter(help="Optimizer updates per epoch.")] = None,
    max_minutes: Annotated[
        float | None, Parameter(help="Training time; the learning rate reaches its end with it. Validation follows.")
    ] = None,
    init: Annotated[
        str, Parameter(help="First weights: `auto` takes those of `pretrain-init` where they exist for this fold and "
                            "name; `scratch` draws them; or a folder that holds some.")
    ] = "auto",
    optimizer: Annotated[OptimizerChoice | None, Parameter(help="`auto`: the plan's.")] = None,
    learning_rate: Annotated[
        float | None, Parameter(help="The largest of the schedule; by default the preset's, or else the plan's.")
    ] = None,
    mirror: Annotated[
        MirrorChoice | None, Parameter(help="`auto`: not left-right where labels differ only in side.")
    ] = None,
    domain_generalization: Annotated[
        DomainGeneralization | None,
        Parameter(help="Views of the images, so that the network survives another scanner, sequence or modality: "
                       "`gin` random convolutions, `slaug` curves per organ (two passes), `ccsdg` content and style "
                       "(three passes)."),
    ] = None,
    normalization: Annotated[
        NormalizationChoice | None,
        Parameter(help="`percentile` or `rank`: of each image by itself. `auto`: the plan's, or what domain "
                       "generalization needs."),
    ] = None,
    text_guided: Annotated[
        bool, Parameter(negative=(), help="Train with the labels' words, as vectors of a text bank.")
    ] = False,
    text_bank: Annotated[
        str | None, Parameter(help="A folder that `vlm encode-labels` wrote, or a bank of autoseg's own by name.")
    ] = None,
    text_geometry: Annotated[
        TextGeometry | None,
        Parameter(help="How the vectors lie: `centred` or `raw`; the others are controls, which words must beat."),
    ] = None,
    text_route: Annotated[
        TextRoute | None,
        Parameter(help="How words act: `alignment` of region features, class `heads` made of the vectors, or the "
                       "regions' `gram` matrix."),
    ] = None,
    resume: Annotated[bool, Parameter(negative=(), help="Continue an interrupted or finished training.")] = False,
    overwrite: Annotated[bool, Parameter(negative=(), help="Delete this model's fold and train anew.")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = DEFAULT_SEED,
    json: JsonOption = False,
) -> int:
    """Train one fold of a planned dataset; predict and score its validation cases at the end."""
    plan = read_plan(run)
    configuration = configuration or default_configuration(plan)
    architecture = known_architecture(plan, run, configuration, architecture)
    choices = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "max_minutes": max_minutes, "mirror": mirror,
               "optimizer": optimizer, "learning_rate": learning_rate, "domain_generalization": domain_generalization,
               "normalization": normalization, "text_guided": text_guided or None, "text_geometry": text_geometry,
               "text_route": text_route}
    asked = _asked_settings(architecture, preset, choices, resume, text_bank)
    beginning = choose_beginning(Asked(run, name, architecture, configuration, fold, init, resume,
                                       name_of_method(asked)))
    name = check_name(beginning.model_name)
    folder = model_folder(run, name, configuration, fold)
    with recorded("train", run, seed) as recording:
        dataset = open_dataset(Path(plan.dataset))
        cases = {case.id: case for case in dataset.cases}
        split = training_cases(read_splits(run / "splits.json", list(cases)), fold, list(cases))
        settings = _resumed(asked, folder, choices) if resume and preset is None else asked
        planned = plan.configurations[configuration].networks[architecture]
        held_out = [] if fold == "all" else [cases[case] for case in split[1]]
        first = beginning.read((architecture, planned, store_record(plan, configuration)), len(plan.channel_names),
                               held_out)
        plan = plan_to_train(plan, configuration, settings)
        words = _words(run, plan, text_bank, settings, seed)
        store = training_store(run, dataset, plan, configuration)
        used = resolve_optimizer(planned.optimizer, RECIPES, settings)
        chosen_device = choose_device(device)
        recording.device = str(chosen_device)
        _refuse_what_exists(folder, resume, overwrite)
        session = Session(
            plan=plan, configuration=configuration, architecture=architecture, name=name, fold=fold,
            settings=settings, optimizer=used if first is None else with_warmup(used), seed=seed, store=store,
            train_ids=split[0], validation_ids=tuple(case.id for case in held_out), folder=folder,
            device=chosen_device, versions=versions(), first_weights=first,
            words=words,
        )
        recording.inputs.update(dataset=str(dataset.root), plan=session.plan_hash,
                                init="scratch" if first is None else first.sha256)
        if chosen_device.type == "cpu" and settings.max_minutes is None and preset is None and epochs is None:
            logger.warning("%d epochs of %d steps may take weeks on a CPU; --preset quick is made for it",
                           settings.epochs, settings.steps_per_epoch)
        if overwrite:
            clear_folder(folder)
        with stop_on_signals() as stop:
            info = train_session(session, resume, stop)
        if info is None:
            raise UserError(f"Training was stopped; nothing is lost.\nContinue with the same command and --resume "
                            f"(state: {folder / 'resume'}).")
        recording.inputs["weights"] = info.weights_sha256
        recording.results.update(steps=info.steps, training_seconds=round(info.seconds, 1))
        scores = None
        if session.validation_ids:
            scores, recording.exit_status = _validate(held_out, session, plan, recording)
        _report(session, info, scores, recording, json)
    return recording.exit_status


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


def _resumed(asked: TrainSettings, folder: Path, choices: Mapping[str, object]) -> TrainSettings:
    """What the training in a folder was started with, with this command's choices; `asked` where there is none."""
    started = read_resume_settings(folder)
    return asked if started is None else override(started, **choices)


def _asked_settings(
    architecture: ArchitectureName, preset: str | None, choices: Mapping[str, object], resume: bool,
    text_bank: str | None,
) -> TrainSettings:  # fmt: skip
    """The preset's settings with what the command line names.

    UserError for words without --text-guided, or a network that the method cannot train.
    """
    settings = override(load_preset(preset or "default"), **choices)
    refuse_unfit(architecture, settings)
    given = {"--text-bank": text_bank, "--text-geometry": choices["text_geometry"],
             "--text-route": choices["text_route"]}
    if not settings.text_guided and not resume and (named := [name for name, value in given.items() if value]):
        raise UserError(f"{', '.join(named)}: only a text-guided training has words. Add --text-guided.")
    return settings


def _words(run: Path, plan: Plan, text_bank: str | None, settings: TrainSettings, seed: int) -> "Words | None":
    if not settings.text_guided:
        return None
    from autoseg.training.guiding import read_words

    return read_words(plan, text_bank, settings, seed, run / "prompts.json")


def clear_folder(folder: Path) -> None:
    """Delete a fold's folder; UserError where that is not allowed."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise storage_error(error, folder) from error


def _refuse_what_exists(folder: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume continues a training, --overwrite deletes it: give one of them.")
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


def training_store(run: Path, dataset: Dataset, plan: Plan, configuration: ConfigurationName) -> Store:
    """The preprocessed cases of a configuration; made now where `plan` did not make them."""
    record = store_record(plan, configuration)
    folder = store_folder(run, configuration, record)
    preprocess_dataset(dataset, record, folder, default_workers())
    return open_store(folder)


def _validate(cases: list[Case], session: Session, plan: Plan, recording: Recording) -> tuple[Scores, int]:
    """Predict the fold's validation cases as `predict` would, score them, write scores.json; 3 when a case failed."""
    output = session.folder / "validation"
    model = read_model(session.folder)
    settings = PredictSettings(device=session.device, overwrite=True)
    written, failures = predict_cases(cases, [model], output, settings)
    if not written:
        raise all_of([f"{failure.id}: {failure.reason}" for failure in failures],
                     f"{session.folder} is trained, but none of its validation cases could be predicted:",
                     "The model can be used all the same. Mend the cause, then give --resume to predict them again.")
    masks = {path.name.removesuffix(plan.file_ending): path for path in written}
    pairs = [FilePair(case.id, masks[case.id], case.label) for case in cases if case.id in masks and case.label]
    scores = score_files(pairs, plan.labels, workers=default_workers())
    write_record(scores, session.folder / "scores.json")
    recording.results.update(dice=scores.mean.dice, nsd=scores.mean.nsd, hd95=scores.mean.hd95, failed=len(failures))
    return scores, 3 if failures else 0


def _report(session: Session, info: CheckpointInfo, scores: Scores | None, recording: Recording, json: bool) -> None:
    if json:
        write_json_object({"model": str(session.folder), **recording.results})
        return
    if scores is not None:
        write_stdout(format_table(scores))
    write_stdout(f"\n{session.name}, {session.configuration}, fold {session.fold}: {info.steps} steps in "
                 f"{readable_seconds(info.seconds)}. Written: {session.folder}\n"
                 f"Next: autoseg predict -i IMAGES -o MASKS --run {session.folder.parents[3]}")
