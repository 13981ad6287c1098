"""`autoseg pretrain-init`: first weights for a planned network, learned from the fold's training images alone."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.commands.beginning import check_name
from autoseg.commands.fold_training import clear_folder, known_architecture
from autoseg.commands.options import DEFAULT_RUN, DEFAULT_SEED, DeviceOption, JsonOption, RunOption, SeedOption
from autoseg.commands.plan import default_configuration, read_plan
from autoseg.commands.stopping import stop_on_signals
from autoseg.data.dataset import Case, list_images, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.preprocessing import input_identity
from autoseg.data.splits import splits_of_run, training_cases
from autoseg.data.store import STORE_FILE, Store, is_stored, open_store, store_folder
from autoseg.errors import UserError
from autoseg.inference.device import choose_device
from autoseg.initialization.images import (
    ImageSet,
    gather_images,
    image_sources,
    prepare_extra_images,
    refuse_known,
    refuse_too_few,
)
from autoseg.initialization.measurement import measure
from autoseg.initialization.picture import draw_reconstructions
from autoseg.initialization.pretext import plan_pretext
from autoseg.initialization.pretraining import pretrain
from autoseg.initialization.record import InitMeasures, InitMethod, InitRecord
from autoseg.initialization.schedule import default_length, pretraining_optimizer
from autoseg.initialization.session import Begun, InitSession, PretrainState, read_begun
from autoseg.initialization.transfer import init_folder, is_finished, write_init
from autoseg.output import write_json_object, write_stdout
from autoseg.planning.planner import store_record
from autoseg.progress import readable_seconds
from autoseg.recording import Recording, recorded, versions
from autoseg.schema import ArchitectureName, ConfigurationName, OptimizerPlan, Plan
from autoseg.training.settings import TrainSettings, load_preset, override

PICTURE_NAME = "reconstruction.png"
logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Wishes:
    """Options as given; None where the user left one out."""

    preset: str | None
    method: InitMethod | None
    steps: int | None
    max_minutes: float | None
    learning_rate: float | None


@dataclass(frozen=True)
class Choices:
    """What a pretraining does."""

    settings: TrainSettings
    method: InitMethod
    steps: int
    max_minutes: float | None
    optimizer: OptimizerPlan


def pretrain_init(  # noqa: PLR0913 (a command's options)
    *,
    run: RunOption = DEFAULT_RUN,
    configuration: Annotated[
        ConfigurationName | None, Parameter(help="By default 3d_fullres, or 2d where the data are flat.")
    ] = None,
    architecture: Annotated[
        ArchitectureName | None, Parameter(help="A network of the plan; by default the plan's own choice.")
    ] = None,
    fold: Annotated[str, Parameter(help="Images of this fold's training cases are seen, no others; or `all`.")] = "0",
    method: Annotated[
        InitMethod | None,
        Parameter(help="`lwi`: restore hidden boxes and tell slabs' order; `mim`, `order`: only one. By default lwi."),
    ] = None,
    steps: Annotated[int | None, Parameter(help="By default a fifth of the preset's training.")] = None,
    max_minutes: Annotated[float | None, Parameter(help="Ends earlier when this time is up.")] = None,
    preset: Annotated[str | None, Parameter(help="Of the training to come: `default`, `quick`, or a file.")] = None,
    learning_rate: Annotated[float | None, Parameter(help="By default the preset's, or 1e-4 (attention 3e-4).")] = None,
    extra_images: Annotated[Path | None, Parameter(help="A folder of unlabelled images to learn from as well.")] = None,
    name: Annotated[str | None, Parameter(help="By default the architecture; `train` looks under its name.")] = None,
    resume: Annotated[bool, Parameter(negative=(), help="Continue an interrupted pretraining.")] = False,
    overwrite: Annotated[bool, Parameter(negative=(), help="Delete these first weights and pretrain anew.")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = DEFAULT_SEED,
    json: JsonOption = False,
) -> int:
    """Learn first weights from a fold's training images; no label is read, no validation image is seen."""
    plan = read_plan(run)
    configuration = configuration or default_configuration(plan)
    architecture = known_architecture(plan, run, configuration, architecture)
    if plan.configurations[configuration].previous_stage is not None:
        raise UserError(f"--configuration {configuration}: first weights are learned from images alone.\nPretrain for "
                        "3d_fullres, and give train --init the folder that this writes.")
    name = check_name(name or architecture)
    folder = init_folder(run, name, configuration, fold)
    with recorded("pretrain-init", run, seed) as recording:
        chosen_device = choose_device(device)
        recording.device = str(chosen_device)
        wishes = Wishes(preset, method, steps, max_minutes, learning_rate)
        chosen = _choose(wishes, architecture, read_begun(folder) if resume else None)
        network = plan.configurations[configuration].networks[architecture]
        pretext = plan_pretext(architecture, network, chosen.method)
        _refuse_what_exists(folder, resume, overwrite)
        images, store = _images(run, plan, configuration, fold, extra_images, seed)
        session = InitSession(
            plan=plan, configuration=configuration, architecture=architecture, name=name, fold=fold,
            method=chosen.method, pretext=pretext, settings=chosen.settings, optimizer=chosen.optimizer,
            steps=chosen.steps, max_minutes=chosen.max_minutes, seed=seed, store=store.record, images=images,
            extra_folder=extra_images, folder=folder, device=chosen_device, versions=versions(),
        )
        refuse_too_few(images, session.network_plan.batch_size, configuration == "2d")
        if chosen_device.type == "cpu" and preset is None and steps is None and max_minutes is None:
            logger.warning("%d steps may take days on a CPU; --preset quick is made for it", chosen.steps)
        recording.inputs.update(dataset=plan.dataset, plan=session.plan_hash)
        if overwrite:
            clear_folder(folder)
        with stop_on_signals() as stop:
            ended = pretrain(session, resume, stop)
        if ended is None:
            raise UserError("Pretraining was stopped; nothing is lost.\nContinue with the same command and --resume "
                            f"(state: {folder / 'resume'}).")
        pretrained, state, precision = ended
        try:
            measures, examples = measure(session, pretrained, precision)
        except KeyboardInterrupt:
            raise UserError("Interrupted while measuring; the weights are learned, and nothing is lost.\nMeasure and "
                            "write them with the same command and --resume.") from None
        title = f"{name}, {configuration}, fold {fold}: {chosen.method} after {state.step} steps"
        draw_reconstructions(examples, title, folder / PICTURE_NAME)
        record = write_init(folder, pretrained.network, _record(session, state, measures, precision))
        recording.inputs["weights"] = record.weights_sha256
        _report(record, folder, recording, json)
    return recording.exit_status


