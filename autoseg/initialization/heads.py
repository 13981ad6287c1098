"""The network of pretraining: a planned network, with heads for intensities and for slab order in place of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoseg.networks.builder import make_network
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.unet import convolution
from autoseg.schema import ArchitectureName, NetworkPlan

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FeatureShapes:
    """(channel, *shape) of a network's feature maps, finest first."""

    encoder: tuple[Shape, ...]
    decoder: tuple[Shape, ...]


@dataclass(frozen=True)
class PretextOutput:
    """Reconstructed intensities per decoder level (sample, channel, *shape), finest first, in units of the channel's
    standard deviation; logits (sample, position, slab) per encoder stage that has an order head."""

    reconstructions: list[Tensor]
    order_logits: dict[int, Tensor]


class OrderHead(nn.Module):
    """Which slab of the original stands at each position: pooled along the shuffled axis, then a linear map.

    The published code pools every slab's share of all slabs (it groups another axis than the shuffled one).
    """

    def __init__(self, features: int, slabs: int) -> None:
        super().__init__()
        self.slabs = slabs
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, slabs)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(pool_slabs(features, self.slabs)))
        return logits


def pool_slabs(features: Tensor, slabs: int) -> Tensor:
    """Means (sample, position, channel) of (sample, channel, *shape) over each of `slabs` parts of the first axis.

    In float32. The first axis must be a multiple of `slabs`.
    """
    means = features.mean(dim=tuple(range(3, features.ndim)), dtype=torch.float32)
    return means.reshape(*means.shape[:2], slabs, -1).mean(3).transpose(1, 2)


class PretextNetwork(nn.Module):
    """A planned network with the heads of pretraining; the network's own heads are neither used nor trained.

    `mask_value` (channel) stands for hidden voxels; it begins as the images' mean and is learned. Unless it
    `reconstructs`, the decoder is neither computed nor trained.
    """

    def __init__(
        self, network: Segmenter, shapes: FeatureShapes, means: Sequence[float], slabs: int | None,
        reconstructs: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.mask_value = nn.Parameter(torch.tensor(means, dtype=torch.float32))
        self.reconstruction = nn.ModuleList(
            convolution(features, len(means), (1,) * len(shape), (1,) * len(shape))
            for features, *shape in (shapes.decoder if reconstructs else ())
        )
        self.order = nn.ModuleDict()
        for stage, (features, length, *_) in enumerate(shapes.encoder):
            if slabs is not None and length % slabs == 0:
                self.order[str(stage)] = OrderHead(features, slabs)

    def forward(self, x: Tensor) -> PretextOutput:
        encoder: tuple[Tensor, ...]
        decoder: tuple[Tensor, ...] = ()
        if len(self.reconstruction):
            maps = self.network.feature_maps(x)
            encoder, decoder = maps.encoder, maps.decoder
        else:
            encoder = self.network.encoder_maps(x)
        reconstructions = [head(level) for head, level in zip(self.reconstruction, decoder, strict=True)]
        return PretextOutput(reconstructions, {int(stage): head(encoder[int(stage)])
                                               for stage, head in self.order.items()})


def feature_shapes(architecture: ArchitectureName, plan: NetworkPlan, channels: int) -> FeatureShapes:
    """The shapes of the planned network's feature maps, from a pass on torch's "meta" device; nothing is computed."""
    with torch.device("meta"), torch.no_grad():
        maps = make_network(architecture, plan, channels, 2).eval().feature_maps(
            torch.empty(1, channels, *plan.patch_shape)
        )
    return FeatureShapes(tuple(tuple(one.shape[1:]) for one in maps.encoder),
                         tuple(tuple(one.shape[1:]) for one in maps.decoder))
