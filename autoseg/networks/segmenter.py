"""What every network of ours can do, whatever its inside."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoseg.errors import UserError

HEAD_LAYERS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Part:
    """One stage of a network, for people: `name` ("encoder 2"), `block` ("2 residual + 2 attention, 4 heads").

    The module's output, or the last tensor of it, is the stage's feature map; its voxels are tokens where the stage
    `attends`.
    """

    name: str
    block: str
    module: nn.Module
    attends: bool = False


@dataclass(frozen=True)
class FeatureMaps:
    """What a network computes on the way to its logits: maps (batch, channel, *shape), finest first.

    The last of `encoder` is the bottleneck. `decoder` has no bottleneck; its first map has the patch's shape and is
    what the finest head sees. Every shape divides the patch's along every axis.
    """

    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]


class Segmenter(nn.Module):
    """Logits (batch, class, *patch) of images (batch, channel, *patch), patch in plan order.

    Attributes
    ----------
    fixed_shape : the only patch that the weights fit, or None where any patch that the strides divide will do.
    """

    fixed_shape: tuple[int, ...] | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the input."""

    @abstractmethod
    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits of every level that the loss weighs, finest first; the first as `forward` gives it."""

    @abstractmethod
    def logits_of(self, maps: FeatureMaps) -> list[Tensor]:
        """The logits of `forward_all` from the `feature_maps` of the same images."""

    @abstractmethod
    def initialize(self) -> None:
        """First weights, drawn from torch's global generator: seed it first."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """The stages in the order of computation; together they hold every weight."""

    @abstractmethod
    def task_heads(self) -> tuple[str, ...]:
        """The layers that map features to classes, by their names in the state dict; that of the finest level first.

        Everything else is the backbone, whose weights fit any number of classes.
        """

    @abstractmethod
    def _encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps, finest first, the bottleneck last. Raises what `check_shape` raises."""

    @abstractmethod
    def _decode(self, encoded: list[Tensor]) -> Iterator[Tensor]:
        """The decoder's maps, coarsest first; takes those of the encoder out of the list, so that each can be freed."""

    def feature_maps(self, x: Tensor) -> FeatureMaps:
        """The maps that `forward` computes of the same images, all of them kept; no logits."""
        encoder = self._encode(x)
        decoder = tuple(self._decode(list(encoder)))
        return FeatureMaps(tuple(encoder), decoder[::-1])

    def encoder_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """`feature_maps(x).encoder`, without computing the decoder."""
        return tuple(self._encode(x))

    def finest_features(self, x: Tensor) -> Tensor:
        """`feature_maps(x).decoder[0]` alone; the other maps are freed once they are used."""
        return deque(self._decode(self._encode(x)), maxlen=1).pop()

    @torch.no_grad()
    def head_map(self) -> tuple[Float[Tensor, "class channel"], Float[Tensor, " class"]]:
        """(M, b) of the finest head: the logits of a voxel are M @ its `finest_features` + b; float32, copies."""
        head = self.get_submodule(self.task_heads()[0])
        (layer,) = (module for module in head.modules() if isinstance(module, HEAD_LAYERS))
        weight = layer.weight.detach().flatten(1)  # (class, feature): all lengths of the kernel are 1
        if layer.transposed:
            weight = weight.T
        offset = torch.zeros(len(weight), device=weight.device) if layer.bias is None else layer.bias.detach()
        return weight.to(torch.float32, copy=True), offset.to(torch.float32, copy=True)

    def is_task_head(self, name: str) -> bool:
        """Whether the tensor of this name in the state dict belongs to one of `task_heads`."""
        return any(name.startswith(f"{head}.") for head in self.task_heads())

    def backbone_state(self) -> dict[str, Tensor]:
        """The state dict without the task heads; not copied."""
        return {name: value for name, value in self.state_dict().items() if not self.is_task_head(name)}

    def check_shape(self, x: Tensor) -> None:
        """UserError where the image is no patch that the weights fit."""
        if self.fixed_shape is not None and tuple(x.shape[2:]) != self.fixed_shape:
            raise UserError(
                f"a patch of {'×'.join(map(str, x.shape[2:]))} voxels was given to a network whose position table was "
                f"made for {'×'.join(map(str, self.fixed_shape))}.\nPredict with the patch of the plan it was trained "
                "with, or plan an architecture that takes any patch (resenc, hybrid)."
            )
