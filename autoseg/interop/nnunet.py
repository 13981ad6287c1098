"""Models of nnU-Net v2 as ours: which a folder holds, what they are called, and each fold's network and record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import UserError, all_of
from autoseg.interop.nnunet_results import (
    STEPS_PER_EPOCH,
    Checkpoint,
    ResultFolder,
    choose_folds,
    find_folders,
    read_checkpoint,
    read_folder,
)
from autoseg.interop.nnunet_weights import fill_network
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.soundness import refuse_unsound
from autoseg.recording import versions
from autoseg.records import content_hash
from autoseg.schema import CheckpointInfo, ConfigurationName, PreviousStage


@dataclass(frozen=True)
class Wanted:
    """What a person asks for.

    Attributes
    ----------
    folder : a result folder, or a dataset's folder with several.
    name : of all models; None: `nnunet-` and the architecture.
    folds : None: every one that is there.
    checkpoint : the name of the files to read.
    """

    folder: Path
    name: str | None
    folds: tuple[str, ...] | None
    checkpoint: str


@dataclass(frozen=True)
class PlannedImport:
    """A model that will be written; `checkpoints`: fold → file."""

    folder: ResultFolder
    name: str
    checkpoints: dict[str, Path]
    previous_stage: PreviousStage | None

    @property
    def configuration(self) -> ConfigurationName:
        """The name of its configuration among ours."""
        return self.folder.described.configuration


def plan_import(wanted: Wanted, is_there: Callable[[str, ConfigurationName], bool]) -> tuple[PlannedImport, ...]:
    """The models that a folder holds, a cascade's previous stage among them.

    Parameters
    ----------
    is_there : whether the run holds a finished model of a name and configuration already.

    Raises
    ------
    UserError : what the folder holds is not as nnU-Net writes it, or not ours; folds are missing; a cascade lacks its
        previous stage; two models would have one name and configuration.
    """
    folders = list(find_folders(wanted.folder, wanted.checkpoint))
    folders += [stage for folder in folders if (stage := _stage_beside(folder, folders, wanted, is_there))]
    for folder in folders:
        described = folder.described
        refuse_unsound(described.architecture, described.network, f"{folder.path / 'plans.json'}: the",
                       "Give the plans.json with which these models were trained.")
    planned = tuple(
        PlannedImport(folder, _name(folder, wanted), choose_folds(folder, wanted.folds, wanted.checkpoint),
                      _previous_stage(folder, folders, wanted))
        for folder in folders
    )
    _refuse_twins(planned)
    return planned


def import_fold(planned: PlannedImport, fold: str) -> tuple[Segmenter, CheckpointInfo]:
    """A fold's network with its weights, on the CPU, and its record (without the weights' hash).

    Raises
    ------
    UserError : the checkpoint cannot be read safely, disagrees with its folder, or its tensors are not the network's.
    """
    path, folder = planned.checkpoints[fold], planned.folder
    checkpoint = read_checkpoint(path, folder, fold)
    network = fill_network(checkpoint.weights, folder.described, str(path))
    return network, _record(planned, fold, checkpoint)


def _record(planned: PlannedImport, fold: str, checkpoint: Checkpoint) -> CheckpointInfo:
    """What is known of an imported model; what is not stays empty."""
    folder, described = planned.folder, planned.folder.described
    labelled = described.labelled
    return CheckpointInfo(
        labels=labelled.labels, regions=labelled.regions, ignore=labelled.ignore, name=planned.name,
        configuration=described.configuration, fold=fold, architecture=described.architecture,
        network=described.network, is_2d=described.is_2d, file_ending=described.file_ending,
        channel_names=described.channel_names, store=described.store, mirror_axes=checkpoint.mirror_axes,
        previous_stage=planned.previous_stage,
        training={
            "imported_from": str(planned.checkpoints[fold].resolve()), "tool": "nnU-Net v2",
            "trainer": checkpoint.trainer, "plans": folder.plans_name, "nnunet_configuration": folder.nnunet_name,
            "epochs": checkpoint.epochs,
        },
        steps=(checkpoint.epochs or 0) * STEPS_PER_EPOCH, seconds=checkpoint.seconds,
        plan_hash=content_hash(folder.plans), weights_sha256="", versions=versions(),
    )  # fmt: skip


# ---------------------------------------------------------------- names and stages
def _name(folder: ResultFolder, wanted: Wanted) -> str:
    return wanted.name or f"nnunet-{folder.described.architecture}"


def _is_stage_of(folder: ResultFolder, other: ResultFolder) -> bool:
    """Whether `folder` is the previous stage of `other`, of the same trainer and plans."""
    same = (folder.trainer, folder.plans_name) == (other.trainer, other.plans_name)
    return same and folder.nnunet_name == other.described.previous_stage


def _stage_beside(
    folder: ResultFolder,
    others: Sequence[ResultFolder],
    wanted: Wanted,
    is_there: Callable[[str, ConfigurationName], bool],
) -> ResultFolder | None:
    """The previous stage of a cascade where it must be imported too; UserError where it is nowhere."""
    stage = folder.described.previous_stage
    if stage is None or any(_is_stage_of(other, folder) for other in others):
        return None
    if stage == "3d_lowres" and is_there(_name(folder, wanted), "3d_lowres"):
        return None
    sibling = folder.sibling(stage)
    if sibling.is_dir():
        return read_folder(sibling, wanted.checkpoint)
    raise UserError(f"{folder.path} is a cascade: its network needs the masks of {stage}, and neither {sibling} nor a "
                    f"model {_name(folder, wanted)} ({stage}) in the run folder is there.\n"
                    f"Put the results of {stage} beside it, or give the dataset's folder that holds both.")


def _previous_stage(folder: ResultFolder, folders: Sequence[ResultFolder], wanted: Wanted) -> PreviousStage | None:
    if folder.described.previous_stage is None:
        return None
    for other in folders:
        if _is_stage_of(other, folder):
            return PreviousStage(name=_name(other, wanted), configuration=other.described.configuration)
    return PreviousStage(name=_name(folder, wanted), configuration="3d_lowres")


def _refuse_twins(planned: Sequence[PlannedImport]) -> None:
    targets = [(one.name, one.configuration) for one in planned]
    twins = [f"{one.folder.path.name} as {one.name} ({one.configuration})"
             for one, target in zip(planned, targets, strict=True) if targets.count(target) > 1]
    if twins:
        raise all_of(twins, "Several result folders would become one model:",
                     "Import them one by one: give each of these folders, with a --name of its own.")
