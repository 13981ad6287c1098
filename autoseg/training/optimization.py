"""Stochastic gradient descent as nnU-Net uses it: Nesterov momentum, polynomial rate, clipped gradients."""

import torch
from torch import nn


def make_optimizer(
    network: nn.Module, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum and weight decay over every parameter, as one kernel per device.

    Move the network to its device first. On the CPU and on CUDA the update is one pass over the weights.
    """
    parameters = list(network.parameters())
    return torch.optim.SGD(
        parameters,
        lr=learning_rate,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in parameters),
    )


def polynomial_rate(base: float, progress: float, power: float = 0.9) -> float:
    """The learning rate base · (1 − progress)^power; `progress` runs from 0 to 1 and is clipped to that."""
    return float(base * (1.0 - min(max(progress, 0.0), 1.0)) ** power)


def clip_gradients(network: nn.Module, limit: float) -> torch.Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `limit`; returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
