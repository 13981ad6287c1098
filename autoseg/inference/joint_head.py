"""The last layer of networks with many classes, applied once to the windows' mean features.

A head is one linear map at every voxel, and the weighted mean over windows and mirrored copies is linear too; so the
mean of the logits M f + b is M mean(f) + b. With more classes than features, sums of features are smaller than sums of
logits, and do not grow with the number of classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoseg.networks.segmenter import Segmenter

PLANES = 12  # of logits made at a time: as many slices as the CPU's decoder takes for a slab
LOGITS_BYTES = 1 << 26  # of these planes; fewer planes where all would take more


@dataclass(frozen=True)
class JointHead:
    """Mean logits of several networks from the features of all, one network's channels behind the other's.

    Attributes
    ----------
    networks : whose `finest_features` these are.
    starts : the first channel of every network.
    matrix, offset : logits = matrix @ features + offset.
    """

    networks: tuple[Segmenter, ...]
    starts: tuple[int, ...]
    matrix: Float[Tensor, "class channel"]
    offset: Float[Tensor, " class"]

    @property
    def channels(self) -> int:
        """Features of all networks together."""
        return self.matrix.shape[1]

    @property
    def widest(self) -> int:
        """Features of the network that has most."""
        return max(stop - start for start, stop in zip(self.starts, (*self.starts[1:], self.channels), strict=True))

    def planes(self, voxels: int) -> int:
        """How many planes of so many voxels are made at a time."""
        return max(1, min(PLANES, LOGITS_BYTES // (4 * len(self.matrix) * voxels)))

    @torch.inference_mode()
    def __call__(
        self, features: Float[Tensor, "channel z y x"], room: Tensor | None = None
    ) -> Float[Tensor, "class z y x"]:
        """Logits, where the features are.

        room : values on that device, at least as many as there are logits: these are written there.
        """
        _, *shape = features.shape
        offset, matrix = self.offset.to(features.device)[:, None], self.matrix.to(features.device)
        flat = features.reshape(len(features), -1)
        size = len(matrix) * flat.shape[1]
        out = flat.new_empty(size) if room is None else room[:size]
        return torch.addmm(offset, matrix, flat, out=out.view(len(matrix), -1)).view(-1, *shape)


def joint_head(networks: Sequence[nn.Module]) -> JointHead | None:
    """The heads of networks whose features take less memory than their logits; None where they do not.

    A network that is no `Segmenter` has no features to speak of: None.
    """
    segmenters = tuple(network for network in networks if isinstance(network, Segmenter))
    if len(segmenters) < len(networks):
        return None
    maps = [network.head_map() for network in segmenters]
    widths = [matrix.shape[1] for matrix, _ in maps]
    if sum(widths) >= len(maps[0][0]):
        return None
    starts = tuple(sum(widths[:index]) for index in range(len(widths)))
    matrix = torch.cat([matrix for matrix, _ in maps], dim=1) / len(maps)
    return JointHead(segmenters, starts, matrix, torch.stack([offset for _, offset in maps]).mean(dim=0))


def summed_map(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a prediction by this network alone computes of every window: its logits, or its finest features."""
    head = joint_head([network])
    return network if head is None else head.networks[0].finest_features