def _images(
    run: Path, plan: Plan, configuration: ConfigurationName, fold: str, extra_folder: Path | None, seed: int
) -> tuple[ImageSet, Store]:
    """The images that this fold may learn from, prepared, and the store of the fold's."""
    dataset = open_dataset(Path(plan.dataset))
    cases = {case.id: case for case in dataset.cases}
    training, validation = training_cases(splits_of_run(run, dataset.cases), fold, list(cases))
    validation = () if fold == "all" else validation
    added: tuple[Case, ...] = ()
    if extra_folder is not None:
        added = list_images(extra_folder, len(plan.channel_names), plan.file_ending, "as the dataset's images do")
    refuse_known(added, training, validation)
    store, workers = _store(run, plan, configuration, [cases[case] for case in training]), default_workers()
    extra = prepare_extra_images(added, run, configuration, store.record, workers) if added else []
    # Validation images are looked at for one thing only: whether an added image is a copy of one.
    held_out = image_sources([cases[case] for case in validation], store) if added else []
    images = gather_images(image_sources([cases[case] for case in training], store), held_out, extra, seed, workers)
    logger.info("images: %d to learn from (%d added), %d held back to measure on; no labels, none of the %d validation "
                "cases", len(images.training), images.extra_count, len(images.held_back), len(validation))
    return images, store


def _store(run: Path, plan: Plan, configuration: ConfigurationName, training: Sequence[Case]) -> Store:
    """The preprocessed cases. They are not prepared here: that would read labels, and validation images."""
    record = store_record(plan, configuration)
    folder = store_folder(run, configuration, record)
    stale = [case.id for case in training if not is_stored(folder, case.id, input_identity(case))]
    if stale or not (folder / STORE_FILE).is_file():
        what = f"{', '.join(stale[:5])}{' …' * (len(stale) > 5)} changed since, or" if stale else "it"
        raise UserError(f"{folder}: the cases of {configuration} are not ready: {what} was not preprocessed.\nRun "
                        f"`autoseg plan {plan.dataset} --run {run} --configurations {configuration}` first; "
                        "pretraining opens no label and no validation image, and preprocessing does.")
    return open_store(folder)


