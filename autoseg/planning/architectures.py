"""How each architecture halves a patch, and its network (blocks, features) on the strides and kernels that result."""

import itertools
import math
from collections.abc import Callable

from autoseg.planning.attention import plan_attention
from autoseg.planning.topology import Numbers, Pooling, merge_stages, pool, rigid_pooling
from autoseg.schema import ArchitectureName, Topology

BASE_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}
RESENC_BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first encoder stages; every deeper stage has as many as the last of these."""
UNETR_HALVINGS = 4
"""As published: a token is 16 voxels along an axis. More would leave few tokens: 6×6×6 of a 96×96×96 patch."""
UNETR_FEATURES, UNETR_HIDDEN, UNETR_BLOCKS = 16, 768, 12
STEM_TOKENS = 32_768
"""UNETR++ merges voxels until its first stage has at most so many tokens, those of the published 64×128×128 patch:
its positions and projections have a row per token, 9.6 million weights in that stage."""
UNETR_PP_FEATURES, UNETR_PP_BLOCKS, UNETR_PP_STAGES_AFTER_STEM = 16, 3, 3
SWIN_HALVINGS, SWIN_FEATURES, SWIN_BLOCKS = 5, 48, 2
MEDNEXT_HALVINGS, MEDNEXT_FEATURES, MEDNEXT_BLOCKS = 4, 32, 2
"""MedNeXt-S: it keeps so many feature maps that a larger one would not train on a useful patch in 8 GiB (L takes 17
GiB in "nnU-Net Revisited", 2024)."""


def pool_patch(architecture: ArchitectureName, spacing: Numbers, shape: Numbers) -> Pooling:
    """How the architecture halves a patch of `shape` voxels at `spacing` mm (plan order; `shape` may hold halves)."""
    return POOLINGS[architecture](spacing, shape)


def build_topology(architecture: ArchitectureName, pooling: Pooling) -> Topology:
    """The topology of an architecture for a patch halved by `pool_patch`."""
    return TOPOLOGIES[architecture](pooling)


# ---------------------------------------------------------------- halving
def _pool_for_unetr(spacing: Numbers, shape: Numbers) -> Pooling:
    """nnU-Net's halvings, the first four of them."""
    pooling = pool(spacing, shape)
    return pooling if pooling.stages == 1 else merge_stages(pooling, shape, 1, UNETR_HALVINGS - 1)


def _pool_for_unetr_pp(spacing: Numbers, shape: Numbers) -> Pooling:
    """nnU-Net's halvings: the first ones merged into a stem of at most `STEM_TOKENS`, up to three after it."""
    pooling = pool(spacing, shape)
    if pooling.stages == 1:
        return pooling
    tokens, merged = math.prod(pooling.patch_shape), 0
    while merged == 0 or (tokens > STEM_TOKENS and merged < pooling.stages - 1):
        merged += 1
        tokens //= math.prod(pooling.strides[merged])
    return merge_stages(pooling, shape, merged, UNETR_PP_STAGES_AFTER_STEM)


def _pool_for_swin_unetr(spacing: Numbers, shape: Numbers) -> Pooling:
    return rigid_pooling(spacing, shape, SWIN_HALVINGS)


def _pool_for_mednext(spacing: Numbers, shape: Numbers) -> Pooling:
    return rigid_pooling(spacing, shape, MEDNEXT_HALVINGS)


# ---------------------------------------------------------------- networks
def _plain(pooling: Pooling) -> Topology:
    """nnU-Net's PlainConvUNet: two convolutions per stage in encoder and decoder."""
    return _unet(pooling, (2,) * pooling.stages, (2,) * (pooling.stages - 1))


def _resenc(pooling: Pooling) -> Topology:
    """nnU-Net's ResidualEncoderUNet: 1, 3, 4, 6, 6, … residual blocks, one convolution per decoder stage."""
    encoder = tuple(RESENC_BLOCKS[min(stage, len(RESENC_BLOCKS) - 1)] for stage in range(pooling.stages))
    return _unet(pooling, encoder, (1,) * (pooling.stages - 1))


