"""Gradients of a batch's loss, whole or in chunks: the same numbers, with the memory of one chunk.

A contrastive loss needs the embeddings of all pairs at once, but not all activations: in chunks (gradient cache) the
towers run twice. First without gradients, for the embeddings; the loss gives the gradient of each embedding; then once
more, chunk by chunk, to carry those on to the weights. Processes exchange embeddings only: each one computes the loss
of all pairs, and the gradient of its own embeddings is already complete.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.training.computing import Computing
from vlm.training.loss import BatchLoss, Embedded, Keys
from vlm.training.processes import Processes
from vlm.training.streaming import Batch

LAYER_STREAM = 3
"""Of the seed; the order of pairs, their mixture and crops have 0 to 2."""


class Towers(nn.Module):
    """Both towers of a CLIP as one forward pass: levels 0 to 255 and groups of token numbers → `Embedded`, in float32.

    mean, std : of levels divided by 255, per color.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, groups: Sequence[Tensor]) -> Embedded:
        """Rows of texts are those of all groups, one after the other."""
        network: Any = self.network
        pixels = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        image_rows = _unit(network.encode_image(pixels))
        texts = [_unit(network.encode_text(ids)) for ids in groups]
        text_rows = torch.cat(texts) if texts else image_rows.new_zeros(0, image_rows.shape[1])
        return Embedded(image_rows, text_rows, network.logit_scale.exp(), network.logit_bias)


def checkpoint_activations(network: nn.Module) -> None:
    """Compute the activations inside blocks of both towers again for the backward pass, instead of keeping them.

    Not by open_clip's own switch: for the text tower it calls what transformers will remove.
    """
    clip: Any = network
    clip.visual.set_grad_checkpointing()
    text = clip.text.transformer
    enable = getattr(text, "activation_checkpointing_enable", None) or text.gradient_checkpointing_enable
    enable()


@dataclass(frozen=True)
class Pass:
    """How a batch goes through the towers.

    towers : the module. parallel : the same module within DistributedDataParallel, where there are several processes.
    chunk_size : pairs of a forward pass. seed : of what layers draw. scaled : multiplies a loss for float16, where
    small gradients would vanish.
    """

    towers: nn.Module
    parallel: Any
    processes: Processes
    chunk_size: int
    computing: Computing
    seed: int
    scaled: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepLoss:
    """loss : of the pairs of all processes. is_sound : per pair of this process, whether its embeddings are finite."""

    loss: Float[Tensor, ""]
    is_sound: Bool[Tensor, " pair"]


def accumulate_gradients(
    how: Pass, batch: Batch, loss_of: BatchLoss, device: torch.device, step: int
) -> StepLoss:
    """Add the gradients of the batch's loss to the parameters; over several processes they are those of all pairs.

    A loss that is not a number leaves the gradients alone.
    """
    chunks = split_batch(batch, how.chunk_size, device)
    passes = _Passes(how, chunks, step)
    if len(chunks) == 1:
        embedded = passes.run(0, how.parallel or how.towers)
    else:
        with torch.no_grad():
            parts = [passes.run(number, how.towers) for number in range(len(chunks))]
        embedded = Embedded(torch.cat([part.images for part in parts]), torch.cat([part.texts for part in parts]),
                            parts[0].scale, parts[0].bias)
    leaves = Embedded(_leaf(embedded.images), _leaf(embedded.texts), _leaf(embedded.scale),
                      None if embedded.bias is None else _leaf(embedded.bias))
    own_texts = leaves.texts[batch.texts.place.to(device)]
    gather = how.processes.gather
    keys = Keys(gather(batch.label_keys.to(device)), gather(batch.text_keys.to(device)))
    loss = loss_of(leaves._replace(images=gather(leaves.images), texts=gather(own_texts)), keys)
    is_sound = (leaves.images.isfinite().all(1) & own_texts.isfinite().all(1)).detach()
    if torch.isfinite(loss):
        gradients = _gradients(how.scaled(loss), leaves, how.processes.world)
        if len(chunks) == 1:
            _carry_on(embedded, gradients)
        else:
            _carry_on_in_chunks(passes, gradients)
    return StepLoss(loss.detach(), is_sound)


def split_batch(batch: Batch, chunk_size: int, device: torch.device) -> list[tuple[Tensor, list[Tensor]]]:
    """(images, groups of token numbers) of each chunk, on the device. The last one has texts, whatever their number."""
    count = -(-batch.pairs // chunk_size)
    images = batch.images.to(device, non_blocking=True).tensor_split(count)
    groups = [ids.to(device, non_blocking=True) for ids in batch.texts.groups]
    bounds = [len(groups) * number // count for number in range(count + 1)]
    return [(part, groups[begin:end]) for part, begin, end in zip(images, bounds, bounds[1:], strict=False)]


@dataclass(frozen=True)
class _Passes:
    """The forward passes of a step. chunks : (images, groups of token numbers)."""

    how: Pass
    chunks: Sequence[tuple[Tensor, list[Tensor]]]
    step: int

    def run(self, number: int, module: nn.Module) -> Embedded:
        """Embeddings of a chunk; what layers draw is the same whenever it is run."""
        torch.manual_seed(layer_seed(self.how.seed, self.step, self.how.processes.rank, number))
        images, groups = self.chunks[number]
        with self.how.computing.forward(images.device):
            embedded: Embedded = module(images, groups)
        return embedded


def layer_seed(seed: int, step: int, rank: int, chunk: int) -> int:
    """Of what layers draw (dropout) in a chunk: a function of these alone, so that continuing needs no random state."""
    mixed = np.random.SeedSequence([seed, LAYER_STREAM, step, rank, chunk]).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


def _gradients(loss: Tensor, leaves: Embedded, world: int) -> Embedded:
    """Of the loss, for each embedding, the scale and the bias; 0 where the loss does not depend on it.

    DistributedDataParallel takes the mean over processes. Each has the towers' gradients of its own pairs only, which
    have to be summed; those of the scale and the bias are already whole.
    """
    present = [rows for rows in leaves if rows is not None]
    found = torch.autograd.grad(loss, present, allow_unused=True, materialize_grads=True)
    factors = (world, world, 1, 1)
    scaled = [gradient * factor for gradient, factor in zip(found, factors, strict=False)]
    return Embedded(*scaled, *[None] * (len(leaves) - len(present)))


def _carry_on(embedded: Embedded, gradients: Embedded) -> None:
    """From embeddings to weights; parts of the network that are frozen have no gradients."""
    both = [(rows, gradient) for rows, gradient in zip(embedded, gradients, strict=True)
            if rows is not None and gradient is not None and rows.requires_grad]
    torch.autograd.backward([rows for rows, _ in both], [gradient for _, gradient in both])


def _carry_on_in_chunks(passes: _Passes, gradients: Embedded) -> None:
    """The second passes. Scale and bias have their gradient once, with the last chunk; processes exchange then."""
    how, image_at, text_at = passes.how, 0, 0
    for number in range(len(passes.chunks)):
        is_last = number == len(passes.chunks) - 1
        with nullcontext() if is_last or how.parallel is None else how.parallel.no_sync():
            part = passes.run(number, how.parallel or how.towers)
            images = gradients.images[image_at : image_at + len(part.images)]
            texts = gradients.texts[text_at : text_at + len(part.texts)]
            once = (gradients.scale, gradients.bias) if is_last else (None, None)
            _carry_on(part, Embedded(images, texts, *once))
        image_at, text_at = image_at + len(images), text_at + len(texts)


def _leaf(rows: Tensor) -> Tensor:
    return rows.detach().requires_grad_()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
