"""What `train --init` means in a run folder: which first weights, and the name that the model gets from them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.errors import UserError
from autoseg.initialization.sources import find_source
from autoseg.initialization.transfer import (
    Planned,
    init_folder,
    is_finished,
    read_foreign_weights,
    read_init,
    refuse_misfit,
)
from autoseg.networks.weight_transfer import NetworkFacts
from autoseg.schema import ArchitectureName, ConfigurationName
from autoseg.training.first_weights import FirstWeights
from autoseg.training.session import read_started_with

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Asked:
    """The options of `train` that decide how it begins. `name` is None where the user gave none.

    `switched_on` : what a model's own name adds for the method of training ("+gin+text"); first weights do not have it.
    """

    run: Path
    name: str | None
    architecture: ArchitectureName
    configuration: ConfigurationName
    fold: str
    init: str
    resume: bool
    switched_on: str = ""

    @property
    def from_scratch(self) -> str:
        """The model's name where its weights are drawn."""
        return self.name or f"{self.architecture}{self.switched_on}"

    @property
    def with_init(self) -> str:
        """The model's name where it begins with first weights."""
        return self.name or f"{self.architecture}+init{self.switched_on}"


@dataclass(frozen=True)
class Beginning:
    """How a training begins.

    Attributes
    ----------
    source : the folder of first weights, or what the user named for one; None: drawn. `is_own`: it is this run's, for
        this fold and name.
    continued : what a training that is resumed began with; its state holds the weights.
    """

    model_name: str
    source: Path | None = None
    is_own: bool = False
    continued: FirstWeights | None = None

    def read(self, planned: Planned, wanted: NetworkFacts, validation: Sequence[Case]) -> FirstWeights | None:
        """The first weights, checked against network and fold; None where they are drawn. Raises what reading raises.

        wanted : of the network to train. Weights of this run's pretraining must fit it exactly, of others what fits is
            moved.
        """
        if self.source is None:
            return self.continued
        if not self.is_own:
            return read_foreign_weights(find_source(self.source), planned, validation, wanted)
        first = read_init(self.source, planned, validation)
        refuse_misfit(first, planned, len(wanted.channels))
        return first


def model_folder(run: Path, name: str, configuration: ConfigurationName, fold: str) -> Path:
    """Where a run keeps a fold of a model."""
    return run / "models" / name / configuration / f"fold_{fold}"


def check_name(name: str) -> str:
    """The name, where it can name a folder; else a UserError."""
    if not name.replace("+", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UserError(f"--name {name!r}: letters, digits and + - _ . were expected.")
    return name


def choose_beginning(asked: Asked) -> Beginning:
    """Which first weights a training takes; without --name the model is called after the network, "+init" with them.

    `auto` takes what `pretrain-init` left for this fold and name. A resumed training keeps what it began with.
    """
    own = init_folder(asked.run, asked.name or asked.architecture, asked.configuration, asked.fold)
    if asked.resume and asked.init == "auto":
        return _continued(asked)
    if asked.init == "scratch":
        return Beginning(asked.from_scratch)
    if asked.init != "auto":
        return Beginning(asked.with_init, Path(asked.init))
    if is_finished(own):
        return Beginning(asked.with_init, own, is_own=True)
    return Beginning(asked.from_scratch)


def announce_beginning(asked: Asked, beginning: Beginning) -> None:
    """One line on what `--init auto` came to, where there is something to say."""
    if asked.init != "auto" or asked.resume:
        return
    if beginning.is_own:
        logger.info("--init auto: first weights from %s", beginning.source)
    else:
        _say_none(asked, init_folder(asked.run, asked.name or asked.architecture, asked.configuration, asked.fold))


def _continued(asked: Asked) -> Beginning:
    """The training to continue: with first weights where one is under way, else the one from scratch."""
    for name in dict.fromkeys((asked.with_init, asked.from_scratch)):
        folder = model_folder(asked.run, name, asked.configuration, asked.fold)
        if (folder / "resume").is_dir():
            return Beginning(name, continued=read_started_with(folder))
    return Beginning(asked.from_scratch)


def _say_none(asked: Asked, own: Path) -> None:
    """One line where first weights exist that are not taken, because of their name or because they are unfinished."""
    if (own / "resume").is_dir():
        logger.warning("--init auto: the pretraining in %s has not finished, so weights are drawn; to finish it, "
                       "repeat its command with --resume", own)
        return
    finished = (asked.run / "init").glob(f"*/{asked.configuration}/fold_{asked.fold}/init.json")
    others = sorted(path.parents[2].name for path in finished)
    if others:
        logger.info("--init auto: weights are drawn; there are first weights for %s (--name, or --init %s)",
                    ", ".join(others), init_folder(asked.run, others[0], asked.configuration, asked.fold))
