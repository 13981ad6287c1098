"""Our U-Nets compute what dynamic_network_architectures' compute with the same weights."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from autoseg.networks import normalization
from autoseg.networks.normalization import InstanceNorm
from autoseg.networks.unet import UNet
from autoseg.schema import Topology

TOPOLOGIES = {
    "2d": Topology(
        strides=((1, 1), (2, 2), (2, 2)), kernel_sizes=((3, 3),) * 3, features=(4, 8, 8),
        encoder_blocks=(2, 2, 2), decoder_blocks=(2, 1),
    ),
    "3d": Topology(
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 4,
        features=(4, 6, 8, 8), encoder_blocks=(1, 2, 2, 2), decoder_blocks=(2, 1, 1),
    ),
    "anisotropic": Topology(
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3)),
        features=(4, 6, 8), encoder_blocks=(2, 1, 2), decoder_blocks=(1, 2),
    ),
    "one level": Topology(
        strides=((1, 1, 1), (2, 2, 1)), kernel_sizes=((3, 3, 1), (3, 3, 3)), features=(4, 5),
        encoder_blocks=(2, 2), decoder_blocks=(2,),
    ),
}  # fmt: skip
PATCHES = {"2d": (12, 16), "3d": (8, 16, 8), "anisotropic": (4, 8, 12), "one level": (6, 8, 3)}


def peer_network(architecture: str, topology: Topology) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    axes = len(topology.strides[0])
    common = {
        "input_channels": 2, "num_classes": 3, "n_stages": len(topology.features),
        "features_per_stage": topology.features, "kernel_sizes": topology.kernel_sizes,
        "strides": topology.strides, "n_conv_per_stage_decoder": topology.decoder_blocks,
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[axes], "conv_bias": True,
        "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True,
    }  # fmt: skip
    if architecture == "plain":
        return PlainConvUNet(n_conv_per_stage=topology.encoder_blocks, **common)
    return ResidualEncoderUNet(n_blocks_per_stage=topology.encoder_blocks, **common)


def peer_parameters(peer: nn.Module) -> list[Tensor]:
    """The peer's parameters in the order of ours: the encoder, then level by level of the decoder."""
    parameters = list(peer.encoder.parameters())
    decoder = peer.decoder
    for level in zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True):
        parameters += [parameter for part in level for parameter in part.parameters()]
    return parameters


