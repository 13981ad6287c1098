"""What lies in a result folder of nnU-Net v2: configurations, folds, and what their checkpoints say of themselves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeGuard

from pydantic import BaseModel
from torch import Tensor

from autoseg.errors import UserError, all_of
from autoseg.interop.nnunet_plans import Described, describe
from autoseg.interop.pickles import StoredTensor, read_tensors, read_torch_file
from autoseg.records import read_json

LAYOUT = """A result folder of nnU-Net v2 was expected:
  <trainer>__<plans>__<configuration>/plans.json, dataset.json, fold_0/checkpoint_final.pth, …
or the dataset's folder, which holds several of these."""
FINAL = "checkpoint_final.pth"
ALTERNATIVES = ("checkpoint_best.pth", "checkpoint_latest.pth")
STEPS_PER_EPOCH = 250
"""Of nnU-Net's trainers; a checkpoint counts epochs only."""
_FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class ResultFolder:
    """One `<trainer>__<plans>__<configuration>`; `nnunet_name` is nnU-Net's name of the configuration.

    Attributes
    ----------
    plans, dataset : the parsed files.
    """

    path: Path
    trainer: str
    plans_name: str
    nnunet_name: str
    plans: object
    dataset: object
    described: Described

    def sibling(self, configuration: str) -> Path:
        """Where the same trainer and plans keep another configuration."""
        return self.path.with_name(f"{self.trainer}__{self.plans_name}__{configuration}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of one fold.

    Attributes
    ----------
    weights : under nnU-Net's names.
    mirror_axes : positions in the patch that training mirrored.
    epochs : finished; None where the file does not say. seconds : of all epochs, 0 where it does not say.
    """

    weights: dict[str, Tensor]
    mirror_axes: tuple[int, ...]
    trainer: str
    epochs: int | None
    seconds: float


# ---------------------------------------------------------------- folders
def find_folders(folder: Path, checkpoint: str = FINAL) -> tuple[ResultFolder, ...]:
    """The result folder itself, or those in a dataset's folder, by name.

    Raises
    ------
    UserError : there is none, its plans.json or dataset.json cannot be read, or what they describe is not ours.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}.\n{LAYOUT}")
    if _parts(folder) is not None or (folder / "plans.json").is_file():
        return (read_folder(folder, checkpoint),)
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and _parts(path) is not None]
    if not inside:
        raise UserError(f"{folder} holds no results of nnU-Net v2.\n{LAYOUT}")
    return tuple(read_folder(path, checkpoint) for path in inside)


def read_folder(folder: Path, checkpoint: str = FINAL) -> ResultFolder:
    """A result folder; of one that was renamed, its first checkpoint tells the configuration.

    Raises what `find_folders` raises.
    """
    absent = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder} lacks {' and '.join(absent)}.\n{LAYOUT}")
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    trainer, plans_name, name = _parts(folder) or _parts_told(folder, checkpoint)
    described = describe(plans, dataset, name, folder)
    return ResultFolder(folder, trainer, plans_name, name, plans, dataset, described)


def _parts(folder: Path) -> tuple[str, str, str] | None:
    """Trainer, plans and configuration; None where the name has not three parts."""
    parts = folder.resolve().name.split("__")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 and all(parts) else None


def _parts_told(folder: Path, checkpoint: str) -> tuple[str, str, str]:
    """Trainer, plans and configuration as a checkpoint in the folder tells them."""
    for path in sorted(folder.glob(f"fold_*/{checkpoint}")):
        content = read_torch_file(path)
        made_with = content.get("init_args") if isinstance(content, dict) else None
        if isinstance(content, dict) and isinstance(made_with, dict) and "configuration" in made_with:
            plans = made_with.get("plans")
            named = plans.get("plans_name", "plans") if isinstance(plans, dict) else "plans"
            return str(content.get("trainer_name")), str(named), str(made_with["configuration"])
    raise UserError(f"{folder} is not named <trainer>__<plans>__<configuration>, and no {checkpoint} in it says which "
                    f"configuration it is.\n{LAYOUT}")


def choose_folds(folder: ResultFolder, wanted: Sequence[str] | None, checkpoint: str) -> dict[str, Path]:
    """Fold ("0", "1", …, "all") → its checkpoint, of the wanted folds or of all.

    Raises
    ------
    UserError : a wanted fold, or any fold's checkpoint, is missing; it lists what is there.
    """
    there = {found[1]: path for path in sorted(folder.path.iterdir())
             if path.is_dir() and (found := _FOLD.fullmatch(path.name))}
    if not there:
        raise UserError(f"{folder.path} has no fold_0, fold_1, … or fold_all.\n{LAYOUT}")
    chosen = sorted(there, key=lambda fold: (not fold.isdigit(), fold.zfill(9))) if wanted is None else wanted
    problems = [f"fold {fold} is missing; there are {', '.join(there)}" for fold in chosen if fold not in there]
    for fold in chosen:
        if fold in there and not (there[fold] / checkpoint).is_file():
            others = [name for name in (FINAL, *ALTERNATIVES) if (there[fold] / name).is_file()]
            problems.append(f"fold {fold} has no {checkpoint}" + (f", but {', '.join(others)}" if others else ""))
    if problems:
        raise all_of(problems, f"{folder.path} does not hold all folds that were to be imported:",
                     "Finish their training, choose other folds with --folds, or another file with --checkpoint.")
    return {fold: there[fold] / checkpoint for fold in chosen}


