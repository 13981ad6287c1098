"""best.json: what `find-best` chose, why, and which models `predict` takes because of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from autoseg.errors import all_of
from autoseg.inference.postprocessing import TriedStep
from autoseg.inference.trained import TrainedModel, list_models
from autoseg.records import Record, read_record
from autoseg.schema import ConfigurationName

BEST_NAME = "best.json"
AGAIN = "Choose anew with `autoseg find-best`, or name a model with --name and --configuration."


class ModelName(Record):
    """A trained model of the run folder."""

    name: str
    configuration: ConfigurationName

    def __str__(self) -> str:
        return f"{self.name} {self.configuration}"


class ChosenModel(ModelName):
    """A model to predict with, and its folds."""

    folds: tuple[str, ...] = Field(min_length=1)


class Candidate(Record):
    """One model, or a pair whose probabilities are averaged, on the cases of the folds compared.

    Attributes
    ----------
    dice, nsd : the mean over labels of the labels' means over all cases.
    labels : the labels' mean Dice.
    fold_dice : the same mean Dice within each fold; dice_std : their standard deviation (n − 1), None of one fold.
    """

    members: tuple[ModelName, ...] = Field(min_length=1)
    dice: float | None
    nsd: float | None
    labels: dict[str, float | None]
    fold_dice: dict[str, float | None]
    dice_std: float | None

    @property
    def members_text(self) -> str:
        """The models by name."""
        return " + ".join(map(str, self.members))


class LeftOut(Record):
    """A model that could not be compared, and why."""

    name: str
    configuration: str
    reason: str


class Best(Record):
    """`best.json`.

    Attributes
    ----------
    members : the models to predict with; of several the probabilities are averaged.
    postprocessing : every removal that was tried; the accepted ones are applied in this order.
    folds, cases : what was compared on: folds, and the number of their validation cases.
    dice : the chosen candidate's mean Dice before postprocessing, dice_postprocessed after it.
    candidates : the best first.
    """

    version: Literal[1] = 1
    members: tuple[ChosenModel, ...] = Field(min_length=1)
    postprocessing: tuple[TriedStep, ...]
    folds: tuple[str, ...]
    cases: int
    dice: float
    dice_postprocessed: float
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def largest_components(self) -> tuple[str | None, ...]:
        """What is accepted, as `keep_largest_components` takes it."""
        return tuple(step.of for step in self.postprocessing if step.accepted)


@dataclass(frozen=True)
class Chosen:
    """Models to predict with, their folds, and what is done to their mask."""

    models: tuple[tuple[TrainedModel, tuple[str, ...]], ...]
    largest_components: tuple[str | None, ...] = ()


def read_best(run: Path) -> Best | None:
    """best.json of a run folder; None where there is none. UserError where it is damaged."""
    path = run / BEST_NAME
    return read_record(Best, path, AGAIN) if path.exists() else None


def choose_best(run: Path, best: Best) -> Chosen:
    """The models that best.json names.

    Raises
    ------
    UserError : models or folds that are no longer there, all of them.
    """
    trained = {(model.name, model.configuration): model for model in list_models(run)}
    if problems := [problem for member in best.members for problem in _problems(trained, member)]:
        raise all_of(problems, f"{run / BEST_NAME} does not fit the models in {run / 'models'}:", AGAIN)
    found = tuple((trained[member.name, member.configuration], member.folds) for member in best.members)
    return Chosen(found, best.largest_components)


def _problems(trained: dict[tuple[str, str], TrainedModel], member: ChosenModel) -> Sequence[str]:
    model = trained.get((member.name, member.configuration))
    if model is None:
        return [f"{member.name} ({member.configuration}) is no longer there"]
    return [f"{member.name} ({member.configuration}): fold {fold} is no longer there"
            for fold in member.folds if fold not in model.folds]
