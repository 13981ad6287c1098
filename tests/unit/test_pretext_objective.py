"""Laws of the loss of pretraining: its scale, what counts in it, and its precision."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoseg.initialization.corruption import Corrupted, corrupt, draw_corruptions
from autoseg.initialization.heads import PretextOutput
from autoseg.initialization.objective import (
    VISIBLE_WEIGHT,
    Loss,
    averaged,
    level_errors,
    pretext_loss,
    standardized,
)
from autoseg.initialization.record import PretextPlan
from autoseg.training.losses import level_weights

PATCH, SLABS = (16, 12, 20), 4
FACTORS = ((1, 1, 1), (1, 2, 2), (4, 4, 4))
"""Of three decoder levels; the boxes of 5×5×5 voxels fit none of the coarse ones."""
MEANS, DEVIATIONS = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])


def tasks(method: str = "lwi") -> PretextPlan:
    slabs = None if method == "mim" else SLABS
    return PretextPlan(mask_block=(5, 5, 5), mask_ratio=0.0 if method == "order" else 0.6, slabs=slabs,
                       border_slices=1 if slabs else 0, reasons=(),
                       order_weight={"lwi": 0.2, "mim": 0.0, "order": 1.0}[method])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def corrupted_noise(plan: PretextPlan, step: int = 0) -> Corrupted:
    """Noise whose channels have the means and deviations above."""
    shape = (1, 2, 1, 1, 1)
    image = noise(2, 2, *PATCH) * DEVIATIONS.view(shape) + MEANS.view(shape)
    return corrupt(image, draw_corruptions(plan, PATCH, 0, step, 2), plan, MEANS)


def perfect(corrupted: Corrupted) -> list[Tensor]:
    target = standardized(corrupted.target, MEANS, DEVIATIONS)
    return [averaged(target, list(factors)) for factors in FACTORS]


def certain(order: Tensor) -> dict[int, Tensor]:
    """Logits of a network that knows the order, at two stages."""
    return dict.fromkeys((0, 2), 50 * torch.nn.functional.one_hot(order, SLABS).float())


def loss_of(levels: list[Tensor], corrupted: Corrupted, plan: PretextPlan, logits: dict[int, Tensor]) -> Loss:
    return pretext_loss(PretextOutput(levels, logits), corrupted, plan, MEANS, DEVIATIONS)


# ---------------------------------------------------------------- the scale
def test_standardized_channels_have_mean_zero_and_deviation_one() -> None:
    target = standardized(corrupted_noise(tasks("mim")).target, MEANS, DEVIATIONS)
    torch.testing.assert_close(target.mean(dim=(0, 2, 3, 4)), torch.zeros(2), atol=0.05, rtol=0)
    torch.testing.assert_close(target.std(dim=(0, 2, 3, 4)), torch.ones(2), atol=0.05, rtol=0)


@pytest.mark.parametrize("step", range(3))
def test_perfect_outputs_cost_nothing(step: int) -> None:
    corrupted = corrupted_noise(tasks(), step)
    assert corrupted.order is not None
    loss = loss_of(perfect(corrupted), corrupted, tasks(), certain(corrupted.order))
    assert float(loss.total) < 1e-6
    assert loss.masked_error is not None and float(loss.masked_error) == 0 and float(loss.order_accuracy) == 1


def test_guessing_the_mean_costs_the_variance() -> None:
    """1 at the finest level; the visible voxels' tenth comes on top."""
    corrupted = corrupted_noise(tasks("mim"))
    loss = loss_of([torch.zeros(2, 2, *PATCH)], corrupted, tasks("mim"), {})
    assert float(loss.total) == pytest.approx(1 + VISIBLE_WEIGHT, abs=0.06)
    assert loss.masked_error is not None and float(loss.masked_error) == pytest.approx(1, abs=0.06)
    assert loss.order_accuracy is None


