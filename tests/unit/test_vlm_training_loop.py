"""The loop's bookkeeping: what a line of metrics says after resuming, and over several processes."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from vlm.training import loop
from vlm.training.gradients import StepLoss
from vlm.training.loop import LoopState, TrainingJob, run_training
from vlm.training.processes import Processes
from vlm.training.settings import Optimization, ValidationChoice

ALONE, BATCH, SECONDS = Processes(), 8, 0.02


@dataclass(frozen=True)
class TwoProcesses(Processes):
    """The first of two; the other one's clock is far off, it was asked to stop, and it cut one caption more."""

    def gather(self, rows):
        return torch.cat([rows, rows + torch.tensor([[100.0, 1.0, 1.0]], dtype=rows.dtype)])


def make_job(steps, processes):
    batch = SimpleNamespace(texts=SimpleNamespace(truncated=2), uids=("a", "b"))
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5, "base_rate": 1.0}])
    network = SimpleNamespace(logit_scale=torch.tensor(0.0))
    return TrainingJob(
        learning=SimpleNamespace(network=network, optimizer=optimizer), how=None, loss_of=None,
        batches=SimpleNamespace(next_batch=lambda: batch), device=torch.device("cpu"), processes=processes,
        choice=Optimization(learning_rate=1.0, warmup_share=0.1, batch_size=BATCH), steps=steps, steps_per_epoch=5,
        validation=ValidationChoice(every_steps=1000), max_minutes=None)


@pytest.fixture
def slow_steps(monkeypatch):
    """Every step takes as long."""
    def step(*_):
        loop.time.sleep(SECONDS)
        return StepLoss(torch.tensor(1.0), torch.tensor([True, True]))

    monkeypatch.setattr(loop, "train_step", step)


def lines_of(state, steps, processes=ALONE):
    lines = []
    done = run_training(make_job(steps, processes), state, lines.append, dict, lambda state: None, lambda step: False)
    return done, lines


def test_images_per_second_after_resuming_are_those_of_this_session(slow_steps):
    # Seven losses of the session before are still unreported: three steps are not ten.
    _, (line,) = lines_of(LoopState(step=7, losses=[2.0] * 7), 10)
    assert line.step == 10 and line.loss == pytest.approx(1.7)
    assert line.images_per_second <= BATCH / SECONDS


def test_cut_captions_of_all_processes_are_counted_and_the_first_ones_clock_and_wish_hold(slow_steps):
    state = LoopState()
    done, (line,) = lines_of(state, 10, TwoProcesses(0, 2))
    assert done and line.truncated == state.truncated == 10 * (2 + 3) and state.seconds < 50
