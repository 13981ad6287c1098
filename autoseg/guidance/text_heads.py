"""Segmentation heads made of vectors: each class's kernel is generated from its label's vector.

The heads' kernels are the output of a small network whose input is a label's vector, so labels with near vectors get
near kernels, and a label that was not trained has a kernel too. After training the kernels are numbers: they are put
into the network's ordinary heads, and prediction needs neither the vectors nor this code.
(The idea of kernels conditioned on text: CLIP-Driven Universal Model, Liu et al. 2023.)
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from autoseg.networks.segmenter import HEAD_LAYERS, FeatureMaps, Segmenter

HIDDEN = 64
SLOPE = 0.01


@dataclass(frozen=True)
class HeadShape:
    """Features in; axes of the patch; whether the kernel is stored (feature, class, 1, …), as MedNeXt's heads are."""

    features: int
    axes: int
    transposed: bool


class TextHeads(nn.Module):
    """Kernels of every task head of a network from (label, dimension) vectors; the background's vector is learned.

    `learned`: the labels' vectors are parameters too, drawn anew: a control without words.
    """

    vectors: Tensor

    def __init__(
        self, network: Segmenter, vectors: Float32[Tensor, "label dimension"], generator: torch.Generator,
        learned: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        dimension = vectors.shape[1]
        self.background = nn.Parameter(normalize(torch.randn(dimension, generator=generator), dim=0))
        if learned:
            self.vectors = nn.Parameter(normalize(torch.randn(vectors.shape, generator=generator), dim=1))
        else:
            self.register_buffer("vectors", vectors.clone())
        self._heads = head_shapes(network)
        self.generators = nn.ModuleList(
            _generator(dimension, head.features, generator) for head in self._heads.values()
        )

    def kernels(self) -> dict[str, Tensor]:
        """Weight and bias of every head, by their names in the network's state dict and in their shapes there."""
        learned = isinstance(self.vectors, nn.Parameter)
        return self.kernels_for(normalize(self.vectors, dim=1) if learned else self.vectors)

    def kernels_for(self, vectors: Float32[Tensor, "label dimension"]) -> dict[str, Tensor]:
        """As `kernels`, for labels with these vectors."""
        with torch.autocast(vectors.device.type, enabled=False):
            words = torch.cat([normalize(self.background, dim=0)[None], vectors])
            kernels: dict[str, Tensor] = {}
            for (name, head), generator in zip(self._heads.items(), self.generators, strict=True):
                numbers = generator(words)
                weight = numbers[:, :-1].reshape(len(words), head.features, *(1,) * head.axes)
                kernels[f"{name}.weight"] = weight.transpose(0, 1) if head.transposed else weight
                kernels[f"{name}.bias"] = numbers[:, -1]
        return kernels


def head_shapes(network: Segmenter) -> dict[str, HeadShape]:
    """Every task head's 1×1 convolution, by the layer's name in the network."""
    return {
        f"{head}.{inner}" if inner else head: HeadShape(layer.in_channels, layer.weight.dim() - 2, layer.transposed)
        for head in network.task_heads()
        for inner, layer in network.get_submodule(head).named_modules()
        if isinstance(layer, HEAD_LAYERS)
    }


def forward_with(network: Segmenter, image: Tensor, kernels: dict[str, Tensor]) -> tuple[list[Tensor], FeatureMaps]:
    """Logits of every level and the feature maps, with these kernels in the heads."""
    replaced = {f"network.{name}": value for name, value in kernels.items()}
    result: tuple[list[Tensor], FeatureMaps] = functional_call(_WithMaps(network), replaced, (image,))
    return result


class _WithMaps(nn.Module):
    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[list[Tensor], FeatureMaps]:
        maps = self.network.feature_maps(image)
        return self.network.logits_of(maps), maps


def _generator(dimension: int, features: int, generator: torch.Generator) -> nn.Sequential:
    """Vector → kernel of `features` numbers and a bias; first kernels are as large as He's initialization has them."""
    first, last = nn.Linear(dimension, HIDDEN), nn.Linear(HIDDEN, features + 1)
    with torch.no_grad():
        first.weight.normal_(generator=generator)  # of a unit vector this makes numbers of variance 1
        first.bias.zero_()
        last.weight.normal_(0, sqrt(2 / features) / sqrt(HIDDEN / 2), generator=generator)
        last.weight[-1] = 0
        last.bias.zero_()
    return nn.Sequential(first, nn.LeakyReLU(SLOPE), last)
