"""Which device computes."""

from typing import Literal

import torch

from autoseg.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda"]


def name_of(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_device(name: DeviceName) -> torch.device:
    """The device that `--device` means: `auto` takes CUDA where it is present, else the CPU.

    Raises
    ------
    UserError : CUDA was asked for and this machine, or this build of torch, has none.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        build = torch.version.cuda
        reason = f"torch (CUDA {build}) finds no usable GPU" if build else "torch was built without CUDA"
        raise UserError(
            f"--device cuda: {reason} on this machine; a CUDA device was expected.\n"
            "Use --device cpu, or check that `nvidia-smi` lists a GPU and that its driver fits torch."
        )
    return torch.device("cpu")
