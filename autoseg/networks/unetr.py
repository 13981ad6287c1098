"""UNETR (Hatamizadeh et al., 2022) as MONAI computes it, for any patch, strides and number of channels.

Made of MONAI's own blocks under MONAI's own names: with four halvings along every axis and kernels of 3 the weights
are, name for name, those of `monai.networks.nets.UNETR`, and the logits are equal.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock, get_conv_layer
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.networks.segmenter import FeatureMaps, Part, Segmenter
from autoseg.networks.torch_layers import guard_thin_maps, redraw
from autoseg.schema import NetworkPlan, Topology

NORM = "instance"
HEADS = (12, 8, 4, 2, 1)
"""The first that divides the hidden size; the published 768 has 12."""
MLP_RATIO = 4


class UNETR(Segmenter):
    """A transformer over all tokens of the patch; its hidden states are upsampled into a U-Net's skips.

    A token is a box of voxels, the product of all strides along each axis. Level i of the decoder (0: full
    resolution) takes for its skip the hidden state `sum(encoder_blocks[1 : i + 1])`, counted from 0: as in MONAI,
    and one block later than the paper, whose z3, z6 and z9 are MONAI's 2, 5 and 8. The embedding is MONAI's default
    "conv": the same linear map of a token's voxels as "perceptron", without a permutation. Attention is computed by
    torch's fused kernels, so that no tokens × tokens matrix is kept.

    The table of positions has one row per token: the weights fit the plan's patch alone.
    `vit.blocks.*.norm_cross_attn` are weights that MONAI makes and never uses; their gradient stays None.

    Raises
    ------
    UserError : the topology asks for more than one convolution block in a stage, or has no halving.
    """

    def __init__(self, plan: NetworkPlan, input_channels: int, output_channels: int) -> None:
        super().__init__()
        topology, axes = plan.topology, len(plan.patch_shape)
        _refuse_what_unetr_lacks(topology)
        self.fixed_shape = tuple(plan.patch_shape)
        token = tuple(math.prod(steps) for steps in zip(*topology.strides, strict=True))
        self.depth = len(topology.features) - 1
        self.vit = TokenTransformer(input_channels, self.fixed_shape, token, topology)
        self.encoder1 = UnetrBasicBlock(
            axes, input_channels, topology.features[0], topology.kernel_sizes[0], 1, NORM, res_block=True
        )
        for level in range(1, self.depth):
            self.add_module(f"encoder{level + 1}", SkipProjection(topology, level))
        for level in reversed(range(self.depth)):
            self.add_module(f"decoder{level + 2}", _decoder(topology, level))
        self.out = UnetOutBlock(axes, topology.features[0], output_channels)
        guard_thin_maps(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the input."""
        logits: Tensor = self.out(self.finest_features(x))
        return logits

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """The logits alone: UNETR has no deep supervision."""
        return [self(x)]

    def logits_of(self, maps: FeatureMaps) -> list[Tensor]:
        """The logits of `forward_all` from the `feature_maps` of the same images."""
        return [self.out(maps.decoder[0])]

    def task_heads(self) -> tuple[str, ...]:
        """The one head."""
        return ("out",)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The first skip at full resolution; the hidden states that the other skips take, as maps; the output's map."""
        self.check_shape(x)
        states: list[Tensor] = self.vit(x)
        return [self.encoder1(x), *states]

    def _decode(self, encoded: list[Tensor]) -> Iterator[Tensor]:
        features = encoded.pop()
        for level in range(1, self.depth):
            encoded[level] = self.get_submodule(f"encoder{level + 1}")(encoded[level])
        for level in reversed(range(self.depth)):
            features = self.get_submodule(f"decoder{level + 2}")(features, encoded.pop())
            yield features

    def initialize(self) -> None:
        """MONAI's first weights: each layer's own, positions from the normal distribution (0, 0.02)."""
        redraw(self)
        nn.init.trunc_normal_(self.vit.patch_embedding.position_embeddings, std=0.02, a=-2.0, b=2.0)

    def parts(self) -> list[Part]:
        """The transformer, the skips, the decoder."""
        skips = [
            Part(f"skip {level}", f"{self.depth - level} × upsampling", self.get_submodule(f"encoder{level + 1}"))
            for level in range(1, self.depth)
        ]
        decoder = [
            Part(f"decoder {level}", "1 residual", self.get_submodule(f"decoder{level + 2}"))
            for level in reversed(range(self.depth))
        ]
        return [
            Part("tokens", f"{len(self.vit.blocks)} transformer, {self.vit.heads} heads", self.vit, attends=True),
            Part("skip 0", "1 residual", self.encoder1),
            *skips,
            *decoder,
            Part("logits", "1×1 convolution", self.out),
        ]


