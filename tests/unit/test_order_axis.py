"""Order heads pool along the shuffled axis: a slab reaches its own bin of every head, and no other.

Networks mix neighbors, so they are made local first: what is left is the way of every voxel through strides, token
embeddings and layouts to the heads. The published wiring fails the same assertions; that is kept as a test of them.
"""

import math

import pytest
import torch
from test_feature_maps import Example, plan_of
from torch import Tensor, nn
from torch.nn import functional

from autoseg.initialization.corruption import shuffled
from autoseg.initialization.heads import FeatureShapes, OrderHead, PretextNetwork, feature_shapes, pool_slabs
from autoseg.initialization.pretext import plan_pretext
from autoseg.networks.attention import AttentionBlock
from autoseg.networks.builder import build_network
from autoseg.networks.normalization import InstanceNorm
from autoseg.networks.unetr_pp import AttentionBlock as PairedAttentionBlock

ANISOTROPIC, ISOTROPIC = ((5.0, 1.0, 1.0), (16, 32, 32)), ((1.0, 1.0, 1.0), (32, 16, 16))
"""Halved 1, 3 and 3 times, and 2 times along every axis; in both the patch is cut into four slabs."""
EXAMPLES = [Example(architecture, *case) for case in (ANISOTROPIC, ISOTROPIC)
            for architecture in ("hybrid", "unetr", "unetr-pp", "resenc")]
EVERY = pytest.mark.parametrize("example", EXAMPLES, ids=str)
SLABS = 4
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS_OVER_VOXELS = (nn.InstanceNorm3d, nn.GroupNorm, nn.BatchNorm3d)