def _hybrid(pooling: Pooling) -> Topology:
    """`resenc` with attention at the end of its coarse stages."""
    skeleton = _resenc(pooling)
    attention = plan_attention(skeleton, pooling.patch_shape, pooling.spacing)
    return skeleton.model_copy(update={"attention": attention})


def _unet(pooling: Pooling, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> Topology:
    """Features double from 32 with every stage up to 320 (3D) or 512 (2D), as nnU-Net's."""
    most = MOST_FEATURES[len(pooling.patch_shape)]
    features = tuple(min(most, BASE_FEATURES * 2**stage) for stage in range(pooling.stages))
    return _topology(pooling, features, encoder, decoder)


def _unetr(pooling: Pooling) -> Topology:
    """UNETR (Hatamizadeh et al. 2022): twelve transformer blocks; skips leave them at equal distances."""
    halvings = pooling.stages - 1
    taken = [round(UNETR_BLOCKS * level / max(1, halvings)) for level in range(halvings + 1)]
    blocks = tuple(after - before for before, after in itertools.pairwise(taken))
    features = (*(UNETR_FEATURES * 2**level for level in range(halvings)), UNETR_HIDDEN)
    return _topology(pooling, features, (1, *blocks), (1,) * halvings)


def _unetr_pp(pooling: Pooling) -> Topology:
    """UNETR++ (Shaker et al. 2024): three blocks of paired attention per stage, convolutions at full resolution."""
    below = pooling.stages - 1
    features = tuple(UNETR_PP_FEATURES * 2**stage for stage in range(pooling.stages))
    encoder = (1, *(UNETR_PP_BLOCKS,) * below)
    # From the bottleneck's neighbor outwards: as many as on the way down.
    return _topology(pooling, features, encoder, tuple(reversed(encoder[:-1])))


def _swin_unetr(pooling: Pooling) -> Topology:
    """Swin UNETR (Hatamizadeh et al. 2022) with 48 features, the size that its authors trained on many organs."""
    features = (SWIN_FEATURES, *(SWIN_FEATURES * 2**level for level in range(SWIN_HALVINGS)))
    encoder = (1, *(SWIN_BLOCKS,) * (SWIN_HALVINGS - 1), 1)
    return _topology(pooling, features, encoder, (1,) * SWIN_HALVINGS)


def _mednext(pooling: Pooling) -> Topology:
    """MedNeXt-S (Roy et al. 2023), kernels of 3."""
    features = tuple(MEDNEXT_FEATURES * 2**stage for stage in range(pooling.stages))
    return _topology(pooling, features, (MEDNEXT_BLOCKS,) * pooling.stages, (MEDNEXT_BLOCKS,) * (pooling.stages - 1))


def _topology(
    pooling: Pooling, features: tuple[int, ...], encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> Topology:
    return Topology(
        strides=pooling.strides,
        kernel_sizes=pooling.kernel_sizes,
        features=features,
        encoder_blocks=encoder,
        decoder_blocks=decoder,
    )


POOLINGS: dict[ArchitectureName, Callable[[Numbers, Numbers], Pooling]] = {
    "plain": pool,
    "resenc": pool,
    "hybrid": pool,
    "unetr": _pool_for_unetr,
    "unetr-pp": _pool_for_unetr_pp,
    "swin-unetr": _pool_for_swin_unetr,
    "mednext": _pool_for_mednext,
}
TOPOLOGIES: dict[ArchitectureName, Callable[[Pooling], Topology]] = {
    "plain": _plain,
    "resenc": _resenc,
    "hybrid": _hybrid,
    "unetr": _unetr,
    "unetr-pp": _unetr_pp,
    "swin-unetr": _swin_unetr,
    "mednext": _mednext,
}