# ---------------------------------------------------------------- checkpoints
def read_checkpoint(path: Path, folder: ResultFolder, fold: str) -> Checkpoint:
    """A fold's checkpoint, which must agree with the folder that it lies in.

    Raises
    ------
    UserError : it cannot be read safely, is no checkpoint of nnU-Net, or was trained with other plans, labels,
        configuration or fold than the folder says.
    """
    content = read_torch_file(path)
    stored = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not _are_weights(stored):
        raise UserError(f"{path} holds no `network_weights`; a checkpoint of nnU-Net v2 was expected.\n{LAYOUT}")
    if problems := _disagreements(content, folder, fold, path):
        raise all_of(problems, f"{path} and the folder that it lies in disagree:",
                     "Put the checkpoint back with the plans.json and dataset.json of its training.")
    return Checkpoint(
        weights=read_tensors(path, stored),
        mirror_axes=_mirror_axes(content.get("inference_allowed_mirroring_axes"), folder, path),
        trainer=str(content.get("trainer_name", folder.trainer)),
        epochs=_whole(content.get("current_epoch")),
        seconds=_seconds(content.get("logging")),
    )


def _are_weights(stored: object) -> TypeGuard[dict[str, StoredTensor]]:
    return isinstance(stored, dict) and bool(stored) and all(
        isinstance(name, str) and isinstance(value, StoredTensor) for name, value in stored.items()
    )


def _disagreements(content: Mapping[object, object], folder: ResultFolder, fold: str, path: Path) -> list[str]:
    """Where what the checkpoint was made with is not what stands in the folder; what it does not say is skipped."""
    made_with = content.get("init_args")
    if not isinstance(made_with, dict):
        return []
    problems = []
    name = made_with.get("configuration", folder.nnunet_name)
    if name != folder.nnunet_name:
        problems.append(f"it was trained as {name}, and the folder is called {folder.path.name}")
    if str(made_with.get("fold", fold)) != fold:
        problems.append(f"it is of fold {made_with['fold']}, and lies in fold_{fold}")
    trainer = content.get("trainer_name", folder.trainer)
    if trainer != folder.trainer:
        problems.append(f"its trainer is {trainer}, and the folder is called {folder.path.name}")
    if problems or not isinstance(made_with.get("plans"), dict):
        return problems
    own = describe(made_with["plans"], made_with.get("dataset_json", folder.dataset), folder.nnunet_name, path)
    compared = [(field.name, getattr(own, field.name), getattr(folder.described, field.name))
                for field in fields(Described)]
    return [f"{name}: {'; '.join(_differences(checkpoints, folders))}"
            for name, checkpoints, folders in compared if checkpoints != folders]


def _differences(checkpoints: object, folders: object, name: str = "") -> list[str]:
    """What differs, down to the entries of records, in words."""
    if isinstance(checkpoints, BaseModel) and type(checkpoints) is type(folders):
        return [difference for entry in type(checkpoints).model_fields
                if (one := getattr(checkpoints, entry)) != (other := getattr(folders, entry))
                for difference in _differences(one, other, f"{name}.{entry}" if name else entry)]
    subject = f"{name} is " if name else ""
    return [f"{subject}{_short(checkpoints)} in the checkpoint, {_short(folders)} in the folder's plans.json and "
            "dataset.json"]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _mirror_axes(found: object, folder: ResultFolder, path: Path) -> tuple[int, ...]:
    """Of prediction; none where the checkpoint does not allow any."""
    axes = range(len(folder.described.network.patch_shape))
    given = tuple(found) if isinstance(found, list | tuple) else () if found is None else (found,)
    if any(axis not in axes for axis in given):
        raise UserError(f"{path}: inference_allowed_mirroring_axes is {found!r}; positions among {tuple(axes)} were "
                        f"expected.\n{LAYOUT}")
    return tuple(sorted(set(given)))


def _whole(found: object) -> int | None:
    return found if isinstance(found, int) and found >= 0 else None


def _seconds(logged: object) -> float:
    """The sum over epochs, where both ends of every epoch were logged."""
    starts, ends = (logged.get(f"epoch_{end}_timestamps") if isinstance(logged, dict) else None
                    for end in ("start", "end"))
    if not (isinstance(starts, list) and isinstance(ends, list)):
        return 0.0
    pairs = [(start, end) for start, end in zip(starts, ends, strict=False)
             if isinstance(start, int | float) and isinstance(end, int | float)]
    return round(float(sum(end - start for start, end in pairs)), 1)
