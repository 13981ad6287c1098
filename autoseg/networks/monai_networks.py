"""`swin-unetr` and `mednext`: MONAI's networks, driven by a plan that halves every axis alike."""

from collections.abc import Iterator, Sequence

import torch
from monai.networks.nets.mednext import MedNeXt as MonaiMedNeXt
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn

from autoseg.errors import UserError, all_of
from autoseg.networks.segmenter import FeatureMaps, Part, Segmenter
from autoseg.networks.torch_layers import current_device, guard_thin_maps, redraw
from autoseg.schema import NetworkPlan, Topology

SWIN_HALVINGS, SWIN_STAGES, SWIN_FEATURE_FACTOR = 5, 4, 12
MEDNEXT_HALVINGS, MEDNEXT_EXPANSION = 4, 2
KERNEL = 3


class SwinUNETR(Segmenter):
    """Swin UNETR (Hatamizadeh et al., 2022): windowed attention in the encoder, residual blocks in the decoder.

    Takes images of any multiple of 32 voxels along every axis. MONAI's layer is kept as it is, and with it that
    the table of relative positions is read wrongly where a feature map is smaller than the window of 7: the rows
    of the full window's first tokens are used there.

    Raises
    ------
    UserError : the topology is not five halvings of every axis with the features and blocks of a Swin UNETR.
    """

    def __init__(self, plan: NetworkPlan, input_channels: int, output_channels: int) -> None:
        super().__init__()
        topology = plan.topology
        _refuse("swin-unetr", topology, SWIN_HALVINGS, _swin_problems(topology))
        _check_multiples("swin-unetr", plan.patch_shape, SWIN_HALVINGS)
        self.axes, self.channels = len(plan.patch_shape), (input_channels, output_channels)
        self.features, self.depths = topology.features[0], tuple(topology.encoder_blocks[1:-1])
        # MONAI's constructor reads numbers off a tensor, which it cannot on "meta". Nothing is drawn here.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            drawn = self._draw()
        self.body = drawn.to(current_device())
        guard_thin_maps(self)

    def _draw(self) -> nn.Module:
        body: nn.Module = MonaiSwinUNETR(
            *self.channels, feature_size=self.features, depths=self.depths, spatial_dims=self.axes
        )
        return body

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the input."""
        self.check_shape(x)
        logits: Tensor = self.body(x)
        return logits

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """The logits alone: Swin UNETR has no deep supervision."""
        return [self(x)]

    def logits_of(self, maps: FeatureMaps) -> list[Tensor]:
        """The logits of `forward_all` from the `feature_maps` of the same images."""
        return [self.body.get_submodule("out")(maps.decoder[0])]

    def task_heads(self) -> tuple[str, ...]:
        """The one head."""
        return ("body.out",)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """The first skip at full resolution; the transformer's four finer maps; the residual block of its last.

        The transformer's maps are normalized over the channels at every voxel, as the body's forward asks for.
        """
        self.check_shape(x)
        get = self.body.get_submodule
        *states, last = get("swinViT")(x)
        return [get("encoder1")(x), *states, get("encoder10")(last)]

    def _decode(self, encoded: list[Tensor]) -> Iterator[Tensor]:
        """As the body's forward. The coarsest skip is the transformer's own map, the next three pass a block."""
        get = self.body.get_submodule
        features = encoded.pop()
        for level in reversed(range(SWIN_HALVINGS)):
            skip = encoded.pop()
            if 0 < level < SWIN_HALVINGS - 1:
                skip = get(f"encoder{level + 1}")(skip)
            features = get(f"decoder{level + 1}")(features, skip)
            yield features

    def initialize(self) -> None:
        """MONAI's first weights, and its index of relative positions."""
        # Drawn anew as a whole: MONAI computes the index at construction only.
        with torch.device("cpu"):
            drawn = self._draw()
        self.body.load_state_dict(drawn.state_dict())

    def parts(self) -> list[Part]:
        """The transformer's stages (each ends with the merging of voxels), the skips, the decoder."""
        get = self.body.get_submodule
        swin = [
            Part(f"swin {stage}", f"{count} windowed attention", get(f"swinViT.layers{stage}.0"), attends=True)
            for stage, count in enumerate(self.depths, start=1)
        ]
        skips = [Part(f"skip {level}", "1 residual", get(f"encoder{level + 1}")) for level in range(4)]
        decoder = [Part(f"decoder {level}", "1 residual", get(f"decoder{level + 1}")) for level in reversed(range(5))]
        return [
            Part("embedding", "1 convolution", get("swinViT.patch_embed")),
            *swin,
            *skips,
            Part("bottleneck", "1 residual", get("encoder10")),
            *decoder,
            Part("logits", "1×1 convolution", get("out")),
        ]

    def check_shape(self, x: Tensor) -> None:
        """UserError where an axis is no multiple of 32, or the coarsest feature map would be a single voxel."""
        _check_multiples("swin-unetr", x.shape[2:], SWIN_HALVINGS)