def pair(architecture: str, name: str) -> tuple[UNet, nn.Module]:
    """Our network and the peer's, with the same random weights (biases and norms too)."""
    torch.manual_seed(1)
    ours = UNet(architecture, TOPOLOGIES[name], 2, 3)
    peer = peer_network(architecture, TOPOLOGIES[name])
    for mine, theirs in zip(ours.parameters(), peer_parameters(peer), strict=True):
        assert mine.shape == theirs.shape
        with torch.no_grad():
            theirs.copy_(torch.randn_like(theirs) * 0.3 + 0.1)
            mine.copy_(theirs)
    return ours, peer


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_same_weights_give_the_same_logits_and_gradients(architecture: str, name: str) -> None:
    ours, peer = pair(architecture, name)
    ours.double(), peer.double()
    image = torch.randn(2, 2, *PATCHES[name], dtype=torch.float64)

    expected = peer(image)
    found = ours.forward_all(image)
    assert len(found) == max(1, len(expected) - 1)
    for mine, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(ours(image), expected[0])

    sum(logits.square().mean() for logits in found).backward()
    sum(logits.square().mean() for logits in expected[: len(found)]).backward()
    for mine, theirs in zip(ours.parameters(), peer_parameters(peer), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", ["2d", "3d", "anisotropic"])
@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_channels_last_gives_the_same_logits_in_float32(architecture: str, name: str) -> None:
    ours, peer = pair(architecture, name)
    last = torch.channels_last if name == "2d" else torch.channels_last_3d
    ours.to(memory_format=last)
    image = torch.randn(2, 2, *PATCHES[name])
    with torch.no_grad():
        torch.testing.assert_close(ours(image), peer(image)[0], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_initialization_has_the_same_distribution(architecture: str) -> None:
    """Constant parameters are equal; the random ones have the peer's standard deviation."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    from autoseg.networks.unet import initialize

    topology = TOPOLOGIES["3d"].model_copy(update={"features": (16, 24, 32, 32)})
    torch.manual_seed(3)
    ours, peer = UNet(architecture, topology, 2, 3), peer_network(architecture, topology)
    initialize(ours)
    peer.apply({"plain": PlainConvUNet, "resenc": ResidualEncoderUNet}[architecture].initialize)
    for mine, theirs in zip(ours.parameters(), peer_parameters(peer), strict=True):
        if theirs.std() == 0:
            torch.testing.assert_close(mine, theirs)
        elif theirs.numel() > 500:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.15)


def test_instance_norm_is_the_chain_of_its_three_operations() -> None:
    """Values and first derivatives, in both memory formats, with and without addition and activation."""
    shapes = [(2, 3, 4, 5), (2, 3, 36, 32), (3, 2, 3, 4, 2), (2, 2, 16, 9, 8)]  # below and above FEW_VOXELS
    for shape in shapes:
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        for slope in (0.01, 1.0):
            for residual in (None, torch.randn(shape, dtype=torch.float64, requires_grad=True)):
                norm = InstanceNorm(shape[1], slope).double()
                nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
                x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
                x = x if slope == 1.0 and residual is None else x.to(memory_format=last)
                expected = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
                expected = expected if residual is None else expected + residual
                expected = nn.functional.leaky_relu(expected, slope)
                torch.testing.assert_close(norm(x, residual), expected)
                inputs = [x, norm.weight, norm.bias, *([] if residual is None else [residual])]
                upstream = torch.randn_like(expected)
                found = torch.autograd.grad(norm(x, residual), inputs, upstream)
                torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, upstream))


@pytest.mark.parametrize("shape", [(3, 8, 12, 64, 64), (2, 5, 96, 96), (2, 4, 5, 6, 7)])
def test_normalization_keeps_the_digits_of_float32_in_channels_last(shape: tuple[int, ...]) -> None:
    """Also where the mean is many standard deviations; torch's group normalization is 0.04 off there."""
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    for mean, tolerance in ((0, 3e-6), (3, 3e-6), (30, 2e-5)):
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(2)) + mean).contiguous(memory_format=last)
        expected = nn.functional.instance_norm(x.double(), eps=1e-5).float()
        with torch.no_grad():
            found = InstanceNorm(shape[1], 1.0)(x)
        assert found.is_contiguous(memory_format=last)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(1, 5, 12, 20, 18), (2, 4, 9, 7, 11), (2, 6, 40, 50), (1, 3, 4, 4, 4)])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_memory_that_nobody_needs_is_used_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], last: bool, offset: float
) -> None:
    """Also where the squares are summed a plane at a time; where gradients are recorded the input stays."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) + offset
    if last:
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    residual, norm = torch.randn(shape, generator=generator), InstanceNorm(shape[1], 0.01)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    normalized = nn.functional.instance_norm(x.double(), weight=norm.weight.double(), bias=norm.bias.double(), eps=1e-5)
    expected = nn.functional.leaky_relu(normalized + residual, 0.01).float().detach()
    before, tolerance = x.clone(memory_format=torch.preserve_format), {"rtol": 1e-4, "atol": 1e-4}
    for at_once in (normalization.SQUARES_AT_ONCE, 100):
        monkeypatch.setattr(normalization, "SQUARES_AT_ONCE", at_once)
        torch.testing.assert_close(norm(x, residual, owned=True), expected, **tolerance)
        assert torch.equal(x, before), "gradients are recorded"
        with torch.no_grad():
            torch.testing.assert_close(norm(x, residual), expected, **tolerance)
            assert torch.equal(x, before), "somebody needs it"
            spare = x.clone(memory_format=torch.preserve_format)
            torch.testing.assert_close(norm(spare, residual, owned=True), expected, **tolerance)
