"""What torch's own layers need to serve here: first weights on request, right derivatives on thin maps."""

import torch
from torch import Tensor, nn

from autoseg.networks.unet import convolve


def redraw(network: nn.Module) -> None:
    """Give every layer the first weights that it draws at construction (its `reset_parameters`).

    Draws from torch's global generator, in the order of the modules: seed it first. Parameters that a module
    holds without having `reset_parameters` are left alone; whoever owns them sets them.
    """
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


class _Convolution2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(super().forward, x, self.stride)


class _Convolution3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(super().forward, x, self.stride)


def guard_thin_maps(network: nn.Module) -> None:
    """Let every convolution of a network leave bfloat16 where `unet.convolve` says that the CPU miscomputes it.

    The layers change their class in place: blocks that a library builds cannot be told which class to use.
    Names and weights stay.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = _Convolution2d
        elif type(module) is nn.Conv3d:
            module.__class__ = _Convolution3d


def current_device() -> torch.device:
    """The device on which torch makes new tensors now ("meta" inside `with torch.device("meta")`)."""
    return torch.empty(0).device
