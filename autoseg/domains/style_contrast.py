"""Channel-wise content and style of a network's first features (CCSDG), and the gate that passes on content alone.

With f the output of the first convolution block, a learned prompt π (2 × channels) and τ = 0.1,

    P = softmax(π / τ) over the two rows,   content = P₀ ⊙ f,   style = P₁ ⊙ f.

A projector φ makes unit vectors of both. Content ought to be alike in all views v of the same patches, style not:

    contrast = mean over pairs v < w of  d(φ(content_v), φ(content_w)) − d(φ(style_v), φ(style_w)),   d = mean |a − b|.

The features are constants in it: its gradient goes to π and φ alone. The segmentation loss trains π as well, because
the rest of the network sees the content only. Source: Hu et al. 2023, "Devil is in channels: contrastive single
domain generalization for medical image segmentation" (C²SDG). What differs, and why:

- The gate stands after the first block's normalization. Published, it stands between convolution and normalization,
  which cancels a channel's factor, all but P₀ near 0. Here P₀ also folds into the normalization's weight and bias
  (leaky ReLU(P₀·x) = P₀·leaky ReLU(x)), so that a finished network is an ordinary one: `folded_state`.
- π starts at zero, content and style being half of every channel. Drawn from a normal distribution (published), π / τ
  makes most channels wholly content or wholly style, where the softmax's gradient is nearly zero, before anything is
  learned.
- φ averages to a fixed grid before its linear layer, so that weights fit any patch (published: 131 072 inputs of a
  fixed patch, 134 million weights), normalizes each sample over all its channels (published: each channel over the
  batch, here of two or so), and gives 256 numbers: 512 numbers have no 1024 independent combinations.
- The mean over pairs, where twice the sum over three pairs is published. Differences of unit vectors of 256 numbers
  have twice the mean of those of 1024, so the published contrast is three times this one; it stands beside the sum of
  three views' segmentation losses, this one beside their mean. The balance of the two is the published one.
"""

from collections.abc import Sequence
from itertools import combinations
from types import TracebackType

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from autoseg.errors import UserError
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.unet import SLOPE, ConvolutionBlock, UNet, convolution, convolve

TEMPERATURE = 0.1
_PROJECTED_CHANNELS, _NUMBERS = 8, 256
# 512 inputs of the linear layer in both.
_GRIDS = {2: (8, 8), 3: (4, 4, 4)}
_MAXIMUM = {2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


class ContentStyle(nn.Module):
    """The prompt π and the projector φ, for `channels` features of a network with `dimensions` axes.

    First weights of φ are drawn from torch's global generator at construction: seed it first.
    """

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(2, channels))
        self.convolution = convolution(channels, _PROJECTED_CHANNELS, (3,) * dimensions, (1,) * dimensions)
        self.linear = nn.Linear(_PROJECTED_CHANNELS * _GRIDS[dimensions][0] ** dimensions, _NUMBERS)

    def shares(self) -> Float32[Tensor, "2 channel"]:
        """P: the share of content (row 0) and of style (row 1) in every channel."""
        return torch.softmax(self.prompt.float() / TEMPERATURE, dim=0)

    def content(self, features: Float[Tensor, "sample channel *patch"]) -> Float[Tensor, "sample channel *patch"]:
        """P₀ ⊙ features, in their precision."""
        return features * self._broadcast(0, features)

    def style(self, features: Float[Tensor, "sample channel *patch"]) -> Float[Tensor, "sample channel *patch"]:
        """P₁ ⊙ features, in their precision."""
        return features * self._broadcast(1, features)

    def contrast(self, features: Sequence[Float[Tensor, "sample channel *patch"]]) -> Float32[Tensor, ""]:
        """Distance of contents less distance of styles between views of the same patches (two or more views)."""
        projected = [self.projections(view.detach()) for view in features]
        distances = [(a - b).abs().mean(dim=(1, 2)) for a, b in combinations(projected, 2)]
        content, style = torch.stack(distances).mean(dim=0).unbind()
        return content - style

    def projections(self, features: Float[Tensor, "sample channel *patch"]) -> Float32[Tensor, "2 sample number"]:
        """φ(content) and φ(style), unit vectors: convolution → maxima → normalization → leaky ReLU → means → linear.

        Maxima come before the normalization, which then costs an eighth; leaky ReLU and maxima commute.
        """
        dimensions = features.dim() - 2
        half = features.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(features.device.type, features.dtype if half else None, enabled=half):
            x = convolve(self._convolve_both, features, (1,) * dimensions)
        with torch.autocast(features.device.type, enabled=False):
            x = _MAXIMUM[dimensions](x, [min(2, length) for length in x.shape[2:]])
            x = torch.cat(x.float().chunk(2, dim=1))
            x = functional.leaky_relu(functional.group_norm(x, 1), SLOPE)
            x = _AVERAGE[dimensions](x, _GRIDS[dimensions])  # type: ignore[arg-type]
            return torch.stack(functional.normalize(self.linear(x.flatten(1)), dim=1).chunk(2))

    def _convolve_both(self, features: Tensor) -> Tensor:
        """φ's convolution of content, then of style, as one of the features: shares scale its weight instead."""
        weight, bias = self.convolution.weight, self.convolution.bias
        assert bias is not None
        shares = self.shares().to(weight.dtype).view(2, 1, -1, *(1 for _ in features.shape[2:]))
        both = (weight * shares).flatten(0, 1)
        operation = functional.conv2d if features.dim() == 4 else functional.conv3d
        return operation(features, both, bias.repeat(2), padding=1)

    def _broadcast(self, row: int, features: Tensor) -> Tensor:
        return self.shares()[row].to(features.dtype).view(-1, *(1 for _ in features.shape[2:]))


