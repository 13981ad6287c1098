"""The optimizer of a training: which one and with what numbers, its learning rate over time, clipped gradients."""

from collections.abc import Mapping

import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.schema import OptimizerName, OptimizerPlan
from autoseg.training.settings import TrainSettings


def resolve_optimizer(
    planned: OptimizerPlan, recipes: Mapping[OptimizerName, OptimizerPlan], settings: TrainSettings
) -> OptimizerPlan:
    """The optimizer to train with: the plan's or the recipe asked for, with the numbers that the settings give.

    The plan's numbers hold where the plan's optimizer is used, `recipes` where another is asked for; then come the
    settings of that optimizer, and `settings.learning_rate` last.
    """
    name = planned.name if settings.optimizer == "auto" else settings.optimizer
    base = planned if name == planned.name else recipes[name]
    numbers = (settings.sgd if name == "sgd" else settings.adamw).given()
    if settings.learning_rate is not None:
        numbers["learning_rate"] = settings.learning_rate
    return base.model_copy(update=numbers)


def make_optimizer(network: nn.Module, plan: OptimizerPlan) -> torch.optim.Optimizer:
    """The planned optimizer over every parameter that is trained; move the network to its device first.

    On the CPU and on CUDA the update is one pass over the weights (fused).

    Raises
    ------
    UserError : the plan of an AdamW lacks its second momentum (plan.json was edited).
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in network.parameters())
    if plan.name == "sgd":
        return torch.optim.SGD(
            [parameter for parameter in network.parameters() if parameter.requires_grad], lr=plan.learning_rate,
            momentum=plan.momentum, nesterov=plan.momentum > 0, weight_decay=plan.weight_decay, fused=fused,
        )  # fmt: skip
    if plan.second_momentum is None:
        raise UserError("The plan's optimizer is adamw without a second_momentum; a number below 1 was expected.\n"
                        "Correct this entry in plan.json, or plan again: autoseg plan.")
    return torch.optim.AdamW(
        decay_groups(network, plan.weight_decay), lr=plan.learning_rate,
        betas=(plan.momentum, plan.second_momentum), fused=fused,
    )  # fmt: skip


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every trained parameter in one of two groups of an optimizer: with weight decay, and without; none is empty.

    Without: parameters of fewer than two dimensions (norms, biases, scales) and tables of positions (those with
    "position" in their name), for which zero is no simpler a value than another.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    for name, parameter in trained:
        (free if parameter.ndim < 2 or "position" in name else decayed).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scheduled_rate(plan: OptimizerPlan, progress: float, power: float = 0.9) -> float:
    """The learning rate at `progress`, which runs from 0 to 1 and is clipped to that.

    With the warm-up's share w of the schedule: base · progress / w before w, then
    base · ((1 − progress) / (1 − w))^power: continuous, largest at w, zero at the end. With w = 0 this is nnU-Net's
    polynomial rule base · (1 − progress)^power.
    """
    clipped = min(max(progress, 0.0), 1.0)
    if clipped < plan.warmup_share:
        return float(plan.learning_rate * (clipped / plan.warmup_share))
    return float(plan.learning_rate * ((1.0 - clipped) / (1.0 - plan.warmup_share)) ** power)


def clip_gradients(network: nn.Module, limit: float) -> torch.Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `limit`; returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(network.parameters(), limit)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Begin an update: the learning rate `rate` for every parameter, and no gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def apply_gradients(
    network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float
) -> None:
    """End an update: gradients (for float16 scaled) are clipped to the norm `clip` and go into the weights."""
    scaler.unscale_(optimizer)
    clip_gradients(network, clip)
    scaler.step(optimizer)
    scaler.update()


def update_weights(
    loss: torch.Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
    clip: float, rate: float,
) -> None:  # fmt: skip
    """One update at the learning rate `rate`: gradients of the (for float16 scaled) loss, clipped, into the weights."""
    set_rate(optimizer, rate)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    apply_gradients(network, optimizer, scaler, clip)


def describe_optimizer(plan: OptimizerPlan) -> str:
    """One line for people: the optimizer and its constants."""
    momentum = f"{plan.momentum:g}" if plan.second_momentum is None else f"{plan.momentum:g}/{plan.second_momentum:g}"
    warmup = f", warm-up over {plan.warmup_share:.1%} of the schedule" if plan.warmup_share else ""
    return (f"{plan.name}, learning rate {plan.learning_rate:g}, momentum {momentum}, weight decay "
            f"{plan.weight_decay:g}, gradients clipped at {plan.gradient_clip:g}{warmup}")
