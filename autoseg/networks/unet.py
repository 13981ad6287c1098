"""The `plain`, `resenc` and `hybrid` U-Nets in two and three dimensions, from a topology alone.

The mathematics is that of nnU-Net's networks (Isensee et al., 2021 and 2024): convolution → instance
normalization → leaky ReLU, strided convolutions on the way down, transposed convolutions on the way up, a 1×1
segmentation head at every decoder level. A `hybrid` ends its coarse encoder stages with attention (`attention`).
Nothing depends on the patch's shape.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from autoseg.networks.attention import AttentionBlock
from autoseg.networks.normalization import InstanceNorm
from autoseg.networks.segmenter import FeatureMaps, Part, Segmenter
from autoseg.schema import ArchitectureName, AttentionPlan, Topology

SLOPE = 0.01
Convolution = nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
STRIDED = {2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
UPSAMPLED = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
POOLING: dict[int, type[nn.AvgPool2d] | type[nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def convolution(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], bias: bool = True
) -> Convolution:
    """A convolution that keeps the shape at stride 1; the number of axes is the kernel's length."""
    padding = tuple((size - 1) // 2 for size in kernel)
    kind = CONVOLUTIONS[len(kernel)]
    # Conv2d and Conv3d take tuples of two and three; one dictionary cannot tell mypy which.
    return kind(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)  # type: ignore[arg-type]


def convolve(operation: Callable[[Tensor], Tensor], x: Tensor, stride: Sequence[int]) -> Tensor:
    """`operation`, a convolution with `stride`; on the CPU in float32 where the result is thinner than 3 voxels.

    oneDNN (in torch 2.15) miscomputes bfloat16 convolutions there: the derivative by the weight is garbage for
    inputs of two slices under three-slice kernels (found here against float64, AMD with avx512_bf16), and values
    are wrong for strided outputs one voxel wide (pytorch/pytorch#169688). Such maps are small.
    """
    thin = any(size // step < 3 for size, step in zip(x.shape[2:], stride, strict=True))
    if thin and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return operation(x.float())
    return operation(x)


class ConvolutionBlock(nn.Module):
    """Convolution → instance normalization (→ addition) → leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, kernel, stride)
        self.norm = InstanceNorm(outputs, SLOPE)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        result: Tensor = self.norm(convolve(self.convolution, x, self.convolution.stride), residual, owned=True)
        return result


class Projection(nn.Module):
    """A residual block's skip to other channels: mean over the stride → 1×1 convolution → normalization.

    Mean and convolution are computed as one strided convolution with the weight spread over the stride. The
    average would leave bfloat16 on the CPU (torch pools 3-D tensors there in float32 only).
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        ones = (1,) * len(stride)
        self.convolution = convolution(inputs, outputs, ones, ones, bias=False)
        self.norm = InstanceNorm(outputs, slope=1.0)
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(convolve(self._mean_and_convolution, x, self.stride), owned=True)
        return result

    def _mean_and_convolution(self, x: Tensor) -> Tensor:
        weight = self.convolution.weight
        spread = (weight / math.prod(self.stride)).expand(*weight.shape[:2], *self.stride)
        return STRIDED[len(self.stride)](x, spread, stride=self.stride)  # type: ignore[arg-type]


class ResidualBlock(nn.Module):
    """Two convolution blocks; the skip is added before the second activation (BasicBlock of ResNet-D)."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.first = ConvolutionBlock(inputs, outputs, kernel, stride)
        self.second = ConvolutionBlock(outputs, outputs, kernel, (1,) * len(kernel))
        self.skip: nn.Module | None = None
        if inputs != outputs:
            self.skip = Projection(inputs, outputs, stride)
        elif math.prod(stride) > 1:
            self.skip = POOLING[len(kernel)](tuple(stride), tuple(stride))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x), x if self.skip is None else self.skip(x))
        return result


BLOCKS: dict[ArchitectureName, type[ConvolutionBlock] | type[ResidualBlock]] = {
    "plain": ConvolutionBlock,
    "resenc": ResidualBlock,
    "hybrid": ResidualBlock,
}


class Stage(nn.Sequential):
    """`count` blocks of one resolution, the first strided; then those of `attention`."""

    def __init__(
        self, architecture: ArchitectureName, channels: tuple[int, int], kernel: Sequence[int],
        stride: Sequence[int], count: int, attention: Sequence[AttentionBlock] = (),
    ) -> None:  # fmt: skip
        inputs, outputs = channels
        block, ones = BLOCKS[architecture], (1,) * len(kernel)
        later = [block(outputs, outputs, kernel, ones) for _ in range(count - 1)]
        super().__init__(block(inputs, outputs, kernel, stride), *later, *attention)


class Encoder(nn.Module):
    """Stages from fine to coarse; all but `plain` begin with a stem of one convolution block."""

    def __init__(self, architecture: ArchitectureName, topology: Topology, input_channels: int) -> None:
        super().__init__()
        inputs = input_channels
        self.stem: nn.Module | None = None
        if architecture != "plain":
            kernel, inputs = topology.kernel_sizes[0], topology.features[0]
            self.stem = ConvolutionBlock(input_channels, inputs, kernel, (1,) * len(kernel))
        attention = attention_blocks(topology)
        self.stages = nn.ModuleList()
        for outputs, kernel, stride, count, attending in zip(
            topology.features, topology.kernel_sizes, topology.strides, topology.encoder_blocks, attention, strict=True
        ):
            convolutional = count - len(attending)
            self.stages.append(Stage(architecture, (inputs, outputs), kernel, stride, convolutional, attending))
            inputs = outputs

    def forward(self, x: Tensor, checkpointed: int = 0) -> list[Tensor]:
        """The output of every stage, finest first; the first `checkpointed` stages keep nothing else."""
        outputs = []
        for index, stage in enumerate(self.stages):
            parts = [self.stem, stage] if index == 0 and self.stem is not None else [stage]
            for part in parts:
                x = checkpoint(part, x, use_reentrant=False) if index < checkpointed else part(x)
            outputs.append(x)
        return outputs


def attention_blocks(topology: Topology) -> list[list[AttentionBlock]]:
    """The attention blocks of every encoder stage; the share of dropped paths grows from 0 to the plan's."""
    plan = topology.attention
    if plan is None:
        return [[] for _ in topology.strides]
    total = sum(plan.blocks)
    stages: list[list[AttentionBlock]] = []
    spacing = plan.spacing
    for stage, (stride, count) in enumerate(zip(topology.strides, plan.blocks, strict=True)):
        spacing = tuple(size * step for size, step in zip(spacing, stride, strict=True))
        before = sum(plan.blocks[:stage])
        stages.append([
            AttentionBlock(
                topology.features[stage], plan.heads[stage], topology.kernel_sizes[stage], spacing,
                plan.key_shapes[stage], plan.drop_path * (before + index) / max(1, total - 1),
            )
            for index in range(count)
        ])
    return stages


class DecoderLevel(nn.Module):
    """Transposed convolution, concatenation with the encoder's output, blocks; a head for logits."""

    def __init__(self, topology: Topology, level: int, count: int, output_channels: int) -> None:
        super().__init__()
        below, outputs = topology.features[level + 1], topology.features[level]
        kernel, stride = topology.kernel_sizes[level], tuple(topology.strides[level + 1])
        ones = (1,) * len(kernel)
        self.upsampling = TRANSPOSED[len(kernel)](below, outputs, stride, stride)  # type: ignore[arg-type]
        self.blocks = Stage("plain", (2 * outputs, outputs), kernel, ones, count)
        self.head = convolution(outputs, output_channels, ones, ones)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.blocks(torch.cat((self._upsample(x), skip), dim=1))
        return result

    def _upsample(self, x: Tensor) -> Tensor:
        module = self.upsampling
        if x.device.type != "cpu" or module.bias is None:
            result: Tensor = module(x)
            return result
        # oneDNN's derivative by the bias takes three times as long as the rest of the backward pass
        # (bfloat16, channels last); as an addition of its own it costs next to nothing.
        out = UPSAMPLED[len(module.stride)](x, module.weight, stride=module.stride)  # type: ignore[arg-type]
        return out.add_(module.bias.to(out.dtype).view(-1, *(1 for _ in module.stride)))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the features that `forward` gave."""
        result: Tensor = self.head(x)
        return result


class UNet(Segmenter):
    """Logits (batch, class, *patch) of images (batch, channel, *patch).

    Every axis of the patch must be a multiple of the product of the strides along it. Of the first
    `checkpointed_stages` resolutions only the outputs are kept in training; the rest is computed a second time.
    """

    def __init__(
        self, architecture: ArchitectureName, topology: Topology, input_channels: int, output_channels: int,
        checkpointed_stages: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = Encoder(architecture, topology, input_channels)
        coarsest = len(topology.features) - 2
        self.decoder = nn.ModuleList(
            DecoderLevel(topology, coarsest - depth, count, output_channels)
            for depth, count in enumerate(topology.decoder_blocks)
        )
        # The loss gives the coarsest level no weight (nnU-Net), so its logits are never computed; the head
        # exists because the peer's weights have one.
        self.supervised_levels = max(1, len(topology.decoder_blocks) - 1)
        self.checkpointed_stages = checkpointed_stages
        self._texts = [_stage_text(architecture, topology, stage) for stage in range(len(topology.features))]

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the input."""
        return self._logits(x, 1)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits of every level that the loss weighs, finest first."""
        return self._logits(x, self.supervised_levels)

    def logits_of(self, maps: FeatureMaps) -> list[Tensor]:
        """The logits of `forward_all` from the `feature_maps` of the same images."""
        levels = self._levels()[::-1][: self.supervised_levels]
        return [level.logits(features) for level, features in zip(levels, maps.decoder[: len(levels)], strict=True)]

    def initialize(self) -> None:
        """First weights, drawn from torch's global generator: seed it first."""
        initialize(self)

    def parts(self) -> list[Part]:
        """Stem, encoder stages, decoder levels."""
        stem = [] if self.encoder.stem is None else [Part("stem", "1 convolution", self.encoder.stem)]
        down = [
            Part(f"encoder {stage}", text, module, any(isinstance(one, AttentionBlock) for one in module.children()))
            for stage, (text, module) in enumerate(zip(self._texts, self.encoder.stages, strict=True))
        ]
        up = [Part(f"decoder {len(self.decoder) - 1 - index}", f"upsampling, {len(level.blocks)} convolutions", level)
              for index, level in enumerate(self._levels())]
        return [*stem, *down, *up]

    def _levels(self) -> list[DecoderLevel]:
        return list(self.decoder)  # type: ignore[arg-type]

    def task_heads(self) -> tuple[str, ...]:
        """The head of every decoder level, finest first, with that which the loss does not supervise."""
        return tuple(f"decoder.{index}.head" for index in reversed(range(len(self.decoder))))

    def _logits(self, x: Tensor, levels: int) -> list[Tensor]:
        logits: list[Tensor] = []
        decoded = self._decode(self._encode(x))
        for remaining, level, features in zip(range(len(self.decoder), 0, -1), self._levels(), decoded, strict=True):
            if remaining <= levels:
                logits.insert(0, level.logits(features))
        return logits

    def _encode(self, x: Tensor) -> list[Tensor]:
        encoded: list[Tensor] = self.encoder(x, self._checkpointed())
        return encoded

    def _decode(self, encoded: list[Tensor]) -> Iterator[Tensor]:
        checkpointed, x = self._checkpointed(), encoded.pop()
        for remaining, level in zip(range(len(self.decoder), 0, -1), self._levels(), strict=True):
            skip = encoded.pop()
            x = checkpoint(level, x, skip, use_reentrant=False) if remaining <= checkpointed else level(x, skip)
            yield x

    def _checkpointed(self) -> int:
        return self.checkpointed_stages if torch.is_grad_enabled() and self.training else 0


def _stage_text(architecture: ArchitectureName, topology: Topology, stage: int) -> str:
    """What an encoder stage is made of, for people."""
    count, plan = topology.encoder_blocks[stage], topology.attention
    kind = "convolutions" if architecture == "plain" else "residual"
    if plan is None or plan.blocks[stage] == 0:
        return f"{count} {kind}"
    return f"{count - plan.blocks[stage]} {kind} + {plan.blocks[stage]} attention ({_attention_text(plan, stage)})"


def _attention_text(plan: AttentionPlan, stage: int) -> str:
    pooled = plan.key_shapes[stage]
    keys = "every token a key" if pooled is None else f"keys averaged to {'×'.join(map(str, pooled))}"
    return f"{plan.heads[stage]} heads, {keys}"


def initialize(network: nn.Module) -> None:
    """He's normal initialization for leaky ReLU; the last normalization of a residual block starts at zero.

    Draws from torch's global generator: seed it first.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.second.norm.weight)
        if isinstance(module, AttentionBlock):
            module.initialize()
