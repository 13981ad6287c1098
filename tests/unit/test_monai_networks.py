"""Laws of `swin-unetr` and `mednext`: MONAI's networks behind our seams."""

from dataclasses import dataclass

import pytest
import torch
from monai.networks.nets.mednext import MedNeXtSmall
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR

from autoseg.errors import UserError
from autoseg.networks.monai_networks import MedNeXt, SwinUNETR
from autoseg.networks.segmenter import Segmenter
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import NetworkPlan, Topology

Shape = tuple[int, ...]


def plan_of(patch: Shape, features: Shape, encoder: Shape, decoder: Shape, changes: dict[str, object]) -> NetworkPlan:
    axes, stages = len(patch), len(features)
    topology = Topology(
        strides=((1,) * axes, *((2,) * axes,) * (stages - 1)), kernel_sizes=((3,) * axes,) * stages,
        features=features, encoder_blocks=encoder, decoder_blocks=decoder,
    )  # fmt: skip
    return NetworkPlan(
        patch_shape=patch, batch_size=2, topology=topology.model_copy(update=changes), batch_dice=False,
        optimizer=RECIPES["adamw"], memory_gib=1.0, reasons=(),
    )  # fmt: skip


def swin_plan(patch: Shape, feature: int = 12, **changes: object) -> NetworkPlan:
    features = (feature, *(feature * 2**stage for stage in range(5)))
    return plan_of(patch, features, (1, 2, 2, 2, 2, 1), (1,) * 5, changes)


def mednext_plan(patch: Shape, feature: int = 4, **changes: object) -> NetworkPlan:
    return plan_of(patch, tuple(feature * 2**stage for stage in range(5)), (2, 1, 2, 2, 1), (2, 1, 2, 2), changes)


@dataclass(frozen=True)
class Example:
    kind: type[Segmenter]
    plan: NetworkPlan
    levels: int


EXAMPLES = [
    Example(SwinUNETR, swin_plan((64, 32)), 1),
    Example(SwinUNETR, swin_plan((32, 64, 32)), 1),
    Example(MedNeXt, mednext_plan((32, 16)), 5),
    Example(MedNeXt, mednext_plan((16, 32, 16)), 5),
]
EVERY = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.kind.__name__}-{len(e.plan.patch_shape)}d")


def seeded(example: Example) -> Segmenter:
    network = example.kind(example.plan, 2, 3)
    torch.manual_seed(5)
    network.initialize()
    return network


@EVERY
def test_forward_and_backward(example: Example) -> None:
    network, patch = seeded(example), example.plan.patch_shape
    image = torch.randn(2, 2, *patch)
    levels = network.forward_all(image)
    assert [level.shape for level in levels] == [
        (2, 3, *(size // 2**level for size in patch)) for level in range(example.levels)
    ]
    sum(level.square().mean() for level in levels).backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]
    for mode in (True, False):
        network.train(mode)
        assert torch.equal(network(image), network.forward_all(image)[0])


@EVERY
def test_any_multiple_is_taken_and_other_shapes_are_refused(example: Example) -> None:
    network = seeded(example).eval()
    axes = len(example.plan.patch_shape)
    with torch.no_grad():
        assert network(torch.randn(1, 2, *(64,) * axes)).shape == (1, 3, *(64,) * axes)
    with pytest.raises(UserError, match="multiples of"):
        network(torch.randn(1, 2, *(40,) * axes))
    with pytest.raises(UserError, match="at least"):
        network(torch.randn(1, 2, *(32 if example.kind is SwinUNETR else 16,) * axes))


@EVERY
def test_first_weights_are_those_of_the_seed_whatever_was_there(example: Example) -> None:
    first = seeded(example)
    with torch.device("meta"):
        other = example.kind(example.plan, 2, 3)
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    other.to_empty(device="cpu")
    for tensor in other.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    torch.manual_seed(5)
    other.initialize()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())
    assert {name for name, _ in other.named_buffers()} <= set(other.state_dict())


@EVERY
def test_parts_hold_every_weight_once(example: Example) -> None:
    network = seeded(example)
    held = [id(weight) for part in network.parts() for weight in part.module.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for weight in network.parameters()}


def test_making_a_network_draws_nothing() -> None:
    state = torch.random.get_rng_state()
    SwinUNETR(swin_plan((64, 32)), 1, 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_plan_gives_monais_published_networks() -> None:
    swin, mednext = swin_plan((96,) * 3, 48), plan_of((128,) * 3, (32, 64, 128, 256, 512), (2,) * 5, (2,) * 4, {})
    with torch.device("meta"):
        ours = MedNeXt(mednext, 1, 14)
        theirs = MedNeXtSmall(in_channels=1, out_channels=14, deep_supervision=True)
        published = SwinUNETR(swin, 1, 14)
    assert {name: value.shape for name, value in ours.body.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert sum(weight.numel() for weight in ours.parameters()) == pytest.approx(5.6e6, rel=0.01)
    assert sum(weight.numel() for weight in published.parameters()) == pytest.approx(62.2e6, rel=0.001)


def test_mednext_gives_monais_logits_of_every_level() -> None:
    network = seeded(EXAMPLES[3])
    image = torch.randn(1, 2, 16, 32, 16)
    for ours, theirs in zip(network.forward_all(image), network.body(image), strict=True):
        assert torch.equal(ours, theirs)


def test_swin_unetr_gives_monais_logits() -> None:
    network = seeded(EXAMPLES[0])
    theirs = MonaiSwinUNETR(2, 3, feature_size=12, spatial_dims=2)
    theirs.load_state_dict(network.body.state_dict())
    image = torch.randn(1, 2, 64, 64)
    torch.testing.assert_close(network(image), theirs(image))


@pytest.mark.parametrize(
    ("kind", "plan", "message"),
    [
        (SwinUNETR, swin_plan((32, 64, 64), strides=((1, 1, 1), (1, 2, 2)) + ((2, 2, 2),) * 4), r"\(1, 2, 2\)"),
        (SwinUNETR, swin_plan((64, 64), feature=10), "multiple of 12"),
        (SwinUNETR, swin_plan((64, 64), encoder_blocks=(1, 2, 2, 2, 2, 2)), "encoder_blocks"),
        (SwinUNETR, swin_plan((64, 48)), "multiples of 32"),
        (MedNeXt, mednext_plan((32, 32), kernel_sizes=((1, 3),) + ((3, 3),) * 4), "kernel_sizes"),
        (MedNeXt, mednext_plan((32, 32), features=(4, 8, 16, 16, 16)), "features"),
        (MedNeXt, mednext_plan((32, 8)), "multiples of 16"),
    ],
)
def test_a_plan_that_the_network_cannot_follow_is_refused(
    kind: type[Segmenter], plan: NetworkPlan, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        kind(plan, 1, 2)
