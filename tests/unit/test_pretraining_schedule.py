"""The schedule of pretraining: a rate that moves at every step, a length by default, an end where the error stalls."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.initialization.schedule import (
    SHORTEST_WINDOW,
    Plateau,
    cosine_rate,
    default_length,
    pretraining_optimizer,
    progress_of,
)
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import OptimizerPlan
from autoseg.training.settings import OptimizerSettings, TrainSettings

ADAMW = RECIPES["adamw"]


def rates(steps: int, optimizer: OptimizerPlan = ADAMW) -> list[float]:
    return [cosine_rate(optimizer, progress_of(step, steps, 0.0, None, optimizer.warmup_share))
            for step in range(steps)]


# ---------------------------------------------------------------- the rate
@settings(max_examples=40)
@given(st.integers(40, 2000))
def test_the_rate_rises_falls_and_moves_at_every_step(steps: int) -> None:
    """But for the join, where two steps may have the whole rate. (The published one stood still for 100 epochs.)"""
    all_rates = rates(steps)
    top = all_rates.index(max(all_rates))
    assert max(all_rates) == pytest.approx(ADAMW.learning_rate, rel=1e-3) and all_rates[0] > 0
    assert all(before < after for before, after in itertools.pairwise(all_rates[: top + 1]))
    falling = all_rates[top + 1 :]
    assert all(before > after for before, after in itertools.pairwise(falling)) and falling[0] <= all_rates[top]
    assert top <= math.ceil(ADAMW.warmup_share * steps)
    assert 0 < all_rates[-1] < 0.01 * ADAMW.learning_rate


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 19])
def test_the_shortest_pretrainings_move_weights_too(steps: int) -> None:
    assert all(0 < rate <= ADAMW.learning_rate for rate in rates(steps))


@given(st.floats(0.0, 0.9), st.floats(-1.0, 2.0))
def test_the_rate_is_linear_then_half_a_cosine(share: float, progress: float) -> None:
    plan = ADAMW.model_copy(update={"warmup_share": share})
    rate, at = cosine_rate(plan, progress), min(max(progress, 0.0), 1.0)
    if at < share:
        assert rate == pytest.approx(plan.learning_rate * at / share)
    else:
        rest = (at - share) / (1 - share)
        assert rate == pytest.approx(plan.learning_rate * 0.5 * (1 + math.cos(math.pi * rest)), abs=1e-15)
    assert cosine_rate(plan, 1.0) == cosine_rate(plan, 7.0) == pytest.approx(0, abs=1e-15)


@given(st.floats(0.01, 0.9))
def test_the_rate_is_continuous_where_the_warm_up_ends(share: float) -> None:
    plan = ADAMW.model_copy(update={"warmup_share": share})
    at = [cosine_rate(plan, share + step) for step in (-1e-6, 0.0, 1e-6)]
    assert at[1] == plan.learning_rate and np.ptp(at) < 1e-3 * plan.learning_rate


@given(st.integers(1, 1000), st.floats(0, 600), st.floats(0.1, 5), st.floats(0, 0.5))
def test_progress_follows_whichever_limit_is_nearer(steps: int, seconds: float, minutes: float, warmup: float) -> None:
    for step in {0, steps // 3, steps - 1}:
        untimed = progress_of(step, steps, seconds, None, warmup)
        timed = progress_of(step, steps, seconds, minutes, warmup)
        assert timed >= min(1.0, seconds / (60 * minutes)) - 1e-12 and timed >= untimed - 1e-12
        assert step / steps <= untimed <= (step + 1) / steps and timed <= 1
    assert progress_of(0, steps, 1e9, minutes, warmup) == 1


# ---------------------------------------------------------------- length and numbers
@given(st.integers(1, 1000), st.integers(1, 500))
def test_pretraining_takes_a_fifth_of_the_training_by_default(epochs: int, steps_per_epoch: int) -> None:
    steps, minutes = default_length(TrainSettings(epochs=epochs, steps_per_epoch=steps_per_epoch))
    assert minutes is None and steps >= 1 and abs(steps - 0.2 * epochs * steps_per_epoch) <= max(0.5, 1 - 0.2)


def test_a_training_with_a_time_limit_gives_a_fifth_of_its_time() -> None:
    assert default_length(TrainSettings(epochs=10, steps_per_epoch=50, max_minutes=30.0)) == (100, 6.0)


def test_convolutions_take_the_published_rate_and_attention_its_recipe() -> None:
    for architecture, rate in (("plain", 1e-4), ("resenc", 1e-4), ("mednext", 1e-4), ("hybrid", 3e-4),
                               ("unetr", 3e-4), ("unetr-pp", 3e-4), ("swin-unetr", 3e-4)):
        optimizer = pretraining_optimizer(architecture, TrainSettings())  # type: ignore[arg-type]
        assert optimizer == ADAMW.model_copy(update={"learning_rate": rate})
        assert (optimizer.name, optimizer.warmup_share, optimizer.gradient_clip) == ("adamw", 0.05, 1.0)


def test_the_presets_section_replaces_numbers() -> None:
    asked = TrainSettings(pretraining=OptimizerSettings(learning_rate=2e-3, warmup_share=0.1))
    optimizer = pretraining_optimizer("resenc", asked)
    assert (optimizer.learning_rate, optimizer.warmup_share) == (2e-3, 0.1)
    assert optimizer.weight_decay == ADAMW.weight_decay
    elsewhere = TrainSettings(adamw=OptimizerSettings(learning_rate=2e-3))
    assert pretraining_optimizer("hybrid", elsewhere) == ADAMW


# ---------------------------------------------------------------- the plateau
def ends_at(errors: np.ndarray, steps: int) -> int | None:
    plateau = Plateau()
    return next((step for step, error in enumerate(errors, start=1) if plateau.update(float(error), step, steps)), None)


@settings(max_examples=20)
@given(st.integers(1, 60_000), st.integers(0, 100))
def test_a_flat_error_ends_after_two_windows(steps: int, seed: int) -> None:
    """Not before: the first window has nothing to be compared with. Nor at the last step, which ends it anyway."""
    window = max(SHORTEST_WINDOW, round(0.1 * steps))
    flat = np.full(min(steps, 3 * window), 0.7)
    assert ends_at(flat, steps) == (2 * window if 2 * window < steps else None)
    noisy = flat + np.random.default_rng(seed).normal(0, 0.02, len(flat))
    assert (ends_at(noisy, steps) or 2 * window) >= 2 * window


@pytest.mark.parametrize(("steps", "ended"), [(1999, None), (2000, None), (2001, 2000)])
def test_the_last_step_is_no_plateau(steps: int, ended: int | None) -> None:
    assert ends_at(np.full(steps, 0.7), steps) == ended


@pytest.mark.parametrize("steps", [10_000, 50_000])
def test_a_falling_error_goes_on_and_a_rising_one_ends(steps: int) -> None:
    done = np.arange(1, steps + 1) / steps
    noise = np.random.default_rng(0).normal(0, 0.05, steps)
    assert ends_at(np.exp(-0.3 * done) + noise, steps) is None  # about 3 % per window
    assert ends_at(0.5 + 0.1 * done + noise, steps) == 2 * max(SHORTEST_WINDOW, steps // 10)


def test_an_error_that_levels_out_ends_soon_afterwards() -> None:
    steps = 20_000
    done = np.arange(1, steps + 1) / steps
    errors = np.where(done < 0.4, 1 - done, 0.6) + np.random.default_rng(0).normal(0, 0.02, steps)
    ended = ends_at(errors, steps)
    assert ended is not None and 0.4 * steps < ended <= 0.7 * steps


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60), st.integers(0, 60))
def test_a_state_carried_over_decides_as_an_unbroken_one(errors: list[float], cut: int) -> None:
    """Steps are taken from just before the windows' ends, where decisions fall."""
    steps = [window * SHORTEST_WINDOW - 1 + offset for window in range(1, 40) for offset in (0, 1)][: len(errors)]
    whole, parts = Plateau(), Plateau()
    for index, (step, error) in enumerate(zip(steps, errors, strict=False)):
        if index == cut:
            parts = Plateau(**dataclasses.asdict(parts))
        assert whole.update(error, step, 10_000) == parts.update(error, step, 10_000)
    assert whole == parts
