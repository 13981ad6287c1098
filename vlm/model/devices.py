"""Where a model computes."""

from typing import Literal

import torch

from autoseg.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: DeviceName) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. UserError where a GPU is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU that torch can use was found.\n"
                        "Use --device cpu, or check the driver with nvidia-smi.")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")