@pytest.mark.parametrize(("method", "weight"), [("lwi", 0.2), ("order", 1.0)])
def test_guessing_the_order_costs_exactly_its_weight(method: str, weight: float) -> None:
    corrupted = corrupted_noise(tasks(method))
    logits = {0: torch.full((2, SLABS, SLABS), 1.7), 3: torch.zeros(2, SLABS, SLABS)}
    loss = loss_of(perfect(corrupted), corrupted, tasks(method), logits)
    assert float(loss.total) == pytest.approx(weight, abs=1e-6)


def test_the_order_alone_has_no_reconstruction_term() -> None:
    plan = tasks("order")
    corrupted = corrupted_noise(plan)
    assert corrupted.order is not None
    awful = [1e3 * noise(2, 2, *PATCH)]
    loss = loss_of(awful, corrupted, plan, certain(corrupted.order))
    assert float(loss.total) < 1e-6 and loss.masked_error is None


# ---------------------------------------------------------------- levels
def test_levels_weigh_half_of_the_next_finer_one_and_one_together() -> None:
    """With an error of its own at one level, the loss is that level's weight times the error."""
    corrupted = corrupted_noise(tasks("mim"))
    ratios = []
    for level in range(3):
        levels = perfect(corrupted)
        levels[level] = levels[level] + 2  # squared error 4 everywhere
        ratios.append(float(loss_of(levels, corrupted, tasks("mim"), {}).total) / (4 * (1 + VISIBLE_WEIGHT)))
    assert ratios == pytest.approx([4 / 7, 2 / 7, 1 / 7], rel=1e-4)
    assert ratios == pytest.approx(level_weights(3), rel=1e-4)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("method", ["lwi", "mim"])
