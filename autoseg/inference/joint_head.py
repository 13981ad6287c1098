"""The last layer of networks with many classes, applied once to the windows' mean features.

A head is one linear map at every voxel, and the weighted mean over windows and mirrored copies is linear too; so the
mean of the logits M f + b is M mean(f) + b. With more classes than features, sums of features are smaller than sums of
logits, and do not grow with the number of classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoseg.networks.segmenter import Segmenter

PLANES = 12  # of logits made at a time: what a slab of the decoder takes
LOGITS_BYTES = 1 << 28  # of these planes; fewer planes where all would take more


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

    @torch.inference_mode()
    def __call__(self, features: Float[Tensor, "channel z y x"]) -> Float[Tensor, "class z y x"]:
        """Logits, where the features are."""
        _, *shape = features.shape
        offset, matrix = self.offset.to(features.device)[:, None], self.matrix.to(features.device)
        return torch.addmm(offset, matrix, features.reshape(len(features), -1)).view(-1, *shape)

    def in_pieces(
        self, first: int, features: Float[Tensor, "channel z y x"]
    ) -> Iterator[tuple[int, Float[Tensor, "class z y x"]]]:
        """(plane, logits from there on) of features from plane `first` on, a few planes at a time."""
        step = self.planes(features[0, 0].numel())
        for start in range(0, features.shape[1], step):
            yield first + start, self(features[:, start : start + step])

    def planes(self, voxels: int) -> int:
        """How many planes of so many voxels are made at a time."""
        return max(1, min(PLANES, LOGITS_BYTES // (4 * len(self.matrix) * voxels)))


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
