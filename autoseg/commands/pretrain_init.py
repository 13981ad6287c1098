"""`autoseg pretrain-init`: first weights for a planned network, learned from the fold's training images alone."""

import logging
import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.commands.beginning import check_name
from autoseg.commands.options import DEFAULT_RUN, DEFAULT_SEED, DeviceOption, JsonOption, RunOption, SeedOption
from autoseg.commands.output import write_json_object, write_stdout
from autoseg.commands.plan import default_configuration, read_plan
from autoseg.commands.recording import Recording, recorded, versions
from autoseg.commands.stopping import stop_on_signals
from autoseg.commands.train import clear_folder, known_architecture, training_store
from autoseg.data.dataset import Case, list_images, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.splits import read_splits, training_cases
from autoseg.data.store import Store
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
from autoseg.initialization.session import InitSession, PretrainState
from autoseg.initialization.transfer import init_folder, is_finished, write_init
from autoseg.progress import readable_seconds
from autoseg.schema import ArchitectureName, ConfigurationName, OptimizerPlan, Plan
from autoseg.training.settings import TrainSettings, load_preset, override

PICTURE_NAME = "reconstruction.png"
logger = logging.getLogger("autoseg")


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
        InitMethod, Parameter(help="`lwi`: restore hidden boxes and tell slabs' order; `mim`, `order`: only one.")
    ] = "lwi",
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
    architecture = known_architecture(plan, configuration, architecture)
    name = check_name(name or architecture)
    folder = init_folder(run, name, configuration, fold)
    with recorded("pretrain-init", run, seed) as recording:
        chosen_device = choose_device(device)
        recording.device = str(chosen_device)
        settings = load_preset(preset or "default")
        planned_steps, minutes = _length(default_length(settings), steps, max_minutes)
        network = plan.configurations[configuration].networks[architecture]
        pretext = plan_pretext(architecture, network, method)
        _refuse_what_exists(folder, resume, overwrite)
        images, store = _images(run, plan, configuration, fold, extra_images, seed)
        batch = min(network.batch_size, settings.max_batch_size or network.batch_size)
        refuse_too_few(images.training, batch, configuration == "2d")
        session = InitSession(
            plan=plan, configuration=configuration, architecture=architecture, name=name, fold=fold, method=method,
            pretext=pretext, settings=settings, optimizer=_optimizer(architecture, settings, learning_rate),
            steps=planned_steps, max_minutes=minutes, seed=seed, store=store.record, images=images,
            extra_folder=extra_images, folder=folder, device=chosen_device, versions=versions(),
        )
        if chosen_device.type == "cpu" and preset is None and steps is None and max_minutes is None:
            logger.warning("%d steps may take days on a CPU; --preset quick is made for it", planned_steps)
        recording.inputs.update(dataset=plan.dataset, plan=session.plan_hash)
        if overwrite:
            clear_folder(folder)
        with stop_on_signals() as stop:
            ended = pretrain(session, resume, stop)
        if ended is None:
            raise UserError("Pretraining was stopped; nothing is lost.\nContinue with the same command and --resume "
                            f"(state: {folder / 'resume'}).")
        pretrained, state, precision = ended
        measures, examples = measure(session, pretrained, precision)
        draw_reconstructions(examples, f"{name}, {configuration}, fold {fold}: {method} after {state.step} steps",
                             folder / PICTURE_NAME)
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
    training, validation = training_cases(read_splits(run / "splits.json", list(cases)), fold, list(cases))
    validation = () if fold == "all" else validation
    added: tuple[Case, ...] = ()
    if extra_folder is not None:
        added = list_images(extra_folder, len(plan.channel_names), plan.file_ending)
    refuse_known(added, training, validation)
    store, workers = training_store(run, dataset, plan, configuration), default_workers()
    extra = prepare_extra_images(added, run, configuration, store.record, workers) if added else []
    # Validation images are looked at for one thing only: whether an added image is a copy of one.
    held_out = image_sources([cases[case] for case in validation], store) if added else []
    images = gather_images(image_sources([cases[case] for case in training], store), held_out, extra, seed, workers)
    logger.info("images: %d to learn from (%d added), %d held back to measure on; no labels, none of the %d validation "
                "cases", len(images.training), images.extra_count, len(images.held_back), len(validation))
    return images, store


def _optimizer(architecture: ArchitectureName, settings: TrainSettings, rate: float | None) -> OptimizerPlan:
    optimizer = pretraining_optimizer(architecture, settings)
    if rate is None:
        return optimizer
    override(settings, learning_rate=rate)  # refuses what makes no sense
    return optimizer.model_copy(update={"learning_rate": rate})


def _length(
    default: tuple[int, float | None], steps: int | None, max_minutes: float | None
) -> tuple[int, float | None]:
    """(steps, minutes) of a pretraining: what was asked for, else a fifth of the training's."""
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
    write_stdout(f"Look at {folder / PICTURE_NAME}\nNext: autoseg train --run {folder.parents[3]} (takes these "
                 "weights; --init scratch for the comparison)")
