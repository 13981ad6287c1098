"""UNETR++ (Shaker et al., 2024), written from its mathematics, for any patch, strides and number of channels.

Differs from the published code in one point: there the spatial branch's result is reordered as (channel, head,
token) and read as (token, head, channel), so that hardly an entry stays with its token. Here each token keeps its
own row. As published are: learned positions added in every block, a scale of the attention that starts at 1e-6,
BatchNorm beside batches of two, and dropout (0.15 on attention, 0.1 of the channels after each block's
convolutions). So a training step draws random numbers, and statistics of training are kept for prediction.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.errors import UserError
from autoseg.networks.segmenter import FeatureMaps, Part, Segmenter
from autoseg.networks.torch_layers import guard_thin_maps, redraw
from autoseg.networks.unet import CONVOLUTIONS, TRANSPOSED, convolution
from autoseg.schema import NetworkPlan

HEADS = (4, 2, 1)
"""The first that divides the channels; every published stage has 4."""
PROJECTED_TOKENS, PROJECTED_BOTTLENECK_TOKENS = 64, 32
ATTENTION_DROPOUT, CHANNEL_DROPOUT = 0.15, 0.1
ATTENTION_SCALE = 1e-6
SUPERVISED_LEVELS = 3
SLOPE = 0.01

BATCH_NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
CHANNEL_DROPOUTS: dict[int, type[nn.Dropout2d] | type[nn.Dropout3d]] = {2: nn.Dropout2d, 3: nn.Dropout3d}


@dataclass(frozen=True)
class Level:
    """One resolution: `features` channels on a grid of `shape`, reached from the finer one by `stride`."""

    features: int
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]


# ---------------------------------------------------------------- attention
class PairedAttention(nn.Module):
    """Attention over tokens and over channels with the same queries and keys; (batch, token, channel) → the same.

    Per head, with d × N matrices Q, K, V₁, V₂ of one linear map, rows of Q and K scaled to length 1 in Q̂ and K̂,
    and one learned projection E: N → p of tokens,

        channels: softmax(τ₁ Q̂ K̂ᵀ) V₁ (d × d weights)    space: softmax(τ₂ Q̂ᵀ (K E)) (V₂ E)ᵀ (N × p weights).

    Each is mapped to half the channels, and the halves are concatenated. The cost is linear in the tokens.
    """

    def __init__(self, channels: int, tokens: int, projected: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in HEADS if channels % heads == 0)
        self.projected = min(projected, tokens)
        self.mixing = nn.Linear(channels, 4 * channels, bias=False)
        self.token_projection = nn.Linear(tokens, self.projected)
        self.channel_temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.spatial_temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.dropout = nn.Dropout(ATTENTION_DROPOUT)
        self.spatial_out = nn.Linear(channels, channels // 2)
        self.channel_out = nn.Linear(channels, channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixing(x).unflatten(2, (4, self.heads, -1))
        queries, keys, channel_values, spatial_values = mixed.permute(2, 0, 3, 4, 1)  # each (batch, head, d, token)
        few_keys, few_values = self.token_projection(keys), self.token_projection(spatial_values)
        queries, keys = functional.normalize(queries, dim=-1), functional.normalize(keys, dim=-1)

        channel_weights = (queries @ keys.transpose(-2, -1) * self.channel_temperature).softmax(-1)
        by_channel = self.dropout(channel_weights) @ channel_values  # (batch, head, d, token)
        spatial_weights = (queries.transpose(-2, -1) @ few_keys * self.spatial_temperature).softmax(-1)
        by_token = self.dropout(spatial_weights) @ few_values.transpose(-2, -1)  # (batch, head, token, d)

        spatial = self.spatial_out(by_token.permute(0, 2, 1, 3).flatten(2))
        channel = self.channel_out(by_channel.permute(0, 3, 1, 2).flatten(2))
        return torch.cat((spatial, channel), dim=-1)

    def reset_parameters(self) -> None:
        """Temperatures of 1; the linear maps reset themselves."""
        nn.init.ones_(self.channel_temperature)
        nn.init.ones_(self.spatial_temperature)


class AttentionBlock(nn.Module):
    """Positions, paired attention and convolutions, each added to its input; shapes stay."""

    def __init__(self, level: Level, projected: int) -> None:
        super().__init__()
        tokens, features, axes = math.prod(level.shape), level.features, len(level.shape)
        self.position = nn.Parameter(torch.zeros(tokens, features))
        self.norm = nn.LayerNorm(features)
        self.attention = PairedAttention(features, tokens, projected)
        self.scale = nn.Parameter(torch.full((features,), ATTENTION_SCALE))
        self.convolutions = ResidualUnit(features, features, level.kernel, BATCH_NORMS[axes])
        self.dropout = CHANNEL_DROPOUTS[axes](CHANNEL_DROPOUT)
        self.out = convolution(features, features, (1,) * axes, (1,) * axes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) + self.position
        tokens = tokens + self.scale * self.attention(self.norm(tokens))
        attended = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        result: Tensor = attended + self.out(self.dropout(self.convolutions(attended)))
        return result

    def reset_parameters(self) -> None:
        """Positions of 0 and a scale of 1e-6; the layers reset themselves."""
        nn.init.zeros_(self.position)
        nn.init.constant_(self.scale, ATTENTION_SCALE)


# ---------------------------------------------------------------- convolution
class ResidualUnit(nn.Module):
    """Twice convolution → norm, leaky ReLU between and after the sum with the (projected) input."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.first = nn.Sequential(convolution(inputs, outputs, kernel, ones, bias=False), norm(outputs))
        self.second = nn.Sequential(convolution(outputs, outputs, kernel, ones, bias=False), norm(outputs))
        self.skip: nn.Module | None = None
        if inputs != outputs:
            self.skip = nn.Sequential(convolution(inputs, outputs, ones, ones, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(functional.leaky_relu(self.first(x), SLOPE, inplace=True))
        return functional.leaky_relu(out + (x if self.skip is None else self.skip(x)), SLOPE, inplace=True)


def _residual_units(inputs: int, outputs: int, kernel: Sequence[int], count: int) -> nn.Sequential:
    norm = INSTANCE_NORMS[len(kernel)]
    later = [ResidualUnit(outputs, outputs, kernel, norm) for _ in range(count - 1)]
    return nn.Sequential(ResidualUnit(inputs, outputs, kernel, norm), *later)


# ---------------------------------------------------------------- stages
class EncoderStage(nn.Sequential):
    """A convolution that merges `stride` voxels, group normalization, attention blocks.

    The stem normalizes all channels together; later stages form as many groups as the stage before has channels.
    """

    def __init__(self, inputs: int, groups: int, level: Level, projected: int, count: int) -> None:
        merge = CONVOLUTIONS[len(level.stride)](inputs, level.features, level.stride, level.stride, bias=False)  # type: ignore[arg-type]
        norm = nn.GroupNorm(math.gcd(groups, level.features), level.features)
        super().__init__(merge, norm, *(AttentionBlock(level, projected) for _ in range(count)))


class DecoderStage(nn.Module):
    """Transposed convolution, plus the skip, blocks; a head for logits where the level is supervised."""

    def __init__(self, below: Level, level: Level, blocks: nn.Sequential, classes: int | None) -> None:
        super().__init__()
        stride, ones = below.stride, (1,) * len(below.stride)
        self.upsampling = TRANSPOSED[len(stride)](below.features, level.features, stride, stride, bias=False)  # type: ignore[arg-type]
        self.blocks = blocks
        self.head = None if classes is None else convolution(level.features, classes, ones, ones)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.blocks(self.upsampling(x) + skip)
        return result

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the features that `forward` gave, at a supervised level."""
        assert self.head is not None
        result: Tensor = self.head(x)
        return result


class UNETRPlusPlus(Segmenter):
    """Convolutions at full resolution; below, stages of paired attention, with sums for skips.

    Supervised are the three finest levels: the image's, the stem's and the next (fewer in a shallower network;
    the bottleneck never). Tokens are projected to 64, at the bottleneck on the way down to 32, and to no more than
    there are. Positions and projections have a row per token: the weights fit the plan's patch alone.

    Raises
    ------
    UserError : the topology has no stage below full resolution.
    """

    def __init__(self, plan: NetworkPlan, input_channels: int, output_channels: int) -> None:
        super().__init__()
        topology, levels = plan.topology, _levels(plan)
        self.fixed_shape = tuple(plan.patch_shape)
        depth = len(levels) - 1
        self.supervised_levels = min(SUPERVISED_LEVELS, depth)
        self.image_skip = _residual_units(
            input_channels, levels[0].features, levels[0].kernel, topology.encoder_blocks[0]
        )
        self.encoder = nn.ModuleList()
        inputs, groups = input_channels, 1
        for index, level in enumerate(levels[1:], start=1):
            projected = PROJECTED_BOTTLENECK_TOKENS if index == depth else PROJECTED_TOKENS
            self.encoder.append(EncoderStage(inputs, groups, level, projected, topology.encoder_blocks[index]))
            inputs = groups = level.features
        self.decoder = nn.ModuleList()
        for index, count in zip(reversed(range(depth)), topology.decoder_blocks, strict=True):
            level = levels[index]
            if index == 0:
                blocks = _residual_units(level.features, level.features, level.kernel, count)
            else:
                blocks = nn.Sequential(*(AttentionBlock(level, PROJECTED_TOKENS) for _ in range(count)))
            classes = output_channels if index < self.supervised_levels else None
            self.decoder.append(DecoderStage(levels[index + 1], level, blocks, classes))
        guard_thin_maps(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the input."""
        return self._logits(x, 1)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits of the three finest levels (fewer in a shallower network), finest first."""
        return self._logits(x, self.supervised_levels)

    def logits_of(self, maps: FeatureMaps) -> list[Tensor]:
        """The logits of `forward_all` from the `feature_maps` of the same images."""
        stages = self._decoder_stages()[::-1][: self.supervised_levels]
        return [stage.logits(features) for stage, features in zip(stages, maps.decoder[: len(stages)], strict=True)]

    def task_heads(self) -> tuple[str, ...]:
        """The heads of the supervised levels, finest first; the others have none."""
        last = len(self.decoder) - 1
        return tuple(f"decoder.{last - level}.head" for level in range(self.supervised_levels))

    def _logits(self, image: Tensor, levels: int) -> list[Tensor]:
        logits: list[Tensor] = []
        decoded, stages = self._decode(self._encode(image)), self._decoder_stages()
        for remaining, stage, features in zip(range(len(stages), 0, -1), stages, decoded, strict=True):
            if remaining <= levels:
                logits.insert(0, stage.logits(features))
        return logits

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The image's skip, the output of every stage."""
        self.check_shape(x)
        encoded = [self.image_skip(x)]
        for stage in self.encoder:
            x = stage(x)
            encoded.append(x)
        return encoded

    def _decode(self, encoded: list[Tensor]) -> Iterator[Tensor]:
        x = encoded.pop()
        for stage in self._decoder_stages():
            x = stage(x, encoded.pop())
            yield x

    def _decoder_stages(self) -> list[DecoderStage]:
        return list(self.decoder)  # type: ignore[arg-type]

    def initialize(self) -> None:
        """Convolutions as torch draws them, linear maps from the normal distribution (0, 0.02), as published."""
        redraw(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def parts(self) -> list[Part]:
        """The image's skip, the encoder, the decoder; heads belong to their decoder stage."""
        parts = [Part("encoder 0", f"{len(self.image_skip)} residual", self.image_skip)]
        for index, stage in enumerate(self.encoder, start=1):
            parts.append(Part(f"encoder {index}", _description(stage), stage, attends=True))
        for index, stage in zip(reversed(range(len(self.decoder))), self._decoder_stages(), strict=True):
            parts.append(Part(f"decoder {index}", _description(stage.blocks), stage, attends=index > 0))
        return parts


def _description(blocks: nn.Module) -> str:
    attentions = [block.attention for block in blocks.children() if isinstance(block, AttentionBlock)]
    if not attentions:
        return f"{len(list(blocks.children()))} residual"
    first = attentions[0]
    return f"{len(attentions)} paired attention, {first.heads} heads, tokens projected to {first.projected}"


def _levels(plan: NetworkPlan) -> list[Level]:
    topology = plan.topology
    if len(topology.strides) < 2:
        raise UserError(
            f"topology.strides {topology.strides}: unetr-pp needs at least one halving before its attention.\n"
            "Plan another architecture for so small a patch: autoseg plan --architecture resenc."
        )
    levels, shape = [], tuple(plan.patch_shape)
    for features, kernel, stride in zip(topology.features, topology.kernel_sizes, topology.strides, strict=True):
        shape = tuple(size // step for size, step in zip(shape, stride, strict=True))
        levels.append(Level(features, shape, tuple(kernel), tuple(stride)))
    return levels
