"""A cascade's first stage as a training uses it: its trained folds, and their masks of the training's cases."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.data.dataset import Case, Dataset
from autoseg.data.parallel import default_workers
from autoseg.data.previous_masks import MaskSource, PreviousMasks, store_previous_masks
from autoseg.data.splits import splits_of_run
from autoseg.data.store import Store
from autoseg.errors import all_of
from autoseg.inference.ensembling import Member
from autoseg.inference.prediction import PredictSettings, predict_members
from autoseg.networks.checkpoint import read_model
from autoseg.planning.configurations import CASCADE
from autoseg.schema import CheckpointInfo, Plan, PreviousStage, Split

ALL = "all"
ALIKE = ("labels", "regions", "ignore", "channel_names", "file_ending", "is_2d")
logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class FirstStage:
    """The first model of a cascade: the folders and records of its folds that the masks come from.

    `run`: the run folder that holds it.
    """

    run: Path
    stage: PreviousStage
    folds: Mapping[str, tuple[Path, CheckpointInfo]]

    def masks(
        self, fold: str, used: Sequence[str], dataset: Dataset, store: Store, device: torch.device
    ) -> PreviousMasks:  # fmt: skip
        """The masks of the cases that a fold of the cascade uses, on the store's grid.

        They are those that the first stage's folds left in `validation`; what is missing there is predicted now, and
        so is everything for fold `all`.

        Raises
        ------
        UserError : a case that no fold validates on, that cannot be segmented, or whose mask cannot be used.
        """
        cases = {case.id: case for case in dataset.cases}
        origins = dict.fromkeys(used, ALL)
        if fold != ALL:
            origins = held_out_by(splits_of_run(self.run, dataset.cases), fold, used)
        sources = {}
        for case, origin in origins.items():
            info = self.folds[origin][1]
            path = self._folder(origin) / f"{case}{info.file_ending}"
            sources[case] = MaskSource(case, path, origin, info.weights_sha256)
        for origin in dict.fromkeys(origins.values()):
            missing = [cases[one.id] for one in sources.values() if one.fold == origin and not one.path.is_file()]
            if missing:
                self._predict(origin, missing, device)
        return store_previous_masks(self.stage, sources, store, self.run / "preprocessed" / CASCADE, default_workers())

    def _folder(self, fold: str) -> Path:
        """Where a fold's masks lie; those of fold `all`, which no validation renews, under the name of its weights."""
        folder, info = self.folds[fold]
        return folder / "training_cases" / info.weights_sha256[:8] if fold == ALL else folder / "validation"

    def _predict(self, fold: str, cases: Sequence[Case], device: torch.device) -> None:
        logger.info("%s, %s, fold %s: masks of %d case%s for the cascade", self.stage.name, self.stage.configuration,
                    fold, len(cases), "s" * (len(cases) != 1))
        member = Member([read_model(self.folds[fold][0])])
        _, failures = predict_members(cases, [member], self._folder(fold), PredictSettings(device=device))
        if failures:
            raise all_of([f"{failure.id}: {failure.reason}" for failure in failures],
                         f"The cascade needs masks of its first stage ({self.stage.name}, {self.stage.configuration}); "
                         "these cases could not be segmented:", "Mend the cause and run the same command again.")


def held_out_by(splits: Sequence[Split], fold: str, used: Sequence[str]) -> dict[str, str]:
    """Case → the fold whose network has not seen it: `fold` itself where it validates on it, else the first that does.

    Raises
    ------
    UserError : a case that no fold validates on: every network has seen it, or may have.
    """
    origins: dict[str, str] = {}
    for number, split in enumerate(splits):
        for case in split.val:
            origins.setdefault(case, str(number))
    origins |= dict.fromkeys(splits[int(fold)].val, fold)
    if without := sorted(set(used) - set(origins)):
        raise all_of([f"'{case}'" for case in without],
                     "A cascade learns from masks of networks that have not seen the case; no fold of splits.json "
                     "validates on these:",
                     "Let every case be validated on once (autoseg plan --splits), or train with --fold all.")
    return {case: origins[case] for case in used}


def refuse_unlike_plan(first: FirstStage, plan: Plan) -> None:
    """UserError listing what the folds of a first stage have otherwise than the plan says."""
    problems = [
        f"fold {fold}: {name.replace('_', ' ')} {_readable(getattr(info, name))}; the plan has "
        f"{_readable(getattr(plan, name))}"
        for fold, (_, info) in first.folds.items()
        for name in ALIKE if not _same(getattr(info, name), getattr(plan, name))
    ]
    if problems:
        raise all_of(problems,
                     f"{first.stage.name} ({first.stage.configuration}) cannot be this cascade's first stage:",
                     "Name another model with --previous-name, or a new name: it is trained then.")


def _same(one: object, other: object) -> bool:
    """The order of labels is that of channels."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one.items()) == list(other.items())
    return one == other


def _readable(value: object) -> str:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)

