"""`unetr` against MONAI's UNETR where the plan is MONAI's case: four halvings of every axis."""

import pytest
import torch
from monai.networks.nets.unetr import UNETR as MonaiUNETR

from autoseg.networks.unetr import UNETR
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import NetworkPlan, Topology


def isotropic_plan(patch: tuple[int, ...], features: tuple[int, ...]) -> NetworkPlan:
    axes = len(patch)
    topology = Topology(
        strides=((1,) * axes, *((2,) * axes,) * 4), kernel_sizes=((3,) * axes,) * 5, features=features,
        encoder_blocks=(1, 3, 3, 3, 3), decoder_blocks=(1,) * 4,
    )  # fmt: skip
    return NetworkPlan(
        patch_shape=patch, batch_size=2, topology=topology, batch_dice=False, optimizer=RECIPES["adamw"],
        memory_gib=1.0, reasons=(),
    )  # fmt: skip


@pytest.mark.parametrize("patch", [(96, 96, 96), (64, 128)])
def test_published_size_has_monais_weights_name_for_name(patch: tuple[int, ...]) -> None:
    with torch.device("meta"):
        ours = UNETR(isotropic_plan(patch, (16, 32, 64, 128, 768)), 2, 5).state_dict()
        theirs = MonaiUNETR(2, 5, patch, spatial_dims=len(patch)).state_dict()
    assert [(name, value.shape) for name, value in ours.items()] == [
        (name, value.shape) for name, value in theirs.items()
    ]


@pytest.mark.parametrize("patch", [(32, 48, 32), (48, 32)])
def test_same_logits_and_derivatives_with_the_same_weights(patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = MonaiUNETR(
        2, 3, patch, feature_size=4, hidden_size=48, mlp_dim=192, num_heads=12, spatial_dims=len(patch)
    ).double()
    ours = UNETR(isotropic_plan(patch, (4, 8, 16, 32, 48)), 2, 3).double()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 2, *patch, dtype=torch.float64)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-9, atol=1e-9)

    for network in (ours, theirs):
        network(image).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=1e-7, atol=1e-9)


def test_first_weights_are_distributed_as_monais() -> None:
    plan = isotropic_plan((64, 64), (4, 8, 16, 32, 48))
    ours = UNETR(plan, 2, 3)
    torch.manual_seed(1)
    ours.initialize()
    theirs = MonaiUNETR(2, 3, (64, 64), feature_size=4, hidden_size=48, mlp_dim=192, spatial_dims=2).state_dict()
    for name, value in ours.state_dict().items():
        if value.numel() >= 200:
            assert float(value.std()) == pytest.approx(float(theirs[name].std()), rel=0.3, abs=1e-6), name
