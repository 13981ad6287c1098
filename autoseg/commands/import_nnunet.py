"""`autoseg import-nnunet`: models that nnU-Net v2 trained, as models of a run folder."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from cyclopts import Parameter

from autoseg.commands.beginning import check_name, model_folder
from autoseg.commands.options import DEFAULT_RUN, JsonOption, RunOption
from autoseg.errors import UserError, all_of
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import progress
from autoseg.recording import recorded
from autoseg.records import file_sha256, storage_error

if TYPE_CHECKING:
    from autoseg.interop.nnunet import PlannedImport


def import_nnunet(
    folder: Annotated[Path, Parameter(help="TRAINER\\_\\_PLANS\\_\\_CONFIGURATION, or its parent.")],
    *,
    run: RunOption = DEFAULT_RUN,
    name: Annotated[str | None, Parameter(help="The models' name; by default nnunet-plain or nnunet-resenc.")] = None,
    folds: Annotated[str | None, Parameter(help="Comma-separated (0,1,…,all); by default every one there is.")] = None,
    checkpoint: Annotated[str, Parameter(help="The file of each fold to read.")] = "checkpoint_final.pth",
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace models of the same name.")] = False,
    json: JsonOption = False,
) -> int:
    """Bring models that nnU-Net v2 trained into a run folder; `autoseg predict` then uses them as our own.

    A checkpoint is a pickle, which can make its reader run anything. It is read here by a reader that makes tensors,
    numbers and plain containers only, and refuses a file that asks for more. Either all folds are imported or none.
    """
    from autoseg.interop.nnunet import Wanted, plan_import

    with recorded("import-nnunet", run) as recording:
        recording.inputs["folder"] = str(folder.resolve())
        wanted = Wanted(folder, None if name is None else check_name(name), _folds(folds), _file_name(checkpoint))
        planned = plan_import(wanted, lambda named, configuration: _is_finished(run, named, configuration))
        targets = [(one, fold, model_folder(run, one.name, one.configuration, fold))
                   for one in planned for fold in one.checkpoints]
        _refuse_existing([target for *_, target in targets], overwrite)
        recording.inputs |= {f"{one.configuration}/fold_{fold}": file_sha256(one.checkpoints[fold])
                             for one, fold, _ in targets}
        _import(targets, run)
        models = [_summary(one, run) for one in planned]
        recording.results |= {"models": len(models), "folds": len(targets)}
    if json:
        write_json_object({"run": str(run), "models": models})
    else:
        lines = [f"{model['name']} ({model['configuration']}): folds {', '.join(model['folds'])}  in {model['folder']}"
                 for model in models]
        write_stdout("\n".join(["Imported:", *lines, f"Next: autoseg predict --run {run} --name {models[0]['name']} "
                                f"--configuration {models[0]['configuration']} -i IMAGES -o MASKS"]))
    return 0


def _import(targets: Sequence[tuple["PlannedImport", str, Path]], run: Path) -> None:
    """Convert every fold beside the models, then move all into place: a bad one leaves nothing behind."""
    from autoseg.interop.nnunet import import_fold
    from autoseg.networks.checkpoint import write_model

    waiting = run / f".import-{uuid4().hex[:8]}"
    try:
        with progress("import", len(targets), "folds") as bar:
            for number, (one, fold, _) in enumerate(targets):
                network, info = import_fold(one, fold)
                write_model(waiting / str(number), network, info)
                bar.advance(1, f"{one.configuration}, fold {fold}")
        for number, (*_, target) in enumerate(targets):
            if target.exists():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(waiting / str(number), target)
    except OSError as error:
        raise storage_error(error, run) from error
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
        with suppress(OSError):  # of a new run folder in which nothing could be put nothing stays
            run.rmdir()


def _summary(one: "PlannedImport", run: Path) -> dict[str, Any]:
    stage = one.previous_stage
    return {
        "name": one.name, "configuration": one.configuration, "folds": list(one.checkpoints),
        "folder": str(model_folder(run, one.name, one.configuration, "0").parent),
        "previous_stage": None if stage is None else f"{stage.name} ({stage.configuration})",
    }  # fmt: skip


def _is_finished(run: Path, name: str, configuration: str) -> bool:
    from autoseg.inference.trained import list_models

    return any((model.name, model.configuration) == (name, configuration) for model in list_models(run))


def _refuse_existing(targets: Sequence[Path], overwrite: bool) -> None:
    existing = [str(target) for target in targets if target.exists()]
    if existing and not overwrite:
        raise all_of(existing, f"{len(existing)} of {len(targets)} folds exist already:",
                     "Give --overwrite to replace them, or another --name.")


def _folds(given: str | None) -> tuple[str, ...] | None:
    """The folds in a list; None: all."""
    if given is None:
        return None
    wanted = tuple(dict.fromkeys(fold.strip() for fold in given.split(",") if fold.strip()))
    if not wanted:
        raise UserError(f"--folds {given!r} names no fold; numbers or `all`, comma-separated, were expected.")
    return wanted


def _file_name(checkpoint: str) -> str:
    if Path(checkpoint).name != checkpoint:
        raise UserError(f"--checkpoint {checkpoint}: the name of a file in each fold's folder was expected, such as "
                        "checkpoint_best.pth.")
    return checkpoint
