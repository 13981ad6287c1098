"""The optimizer, the learning rate and the clipping."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoseg.training.optimization import clip_gradients, make_optimizer, polynomial_rate


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 5, 3), nn.Conv3d(5, 3, 1)).to(memory_format=torch.channels_last_3d)


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(2, 2, 5, 6, 7, generator=generator)).square().mean().backward()
        optimizer.step()


def test_the_fused_update_is_the_plain_one() -> None:
    """Against torch's unfused SGD with nnU-Net's numbers, weights in channels last."""
    ours = small_network()
    theirs = copy.deepcopy(ours)
    steps(ours, make_optimizer(ours, 0.01, 0.99, 3e-5), 6)
    plain = torch.optim.SGD(theirs.parameters(), 0.01, 0.99, weight_decay=3e-5, nesterov=True, foreach=False)
    steps(theirs, plain, 6)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-7)


def test_the_update_repeats_bit_for_bit() -> None:
    first, second = small_network(), small_network()
    for network in (first, second):
        steps(network, make_optimizer(network, 0.01, 0.99, 3e-5), 4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 1), st.floats(0.1, 3))
def test_the_rate_falls_from_base_to_zero(first: float, second: float, base: float, power: float) -> None:
    earlier, later = sorted((first, second))
    assert polynomial_rate(base, 0.0, power) == base
    assert polynomial_rate(base, 1.0, power) == 0.0
    assert polynomial_rate(base, earlier, power) >= polynomial_rate(base, later, power)


@pytest.mark.parametrize("epoch", [0, 1, 500, 999])
def test_the_rate_is_nnunets(epoch: int) -> None:
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    PolyLRScheduler(optimizer, 0.01, 1000).step(epoch)
    assert polynomial_rate(0.01, epoch / 1000) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_progress_beyond_the_schedule_gives_no_negative_rate() -> None:
    assert polynomial_rate(0.01, 1.5) == 0.0


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
