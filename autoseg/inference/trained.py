"""Which trained models a run folder holds, which of them a user means, and their networks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from autoseg.errors import UserError, all_of
from autoseg.inference.ensembling import Member
from autoseg.networks.checkpoint import MODEL_NAME, WEIGHTS_NAME, read_model
from autoseg.schema import CheckpointInfo, PreviousStage

FOLD_PREFIX = "fold_"
ALL_FOLD = "all"

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class TrainedModel:
    """The finished folds of run/models/<name>/<configuration>; `folds`: "0", "1", … in order, then "all"."""

    name: str
    configuration: str
    folds: tuple[str, ...]
    folder: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder.parents[2]

    @property
    def averaged(self) -> tuple[str, ...]:
        """The folds that are meant where none is named: those of the cross-validation, or else the one of all cases."""
        return tuple(fold for fold in self.folds if fold != ALL_FOLD) or self.folds

    def fold_folder(self, fold: str) -> Path:
        """Where the weights of one fold are."""
        return self.folder / f"{FOLD_PREFIX}{fold}"


def is_finished(folder: Path) -> bool:
    """Whether a fold's folder holds a finished model: both the weights and their record."""
    return (folder / WEIGHTS_NAME).is_file() and (folder / MODEL_NAME).is_file()


def list_models(run: Path) -> tuple[TrainedModel, ...]:
    """All models of a run folder with at least one finished fold, by name and configuration."""
    found = []
    for folder in sorted((run / "models").glob("*/*")):
        finished = [path.name for path in folder.glob(f"{FOLD_PREFIX}*") if is_finished(path)]
        if folds := [file_name.removeprefix(FOLD_PREFIX) for file_name in finished]:
            found.append(TrainedModel(folder.parent.name, folder.name, _in_order(folds), folder))
    return tuple(found)


def choose_model(run: Path, name: str | None, configuration: str | None) -> TrainedModel:
    """The only trained model that fits the name and configuration, where given.

    Raises
    ------
    UserError : there is none, or more than one; it lists those that exist.
    """
    models = list_models(run)
    if not models:
        raise UserError(f"{run} holds no trained model; one finished fold in {run / 'models'} was expected.\n"
                        f"Run `autoseg train --run {run}` first, or name another run folder with --run.")
    named = [model for model in models if name in (None, model.name)]
    fitting = [model for model in named if configuration in (None, model.configuration)]
    if len(fitting) == 1:
        return fitting[0]
    asked = " ".join(
        f"--{option} {value}" for option, value in (("name", name), ("configuration", configuration)) if value
    )
    if not fitting:
        heading = f"{run} holds no trained model {asked}. It holds:"
        raise all_of([_describe(model) for model in models], heading, "Choose one of these.")
    heading = f"{run} holds {len(fitting)} trained models{' ' + asked if asked else ''}; which one is meant?"
    raise all_of([_describe(model) for model in fitting], heading, "Choose with --name and --configuration.")


def choose_folds(model: TrainedModel, folds: str | None) -> tuple[str, ...]:
    """The folds in a comma-separated list; those of the cross-validation that are finished when it is None or `all`.

    A fold named `all` (trained on every case) is not one of them: where it is finished, `all` means that one, as for
    `train --fold all`, and so does None where there is no other.

    Raises
    ------
    UserError : a fold that is not there, or an empty list.
    """
    if folds is None or (folds == ALL_FOLD and ALL_FOLD not in model.folds):
        if len(model.averaged) < len(model.folds):
            logger.info("fold %s, trained on every case, is left out; --folds %s takes it alone", ALL_FOLD, ALL_FOLD)
        return model.averaged
    wanted = tuple(dict.fromkeys(fold.strip() for fold in folds.split(",") if fold.strip()))
    missing = [fold for fold in wanted if fold not in model.folds]
    if missing or not wanted:
        what = f"fold {', '.join(missing)} is not trained" if missing else "no fold is named"
        raise UserError(f"--folds {folds}: {what} in {model.folder}; it holds {', '.join(model.folds)}.\n"
                        "Choose among these, or train the others first: autoseg train --fold N.")
    return wanted


@dataclass
class Reader:
    """Reads models, each fold once: models that share a first stage share its networks."""

    _read: dict[Path, tuple[nn.Module, CheckpointInfo]] = field(default_factory=dict)

    def member(
        self, model: TrainedModel, folds: Sequence[str], previous_folds: Sequence[str] | None = None
    ) -> Member:
        """The networks of these folds and, of a cascade, of its previous stage in the same run folder.

        previous_folds : of the previous stage; None: its `averaged`. To validate a fold, only the same fold
            may be taken: the others have seen its validation cases.

        Raises
        ------
        UserError : a file that is absent or damaged; a previous stage, or a fold of it, that is not trained.
        """
        read = [self._fold(model.fold_folder(fold)) for fold in folds]
        needed = read[0][1].previous_stage
        if needed is None:
            return Member(read)
        previous = find_previous(model, needed, previous_folds)
        return Member(read, self.member(previous, previous_folds or previous.averaged, previous_folds))

    def _fold(self, folder: Path) -> tuple[nn.Module, CheckpointInfo]:
        if folder not in self._read:
            self._read[folder] = read_model(folder)
        return self._read[folder]


def find_previous(model: TrainedModel, needed: PreviousStage, folds: Sequence[str] | None = None) -> TrainedModel:
    """The model whose masks a cascade takes.

    Raises
    ------
    UserError : it is not trained, or lacks one of `folds`; the message says what to train.
    """
    folder = model.run / "models" / needed.name / needed.configuration
    found = [other for other in list_models(model.run) if other.folder == folder]
    missing = [fold for fold in folds or () if not found or fold not in found[0].folds]
    if found and not missing:
        return found[0]
    what = f"fold {', '.join(missing)} of it is not trained" if found else "it is not trained"
    raise UserError(f"{model.folder} takes the masks of {needed.name} ({needed.configuration}), but {what} in "
                    f"{folder}.\nTrain it first: autoseg train --run {model.run} --name {needed.name} --configuration "
                    f"{needed.configuration} --fold {missing[0] if missing else 0}")


def _in_order(folds: Sequence[str]) -> tuple[str, ...]:
    numbered = sorted((fold for fold in folds if fold.isdigit()), key=int)
    return (*numbered, *sorted(fold for fold in folds if not fold.isdigit()))


def _describe(model: TrainedModel) -> str:
    return f"--name {model.name} --configuration {model.configuration} (folds {', '.join(model.folds)})"
