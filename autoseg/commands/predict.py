"""`autoseg predict`: masks for a folder of images."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import readable_seconds
from autoseg.recording import recorded
from autoseg.schema import ConfigurationName, Failure

if TYPE_CHECKING:
    from torch import nn

    from autoseg.inference.trained import TrainedModel
    from autoseg.schema import CheckpointInfo

SOME_FAILED = 3


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
        str | None, Parameter(help="Comma-separated (0,1,…) or `all`; by default every trained fold, averaged.")
    ] = None,
    speed: Annotated[Literal["exact"], Parameter(help="`exact`: nnU-Net's windows and mirroring.")] = "exact",
    tta: Annotated[
        bool, Parameter(name="--tta", negative="--no-tta", help="Average over mirrored copies of the image.")
    ] = True,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace masks that exist already.")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = DEFAULT_SEED,
    json: JsonOption = False,
) -> int:
    """Segment a folder of images; masks land on the images' own grids.

    Several folds are averaged. Without --name and --configuration the only trained model is taken. The output
    folder receives one mask per case, labels.json and, if a case failed, failures.json with the reason
    (exit status 3; 2 when every case failed).
    """
    from autoseg.inference.trained import choose_folds, choose_model

    _refuse_same_folder(input, output)  # before anything, even a record, is written there
    with recorded("predict", output, seed) as recording:
        start = time.perf_counter()
        model = choose_model(run, name, configuration)
        chosen = choose_folds(model, folds)
        networks = _read_models(model, chosen)
        recording.inputs.update({f"fold_{info.fold}": info.weights_sha256 for _, info in networks})
        recording.inputs["images"] = str(input.resolve())
        written, failures, recording.device = _predict(networks, input, output, device, tta, overwrite)
        if failures and not written:
            raise all_of([f"{failure.id}: {failure.reason}" for failure in failures],
                         f"{input}: none of the {len(failures)} cases could be segmented:",
                         "Correct these images, or name another folder with --input.")
        seconds = round(time.perf_counter() - start, 3)
        recording.exit_status = SOME_FAILED if failures else 0
        counts = {"predicted": len(written), "failed": len(failures)}
        recording.results.update(counts, seconds=seconds, speed=speed, tta=tta)
        if json:
            write_json_object({**counts, "seconds": seconds, "output": str(output)})
        else:
            write_stdout(_summary(written, failures, output, seconds))
    return recording.exit_status


def _read_models(model: "TrainedModel", folds: tuple[str, ...]) -> list[tuple["nn.Module", "CheckpointInfo"]]:
    from autoseg.networks.checkpoint import read_model

    return [read_model(model.fold_folder(fold)) for fold in folds]


def _predict(  # noqa: PLR0913
    models: list[tuple["nn.Module", "CheckpointInfo"]],
    images: Path,
    output: Path,
    device_name: Literal["auto", "cpu", "cuda"],
    tta: bool,
    overwrite: bool,
) -> tuple[list[Path], list[Failure], str]:
    """Masks written, failures, and the device that computed."""
    import torch

    from autoseg.data.dataset import list_images
    from autoseg.inference.device import choose_device
    from autoseg.inference.prediction import PredictSettings, predict_cases

    device = choose_device(device_name)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # all windows have one shape
    info = models[0][1]
    cases = list_images(images, len(info.channel_names), info.file_ending)
    settings = PredictSettings(device=device, tta=tta, overwrite=overwrite)
    written, failures = predict_cases(cases, models, output, settings)
    return written, failures, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


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
