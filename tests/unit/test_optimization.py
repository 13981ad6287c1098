"""The optimizer, the learning rate and the clipping."""

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoseg.errors import UserError
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import OptimizerPlan
from autoseg.training.optimization import (
    clip_gradients,
    decay_groups,
    describe_optimizer,
    make_optimizer,
    resolve_optimizer,
    scheduled_rate,
)
from autoseg.training.settings import OptimizerSettings, TrainSettings, load_preset

SGD, ADAMW = RECIPES["sgd"], RECIPES["adamw"]


def plan(warmup: float, base: float = 0.01) -> OptimizerPlan:
    return ADAMW.model_copy(update={"warmup_share": warmup, "learning_rate": base})


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 5, 3), nn.Conv3d(5, 3, 1)).to(memory_format=torch.channels_last_3d)


class Attending(nn.Module):
    """One parameter of each kind that transformers bring."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.full((4,), 0.1))
        self.position = nn.Parameter(torch.randn(1, 6, 4))
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, 2))


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(2, 2, 5, 6, 7, generator=generator)).square().mean().backward()
        optimizer.step()


def assert_close(ours: nn.Module, theirs: nn.Module) -> None:
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-7)


def test_the_fused_sgd_is_the_plain_one() -> None:
    """Against torch's unfused SGD with nnU-Net's numbers, weights in channels last."""
    ours = small_network()
    theirs = copy.deepcopy(ours)
    steps(ours, make_optimizer(ours, SGD), 6)
    plain = torch.optim.SGD(theirs.parameters(), 0.01, 0.99, weight_decay=3e-5, nesterov=True, foreach=False)
    steps(theirs, plain, 6)
    assert_close(ours, theirs)


def test_the_fused_adamw_is_the_plain_one() -> None:
    """Against torch's unfused AdamW with the recipe's numbers, biases spared from decay."""
    ours = small_network()
    theirs = copy.deepcopy(ours)
    steps(ours, make_optimizer(ours, ADAMW), 6)
    groups = [{"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.05},
              {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, 3e-4, (0.9, 0.98), foreach=False, fused=False)
    steps(theirs, plain, 6)
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_update_repeats_bit_for_bit(name: Literal["sgd", "adamw"]) -> None:
    first, second = small_network(), small_network()
    for network in (first, second):
        steps(network, make_optimizer(network, RECIPES[name]), 4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_every_parameter_is_in_exactly_one_group(name: Literal["sgd", "adamw"]) -> None:
    network = Attending()
    held = [id(one) for group in make_optimizer(network, RECIPES[name]).param_groups for one in group["params"]]
    assert sorted(held) == sorted(id(one) for one in network.parameters())


def test_adamw_decays_matrices_only() -> None:
    """Without gradients nothing but the decay can move a weight."""
    network = Attending()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(network, ADAMW).step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"projection.weight"}
    shrunk = (1 - ADAMW.learning_rate * ADAMW.weight_decay) * before["projection.weight"]
    torch.testing.assert_close(network.projection.weight.detach(), shrunk)


def test_no_group_is_empty() -> None:
    assert [group["weight_decay"] for group in decay_groups(nn.Conv3d(1, 1, 1, bias=False), 0.1)] == [0.1]
    network = nn.LayerNorm(3)
    assert [group["weight_decay"] for group in decay_groups(network, 0.1)] == [0.0]


def test_adamw_without_its_second_momentum_is_refused() -> None:
    with pytest.raises(UserError, match="second_momentum"):
        make_optimizer(small_network(), ADAMW.model_copy(update={"second_momentum": None}))


# ---------------------------------------------------------------- the rate
SHARES = st.sampled_from([0.0, 1e-3, 0.02, 0.05, 0.5, 0.9])
BASES, POWERS = st.floats(1e-6, 1), st.floats(0.1, 3)


@given(st.floats(0, 1), st.floats(0, 1), SHARES, BASES, POWERS)
def test_the_rate_rises_to_its_base_and_falls_to_zero(
    first: float, second: float, share: float, base: float, power: float
) -> None:
    warm = plan(share, base)
    earlier, later = sorted((first, second))
    rates = scheduled_rate(warm, earlier, power), scheduled_rate(warm, later, power)
    assert scheduled_rate(warm, share, power) == base and max(rates) <= base
    assert scheduled_rate(warm, 1.0, power) == 0.0
    if share:
        assert scheduled_rate(warm, 0.0, power) == 0.0
    if later <= share:
        assert rates[0] <= rates[1]
    if earlier >= share:
        assert rates[0] >= rates[1]


@given(SHARES, BASES, st.floats(1, 3))
def test_the_rate_is_continuous(share: float, base: float, power: float) -> None:
    warm, step = plan(share, base), 1e-9
    for progress in (share - step, share, share + step):
        change = scheduled_rate(warm, progress + step, power) - scheduled_rate(warm, progress, power)
        assert abs(change) <= 1e-4 * base


@given(st.floats(0, 1), BASES, POWERS)
def test_without_a_warm_up_the_rule_is_the_polynomial_one_exactly(progress: float, base: float, power: float) -> None:
    assert scheduled_rate(plan(0.0, base), progress, power) == base * (1 - progress) ** power


@pytest.mark.parametrize("epoch", [0, 1, 500, 999])
def test_the_rate_is_nnunets(epoch: int) -> None:
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    PolyLRScheduler(optimizer, 0.01, 1000).step(epoch)
    assert scheduled_rate(SGD, epoch / 1000) == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_progress_outside_the_schedule_gives_no_negative_rate(share: float) -> None:
    assert scheduled_rate(plan(share), 1.5) == 0.0
    assert scheduled_rate(plan(share), -0.5) == scheduled_rate(plan(share), 0.0)


# ---------------------------------------------------------------- which optimizer, which numbers
def test_the_default_preset_takes_the_plan_as_it_is() -> None:
    for planned in (SGD, ADAMW):
        assert resolve_optimizer(planned, RECIPES, load_preset("default")) == planned


def test_the_planned_sgd_is_nnunets_recipe() -> None:
    assert OptimizerPlan(
        name="sgd", learning_rate=0.01, momentum=0.99, weight_decay=3e-5, gradient_clip=12.0, warmup_share=0.0
    ) == SGD


def test_another_optimizer_comes_with_its_own_recipe_and_section() -> None:
    settings = TrainSettings(optimizer="adamw", sgd=OptimizerSettings(momentum=0.5),
                             adamw=OptimizerSettings(weight_decay=0.0))
    assert resolve_optimizer(SGD, RECIPES, settings) == ADAMW.model_copy(update={"weight_decay": 0.0})


def test_the_plans_numbers_hold_where_its_optimizer_is_asked_for_by_name() -> None:
    planned = SGD.model_copy(update={"gradient_clip": 1.0})
    assert resolve_optimizer(planned, RECIPES, TrainSettings(optimizer="sgd")) == planned


def test_the_command_lines_rate_beats_the_presets() -> None:
    quick = load_preset("quick")
    assert resolve_optimizer(SGD, RECIPES, quick).learning_rate == quick.sgd.learning_rate
    for planned in (SGD, ADAMW):
        resolved = resolve_optimizer(planned, RECIPES, replace(quick, learning_rate=0.123))
        assert resolved.learning_rate == 0.123 and resolved.name == planned.name


def test_a_description_tells_all_constants() -> None:
    line = describe_optimizer(ADAMW)
    assert all(word in line for word in ("adamw", "0.0003", "0.9/0.98", "0.05", "at 1", "warm-up"))
    assert "warm-up" not in describe_optimizer(SGD)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_clipping_bounds_the_common_norm(scale: float) -> None:
    network = small_network()
    (scale * network(torch.ones(1, 2, 4, 4, 4))).sum().backward()
    before = [parameter.grad.clone() for parameter in network.parameters()]
    norm = torch.stack([gradient.norm() for gradient in before]).norm()
    torch.testing.assert_close(clip_gradients(network, 12.0), norm)
    factor = min(1.0, 12.0 / norm.item())
    for parameter, gradient in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, factor * gradient, rtol=1e-5, atol=1e-7)
