"""`autoseg train`: folds of a planned dataset, then their validation cases predicted and scored."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.commands.beginning import check_name
from autoseg.commands.cascade import with_first_stage
from autoseg.commands.fold_chain import folds_to_train, train_missing_folds
from autoseg.commands.fold_summary import summarize_folds
from autoseg.commands.fold_training import FoldRequest, TrainedFold, known_architecture, train_fold
from autoseg.commands.options import DEFAULT_RUN, DEFAULT_SEED, DeviceOption, JsonOption, RunOption, SeedOption
from autoseg.commands.plan import default_configuration, read_plan
from autoseg.commands.training_method import refuse_unfit
from autoseg.errors import UserError
from autoseg.evaluation.table import format_table
from autoseg.inference.device import choose_device
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import readable_seconds
from autoseg.recording import Recording, recorded
from autoseg.schema import ArchitectureName, ConfigurationName, NormalizationChoice
from autoseg.training.processes import joined
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

ALL_FOLDS = "all-folds"


def train(  # noqa: PLR0913 (a command's options)
    *,
    run: RunOption = DEFAULT_RUN,
    configuration: Annotated[
        ConfigurationName | None, Parameter(help="By default 3d_fullres, or 2d where the data are flat.")
    ] = None,
    architecture: Annotated[
        ArchitectureName | None, Parameter(help="A network of the plan; by default the plan's own choice.")
    ] = None,
    fold: Annotated[
        str,
        Parameter(help="A fold of splits.json (0, 1, …); `all-folds`: those that are missing, one after another; or "
                       "`all`: every case, no validation."),
    ] = "0",
    name: Annotated[str | None, Parameter(help="The model's name; by default its architecture.")] = None,
    previous_name: Annotated[
        str | None,
        Parameter(help="Of a cascade: the model of 3d_lowres whose masks it takes; by default of the same name. Its "
                       "missing folds are trained first."),
    ] = None,
    preset: Annotated[
        str | None, Parameter(help="`default` (nnU-Net's recipe), `quick` (CPU), or a .toml file.")
    ] = None,
    epochs: Annotated[int | None, Parameter(help="Length of the schedule.")] = None,
    steps_per_epoch: Annotated[int | None, Parameter(help="Optimizer updates per epoch.")] = None,
    max_minutes: Annotated[
        float | None,
        Parameter(help="Training time, of each fold; the learning rate reaches its end with it. Validation follows."),
    ] = None,
    init: Annotated[
        str, Parameter(help="First weights: `auto` takes those of `pretrain-init` where they exist for this fold and "
                            "name; `scratch` draws them; or a run, a model or a folder of first weights, also of "
                            "other channels, labels, spacing or depth: what fits is moved, what does not is listed.")
    ] = "auto",
    freeze: Annotated[
        str | None,
        Parameter(help="First weights that are not trained: `encoder`, `backbone` (all but the heads), the number of "
                       "encoder stages, or `none`."),
    ] = None,
    optimizer: Annotated[OptimizerChoice | None, Parameter(help="`auto`: the plan's.")] = None,
    learning_rate: Annotated[
        float | None, Parameter(help="The largest of the schedule; by default the preset's, or else the plan's.")
    ] = None,
    mirror: Annotated[
        MirrorChoice | None, Parameter(help="`auto`: not left-right where labels differ only in side.")
    ] = None,
    domain_generalization: Annotated[
        DomainGeneralization | None,
        Parameter(help="Views of the images, for a network that is to meet another scanner, sequence or modality: "
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
    speed_report: Annotated[
        bool, Parameter(name="--speed-report", negative="--no-speed-report",
                        help="Measure on the validation cases what `predict --speed balanced` and `fast` cost."),
    ] = True,
    resume: Annotated[bool, Parameter(negative=(), help="Continue an interrupted or finished training.")] = False,
    overwrite: Annotated[bool, Parameter(negative=(), help="Delete this model's fold and train anew.")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = DEFAULT_SEED,
    json: JsonOption = False,
) -> int:
    """Train folds of a planned dataset; predict and score their validation cases at the end."""
    plan = read_plan(run)
    configuration = configuration or default_configuration(plan)
    architecture = known_architecture(plan, run, configuration, architecture)
    choices = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "max_minutes": max_minutes, "mirror": mirror,
               "optimizer": optimizer, "learning_rate": learning_rate, "domain_generalization": domain_generalization,
               "normalization": normalization, "text_guided": text_guided or None, "text_geometry": text_geometry,
               "text_route": text_route, "freeze": freeze}
    settings = _asked_settings(architecture, preset, choices, resume, text_bank)
    if resume and overwrite:
        raise UserError("--resume continues a training, --overwrite deletes it: give one of them.")
    folds = folds_to_train(plan, run) if fold == ALL_FOLDS else (fold,)
    request = FoldRequest(
        run=run, plan=plan, configuration=configuration, architecture=architecture, fold=folds[0],
        name=None if name is None else check_name(name), settings=settings, choices=choices, preset=preset,
        text_bank=text_bank, init=init, resume=resume, overwritten=folds if overwrite else (), device=device, seed=seed,
        speed_report=speed_report,
    )
    with recorded("train", run, seed) as recording, joined(choose_device(device)) as processes:
        request = with_first_stage(replace(request, processes=processes), folds, previous_name, recording)
        if fold == ALL_FOLDS:
            _train_all(request, folds, recording, json)
        else:
            trained = train_fold(request, recording)
            if json:
                write_json_object({"model": str(trained.folder), **recording.results})
            else:
                _report(trained)
                write_stdout(_next_step(run))
    return recording.exit_status if processes.is_first else 0  # torchrun ends all when one ends with another status


def _train_all(request: FoldRequest, folds: tuple[str, ...], recording: Recording, json: bool) -> None:
    """The missing folds, their tables as they end, and what all of them came to."""
    finished = []
    for trained in train_missing_folds(request, folds, recording):
        finished.append(trained)
        if not json:
            _report(trained)
    summary = summarize_folds(finished)
    recording.results |= summary.figures
    if json:
        write_json_object({"model": str(summary.folder), **summary.content})
    else:
        write_stdout(f"\n{summary.table}\n")
        write_stdout(_next_step(request.run))


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


def _report(trained: TrainedFold) -> None:
    info = trained.info
    if trained.scores is not None:
        write_stdout(format_table(trained.scores))
    write_stdout(f"\n{info.name}, {info.configuration}, fold {info.fold}: {info.steps} steps in "
                 f"{readable_seconds(info.seconds)}. Written: {trained.folder}")


def _next_step(run: Path) -> str:
    return f"Next: autoseg predict -i IMAGES -o MASKS --run {run}"
