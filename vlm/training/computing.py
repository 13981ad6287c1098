"""How a device computes the towers: the precision and the attention kernel; what the recipe says, or what is fastest.

Measured on one core (AMD, avx512_bf16), forward and backward pass of the recipe `mini`'s vision tower over 128 images:
3.0 s in float32, 1.8 s in bfloat16, 1.5 s with plain attention too. The CPU's fused kernel is made for long sequences;
50 tokens are none.
"""

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoseg.errors import UserError
from vlm.training.settings import Optimization

Precision = Literal["float32", "bfloat16", "float16"]
Attention = Literal["fused", "plain"]
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE_PAIRS, PROBE_TOKENS = 8, 24
PROBE_ROUNDS = 4
"""Of each way; the first, in which kernels are built, is not counted."""
WORTH = 0.95
"""bfloat16 rounds coarsely: it has to save a twentieth of the time to be taken."""

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Computing:
    """precision : of the forward passes; embeddings and losses are float32. attention : fused is torch's own choice."""

    precision: Precision
    attention: Attention = "fused"

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """The context of a forward pass."""
        with torch.autocast(device.type, DTYPES[self.precision], enabled=self.precision != "float32"):
            if self.attention == "fused":
                yield
            else:
                with sdpa_kernel([SDPBackend.MATH]):
                    yield


def choose_computing(choice: Optimization, towers: nn.Module, image_size: int, device: torch.device) -> Computing:
    """What to compute in: on a CPU the fastest of what the recipe allows, measured in a few seconds.

    `auto` takes on a GPU bfloat16, or float16 where it does not compute in that, and torch's own choice of attention.

    UserError: float16 was asked for on a CPU.
    """
    if device.type == "cuda":
        attention: Attention = "fused" if choice.attention == "auto" else choice.attention
        if choice.precision != "auto":
            return Computing(choice.precision, attention)
        half: Precision = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return Computing(half, attention)
    if choice.precision == "float16":
        raise UserError("The recipe's precision is float16, which this CPU does not compute in.\n"
                        "Train on a GPU (--device cuda), or give a recipe file with precision = \"auto\".")
    precisions: tuple[Precision, ...] = (
        ("float32", "bfloat16") if choice.precision == "auto" else (choice.precision,))
    attentions: tuple[Attention, ...] = ("fused", "plain") if choice.attention == "auto" else (choice.attention,)
    ways = [Computing(precision, attention) for precision, attention in itertools.product(precisions, attentions)]
    if len(ways) == 1:
        return ways[0]
    seconds = _probe(ways, towers, image_size)
    best = min(ways, key=lambda way: seconds[way] * (1 if way.precision == "float32" else 1 / WORTH))
    logger.info("computing in %s with %s attention (%d pairs take %s)", best.precision, best.attention, PROBE_PAIRS,
                ", ".join(f"{1e3 * seconds[way]:.0f} ms in {way.precision} {way.attention}" for way in ways))
    return best


def _probe(ways: list[Computing], towers: nn.Module, image_size: int) -> dict[Computing, float]:
    """Seconds of a forward and backward pass, the least of a few, all ways taken in turn."""
    images = torch.zeros(PROBE_PAIRS, 3, image_size, image_size, dtype=torch.uint8)
    ids = torch.ones(PROBE_PAIRS, PROBE_TOKENS, dtype=torch.int64)
    seconds: dict[Computing, list[float]] = {way: [] for way in ways}
    with torch.random.fork_rng(devices=[]):
        for _ in range(PROBE_ROUNDS):
            for way, taken in seconds.items():
                start = time.perf_counter()
                with way.forward(torch.device("cpu")):
                    embedded = towers(images, [ids])
                (embedded.images.sum() + embedded.texts.sum()).backward()
                taken.append(time.perf_counter() - start)
    towers.zero_grad(set_to_none=True)
    return {way: min(taken[1:]) for way, taken in seconds.items()}
