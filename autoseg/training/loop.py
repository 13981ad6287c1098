"""The training loop: steps, epochs, validation patches, schedule, stopping; it knows neither files nor commands."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.networks.segmenter import Segmenter
from autoseg.progress import ProgressBar, progress
from autoseg.schema import OptimizerPlan
from autoseg.training.batches import Batch
from autoseg.training.journal import EpochMetrics
from autoseg.training.objective import Objective, Step
from autoseg.training.optimization import apply_gradients, scheduled_rate, set_rate
from autoseg.training.processes import ALONE, Processes
from autoseg.training.settings import TrainSettings
from autoseg.training.streaming import PatchSource

# Losses are fetched from the device after this many steps; that many overflows in a row are no accident.
PATIENCE_STEPS = 10
# The draws of samples use streams 0 and 1 of the same seed (see draws.py), those of views 3 and 4 (objective.py).
_LAYER_STREAM = 2


@dataclass(frozen=True)
class TrainingJob:
    """The parts of a training, built by the caller.

    `parts`: all that is optimized, the network among it (in plain training the network alone). `objective`: what a
    step computes. `foreground_names`: of what has a pseudo-Dice. `precision`: of the forward pass (autocast);
    losses are float32. `scaler` scales losses for float16 and does nothing otherwise. `optimizer_plan`: what
    `optimizer` was made from. `seed`: of the layers that draw. `processes`: those that train together, each on its
    part of every batch.
    """

    network: Segmenter
    parts: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    optimizer_plan: OptimizerPlan
    scaler: torch.amp.GradScaler
    training: PatchSource
    validation: PatchSource | None
    settings: TrainSettings
    foreground_names: tuple[str, ...]
    device: torch.device
    precision: str
    seed: int
    processes: Processes = ALONE


@dataclass
class LoopState:
    """Where a training stands; with weights and optimizer it is all that resuming needs.

    `seconds`: training time so far over all sessions. `losses`: of this epoch's steps, oldest first.
    `wait_seconds`, `epoch_seconds`: of this epoch, for the share of time spent waiting for batches.
    `pseudo_dice`: the mean over labels after the last epoch.
    """

    step: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    epoch_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    pseudo_dice: float | None = None


def schedule_progress(step: int, seconds: float, settings: TrainSettings, warmup_share: float = 0.0) -> float:
    """How far the schedule is, 0 to 1, for the learning rate of this step.

    Without a time limit the rate changes with every epoch, as in nnU-Net (epoch / epochs). With one, the limit
    that is nearer counts: max(step / all steps, seconds / limit), so that the rate reaches its end when either does.

    Within the warm-up, the first `warmup_share` of the schedule, progress is that at the end of the step instead:
    the rate rises with every step, and the first step moves the weights.
    """
    steps = settings.epochs * settings.steps_per_epoch
    if settings.max_minutes is None:
        time_share, begun = 0.0, (step // settings.steps_per_epoch) / settings.epochs
    else:
        time_share = seconds / (60 * settings.max_minutes)
        begun = max(step / steps, time_share)
    warming = min(max((step + 1) / steps, time_share), warmup_share)
    return min(1.0, max(begun, warming))


def is_finished(step: int, seconds: float, settings: TrainSettings) -> bool:
    """All epochs are done, or the time is up."""
    time_is_up = settings.max_minutes is not None and seconds >= 60 * settings.max_minutes
    return step >= settings.epochs * settings.steps_per_epoch or time_is_up


def run_training(
    job: TrainingJob,
    state: LoopState,
    on_epoch: Callable[[EpochMetrics], None],
    save: Callable[[LoopState], None],
    stop: Callable[[int], bool],
) -> bool:
    """Train from `state` (changed in place) to the schedule's end; True when the end was reached.

    Parameters
    ----------
    on_epoch : called with every finished epoch's metrics.
    save : writes a resumable state; called at ends of epochs, every `checkpoint_minutes`, and before an early return.
    stop : asked after every step with the number of steps done; True ends the training early (False is returned), in
        all processes.
    """
    settings = job.settings
    start = time.perf_counter() - state.seconds
    remaining = None if settings.max_minutes is None else 60 * settings.max_minutes - state.seconds
    total = settings.epochs * settings.steps_per_epoch
    saved_at = state.seconds
    pending: list[Tensor] = []
    with progress("train", total - state.step, "steps", remaining) as bar:
        while not is_finished(state.step, state.seconds, settings):
            _advance(job, state, pending)
            if state.step % settings.steps_per_epoch == 0:
                _settle(job, state, pending)
                on_epoch(_finish_epoch(job, state, start))
            state.seconds, stopped = job.processes.agree(time.perf_counter() - start, stop(state.step))
            due = state.seconds - saved_at >= 60 * settings.checkpoint_minutes
            if stopped or (due and state.step % settings.steps_per_epoch == 0):
                _settle(job, state, pending)
                save(state)
                saved_at = state.seconds
            if stopped:
                return False
            _show(bar, job, state, pending)
    _settle(job, state, pending)
    if state.losses:
        on_epoch(_finish_epoch(job, state, start))
    return True


def seed_layers(seed: int, step: int, process: int = 0) -> None:
    """Make what layers draw in a step (dropout, drop path) a function of (seed, step, process), on every device.

    A resumed training then draws what an uninterrupted one does, without random states in its saved state.
    """
    origin = [seed, _LAYER_STREAM, step, *[process] * (process > 0)]
    mixed = np.random.SeedSequence(origin).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))


def train_step(job: TrainingJob, step: Step, batch: Batch, rate: float) -> Tensor:
    """One optimizer update at the learning rate `rate`; returns the loss of this process's samples, detached."""
    seed_layers(job.seed, step.number, job.processes.rank)
    set_rate(job.optimizer, rate)
    loss = job.objective.backward(batch, step)
    job.processes.average_gradients(job.parts)
    apply_gradients(job.parts, job.optimizer, job.scaler, job.optimizer_plan.gradient_clip)
    return loss


