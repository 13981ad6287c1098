"""What a pretraining is of: its settings and images, where it stands, and what a resumed one must share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from autoseg.errors import UserError
from autoseg.initialization.images import ImageSet
from autoseg.initialization.record import InitMethod, PretextPlan
from autoseg.initialization.schedule import Plateau
from autoseg.networks.checkpoint import read_resume_facts
from autoseg.records import content_hash
from autoseg.schema import ArchitectureName, ConfigurationName, NetworkPlan, OptimizerPlan, Plan, StoreRecord
from autoseg.training.session import replace_record
from autoseg.training.settings import TrainSettings, settings_from_flat

EndedBy = Literal["steps", "time", "plateau"]


@dataclass(frozen=True, kw_only=True)
class InitSession:
    """What is to be pretrained, on what, and where it goes.

    `folder`: init/<name>/<configuration>/fold_<k>. `steps` at most, and `max_minutes` where it is given.
    """

    plan: Plan
    configuration: ConfigurationName
    architecture: ArchitectureName
    name: str
    fold: str
    method: InitMethod
    pretext: PretextPlan
    settings: TrainSettings
    optimizer: OptimizerPlan
    steps: int
    max_minutes: float | None
    seed: int
    store: StoreRecord
    images: ImageSet
    extra_folder: Path | None
    folder: Path
    device: torch.device
    versions: dict[str, str]

    @property
    def network_plan(self) -> NetworkPlan:
        """The plan's network, with the batch and the optimizer of this pretraining."""
        planned = self.plan.configurations[self.configuration].networks[self.architecture]
        limit = self.settings.max_batch_size or planned.batch_size
        return replace_record(planned, batch_size=min(planned.batch_size, limit), optimizer=self.optimizer)

    @property
    def plan_hash(self) -> str:
        """As `input_hash` of the plan's network."""
        return input_hash(self.architecture, self.network_plan, self.store)


def input_hash(architecture: ArchitectureName, network: NetworkPlan, store: StoreRecord) -> str:
    """Changes with whatever shapes a network's weights or what it sees: topology, patch, spacing, normalization."""
    shape = {"patch_shape", "topology"}
    return content_hash([architecture, network.model_dump(mode="json", include=shape), store.facts])


@dataclass
class PretrainState:
    """Where a pretraining stands; with weights and optimizer it is all that resuming needs.

    `masked_error`, `order_accuracy`: running means of what is shown. `ended_by` is set at the end.
    """

    step: int = 0
    seconds: float = 0.0
    masked_error: float | None = None
    order_accuracy: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    ended_by: EndedBy | None = None


@dataclass(frozen=True)
class Begun:
    """What an interrupted pretraining was begun with: the values for options that its continuation leaves out."""

    settings: TrainSettings
    method: InitMethod
    steps: int
    max_minutes: float | None
    learning_rate: float


def read_begun(folder: Path) -> Begun | None:
    """What the resumable state in an init folder was begun with; None where there is none.

    Raises
    ------
    UserError : the state is of another version of autoseg.
    """
    facts = read_resume_facts(folder / "resume")
    if facts is None:
        return None
    try:
        settings = settings_from_flat(facts["settings"], str(folder / "resume"))
        return Begun(settings, facts["method"], facts["steps"], facts["max_minutes"],
                     facts["optimizer"]["learning_rate"])
    except (KeyError, TypeError):
        raise other_version(folder) from None


def other_version(folder: Path) -> UserError:
    """The message for a state that this version cannot continue."""
    return UserError(f"--resume: {folder} was begun by another version of autoseg.\nContinue with that version, or "
                     "start anew with --overwrite.")


def facts_of(session: InitSession) -> dict[str, Any]:
    """What a resumed pretraining must share with the one that it continues."""
    return {
        "plan_hash": session.plan_hash,
        "images": content_hash([image.model_dump() for image in session.images.identities(session.images.training)]),
        "method": session.method, "seed": session.seed, "steps": session.steps, "max_minutes": session.max_minutes,
        "batch_size": session.network_plan.batch_size, "optimizer": session.optimizer.model_dump(mode="json"),
        "settings": session.settings.flat(), "augmentation": [session.settings.augment, session.settings.mirror],
    }


def matching_facts(session: InitSession) -> dict[str, Any]:
    """What the resumable state was begun with; UserError where this session asks for something else."""
    facts = read_resume_facts(session.folder / "resume")
    if facts is None:
        raise UserError(f"--resume: {session.folder} holds no pretraining to continue.\nRun without --resume to start "
                        "one.")
    names = {"plan_hash": "the plan", "images": "the images", "method": "--method", "seed": "--seed",
             "steps": "--steps", "max_minutes": "--max-minutes", "batch_size": "the batch size",
             "optimizer": "the optimizer", "augmentation": "the augmentation"}
    asked = facts_of(session)
    changed = [words for key, words in names.items() if facts.get(key) != asked[key]]
    if changed:
        raise UserError(f"--resume: {session.folder} was begun with another setting of {', '.join(changed)}.\nRestore "
                        "it, or start anew with --overwrite or under another --name.")
    return facts
