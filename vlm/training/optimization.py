"""The optimizer of a training: which tensor learns at which rate, the rate over time, and the average of weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from autoseg.errors import UserError
from vlm.model.records import InitialWeights
from vlm.training.settings import Optimization

Kind = Literal["vision", "text", "new"]
LARGEST_SCALE = math.log(100)
"""The logit scale is kept within [0, ln 100], as in CLIP: beyond it training becomes unstable."""
TIMED_WARMUP_SHARE = 0.1
"""Of a schedule whose end a time limit sets, the warm-up takes at most this share."""


def tensor_kind(name: str, initial: InitialWeights) -> Kind:
    """Of which group of learning rates a tensor of a CLIP is: new ones start by chance, and have most to learn."""
    tower, _, inner = name.partition(".")
    starts = {"visual": initial.vision, "text": initial.text}
    if tower not in starts or starts[tower].source == "random":
        return "new"
    if any(inner == new or inner.startswith(f"{new}.") for new in starts[tower].new):
        return "new"
    return "vision" if tower == "visual" else "text"


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: not to norms, biases, the class token and the logit scale, as in open_clip."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def freeze(network: nn.Module, prefixes: Sequence[str]) -> None:
    """Keep the tensors whose names begin like this as they are; UserError where no tensor does, or no tower learns."""
    names = [name for name, _ in network.named_parameters()]
    if unknown := [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]:
        first = sorted({name.split(".")[0] for name in names})
        raise UserError(f"The recipe freezes {', '.join(unknown)}, but the network has no tensor of such a name; its "
                        f"names begin with {', '.join(first)}.\nCorrect optimization.frozen in the recipe file.")
    for name, parameter in network.named_parameters():
        if any(name.startswith(prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad and "." in name for name, parameter in network.named_parameters()):
        raise UserError(f"The recipe freezes {', '.join(prefixes)}: nothing of either tower is left to train.\n"
                        "Correct optimization.frozen in the recipe file.")


def make_optimizer(network: nn.Module, choice: Optimization, initial: InitialWeights) -> torch.optim.AdamW:
    """AdamW over every parameter that is not frozen; each group's largest rate is under "base_rate"."""
    groups: dict[tuple[Kind, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            group = tensor_kind(name, initial) if choice.rates else "new", is_decayed(name, parameter)
            groups.setdefault(group, []).append(parameter)
    rates = base_rates(choice)
    described = [{"params": parameters, "base_rate": rates[kind], "lr": rates[kind],
                  "weight_decay": choice.weight_decay if decayed else 0.0}
                 for (kind, decayed), parameters in sorted(groups.items())]
    device = next(network.parameters()).device
    return torch.optim.AdamW(described, lr=rates["new"], betas=choice.betas, eps=choice.epsilon,
                             fused=device.type in ("cpu", "cuda"))


def base_rates(choice: Optimization) -> Mapping[Kind, float]:
    """The largest learning rate of each group."""
    if choice.rates is not None:
        return {"vision": choice.rates.vision, "text": choice.rates.text, "new": choice.rates.new}
    assert choice.learning_rate is not None  # the recipe has one or the other
    return {"vision": choice.learning_rate, "text": choice.learning_rate, "new": choice.learning_rate}


def rate_factor(step: int, steps: int, warmup_steps: float, seconds_share: float | None = None) -> float:
    """The learning rate of a step (from 0), as a share of the largest: a linear rise, then half a cosine to zero.

    Without a time limit this is open_clip's `cosine_lr`; the warm-up need not be a whole number of steps. With one,
    `seconds_share` says how much of the time is gone, and of steps and time the one that is further counts: the rate
    reaches zero when either ends.
    """
    if seconds_share is None:
        if step < warmup_steps:
            return min(1.0, (step + 1) / warmup_steps)
        return (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2
    warmup = min(warmup_steps / steps, TIMED_WARMUP_SHARE)
    reached = max(step / steps, min(seconds_share, 1.0))
    if reached < warmup:
        return min(1.0, max((step + 1) / steps, seconds_share) / warmup)
    return (1 + math.cos(math.pi * (reached - warmup) / (1 - warmup))) / 2


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """The rate of every group, as a share of its largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def update_weights(
    network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float | None
) -> None:
    """One update by the gradients that are there, which are then dropped; the logit scale is kept in its bounds."""
    if clip is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        logit_scale: Tensor = network.logit_scale  # type: ignore[assignment]
        logit_scale.clamp_(0, LARGEST_SCALE)


@torch.no_grad()
def average_weights(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average of weights (EMA) towards the network's: by 1 − decay, and by more in the first steps.

    With (1 + step) / (10 + step) as long as that is smaller than `decay`, the average forgets the first weights.
    """
    kept = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_([*average.parameters()], [*network.parameters()], 1 - kept)
    for mine, other in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(other)