class Gate:
    """P₀ on the output of a network's first block, until `remove` or the end of a `with`; made by `gate`.

    While `record` is set, the block's output of the last forward pass is kept as it is before the gate, for
    `ContentStyle.contrast`. Take it before the backward pass: where stages are checkpointed, that runs the block
    again. Unsetting `record` drops what was not taken.
    """

    def __init__(self, network: Segmenter, style: ContentStyle, record: bool) -> None:
        self._style, self._record = style, record
        self._kept: Tensor | None = None
        self._handle = stem_of(network).register_forward_hook(self._pass_content)

    @property
    def record(self) -> bool:
        """Whether outputs are kept."""
        return self._record

    @record.setter
    def record(self, record: bool) -> None:
        self._record = record
        self._kept = self._kept if record else None

    def taken(self) -> Float[Tensor, "sample channel *patch"]:
        """The block's output of the last forward pass before the gate, detached; it is handed over, not kept."""
        assert self._kept is not None, "no forward pass was recorded"
        kept, self._kept = self._kept, None
        return kept

    def remove(self) -> None:
        """Take the gate off the network."""
        self._handle.remove()
        self._kept = None

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def _pass_content(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._record:
            self._kept = output.detach()
        return self._style.content(output)


def gate(network: Segmenter, style: ContentStyle, record: bool = False) -> Gate:
    """Let only the content of the first block's output go on; UserError as `stem_of` raises it."""
    return Gate(network, style, record)


def stem_of(network: Segmenter) -> ConvolutionBlock:
    """The first convolution block, at full resolution: convolution, normalization with an affine map, leaky ReLU.

    Raises
    ------
    UserError : the architecture has none.
    """
    if not isinstance(network, UNet):
        raise UserError(
            f"domain generalization by ccsdg was asked for with a {type(network).__name__}; it needs a network whose "
            "first layer is a convolution, an instance normalization and a leaky ReLU.\n"
            "Train plain, resenc or hybrid, or generalize by gin or slaug, which work with every network."
        )
    encoder = network.encoder
    stem = encoder.stages[0][0] if encoder.stem is None else encoder.stem  # type: ignore[index]
    assert isinstance(stem, ConvolutionBlock)
    return stem


def stem_channels(network: Segmenter) -> int:
    """The number of channels of the first block's output; UserError as `stem_of` raises it."""
    return stem_of(network).norm.weight.numel()


def folded_state(network: Segmenter, style: ContentStyle) -> dict[str, Tensor]:
    """The tensors of the network's state dict that make it compute without the gate what it computes with it.

    Those are the weight and bias of the first block's normalization; the network itself is left as it is.
    """
    stem = stem_of(network)
    name = next(name for name, module in network.named_modules() if module is stem.norm)
    share = style.shares()[0].detach()
    return {
        f"{name}.{part}": tensor.detach() * share.to(tensor.device, tensor.dtype)
        for part, tensor in (("weight", stem.norm.weight), ("bias", stem.norm.bias))
    }
