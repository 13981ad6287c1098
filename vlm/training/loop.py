"""The training loop: steps, schedule, reports, validations, stopping; it knows neither files nor commands."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from autoseg.errors import UserError
from autoseg.progress import ProgressBar, progress
from vlm.training.gradients import Pass, StepLoss, accumulate_gradients
from vlm.training.journal import StepMetrics
from vlm.training.loss import BatchLoss
from vlm.training.optimization import average_weights, rate_factor, set_rate, update_weights
from vlm.training.processes import Processes
from vlm.training.resume import Learning
from vlm.training.settings import Optimization, ValidationChoice
from vlm.training.streaming import Batch, BatchStream

REPORT_STEPS = 10
"""Steps of a line of metrics.jsonl."""
UIDS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The parts of a training, built by the caller.

    steps : of the whole schedule. max_minutes : ends it earlier.
    """

    learning: Learning
    how: Pass
    loss_of: BatchLoss
    batches: BatchStream
    choice: Optimization
    validation: ValidationChoice
    steps: int
    steps_per_epoch: int
    max_minutes: float | None
    device: torch.device
    processes: Processes

    @property
    def warmup_steps(self) -> float:
        """Steps in which the rate rises."""
        if self.choice.warmup_share is not None:
            return self.choice.warmup_share * self.steps
        return float(self.choice.warmup_steps or 0)

    @property
    def limit_seconds(self) -> float | None:
        """Of training."""
        return None if self.max_minutes is None else 60 * self.max_minutes


@dataclass
class LoopState:
    """Where a training stands; with `Learning` it is all that continuing needs.

    seconds : of training so far, over all sessions. losses : of the steps since the last report. validations : done so
    far, that before the first step included. truncated : captions so far that lost their end.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    validations: int = 1
    truncated: int = 0


@dataclass
class _Clock:
    """steps : since the last report, or since this session began. busy : their seconds. waited : of these, for batches.
    """

    start: float
    steps: int = 0
    busy: float = 0.0
    waited: float = 0.0


def is_finished(job: TrainingJob, state: LoopState) -> bool:
    """All steps are done, or the time is up."""
    return state.step >= job.steps or (job.limit_seconds is not None and state.seconds >= job.limit_seconds)


def share_done(job: TrainingJob, state: LoopState) -> float:
    """How far the training is, 0 to 1, by steps or by time, whichever is further."""
    timed = 0.0 if job.limit_seconds is None else state.seconds / job.limit_seconds
    return min(1.0, max(state.step / job.steps, timed))


def run_training(
    job: TrainingJob,
    state: LoopState,
    on_line: Callable[[StepMetrics], None],
    validate: Callable[[], dict[str, float]],
    save: Callable[[LoopState], None],
    stop: Callable[[int], bool],
) -> bool:
    """Train from `state` (changed in place) to the schedule's end; True when the end was reached.

    Parameters
    ----------
    on_line : called with every report and every validation.
    validate : figures of the model as it is now.
    save : writes a resumable state; called every `checkpoint_minutes`, before an early return, and at the end.
    stop : asked after every step with the number of steps done; True ends the training early.

    Raises
    ------
    UserError : the loss is not a number; the pairs of the batch are named.
    """
    clock, saved_at = _Clock(time.perf_counter() - state.seconds), state.seconds
    left = None if job.limit_seconds is None else job.limit_seconds - state.seconds
    images = (job.steps - state.step) * job.choice.batch_size
    with progress("train", images, "images", left) if job.processes.is_first else _Silent() as bar:
        while not is_finished(job, state):
            cut = _advance(job, state, clock)
            stopped = _agree(job, state, clock, stop(state.step), cut)
            if len(state.losses) == REPORT_STEPS:
                on_line(_report(job, state, clock))
            if _validation_is_due(job, state):
                on_line(StepMetrics(state.step, state.step / job.steps_per_epoch, round(state.seconds, 2),
                                    validation=validate()))
                state.validations += 1
            if stopped or state.seconds - saved_at >= 60 * job.choice.checkpoint_minutes:
                save(state)
                saved_at = state.seconds
            if stopped:
                return False
            if bar is not None:
                _show(bar, job, state)
    if state.losses:
        on_line(_report(job, state, clock))
    save(state)
    return True


def train_step(job: TrainingJob, batch: Batch, factor: float, step: int) -> StepLoss:
    """One update, at `factor` times the largest learning rates; none where the loss is not a number."""
    network, optimizer = job.learning.network, job.learning.optimizer
    set_rate(optimizer, factor)
    step_loss = accumulate_gradients(job.how, batch, job.loss_of, job.device, step)
    if torch.isfinite(step_loss.loss):
        update_weights(network, optimizer, job.learning.scaler, job.choice.gradient_clip)
        if job.learning.average is not None and job.choice.ema_decay is not None:
            average_weights(job.learning.average, network, job.choice.ema_decay, step)
    return step_loss


class _Silent:
    """No progress is shown: another process does."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def _advance(job: TrainingJob, state: LoopState, clock: _Clock) -> int:
    """One step; returns how many of this process's captions lost their end."""
    begin = time.perf_counter()
    batch = job.batches.next_batch()
    clock.waited += time.perf_counter() - begin
    timed = None if job.limit_seconds is None else state.seconds / job.limit_seconds
    factor = rate_factor(state.step, job.steps, job.warmup_steps, timed)
    step_loss = train_step(job, batch, factor, state.step)
    loss = float(step_loss.loss)
    if not np.isfinite(loss):
        raise _diverged(job, state, batch, step_loss)
    state.losses.append(loss)
    state.step += 1
    clock.steps += 1
    clock.busy += time.perf_counter() - begin
    return batch.texts.truncated