# ---------------------------------------------------------------- networks without neighbors
def make_local(network: nn.Module) -> None:
    """Let every voxel of a feature map depend on the voxels of its own box of the patch alone.

    A convolution that merges a box of voxels becomes their mean, any other takes the voxel in its middle. Attention
    and MLPs add nothing, positions are zero. Weights are positive, so that no code is cancelled; biases are drawn, so
    that a norm over channels does not make proportional vectors equal.
    """
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            outputs, inputs, *kernel = module.weight.shape
            per_channel = (torch.rand(outputs, inputs, *(1 for _ in kernel)) + 0.1) / inputs
            if tuple(kernel) == tuple(module.stride):
                module.weight.data = per_channel.expand(module.weight.shape) / math.prod(kernel)
            else:
                module.weight.data.zero_()
                module.weight.data[(..., *(slice(size // 2, size // 2 + 1) for size in kernel))] = per_channel
            if module.bias is not None:
                nn.init.normal_(module.bias)
        elif isinstance(module, (InstanceNorm, nn.LayerNorm, *NORMS_OVER_VOXELS)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 1.5, 2.5)  # above zero leaky ReLUs squeeze no code
        elif isinstance(module, AttentionBlock):
            silence(module.attention.output, module.mlp.output)
        elif isinstance(module, PairedAttentionBlock):
            nn.init.zeros_(module.scale)
            nn.init.zeros_(module.position)
        elif type(module).__name__ == "TransformerBlock":  # of MONAI
            silence(module.attn.out_proj, module.mlp.linear2)
        elif type(module).__name__ == "PatchEmbeddingBlock":
            nn.init.zeros_(module.position_embeddings)


def silence(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def without_norms_over_voxels(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their statistics carry a little of every voxel to every other."""

    def only_added(self: InstanceNorm, x: Tensor, residual: Tensor | None = None, owned: bool = False) -> Tensor:
        return functional.leaky_relu(x if residual is None else x + residual, self.slope)

    monkeypatch.setattr(InstanceNorm, "forward", only_added)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NORMS_OVER_VOXELS):
                setattr(parent, name, nn.Identity())


def local_pretext(example: Example, monkeypatch: pytest.MonkeyPatch | None = None) -> PretextNetwork:
    """The heads of pretraining on a local network of the planner's; without norms over voxels given a monkeypatch."""
    plan = plan_of(example)
    tasks = plan_pretext(example.architecture, plan, "lwi")
    assert tasks.slabs == SLABS
    torch.manual_seed(11)
    network = build_network(example.architecture, plan, 1, 2).eval()
    make_local(network)
    if monkeypatch is not None:
        without_norms_over_voxels(network, monkeypatch)
    return PretextNetwork(network, feature_shapes(example.architecture, plan, 1), (0.0,), tasks.slabs)


def coded(patch: tuple[int, ...]) -> Tensor:
    """An image whose value says the slab and nothing else."""
    codes = torch.tensor([0.3, -1.2, 2.0, 0.9])
    return codes.repeat_interleave(patch[0] // SLABS).view(1, 1, -1, 1, 1).expand(1, 1, *patch).contiguous()


def coded_maps(example: Example) -> dict[int, Tensor]:
    """The maps that have order heads, for the coded image; channels with mean 0 and deviation 1, in float64."""
    pretext = local_pretext(example)
    with torch.no_grad():
        maps = pretext.network.double().feature_maps(coded(example.patch).double()).encoder
    return {int(stage): standardized(maps[int(stage)]) for stage in pretext.order}


def standardized(features: Tensor) -> Tensor:
    deviations, means = torch.std_mean(features, dim=(2, 3, 4), keepdim=True)
    assert (deviations > 1e-9).all()
    return (features - means) / deviations


def assert_bins_are_slabs(bins: Tensor, features: Tensor) -> None:
    """Bin t equals the features at every voxel of slab t, and bins differ. For an image that codes its slab."""
    bins = bins.double()
    thickness = features.shape[2] // SLABS
    for position in range(SLABS):
        own = features[:, :, position * thickness : (position + 1) * thickness].flatten(2)
        torch.testing.assert_close(own, bins[:, position, :, None].expand_as(own), rtol=1e-3, atol=1e-4)
        for other in range(position):
            assert (bins[:, position] - bins[:, other]).abs().max() > 1e-2


# ---------------------------------------------------------------- the heads
@EVERY
def test_every_stage_that_slabs_divide_has_an_order_head(example: Example) -> None:
    pretext = local_pretext(example)
    maps = pretext.network.feature_maps(torch.randn(1, 1, *example.patch)).encoder
    heads = {int(stage) for stage in pretext.order}
    assert heads == {stage for stage, features in enumerate(maps) if features.shape[2] % SLABS == 0}
    attends = [part.attends for part in pretext.network.parts()]
    assert len(heads) >= 2 and (any(attends) or example.architecture == "resenc")


@EVERY
def test_a_slab_coded_image_reaches_its_own_bin_of_every_head(example: Example) -> None:
    for features in coded_maps(example).values():
        assert_bins_are_slabs(pool_slabs(features, SLABS), features)


@EVERY
def test_only_the_slab_at_a_position_moves_the_logits_of_that_position(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly: the derivative by every voxel of every other slab is zero, for every head and position."""
    pretext = local_pretext(example, monkeypatch)
    image = torch.randn(1, 1, *example.patch).requires_grad_()
    thickness = example.patch[0] // SLABS
    for stage, logits in pretext(image).order_logits.items():
        assert logits.shape == (1, SLABS, SLABS)
        for position in range(SLABS):
            weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
            gradient, = torch.autograd.grad((logits[0, position] * weights).sum(), image, retain_graph=True)
            reached = gradient[0, 0].flatten(1).ne(0).any(1).view(SLABS, thickness).any(1)
            assert reached.tolist() == [slab == position for slab in range(SLABS)], f"encoder {stage}"


@EVERY
def test_shuffling_slabs_shuffles_logits_alike(example: Example) -> None:
    """Position t of a head sees what stands at position t: the label there is order[t]."""
    pretext, order = local_pretext(example), [2, 0, 3, 1]
    image = coded(example.patch) + torch.randn(1, 1, *example.patch, generator=torch.Generator().manual_seed(1)) / 4
    mixed = shuffled(image[0], order)[None]
    with torch.no_grad():
        straight, turned = pretext(image).order_logits, pretext(mixed).order_logits
    for stage, logits in turned.items():
        torch.testing.assert_close(logits, straight[stage][:, order], rtol=1e-3, atol=1e-4)
        assert (logits - straight[stage]).abs().max() > 1e-3


def test_pooling_is_the_mean_over_each_part_of_the_first_axis() -> None:
    features = torch.randn(2, 3, 12, 5, 7, dtype=torch.float64)
    bins = pool_slabs(features, SLABS)
    assert bins.shape == (2, SLABS, 3) and bins.dtype == torch.float32
    for position in range(SLABS):
        expected = features[:, :, 3 * position : 3 * position + 3].mean(dim=(2, 3, 4)).float()
        torch.testing.assert_close(bins[:, position], expected)
    assert pool_slabs(features.bfloat16(), SLABS).dtype == torch.float32


def test_a_stage_that_slabs_do_not_divide_has_no_head() -> None:
    example = EXAMPLES[0]
    shapes = FeatureShapes(encoder=((4, 16, 8, 8), (8, 6, 4, 4), (16, 2, 2, 2)), decoder=((4, 16, 8, 8),))
    network = build_network(example.architecture, plan_of(example), 1, 2)
    assert set(PretextNetwork(network, shapes, (0.0,), SLABS).order) == {"0"}
    assert set(PretextNetwork(network, shapes, (0.0,), 2).order) == {"0", "1", "2"}
    assert not PretextNetwork(network, shapes, (0.0,), None).order
    assert OrderHead(8, SLABS)(torch.randn(3, 8, 12, 2, 2)).shape == (3, SLABS, SLABS)


# ---------------------------------------------------------------- the published wiring, as a test of the tests
def pooled_as_published_unetr(features: Tensor, slabs: int) -> Tensor:
    """Tokens in order, in `slabs` runs: the slowest token axis is cut. There the last axis is the shuffled one, so
    here, where it is the first, the tokens come in the order of the last axis."""
    tokens = features.permute(0, 4, 3, 2, 1).flatten(1, 3)
    return tokens.unflatten(1, (slabs, -1)).mean(2)


def pooled_as_published_unetr_pp(features: Tensor, slabs: int) -> Tensor:
    """Every `slabs`-th token: the fastest axis of the flattened tokens, an in-plane one, modulo the slabs."""
    tokens = features.flatten(2).transpose(1, 2)
    return tokens.unflatten(1, (-1, slabs)).mean(1)


PUBLISHED = pytest.mark.parametrize("published", [pooled_as_published_unetr, pooled_as_published_unetr_pp])


@PUBLISHED
@EVERY
def test_the_published_grouping_fails_where_ours_holds(example: Example, published) -> None:
    for features in coded_maps(example).values():
        with pytest.raises(AssertionError):
            assert_bins_are_slabs(published(features, SLABS), features)


@PUBLISHED
@pytest.mark.parametrize("grid", [(16, 32, 32), (8, 4, 4), (4, 8, 12)])
def test_every_published_group_holds_equal_shares_of_all_slabs(grid: tuple[int, ...], published) -> None:
    """Channel t says how much of slab t a group holds: a quarter each, where ours holds one slab alone."""
    shares = torch.eye(SLABS).repeat_interleave(grid[0] // SLABS, dim=1)[None, :, :, None, None].expand(1, -1, *grid)
    torch.testing.assert_close(published(shares, SLABS), torch.full((1, SLABS, SLABS), 1 / SLABS))
    torch.testing.assert_close(pool_slabs(shares, SLABS), torch.eye(SLABS)[None])


@PUBLISHED
def test_the_published_grouping_lets_every_slab_into_every_position(
    published, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = EXAMPLES[1]
    pretext = local_pretext(example, monkeypatch)
    image = torch.randn(1, 1, *example.patch).requires_grad_()
    features = pretext.network.feature_maps(image).encoder[-1]
    for position in range(SLABS):
        gradient, = torch.autograd.grad(published(features, SLABS)[0, position].pow(3).sum(), image, retain_graph=True)
        assert gradient[0, 0].flatten(1).ne(0).any(1).view(SLABS, -1).any(1).all()