def _choose(wishes: Wishes, architecture: ArchitectureName, begun: Begun | None) -> Choices:
    """What was asked for; for the rest the preset, or what a continued pretraining was begun with."""
    settings, default = load_preset(wishes.preset or "default"), None
    if begun is not None and wishes.preset is None:
        settings, default = begun.settings, (begun.steps, begun.max_minutes)
    steps, minutes = _length(default or default_length(settings), wishes.steps, wishes.max_minutes)
    optimizer = pretraining_optimizer(architecture, settings)
    rate = wishes.learning_rate
    if rate is None and begun is not None:
        rate = begun.learning_rate
    if rate is not None:
        override(settings, learning_rate=rate)  # refuses what makes no sense
        optimizer = optimizer.model_copy(update={"learning_rate": rate})
    method = wishes.method or (begun.method if begun else "lwi")
    return Choices(settings, method, steps, minutes, optimizer)


def _length(
    default: tuple[int, float | None], steps: int | None, max_minutes: float | None
) -> tuple[int, float | None]:
    """(steps, minutes) of a pretraining: what was asked for, else the default."""
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: at least 1 was expected.")
    if max_minutes is not None:
        if not 0 < max_minutes < math.inf:
            raise UserError(f"--max-minutes {max_minutes}: a number above 0 was expected.")
        return (steps or default[0]), max_minutes
    return (steps, None) if steps is not None else default


def _refuse_what_exists(folder: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume continues a pretraining, --overwrite deletes it: give one of them.")
    if overwrite:
        return
    if is_finished(folder) and not resume:
        raise UserError(f"{folder} holds first weights already.\nTrain with them (autoseg train), give --overwrite to "
                        "pretrain anew, or --name for others beside them.")
    if (folder / "resume").is_dir() and not resume:
        raise UserError(f"{folder} holds a pretraining that was interrupted.\nGive --resume to continue it or "
                        "--overwrite to start anew.")


def _record(session: InitSession, state: PretrainState, measures: InitMeasures, precision: str) -> InitRecord:
    images = session.images
    return InitRecord(
        name=session.name, configuration=session.configuration, fold=session.fold, architecture=session.architecture,
        network=session.network_plan, channel_names=session.plan.channel_names, store=session.store,
        method=session.method, pretext=session.pretext, images=images.identities(images.own),
        held_back=images.identities(images.held_back), extra_images=images.identities(images.extra),
        extra_folder=None if session.extra_folder is None else str(session.extra_folder),
        settings={**session.settings.flat(), "seed": session.seed, "used_precision": precision,
                  "device": str(session.device)},
        steps=state.step, planned_steps=session.steps, ended_by=state.ended_by or "steps",
        seconds=round(state.seconds, 2), steps_per_second=round(state.step / max(state.seconds, 1e-9), 3),
        measures=measures, plan_hash=session.plan_hash, weights_sha256="", versions=session.versions,
    )


def _report(record: InitRecord, folder: Path, recording: Recording, json: bool) -> None:
    measures = record.measures
    recording.results.update(
        steps=record.steps, pretraining_seconds=record.seconds, steps_per_second=record.steps_per_second,
        masked_error=measures.masked_error, inpainting_error=measures.inpainting_error,
        order_accuracy=measures.order_accuracy, order_chance=measures.order_chance,
        border_matching_accuracy=measures.border_matching_accuracy,
    )
    if json:
        write_json_object({"init": str(folder), **recording.results})
        return
    where = "held-back images" if measures.held_back else "the images it learned from (too few to hold any back)"
    write_stdout(f"\n{record.name}, {record.configuration}, fold {record.fold}: {record.steps} steps in "
                 f"{readable_seconds(record.seconds)} ({record.steps_per_second:.2f} steps/s); measured on {where}:")
    if measures.masked_error is not None and measures.inpainting_error is not None:
        write_stdout(f"  hidden boxes: squared error {measures.masked_error:.3f} of the variance; linear inpainting "
                     f"{measures.inpainting_error:.3f}")
    if measures.order_accuracy is not None and measures.order_chance is not None:
        write_stdout(f"  slab order: {measures.order_accuracy:.0%} in place; guessing {measures.order_chance:.0%}, "
                     f"matching borders {measures.border_matching_accuracy:.0%}")
    options = f"--run {folder.parents[3]} --configuration {record.configuration} --fold {record.fold}"
    options += "" if record.name == record.architecture else f" --name {record.name}"
    options += f" --architecture {record.architecture}"
    write_stdout(f"Look at {folder / PICTURE_NAME}\nNext: autoseg train {options}\n"
                 "      (takes these weights; with --init scratch it draws them, for the comparison)")
