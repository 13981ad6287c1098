"""How first weights are optimized: AdamW's numbers, the learning rate over time, when to stop."""

import math
from dataclasses import dataclass

from autoseg.planning.optimizers import RECIPES
from autoseg.schema import ArchitectureName, OptimizerPlan
from autoseg.training.settings import TrainSettings

STEPS_SHARE = 0.2
"""Of the supervised steps. LWI's UNETR takes 0.16."""
CONVOLUTIONAL: tuple[ArchitectureName, ...] = ("plain", "resenc", "mednext")
CONVOLUTIONAL_RATE = 1e-4
"""LWI's rate for UNETR; networks with attention take the plan's recipe for them, 3e-4."""
WINDOW_SHARE, SHORTEST_WINDOW, LEAST_IMPROVEMENT = 0.1, 1000, 0.005
"""Pretraining ends where the error fell by less than 0.5 % over a tenth of its steps; over fewer than 1,000 steps the
running mean changes by more than that without any reason."""
MEAN_PER_WINDOW = 5
"""The running mean forgets over a fifth of a window."""


def pretraining_optimizer(architecture: ArchitectureName, settings: TrainSettings) -> OptimizerPlan:
    """AdamW with warm-up over 5 % of the steps; the preset's section [pretraining] replaces numbers."""
    numbers = {"learning_rate": CONVOLUTIONAL_RATE} if architecture in CONVOLUTIONAL else {}
    return RECIPES["adamw"].model_copy(update={**numbers, **settings.pretraining.given()})


def default_length(settings: TrainSettings) -> tuple[int, float | None]:
    """(steps, minutes): a fifth of the supervised training's; minutes where that has a time limit, else None."""
    steps = max(1, round(STEPS_SHARE * settings.epochs * settings.steps_per_epoch))
    return steps, None if settings.max_minutes is None else STEPS_SHARE * settings.max_minutes


def cosine_rate(plan: OptimizerPlan, progress: float) -> float:
    """The learning rate at `progress` (0 to 1, clipped): linear to the warm-up's end w, then half a cosine to zero.

    base · progress / w before w, then base · (1 + cos(π (progress − w) / (1 − w))) / 2.
    """
    clipped = min(max(progress, 0.0), 1.0)
    if clipped < plan.warmup_share:
        return plan.learning_rate * clipped / plan.warmup_share
    return plan.learning_rate * (1 + math.cos(math.pi * (clipped - plan.warmup_share) / (1 - plan.warmup_share))) / 2


def progress_of(step: int, steps: int, seconds: float, max_minutes: float | None, warmup_share: float) -> float:
    """How far pretraining is, 0 to 1, for this step's rate: by steps or by time, whichever is further.

    Within the warm-up it is the progress at the step's end, so that the first step moves the weights.
    """
    by_time = 0.0 if max_minutes is None else seconds / (60 * max_minutes)
    begun, ended = max(step / steps, by_time), max((step + 1) / steps, by_time)
    return min(1.0, max(begun, min(ended, warmup_share)))


def window_of(steps: int) -> int:
    """Steps after which the error must have fallen."""
    return max(SHORTEST_WINDOW, round(WINDOW_SHARE * steps))


def at_window(step: int, steps: int) -> bool:
    """Whether a window ends with a step (counted from 1)."""
    return step % window_of(steps) == 0


@dataclass
class Plateau:
    """Watches a running mean of the error for the end of its fall; a few numbers, which are saved and restored.

    Attributes
    ----------
    mean : running mean of the errors so far; None before the first.
    reference : the mean at the end of the last window.
    """

    mean: float | None = None
    reference: float | None = None

    def update(self, error: float, step: int, steps: int) -> bool:
        """Take in the error of a step (counted from 1); whether the error stopped falling at this step."""
        share = MEAN_PER_WINDOW / window_of(steps)
        self.mean = error if self.mean is None else (1 - share) * self.mean + share * error
        if not at_window(step, steps) or step >= steps:
            return False
        stalled = self.reference is not None and self.mean > (1 - LEAST_IMPROVEMENT) * self.reference
        self.reference = self.mean
        return stalled
