"""Rates over time and per tower, weight decay, averages of weights: against open_clip's trainer and by definition."""

import math

import pytest
import torch
from torch import nn

from autoseg.errors import UserError
from vlm.model.records import InitialWeights, TowerStart
from vlm.training.optimization import (
    average_weights,
    freeze,
    is_decayed,
    make_optimizer,
    rate_factor,
    set_rate,
    tensor_kind,
    update_weights,
)
from vlm.training.settings import Optimization, Rates

RATES = Optimization(rates=Rates(vision=1.0, text=2.0, new=3.0), warmup_share=0.1, batch_size=8)


def initial(vision="metaclip", text="minilm", new=("proj.0.weight",)):
    return InitialWeights(
        vision=TowerStart(source=vision), text=TowerStart(source=text, new=new), logit_scale=1.0, seed=0)


class SmallClip(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.text = nn.ModuleDict({"transformer": nn.Linear(3, 4), "proj": nn.Sequential(nn.Linear(4, 2, bias=False))})
        self.logit_scale = nn.Parameter(torch.tensor(4.0))


@pytest.mark.parametrize(("steps", "warmup"), [(25_840, 2000), (40, 7), (10, 1)])
def test_the_schedule_is_open_clips(steps, warmup):
    from open_clip_train.scheduler import cosine_lr

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = cosine_lr(optimizer, 0.5, warmup, steps)
    for step in sorted({*range(min(steps, 60)), *range(0, steps, 997), steps - 1}):
        theirs(step)
        found = 0.5 * rate_factor(step, steps, float(warmup))
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.4, 2.5, 7.01])
def test_a_warm_up_of_a_broken_number_of_steps_never_passes_the_largest_rate(warmup):
    rates = [rate_factor(step, 50, warmup) for step in range(50)]
    assert max(rates) <= 1 and rates.index(max(rates)) <= warmup + 1


def test_with_a_time_limit_the_rate_ends_when_steps_or_time_end():
    assert rate_factor(99, 100, 5.0, 0.0) < 0.001 < rate_factor(60, 100, 5.0, 0.0)
    assert rate_factor(3, 1000, 50.0, 1.0) == pytest.approx(0)
    for share in (0.3, 0.5, 0.9):  # time is further than steps
        assert rate_factor(0, 10**6, 1000.0, share) == pytest.approx(
            (1 + math.cos(math.pi * (share - 0.001) / 0.999)) / 2)


def test_a_warm_up_longer_than_the_time_allows_takes_a_tenth_of_it():
    rising = [rate_factor(step, 10_000, 5000.0, share) for step, share in enumerate((0.02, 0.05, 0.08, 0.0999))]
    assert rising == pytest.approx([0.2, 0.5, 0.8, 0.999])
    assert rate_factor(4, 10_000, 5000.0, 0.1) == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "kind"), [
    ("visual.conv1.weight", "vision"), ("text.transformer.layer.0.weight", "text"), ("text.proj.0.weight", "new"),
    ("logit_scale", "new"), ("logit_bias", "new"),
])
def test_new_tensors_have_a_rate_of_their_own(name, kind):
    assert tensor_kind(name, initial()) == kind
    assert tensor_kind(name, initial(vision="random", text="random", new=())) == "new"


def test_weight_decay_spares_what_open_clip_spares():
    for name, parameter in SmallClip().named_parameters():
        spared = parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
        assert is_decayed(name, parameter) is not spared
    assert not is_decayed("visual.ln_conv.weight", torch.zeros(2, 2))


def test_every_parameter_has_its_rate_and_decay():
    network = SmallClip()
    freeze(network, ["text.transformer"])
    optimizer = make_optimizer(network, RATES, initial())
    set_rate(optimizer, 0.5)
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
             for parameter in group["params"]}
    expected = {id(network.visual[0].weight): (0.5, 0.2), id(network.visual[0].bias): (0.5, 0.0),
                id(network.visual[1].weight): (0.5, 0.0), id(network.visual[1].bias): (0.5, 0.0),
                id(network.text["proj"][0].weight): (1.5, 0.2), id(network.logit_scale): (1.5, 0.0)}
    assert found == expected


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"text\.transformr.*logit_scale, text, visual"):
        freeze(SmallClip(), ["text.transformr", "visual"])
    with pytest.raises(UserError, match="nothing of either tower is left to train"):
        freeze(SmallClip(), ["text", "visual"])


def test_the_logit_scale_stays_in_its_bounds():
    for gradient, bound in ((-1.0, math.log(100)), (1.0, 0.0)):
        network = SmallClip()
        choice = Optimization(learning_rate=100.0, warmup_share=0.1, batch_size=8)
        optimizer = make_optimizer(network, choice, initial())
        network.logit_scale.grad = torch.tensor(gradient)
        update_weights(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), None)
        assert network.logit_scale.item() == pytest.approx(bound)
        assert network.logit_scale.grad is None


def test_clipping_bounds_the_norm_of_all_gradients_together():
    network, plain = nn.Linear(2, 1), nn.Linear(2, 1)
    for one in (network, plain):
        one.logit_scale = nn.Parameter(torch.tensor(1.0))
        nn.init.zeros_(one.weight)
        one.weight.grad = torch.tensor([[3.0, 4.0]])
    for one, clip in ((network, 1.0), (plain, None)):
        update_weights(one, torch.optim.SGD(one.parameters(), lr=1.0), torch.amp.GradScaler("cpu", enabled=False), clip)
    assert network.weight[0].tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)
    assert plain.weight[0].tolist() == [-3, -4]


def test_the_average_forgets_its_first_weights_and_then_moves_slowly():
    average, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 100.0)
    values, expected = [4.0, 7.0, -2.0], 100.0
    for step, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        average_weights(average, network, 0.15, step)
        kept = min(0.15, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
    assert average.weight.item() == pytest.approx(expected)
