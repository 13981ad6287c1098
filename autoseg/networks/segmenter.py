"""What every network of ours can do, whatever its inside."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from autoseg.errors import UserError


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
    def initialize(self) -> None:
        """First weights, drawn from torch's global generator: seed it first."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """The stages in the order of computation; together they hold every weight."""

    def check_shape(self, x: Tensor) -> None:
        """UserError where the image is no patch that the weights fit."""
        if self.fixed_shape is not None and tuple(x.shape[2:]) != self.fixed_shape:
            raise UserError(
                f"a patch of {'×'.join(map(str, x.shape[2:]))} voxels was given to a network whose position table was "
                f"made for {'×'.join(map(str, self.fixed_shape))}.\nPredict with the patch of the plan it was trained "
                "with, or plan an architecture that takes any patch (resenc, hybrid)."
            )
