"""Laws of `unetr` and `unetr-pp`: any patch, strides and channels; published sizes; attention keeps its tokens."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoseg.errors import UserError
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.torch_layers import guard_thin_maps
from autoseg.networks.unetr import UNETR
from autoseg.networks.unetr_pp import AttentionBlock, PairedAttention, UNETRPlusPlus
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import NetworkPlan, Topology

Shape = tuple[int, ...]
BOTH = pytest.mark.parametrize("kind", [UNETR, UNETRPlusPlus])


def plan_of(patch: Shape, strides: tuple[Shape, ...], features: Shape, encoder: Shape, decoder: Shape,
            kernels: tuple[Shape, ...] | None = None) -> NetworkPlan:  # fmt: skip
    topology = Topology(
        strides=strides, kernel_sizes=kernels or ((3,) * len(patch),) * len(strides), features=features,
        encoder_blocks=encoder, decoder_blocks=decoder,
    )  # fmt: skip
    return NetworkPlan(
        patch_shape=patch, batch_size=2, topology=topology, batch_dice=False, optimizer=RECIPES["adamw"],
        memory_gib=1.0, reasons=(),
    )  # fmt: skip


SMALL = plan_of(
    (4, 16, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), (4, 6, 12), (1, 2, 2), (1, 1), ((1, 3, 3), (3, 3, 3), (3, 3, 3))
)


def seeded(kind: type[Segmenter], plan: NetworkPlan, inputs: int = 2, classes: int = 3) -> Segmenter:
    network = kind(plan, inputs, classes)
    torch.manual_seed(5)
    network.initialize()
    return network


@dataclass(frozen=True)
class Drawn:
    plan: NetworkPlan
    inputs: int
    classes: int


@st.composite
def drawn_plans(draw: st.DrawFn) -> Drawn:
    axes, halvings = draw(st.sampled_from((2, 3))), draw(st.integers(1, 4))
    stride = st.tuples(*[st.sampled_from((1, 2))] * axes).filter(lambda steps: math.prod(steps) > 1)
    strides = ((1,) * axes, *(draw(stride) for _ in range(halvings)))
    total = [math.prod(steps) for steps in zip(*strides, strict=True)]
    patch = tuple(step * draw(st.integers(1, 3 if step < 8 else 1)) for step in total)
    kernel = st.tuples(*[st.sampled_from((1, 3))] * axes)
    kernels = tuple(draw(kernel) for _ in strides)
    features = tuple(draw(st.integers(2, 9)) for _ in range(halvings)) + (draw(st.sampled_from((7, 8, 12, 20))),)
    encoder = (1, *(draw(st.integers(1, 2)) for _ in range(halvings)))
    plan = plan_of(patch, strides, features, encoder, (1,) * halvings, kernels)
    return Drawn(plan, draw(st.integers(1, 3)), draw(st.integers(2, 4)))


@BOTH
@settings(max_examples=25)
@given(drawn=drawn_plans())
def test_any_plan_runs_forward_and_backward(kind: type[Segmenter], drawn: Drawn) -> None:
    network, patch = seeded(kind, drawn.plan, drawn.inputs, drawn.classes), drawn.plan.patch_shape
    image = torch.randn(2, drawn.inputs, *patch)
    levels = network.forward_all(image)
    shape, expected = patch, []
    for stride in drawn.plan.topology.strides:
        shape = tuple(size // step for size, step in zip(shape, stride, strict=True))
        expected.append((2, drawn.classes, *shape))
    assert [level.shape for level in levels] == expected[: len(levels)]
    sum(level.square().mean() for level in levels).backward()
    unreached = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert all("norm_cross_attn" in name for name in unreached)
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)
    network.eval()
    assert torch.equal(network(image), network.forward_all(image)[0])


@pytest.mark.parametrize(("stages", "levels"), [(2, 1), (3, 2), (4, 3), (5, 3)])
def test_unetr_pp_supervises_the_image_the_stem_and_the_next_level(stages: int, levels: int) -> None:
    plan = plan_of((32, 16), ((1, 1),) + ((2, 2),) * (stages - 1), (4,) * stages, (1,) * stages, (1,) * (stages - 1))
    assert len(seeded(UNETRPlusPlus, plan).forward_all(torch.randn(2, 2, 32, 16))) == levels


def test_every_weight_of_unetr_pp_shapes_the_result() -> None:
    network = seeded(UNETRPlusPlus, SMALL).eval()
    for module in network.modules():
        if isinstance(module, AttentionBlock):
            nn.init.ones_(module.scale)
    sum(level.square().mean() for level in network.forward_all(torch.randn(2, 2, 4, 16, 8))).backward()
    assert not [name for name, weight in network.named_parameters() if not weight.grad.abs().max() > 0]


def test_every_weight_of_unetr_but_monais_unused_norms_shapes_the_result() -> None:
    network = seeded(UNETR, SMALL)
    network(torch.randn(2, 2, 4, 16, 8)).square().mean().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == [f"vit.blocks.{block}.norm_cross_attn.{name}" for block in range(4) for name in ("weight", "bias")]


# ---------------------------------------------------------------- published sizes
@pytest.mark.parametrize(
    ("kind", "plan", "parameters", "macs"),
    [
        (
            UNETR,
            plan_of((96,) * 3, ((1,) * 3,) + ((2,) * 3,) * 4, (16, 32, 64, 128, 768), (1, 3, 3, 3, 3), (1,) * 4),
            92.80e6, 73.7e9,
        ),
        (
            UNETRPlusPlus,
            plan_of((64, 128, 128), ((1, 1, 1), (2, 4, 4)) + ((2,) * 3,) * 3, (16, 32, 64, 128, 256), (1, 3, 3, 3, 3),
                    (3, 3, 3, 1)),
            42.95e6, 47.89e9,
        ),
    ],
)  # fmt: skip
def test_published_sizes(kind: type[Segmenter], plan: NetworkPlan, parameters: float, macs: float) -> None:
    with torch.device("meta"):
        network = kind(plan, 1, 14).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 1, *plan.patch_shape))
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(parameters, rel=1e-4)
    # The published counts have four or five multiplications per normalized entry, torch's counter has none.
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.01)


# ---------------------------------------------------------------- weights
@BOTH
def test_first_weights_are_those_of_the_seed_whatever_was_there(kind: type[Segmenter]) -> None:
    first = seeded(kind, SMALL)
    with torch.device("meta"):
        other = kind(SMALL, 2, 3)
    other.to_empty(device="cpu")
    for tensor in other.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    torch.manual_seed(5)
    other.initialize()
    assert first.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())
    other.initialize()
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


@BOTH
def test_parts_hold_every_weight_once_and_give_feature_maps(kind: type[Segmenter]) -> None:
    network = seeded(kind, SMALL)
    held = [id(weight) for part in network.parts() for weight in part.module.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for weight in network.parameters()}
    shapes: list[Shape] = []
    for part in network.parts():
        part.module.register_forward_hook(
            lambda _module, _inputs, out: shapes.append((out if isinstance(out, Tensor) else out[-1]).shape)
        )
    network.forward_all(torch.randn(1, 2, 4, 16, 8))
    assert len(shapes) == len(network.parts())
    assert all(len(shape) == 5 for shape in shapes)


@BOTH
def test_no_tensor_is_lost_when_weights_are_read_back(kind: type[Segmenter]) -> None:
    persistent = set(kind(SMALL, 2, 3).state_dict())
    assert {name for name, _ in kind(SMALL, 2, 3).named_buffers()} <= persistent


# ---------------------------------------------------------------- refusals
@BOTH
def test_another_patch_is_refused(kind: type[Segmenter]) -> None:
    with pytest.raises(UserError, match=r"4×16×16 voxels .* 4×16×8"):
        seeded(kind, SMALL)(torch.randn(1, 2, 4, 16, 16))


@BOTH
def test_a_topology_without_halvings_is_refused(kind: type[Segmenter]) -> None:
    with pytest.raises(UserError, match="at least one halving"):
        kind(plan_of((4, 4), ((1, 1),), (4,), (1,), ()), 1, 2)


def test_unetr_refuses_blocks_that_it_does_not_have() -> None:
    with pytest.raises(UserError, match="one residual block"):
        UNETR(plan_of((4, 4), ((1, 1), (2, 2)), (4, 8), (1, 2), (2,)), 1, 2)


# ---------------------------------------------------------------- paired attention
def attention(channels: int, tokens: int) -> PairedAttention:
    torch.manual_seed(3)
    module = PairedAttention(channels, tokens, 5).double().eval()
    nn.init.uniform_(module.channel_temperature, 0.5, 2.0)
    nn.init.uniform_(module.spatial_temperature, 3.0, 9.0)
    return module


@pytest.mark.parametrize(("channels", "tokens"), [(8, 12), (6, 7), (5, 3)])
def test_paired_attention_against_loops(channels: int, tokens: int) -> None:
    module = attention(channels, tokens)
    x = torch.randn(2, tokens, channels, dtype=torch.float64)
    expected = torch.stack([explicit_attention(module, sample) for sample in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-12)


def explicit_attention(module: PairedAttention, x: Tensor) -> Tensor:
    """One sample (token, channel), head by head and row by row."""
    tokens, channels = x.shape
    size = channels // module.heads
    mixed = x @ module.mixing.weight.T
    spatial, channel = torch.zeros_like(x), torch.zeros_like(x)
    for head in range(module.heads):
        columns = [slice(kind * channels + head * size, kind * channels + (head + 1) * size) for kind in range(4)]
        queries, keys, channel_values, spatial_values = (mixed[:, column] for column in columns)
        projection = module.token_projection
        few_keys = projection.weight @ keys + projection.bias[:, None]
        few_values = projection.weight @ spatial_values + projection.bias[:, None]
        unit_queries, unit_keys = queries / queries.norm(dim=0), keys / keys.norm(dim=0)
        for token in range(tokens):
            scores = few_keys @ unit_queries[token] * module.spatial_temperature[head, 0, 0]
            spatial[token, head * size : (head + 1) * size] = scores.softmax(0) @ few_values
        for row in range(size):
            scores = unit_keys.T @ unit_queries[:, row] * module.channel_temperature[head, 0, 0]
            channel[:, head * size + row] = channel_values @ scores.softmax(0)
    return torch.cat((module.spatial_out(spatial), module.channel_out(channel)), dim=1)


def test_tokens_that_change_places_take_their_results_along() -> None:
    """With the projection's columns permuted alike; the published reordering breaks this law."""
    module, order = attention(8, 12), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    before = module(x)
    with torch.no_grad():
        module.token_projection.weight.copy_(module.token_projection.weight[:, order])
    torch.testing.assert_close(module(x[:, order]), before[:, order], rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- precision
def test_thin_maps_leave_bfloat16_on_the_cpu() -> None:
    network = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1))
    names = list(network.state_dict())
    guard_thin_maps(network)
    assert list(network.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.zeros(1, 2, 2, 8, 8)).dtype == torch.float32
        assert network(torch.zeros(1, 2, 4, 8, 8)).dtype == torch.bfloat16


@BOTH
def test_bfloat16_gives_the_derivatives_of_float32(kind: type[Segmenter]) -> None:
    """oneDNN's own derivatives for maps of two slices are off by any factor (see `unet.convolve`)."""
    plan = plan_of((4, 8, 8), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), (16, 16, 16), (1, 1, 1), (1, 1))
    network = seeded(kind, plan).eval()
    image = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))

    def gradients(rounded: bool) -> dict[str, Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            logits = network(image)
        logits.float().square().mean().backward()
        kernels = {name: weight for name, weight in network.named_parameters() if weight.shape[2:] == (3, 3, 3)}
        return {name: weight.grad.flatten() for name, weight in kernels.items()}

    exact, rounded = gradients(False), gradients(True)
    alike = {name: float(functional.cosine_similarity(exact[name], rounded[name], dim=0)) for name in exact}
    assert min(alike.values()) > 0.9, alike