class MedNeXt(Segmenter):
    """MedNeXt (Roy et al., 2023) with kernel 3 and expansion 2, residual resampling: with the plan's blocks, its S.

    Every level is supervised, the bottleneck too, as published. Takes images of any multiple of 16 voxels.

    Raises
    ------
    UserError : the topology is not four halvings of every axis with features that double and kernels of 3.
    """

    def __init__(self, plan: NetworkPlan, input_channels: int, output_channels: int) -> None:
        super().__init__()
        topology = plan.topology
        _refuse("mednext", topology, MEDNEXT_HALVINGS, _mednext_problems(topology))
        _check_multiples("mednext", plan.patch_shape, MEDNEXT_HALVINGS)
        *down, bottleneck = topology.encoder_blocks
        self.blocks = (*topology.encoder_blocks, *topology.decoder_blocks)
        self.body = MonaiMedNeXt(
            len(plan.patch_shape), topology.features[0], input_channels, output_channels,
            encoder_expansion_ratio=MEDNEXT_EXPANSION, decoder_expansion_ratio=MEDNEXT_EXPANSION,
            bottleneck_expansion_ratio=MEDNEXT_EXPANSION, kernel_size=KERNEL, deep_supervision=True,
            use_residual_connection=True, blocks_down=down, blocks_bottleneck=bottleneck,
            blocks_up=topology.decoder_blocks,
        )  # fmt: skip
        guard_thin_maps(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the resolution of the input."""
        logits: Tensor = self.body.out_0(self.finest_features(x))
        return logits

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits of all five levels, finest first."""
        return self.logits_of(self.feature_maps(x))

    def logits_of(self, maps: FeatureMaps) -> list[Tensor]:
        """The logits of `forward_all` from the `feature_maps` of the same images."""
        heads = [self.body.out_0, *reversed(self.body.out_blocks)]
        return [head(features) for head, features in zip(heads, (*maps.decoder, maps.encoder[-1]), strict=True)]

    def task_heads(self) -> tuple[str, ...]:
        """The heads of all five levels, finest first, the bottleneck's last."""
        return ("body.out_0", *(f"body.out_blocks.{step}" for step in reversed(range(MEDNEXT_HALVINGS))))

    # MONAI's own forward gives the coarser levels in training only, and cannot leave them out there.
    def _encode(self, x: Tensor) -> list[Tensor]:
        self.check_shape(x)
        body, encoded = self.body, []
        x = body.stem(x)
        for stage, down in zip(body.enc_stages, body.down_blocks, strict=True):
            encoded.append(stage(x))
            x = down(encoded[-1])
        return [*encoded, body.bottleneck(x)]

    def _decode(self, encoded: list[Tensor]) -> Iterator[Tensor]:
        x = encoded.pop()
        for up, stage in zip(self.body.up_blocks, self.body.dec_stages, strict=True):
            x = stage(up(x) + encoded.pop())
            yield x

    def initialize(self) -> None:
        """Each layer's own first weights, as torch draws them."""
        redraw(self)

    def parts(self) -> list[Part]:
        """Stages in the order of computation; changes of resolution are parts of their own."""
        get = self.body.get_submodule
        depth = MEDNEXT_HALVINGS
        parts = [Part("stem", "1×1 convolution", get("stem"))]
        for level in range(depth):
            parts.append(Part(f"encoder {level}", f"{self.blocks[level]} MedNeXt", get(f"enc_stages.{level}")))
            parts.append(Part(f"down {level + 1}", "1 MedNeXt, strided", get(f"down_blocks.{level}")))
        parts.append(Part(f"encoder {depth}", f"{self.blocks[depth]} MedNeXt", get("bottleneck")))
        for step in range(depth):
            level, count = depth - 1 - step, self.blocks[depth + 1 + step]
            parts.append(Part(f"logits {level + 1}", "1×1 convolution", get(f"out_blocks.{step}")))
            parts.append(Part(f"up {level}", "1 MedNeXt, transposed", get(f"up_blocks.{step}")))
            parts.append(Part(f"decoder {level}", f"{count} MedNeXt", get(f"dec_stages.{step}")))
        return [*parts, Part("logits 0", "1×1 convolution", get("out_0"))]

    def check_shape(self, x: Tensor) -> None:
        """UserError where an axis is no multiple of 16, or the coarsest feature map would be a single voxel."""
        _check_multiples("mednext", x.shape[2:], MEDNEXT_HALVINGS)


# ---------------------------------------------------------------- what the plan must be
def _swin_problems(topology: Topology) -> list[str]:
    first, encoder = topology.features[0], topology.encoder_blocks
    expected = (first, *(first * 2**stage for stage in range(SWIN_HALVINGS)))
    problems = []
    if topology.features != expected:
        problems.append(f"topology.features {topology.features}: {expected} were expected")
    if first % SWIN_FEATURE_FACTOR:
        problems.append(f"topology.features begin with {first}: a multiple of {SWIN_FEATURE_FACTOR} was expected")
    if len(encoder) == SWIN_HALVINGS + 1 and (encoder[0], encoder[-1]) != (1, 1):
        problems.append(f"topology.encoder_blocks {encoder}: 1 was expected at the first and the last stage")
    if any(count != 1 for count in topology.decoder_blocks):
        problems.append(f"topology.decoder_blocks {topology.decoder_blocks}: 1 was expected at every stage")
    return problems


def _mednext_problems(topology: Topology) -> list[str]:
    expected = tuple(topology.features[0] * 2**stage for stage in range(MEDNEXT_HALVINGS + 1))
    if topology.features != expected:
        return [f"topology.features {topology.features}: {expected} were expected"]
    return []


def _refuse(name: str, topology: Topology, halvings: int, problems: list[str]) -> None:
    """UserError unless every stage but the first halves all axes, kernels are 3 and there are no other problems."""
    axes = len(topology.strides[0])
    expected = ((1,) * axes, *((2,) * axes,) * halvings)
    if topology.strides != expected:
        problems = [f"topology.strides {topology.strides}: {expected} were expected", *problems]
    if any(size != KERNEL for kernel in topology.kernel_sizes for size in kernel):
        problems.append(f"topology.kernel_sizes {topology.kernel_sizes}: {KERNEL} was expected along every axis")
    if problems:
        raise all_of(
            problems,
            f"The plan's `{name}` network cannot be built; it halves every axis {halvings} times:",
            f"Plan it anew: autoseg plan --architecture {name}. For anisotropic images choose an architecture "
            "that follows the spacing (resenc, hybrid).",
        )


def _check_multiples(name: str, shape: Sequence[int], halvings: int) -> None:
    """UserError where the halvings do not divide the shape, or leave a single voxel, which has no variance."""
    multiple = 2**halvings
    if any(size % multiple or size < multiple for size in shape) or all(size == multiple for size in shape):
        raise UserError(
            f"a patch of {'×'.join(map(str, shape))} voxels was given to a `{name}` network; multiples of {multiple} "
            f"were expected, and at least {2 * multiple} along one axis.\n"
            f"Plan it anew: autoseg plan --architecture {name}; or choose one that takes any patch (resenc, hybrid)."
        )
