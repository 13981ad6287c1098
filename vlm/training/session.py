"""What is to be trained, on what, and where it goes; and what a resumable state must agree with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoseg.errors import UserError, all_of
from autoseg.records import parse_record
from vlm.training.processes import Processes
from vlm.training.resume import FOLDER, read_facts
from vlm.training.sampling import source_probabilities, steps_per_epoch
from vlm.training.settings import GIVEN, Recipe
from vlm.training.shards import CorpusIndex

Facts = dict[str, Any]
"""What a resumable state holds beside tensors: recipe, corpus, seed, way of computing, loop state, start figures."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A training. recipe_name : as it was asked for. max_minutes : of training; the schedule ends with it."""

    recipe: Recipe
    recipe_name: str
    corpus: CorpusIndex
    folder: Path
    seed: int
    device: torch.device
    max_minutes: float | None = None
    processes: Processes = Processes()

    @property
    def batch_size(self) -> int:
        """Pairs of a step, over all processes."""
        return self.recipe.optimization.batch_size

    @property
    def local_batch_size(self) -> int:
        """Pairs of a step in each process; UserError where they cannot be shared evenly."""
        if self.batch_size % self.processes.world:
            raise UserError(f"A batch of {self.batch_size} pairs cannot be shared evenly by {self.processes.world} "
                            "processes.\nStart another number of them, or give a recipe file with another batch_size.")
        return self.batch_size // self.processes.world

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the corpus."""
        return steps_per_epoch(sum(len(part) for part in self.corpus.of("train")), self.batch_size)

    @property
    def steps(self) -> int:
        """Of the whole schedule; UserError where the warm-up leaves none of them."""
        choice = self.recipe.optimization
        steps = choice.steps or choice.epochs * self.steps_per_epoch
        if (choice.warmup_steps or 0) >= steps:
            raise UserError(f"The warm-up of {choice.warmup_steps} steps leaves none of this training's {steps} steps "
                            f"(batches of {self.batch_size}).\nGive a larger corpus, more epochs (--epochs), or a "
                            "recipe file with fewer warmup_steps or a smaller batch_size.")
        return steps

    def check(self) -> None:
        """UserError where recipe, corpus, folder and processes do not fit together; no pair is read."""
        initial = self.recipe.initial
        self._check_weights("vision", initial.vision, f" ({initial.vision_note})" if initial.vision_note else "")
        self._check_weights("text", initial.text, "")
        _ = self.local_batch_size, self.steps_per_epoch, self.steps
        data = self.recipe.data
        sizes = {part.source: len(part) for part in self.corpus.of("train")}
        source_probabilities(sizes, data.alpha, data.weights)
        if unknown := [name for name in data.captions.sources if name not in sizes]:
            raise all_of([f"{name}: the corpus has no such source" for name in unknown],
                         "The recipe's caption policies do not fit the corpus:",
                         f"Its sources are {', '.join(sizes)}; correct data.captions.sources in the recipe file.")

    def _check_weights(self, tower: str, source: str, note: str) -> None:
        if source == GIVEN:
            raise UserError(
                f"The recipe {self.recipe_name} begins with a {tower} tower that was trained before{note}, which does "
                f"not come with this package.\nGive its file with --{tower}-weights FILE, or begin by chance with "
                f"--{tower}-weights random.")
        path = Path(source)
        if source != "random" and path.exists() and path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"The first weights of the {tower} tower, {source}, lie in {self.folder}, where this "
                            "training writes its own.\nGive another folder (-o).")

    def facts(self) -> Facts:
        """What a resumable state records of this session."""
        return {"recipe": self.recipe.model_dump(mode="json"), "recipe_name": self.recipe_name,
                "max_minutes": self.max_minutes, "corpus_recipe": self.corpus.recipe, "seed": self.seed}


@dataclass(frozen=True)
class Started:
    """What a resumable training began with."""

    recipe: Recipe
    recipe_name: str
    max_minutes: float | None
    seed: int


def read_started(folder: Path) -> Started | None:
    """What the resumable training in a model folder began with; None where there is none."""
    facts = read_facts(folder / FOLDER)
    if facts is None:
        return None
    recipe = parse_record(Recipe, facts["recipe"], folder / FOLDER, "Start the training anew with --overwrite.")
    return Started(recipe, str(facts["recipe_name"]), facts["max_minutes"], int(facts["seed"]))


def matching_facts(session: Session) -> Facts:
    """The facts of the state to continue; UserError where this session asks for another corpus, seed or recipe.

    The length of the training may change: it goes on towards another end.
    """
    facts = read_facts(session.folder / FOLDER)
    if facts is None:
        raise UserError(f"--resume: {session.folder} holds no training to continue.\n"
                        "Run without --resume to start one.")
    asked = session.facts()
    compared = {"corpus_recipe": "the corpus", "seed": "--seed"}
    changed = [what for name, what in compared.items() if facts[name] != asked[name]]
    if without_length(facts["recipe"]) != without_length(asked["recipe"]):
        changed.append("the recipe")
    if changed:
        raise UserError(f"--resume: {session.folder} was begun with another setting of {', '.join(changed)}.\n"
                        "Restore it, or start anew with --overwrite or in another folder.")
    return facts


def without_length(recipe: Facts) -> Facts:
    """A recipe's content but for how long it trains."""
    optimization = {name: value for name, value in recipe["optimization"].items() if name not in ("epochs", "steps")}
    return {**recipe, "title": "", "optimization": optimization}