class TokenTransformer(ViT):  # type: ignore[misc]
    """MONAI's ViT with the hidden states laid out as feature maps (batch, channel, *grid).

    Gives the states that the skips take, finest level first, and the normalized output last. Attention goes through
    torch's fused kernels: without them every block keeps several matrices of tokens × tokens per head.
    """

    def __init__(self, input_channels: int, patch: tuple[int, ...], token: tuple[int, ...], topology: Topology) -> None:
        hidden, blocks = topology.features[-1], topology.encoder_blocks[1:]
        heads = next(heads for heads in HEADS if hidden % heads == 0)
        super().__init__(
            input_channels, patch, token, hidden, MLP_RATIO * hidden, sum(blocks), heads, spatial_dims=len(patch)
        )
        self.heads = heads
        self.grid = tuple(size // step for size, step in zip(patch, token, strict=True))
        self.skip_states = list(itertools.accumulate(blocks[:-1]))
        for block in self.blocks:
            block.attn.use_flash_attention = True

    def forward(self, x: Tensor) -> list[Tensor]:
        tokens, states = super().forward(x)
        return [self._map(state) for state in (*(states[index] for index in self.skip_states), tokens)]

    def _map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid)


class SkipProjection(nn.Module):
    """A hidden state upsampled from the tokens to `level`: deconvolutions, a residual block after all but the first.

    MONAI's UnetrPrUpBlock (and its names), with the stride and kernel of each level instead of one for all.
    """

    def __init__(self, topology: Topology, level: int) -> None:
        super().__init__()
        features, bottleneck = topology.features[level], len(topology.features) - 1
        self.transp_conv_init = _deconvolution(topology.features[-1], features, topology.strides[bottleneck])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _deconvolution(features, features, topology.strides[step + 1]),
                UnetResBlock(len(topology.strides[0]), features, features, topology.kernel_sizes[step], 1, NORM),
            )
            for step in reversed(range(level, bottleneck - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.transp_conv_init(x)
        for block in self.blocks:
            x = block(x)
        return x


def _deconvolution(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    layer: nn.Module = get_conv_layer(
        len(stride), inputs, outputs, tuple(stride), tuple(stride), conv_only=True, is_transposed=True
    )
    return layer


def _decoder(topology: Topology, level: int) -> nn.Module:
    below, outputs = topology.features[level + 1], topology.features[level]
    stride, kernel = topology.strides[level + 1], topology.kernel_sizes[level]
    block: nn.Module = UnetrUpBlock(len(stride), below, outputs, kernel, stride, NORM, res_block=True)
    return block


def _refuse_what_unetr_lacks(topology: Topology) -> None:
    if len(topology.strides) < 2:
        raise UserError(
            f"topology.strides {topology.strides}: unetr needs at least one halving, of which its tokens are made.\n"
            "Plan another architecture for so small a patch: autoseg plan --architecture resenc."
        )
    if topology.encoder_blocks[0] != 1 or any(count != 1 for count in topology.decoder_blocks):
        raise UserError(
            f"topology.encoder_blocks begin with {topology.encoder_blocks[0]} and decoder_blocks are "
            f"{topology.decoder_blocks}: unetr has one residual block in each of these stages.\n"
            "Correct these entries in plan.json, or plan again: autoseg plan --architecture unetr."
        )
