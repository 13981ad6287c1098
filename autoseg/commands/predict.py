"""`autoseg predict`: masks for a folder of images."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from autoseg.commands.options import (
    DEFAULT_RUN,
    DEFAULT_SEED,
    DeviceOption,
    JsonOption,
    RunOption,
    SeedOption,
)
from autoseg.errors import UserError, all_of
from autoseg.inference.speeds import SPEEDS, SpeedName
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import readable_seconds
from autoseg.recording import recorded
from autoseg.schema import ConfigurationName, Failure

if TYPE_CHECKING:
    from autoseg.inference.best import Chosen
    from autoseg.inference.ensembling import Member
    from autoseg.inference.prediction import PredictSettings

SOME_FAILED = 3
logger = logging.getLogger("autoseg")


def predict(  # noqa: PLR0913 (a command's options)
    *,
    input: Annotated[Path, Parameter(name=["--input", "-i"], help="Folder of images, named as in imagesTr.")],
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the masks; made if absent.")],
    run: RunOption = DEFAULT_RUN,
    name: Annotated[str | None, Parameter(help="The model's name; needed where several are trained.")] = None,
    configuration: Annotated[
        ConfigurationName | None, Parameter(help="Needed where the model was trained in several.")
    ] = None,
    folds: Annotated[
        str | None, Parameter(help="Comma-separated (0,1,…) or `all`; by default every trained fold of the "
                                   "cross-validation, averaged; with a faster --speed than `exact` one.")
    ] = None,
    speed: Annotated[
        SpeedName,
        Parameter(help="`exact`: nnU-Net's windows, mirroring and folds. `balanced`: two mirrored copies of a window, "
                       "the fold that validated best, the device's fastest precision. `fast`: one copy, less overlap. "
                       "What they cost in Dice, as `train` measured it, is printed."),
    ] = "exact",
    tta: Annotated[
        bool, Parameter(name="--tta", negative="--no-tta", help="Average over mirrored copies of the image.")
    ] = True,
    postprocessing: Annotated[
        bool, Parameter(name="--postprocessing", negative="--no-postprocessing",
                        help="Remove what `find-best` found worth removing; only where best.json chooses the models."),
    ] = True,
    save_probabilities: Annotated[
        bool, Parameter(negative=(), help="Write CASE_probabilities.nii.gz too: a channel per class or region.")
    ] = False,
    skip_empty: Annotated[
        bool, Parameter(negative=(), help="Leave out windows in which every channel has one value (padding, air): "
                                          "background is written there. Not nnU-Net's, and not measured.")
    ] = False,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace masks that exist already.")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = DEFAULT_SEED,
    json: JsonOption = False,
) -> int:
    """Segment a folder of images; masks land on the images' own grids.

    Several folds are averaged; the faster levels of --speed take one. Without --name and --configuration the choice of
    `find-best` (best.json) is taken, with its postprocessing; where nothing was chosen, the only trained model. A
    cascade runs both stages.
    The output folder receives one mask per case, labels.json (names and values of labels or regions; also the order
    of the channels of probabilities) and, if a case failed, failures.json with the reason (exit status 3; 2 when
    every case failed).
    """
    from autoseg.commands.speed_choice import read_members, settings_of, tell_costs
    from autoseg.inference.device import choose_device

    _refuse_same_folder(input, output)  # before anything, even a record, is written there
    with recorded("predict", output, seed) as recording:
        start = time.perf_counter()
        level = SPEEDS[speed]
        chosen = _choose(run, name, configuration, folds, postprocessing)
        members = read_members(chosen, level, folds is None)
        recording.inputs.update(_hashes(members))
        recording.inputs["images"] = str(input.resolve())
        asked = settings_of(level, members, choose_device(device), tta)
        settings = replace(asked, skip_constant=skip_empty, overwrite=overwrite, save_probabilities=save_probabilities,
                           largest_components=chosen.largest_components)
        costs = tell_costs(chosen, members, level, settings)
        written, failures, recording.device = _predict(members, input, output, settings)
        if failures and not written:
            raise all_of([f"{failure.id}: {failure.reason}" for failure in failures],
                         f"{input}: none of the {len(failures)} cases could be segmented:",
                         "Correct these images, or name another folder with --input.")
        seconds = round(time.perf_counter() - start, 3)
        recording.exit_status = SOME_FAILED if failures else 0
        counts = {"predicted": len(written), "failed": len(failures)}
        recording.results.update(counts, seconds=seconds, speed=speed, tta=tta, skip_empty=skip_empty,
                                 precision=settings.precision_name,
                                 postprocessing=in_words(chosen.largest_components), **costs)
        if json:
            write_json_object({**counts, "seconds": seconds, "output": str(output), "speed": speed, **costs})
        else:
            write_stdout(_summary(written, failures, output, seconds))
    return recording.exit_status


def _choose(
    run: Path, name: str | None, configuration: ConfigurationName | None, folds: str | None, postprocessing: bool
) -> "Chosen":
    """The models and folds that are meant: those named, or those of best.json, or the only one there is."""
    from autoseg.inference.best import BEST_NAME, Chosen, choose_best, read_best
    from autoseg.inference.trained import choose_folds, choose_model

    best = read_best(run) if name is None and configuration is None else None
    if best is None:
        model = choose_model(run, name, configuration)
        return Chosen(((model, choose_folds(model, folds)),))
    chosen = choose_best(run, best)
    models = tuple((model, own if folds is None else choose_folds(model, folds)) for model, own in chosen.models)
    chosen = Chosen(models, chosen.largest_components if postprocessing else ())
    named = " + ".join(f"{model.name} {model.configuration} (folds {', '.join(taken)})" for model, taken in models)
    logger.info("%s chooses %s; postprocessing: %s", run / BEST_NAME, named, in_words(chosen.largest_components))
    return chosen


def in_words(largest_components: Sequence[str | None]) -> str:
    """What postprocessing does, for a person."""
    names = ["all foreground" if name is None else name for name in largest_components]
    return f"largest component of {', then of '.join(names)}" if names else "none"


def _hashes(members: Sequence["Member"]) -> dict[str, str]:
    """Every network's name → hash of its weights; the folds of a model on its own are called `fold_<k>`."""
    if len(members) == 1 and members[0].previous is None:
        return {f"fold_{info.fold}": info.weights_sha256 for _, info in members[0].folds}
    return {f"{info.name}/{info.configuration}/fold_{info.fold}": info.weights_sha256
            for member in members for stage in member.stages for _, info in stage.folds}