def _advance(job: TrainingJob, state: LoopState, pending: list[Tensor]) -> None:
    settings = job.settings
    begin = time.perf_counter()
    batch = job.training.batch(state.step)
    waited = time.perf_counter() - begin
    done = schedule_progress(state.step, state.seconds, settings, job.optimizer_plan.warmup_share)
    rate = scheduled_rate(job.optimizer_plan, done, settings.rate_power)
    pending.append(train_step(job, Step(state.step, done), batch, rate))
    state.step += 1
    state.wait_seconds += waited
    state.epoch_seconds += time.perf_counter() - begin


def _settle(job: TrainingJob, state: LoopState, pending: list[Tensor]) -> None:
    """Fetch losses from the device; a loss that is not a number ends the training.

    With float16 a step may overflow: the scaler leaves it out, and so does the mean.
    """
    fetched = job.processes.means(pending)
    pending.clear()
    state.losses.extend(loss for loss in fetched if math.isfinite(loss))
    wrong = [loss for loss in fetched if not math.isfinite(loss)]
    if wrong and (not job.scaler.is_enabled() or len(wrong) == len(fetched) >= PATIENCE_STEPS):
        raise UserError(
            f"The loss is {wrong[-1]} near step {state.step}: training has diverged.\n"
            f"Lower the learning rate, now {job.optimizer_plan.learning_rate:g} (--learning-rate), or train in float32 "
            "(precision = \"float32\" in a preset file, --preset FILE)."
        )


def _show(bar: ProgressBar, job: TrainingJob, state: LoopState, pending: list[Tensor]) -> None:
    # Fetching the loss waits for the device: do it now and then only.
    if len(pending) >= PATIENCE_STEPS:
        _settle(job, state, pending)
    recent = state.losses[-PATIENCE_STEPS:]
    notes = [f"loss {sum(recent) / len(recent):.3f}"] if recent else []
    if state.pseudo_dice is not None:
        notes.append(f"pseudo-Dice {state.pseudo_dice:.3f}")
    bar.advance(note=", ".join(notes))


def _finish_epoch(job: TrainingJob, state: LoopState, start: float) -> EpochMetrics:
    settings = job.settings
    epoch = (state.step - 1) // settings.steps_per_epoch
    validation_loss, dice = validate(job, epoch)
    state.seconds = time.perf_counter() - start
    known = [value for value in dice.values() if value is not None]
    state.pseudo_dice = sum(known) / len(known) if known else None
    metrics = EpochMetrics(
        epoch=epoch, step=state.step, seconds=round(state.seconds, 2),
        loss=sum(state.losses) / len(state.losses) if state.losses else None,
        validation_loss=validation_loss, pseudo_dice=dice, mean_pseudo_dice=state.pseudo_dice,
        learning_rate=job.optimizer.param_groups[0]["lr"],
        steps_per_second=len(state.losses) / max(state.epoch_seconds, 1e-9),
        data_wait=state.wait_seconds / max(state.epoch_seconds, 1e-9),
    )
    state.losses, state.wait_seconds, state.epoch_seconds = [], 0.0, 0.0
    return metrics


@torch.no_grad()
def validate(job: TrainingJob, epoch: int) -> tuple[float | None, dict[str, float | None]]:
    """Loss and pseudo-Dice per label over `validation_steps` batches of random validation patches."""
    steps = job.settings.validation_steps
    if job.validation is None or steps == 0:
        return None, dict.fromkeys(job.foreground_names)
    job.network.eval()
    losses, counts = [], torch.zeros(len(job.foreground_names), 3, dtype=torch.float64)
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch = job.validation.batch(step)
        logits = job.objective.logits(batch.image)
        losses.append(job.objective.aim.loss(logits, batch))
        counts += job.objective.aim.counts(logits[0], batch).double().cpu()
    job.network.train()
    [loss] = job.processes.means([torch.stack(losses).mean()])
    return loss, _dice_of(job.processes.sum(counts), job.foreground_names)


def _dice_of(counts: Tensor, names: tuple[str, ...]) -> dict[str, float | None]:
    dice = {}
    for name, (both, false_positive, false_negative) in zip(names, counts.tolist(), strict=True):
        total = 2 * both + false_positive + false_negative
        dice[name] = 2 * both / total if total > 0 else None
    return dice