def test_a_coarse_voxel_counts_with_its_share_of_hidden_voxels(method: str, factors: tuple[int, ...]) -> None:
    """Against a loop over voxels in float64."""
    corrupted = corrupted_noise(tasks(method))
    target = standardized(corrupted.target, MEANS, DEVIATIONS)
    coarse = tuple(size // factor for size, factor in zip(PATCH, factors, strict=True))
    restored = noise(2, 2, *coarse, seed=4)
    sums = np.zeros((2, 2))  # hidden, visible: weighted squares, weights
    fine, hidden, scored = (one.double().numpy() for one in (target, corrupted.hidden, corrupted.scored))
    for sample in range(2):
        for voxel in itertools.product(*map(range, coarse)):
            box = tuple(slice(index * factor, (index + 1) * factor)
                        for index, factor in zip(voxel, factors, strict=True))
            counts = scored[(sample, 0, *box)]
            shares = [(hidden[(sample, 0, *box)] * counts).mean(), ((1 - hidden[(sample, 0, *box)]) * counts).mean()]
            guess = restored[(sample, slice(None), *voxel)].double().numpy()
            square = np.mean((guess - fine[(sample, slice(None), *box)].mean(axis=(1, 2, 3))) ** 2)
            sums += np.array([[share * square, share] for share in shares])
    found = [float(one) for one in level_errors(restored, target, corrupted)]
    assert found == pytest.approx((sums[:, 0] / sums[:, 1]).tolist(), rel=1e-4)


@pytest.mark.parametrize("shape", [(12, 16), (8, 12, 16)])
def test_averages_are_means_over_boxes(shape: tuple[int, ...]) -> None:
    x, factors = noise(2, 3, *shape), [4] * len(shape)
    coarse = averaged(x, factors)
    corner = (slice(None), slice(None), *(slice(4, 8) for _ in shape))
    torch.testing.assert_close(coarse[(..., *(1 for _ in shape))], x[corner].flatten(2).mean(2))
    assert averaged(x, [1] * len(shape)) is x


# ---------------------------------------------------------------- what counts
@given(st.integers(0, 50))
def test_only_hidden_voxels_count_in_the_masked_error_and_only_scored_ones_at_all(step: int) -> None:
    corrupted = corrupted_noise(tasks(), step)
    target = standardized(corrupted.target, MEANS, DEVIATIONS)
    restored = noise(2, 2, *PATCH, seed=step)
    masked, visible = level_errors(restored, target, corrupted)
    counted = corrupted.hidden & corrupted.scored
    for where, same_masked, same_visible in (
        (counted, False, True), (~corrupted.hidden & corrupted.scored, True, False), (~corrupted.scored, True, True),
    ):
        other = level_errors(torch.where(where, restored + 5, restored), target, corrupted)
        assert (float(other[0]) == float(masked)) == same_masked
        assert (float(other[1]) == float(visible)) == same_visible


def test_a_batch_without_hidden_voxels_is_no_division_by_zero() -> None:
    corrupted = corrupted_noise(tasks("order"))
    masked, visible = level_errors(noise(2, 2, *PATCH), corrupted.target, corrupted)
    assert float(masked) == 0 and math.isfinite(float(visible))


def test_the_order_loss_is_the_mean_cross_entropy_of_heads_over_that_of_guessing() -> None:
    plan = tasks("order")
    corrupted = corrupted_noise(plan)
    assert corrupted.order is not None
    logits = {stage: noise(2, SLABS, SLABS, seed=stage) for stage in (0, 1, 3)}
    entropies, right = [], []
    for head in logits.values():
        likelihoods = head.double().softmax(2).numpy()
        chosen = [likelihoods[sample, position, int(corrupted.order[sample, position])]
                  for sample in range(2) for position in range(SLABS)]
        entropies.append(-np.log(chosen).mean())
        right.append((head.argmax(2) == corrupted.order).double().mean().item())
    loss = loss_of([], corrupted, plan, logits)
    assert float(loss.total) == pytest.approx(np.mean(entropies) / math.log(SLABS), rel=1e-5)
    assert loss.order_accuracy is not None and float(loss.order_accuracy) == pytest.approx(np.mean(right))


def test_samples_that_keep_their_order_do_not_count_in_it() -> None:
    """Neither in the loss nor in the accuracy, whatever is said of them."""
    plan = tasks("order")
    corrupted = corrupted_noise(plan)
    assert corrupted.order is not None
    mixed = replace(corrupted, order=torch.stack([corrupted.order[0], torch.full((SLABS,), -1)]))
    logits = {0: noise(2, SLABS, SLABS), 1: noise(2, SLABS, SLABS, seed=1)}
    first = replace(corrupted, order=corrupted.order[:1])
    alone, both = (loss_of([], one, plan, {stage: head[: len(one.order)] for stage, head in logits.items()})
                   for one in (first, mixed))
    assert both.order_accuracy is not None and alone.order_accuracy is not None
    assert float(both.total) == pytest.approx(float(alone.total), rel=1e-6)
    assert float(both.order_accuracy) == pytest.approx(float(alone.order_accuracy))


# ---------------------------------------------------------------- precision
def test_a_half_precision_network_has_a_single_precision_loss_with_gradients() -> None:
    corrupted = corrupted_noise(tasks())
    levels = [torch.zeros(level.shape, dtype=torch.bfloat16, requires_grad=True) for level in perfect(corrupted)]
    logits = {0: torch.zeros(2, SLABS, SLABS, dtype=torch.bfloat16, requires_grad=True)}
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(levels, corrupted, tasks(), logits)
    assert loss.total.dtype == torch.float32 and loss.masked_error is not None and loss.order_accuracy is not None
    assert not loss.masked_error.requires_grad and not loss.order_accuracy.requires_grad
    loss.total.backward()
    assert all(one.grad is not None and one.grad.any() for one in (*levels, logits[0]))
    exact = loss_of([level.detach().float() for level in levels], corrupted, tasks(), {0: logits[0].detach().float()})
    assert float(loss.total.detach()) == pytest.approx(float(exact.total), rel=1e-5)