def _predict(
    members: Sequence["Member"], images: Path, output: Path, settings: "PredictSettings"
) -> tuple[list[Path], list[Failure], str]:
    """Masks written, failures, and the device that computed."""
    import torch

    from autoseg.data.dataset import list_images
    from autoseg.inference.device import name_of
    from autoseg.inference.prediction import predict_members

    device = settings.device
    torch.backends.cudnn.benchmark = device.type == "cuda"  # all windows have one shape
    info = members[0].info
    cases = list_images(images, len(info.channel_names), info.file_ending)
    written, failures = predict_members(cases, members, output, settings)
    return written, failures, name_of(device)


def _refuse_same_folder(images: Path, output: Path) -> None:
    if images.resolve() == output.resolve():
        raise UserError(f"--output {output} is the folder of the images; masks beside images would be taken "
                        "for images next time.\nChoose another output folder.")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; a folder was expected. Choose another name.")


def _summary(written: list[Path], failures: list[Failure], output: Path, seconds: float) -> str:
    lines = [f"{len(written)} masks written to {output} in {readable_seconds(seconds)}."]
    if failures:
        lines.append(f"{len(failures)} cases failed; the reasons are in {output / 'failures.json'}:")
        lines.extend(f"  - {failure.id}: {failure.reason.splitlines()[0]}" for failure in failures[:20])
    else:
        lines.append(f"Next: autoseg evaluate -p {output} -r REFERENCES   (where reference labels exist)")
    return "\n".join(lines)