def _agree(job: TrainingJob, state: LoopState, clock: _Clock, stop: bool, cut: int) -> bool:
    """Say whether to stop and set the seconds so far, for all as the first process has it; count captions of all."""
    mine = torch.tensor([[time.perf_counter() - clock.start, stop, cut]], dtype=torch.float64)
    told = job.processes.gather(mine.to(job.device)).cpu() if job.processes.world > 1 else mine
    state.seconds = float(told[0, 0])
    state.truncated += int(told[:, 2].sum())
    return bool(told[0, 1])


def _validation_is_due(job: TrainingJob, state: LoopState) -> bool:
    """Not at the end: the model is then measured as it was saved."""
    if is_finished(job, state):
        return False
    if job.validation.every_steps is not None:
        return state.step % job.validation.every_steps == 0
    times = job.validation.times or 1
    return share_done(job, state) * times >= state.validations


def _report(job: TrainingJob, state: LoopState, clock: _Clock) -> StepMetrics:
    rates = [group["lr"] / group["base_rate"] for group in job.learning.optimizer.param_groups]
    highest = max(group["base_rate"] for group in job.learning.optimizer.param_groups)
    network = job.learning.network
    line = StepMetrics(
        step=state.step, epoch=state.step / job.steps_per_epoch, seconds=round(time.perf_counter() - clock.start, 2),
        loss=sum(state.losses) / len(state.losses), learning_rate=highest * rates[0],
        logit_scale=network.logit_scale.detach().exp().item(),  # type: ignore[operator]
        images_per_second=round(clock.steps * job.choice.batch_size / max(clock.busy, 1e-9), 2),
        data_wait=round(clock.waited / max(clock.busy, 1e-9), 4), truncated=state.truncated,
    )
    state.losses, clock.steps, clock.busy, clock.waited = [], 0, 0.0, 0.0
    return line


def _show(bar: ProgressBar, job: TrainingJob, state: LoopState) -> None:
    recent = f"loss {state.losses[-1]:.3f}" if state.losses else ""
    bar.advance(job.choice.batch_size, note=f"step {state.step}  {recent}")


def _diverged(job: TrainingJob, state: LoopState, batch: Batch, step_loss: StepLoss) -> UserError:
    sound = step_loss.is_sound.tolist()
    broken = job.processes.gather_lists([uid for uid, fine in zip(batch.uids, sound, strict=True) if not fine])
    all_uids = job.processes.gather_lists(batch.uids)
    only_some = 0 < len(broken) < len(all_uids)
    named = broken if only_some else all_uids
    what = f"{len(broken)} of its {len(all_uids)} pairs have embeddings that are not finite" if broken else (
        f"its {len(all_uids)} pairs have finite embeddings")
    more = f", … ({len(named) - UIDS_SHOWN} more)" if len(named) > UIDS_SHOWN else ""
    remedy = "Look at these images, and leave them out of the corpus if they are broken" if only_some else (
        "Lower the learning rate, set gradient_clip, or train in float32 (a recipe file, --recipe FILE)")
    return UserError(
        f"The loss is {step_loss.loss.item()} in step {state.step + 1}; a finite number was expected. Of this batch, "
        f"{what}. Pairs: {', '.join(named[:UIDS_SHOWN])}{more}.\n{remedy}. --resume goes on from the last state that "
        "was saved.")
