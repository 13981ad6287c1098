"""Laws of content and style: shares, contrast, the gate on a network's first block, and the gate folded into it."""

import copy
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autoseg.domains.style_contrast import ContentStyle, folded_state, gate, stem_channels, stem_of
from autoseg.errors import UserError
from autoseg.networks.builder import build_network
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.unet import UNet
from autoseg.planning.architectures import build_topology
from autoseg.planning.optimizers import RECIPES
from autoseg.planning.topology import pool
from autoseg.schema import NetworkPlan
from autoseg.training.probe import to_device_layout

PATCHES = {2: (32, 32), 3: (8, 16, 16)}
KINDS = [(architecture, dimensions) for architecture in ("plain", "resenc", "hybrid") for dimensions in (2, 3)]


def network_of(architecture: str, dimensions: int, checkpointed: int = 0) -> Segmenter:
    pooling = pool((1.0,) * dimensions, PATCHES[dimensions])
    topology = build_topology(architecture, pooling)  # type: ignore[arg-type]
    features = tuple(min(16, 4 * 2**stage) for stage in range(len(topology.features)))
    attention = topology.attention
    if attention is not None:
        attention = attention.model_copy(update={"heads": tuple(max(1, width // 8) for width in features)})
    plan = NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=2, batch_dice=False, optimizer=RECIPES["sgd"], memory_gib=1.0,
        reasons=(), topology=topology.model_copy(update={"features": features, "attention": attention}),
        checkpointed_stages=checkpointed,
    )  # fmt: skip
    torch.manual_seed(4)
    network = build_network(architecture, plan, 2, 3)  # type: ignore[arg-type]
    with torch.no_grad():
        # Trained normalizations: some weights negative, biases of both signs.
        stem_of(network).norm.weight.normal_()
        stem_of(network).norm.bias.normal_()
    return network


def style_of(channels: int, dimensions: int) -> ContentStyle:
    """With shares that differ from channel to channel."""
    torch.manual_seed(6)
    style = ContentStyle(channels, dimensions)
    with torch.no_grad():
        style.prompt.normal_(std=0.1)
    return style


def images(dimensions: int, seed: int = 1) -> Tensor:
    return torch.rand(2, 2, *PATCHES[dimensions], generator=torch.Generator().manual_seed(seed))


def views(dimensions: int, channels: int = 4, count: int = 3) -> list[Tensor]:
    shape = (2, channels, *PATCHES[dimensions])
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_content_and_style_share_out_the_features(dimensions: int) -> None:
    style = style_of(4, dimensions)
    features = views(dimensions)[0]
    torch.testing.assert_close(style.shares().sum(0), torch.ones(4))
    assert (style.shares() > 0).all()
    torch.testing.assert_close(style.content(features) + style.style(features), features)
    assert style.content(features.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(ContentStyle(4, dimensions).shares(), torch.full((2, 4), 0.5))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_projections_are_those_of_content_and_of_style(dimensions: int) -> None:
    """The one convolution for both against the definition, layer by layer."""
    style = style_of(4, dimensions)
    features = views(dimensions)[0]
    result = style.projections(features)
    for part, projected in zip((style.content(features), style.style(features)), result, strict=True):
        x = functional.group_norm(getattr(functional, f"max_pool{dimensions}d")(style.convolution(part), 2), 1)
        grid = {2: 8, 3: 4}[dimensions]
        x = getattr(functional, f"adaptive_avg_pool{dimensions}d")(functional.leaky_relu(x, 0.01), grid)
        x = style.linear(x.flatten(1))
        torch.testing.assert_close(projected, x / x.norm(dim=1, keepdim=True))


def test_contrast_is_its_definition() -> None:
    style = style_of(4, 2)
    projected = [style.projections(view) for view in views(2)]
    total = torch.zeros(())
    for a, b in combinations(projected, 2):
        total = total + (a[0] - b[0]).abs().mean() - (a[1] - b[1]).abs().mean()
    torch.testing.assert_close(style.contrast(views(2)), total / 3)
    assert style.contrast([views(2)[0]] * 3) == 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_contrast_trains_prompt_and_projector_alone(dimensions: int) -> None:
    style = style_of(4, dimensions)
    features = [view.requires_grad_() for view in views(dimensions)]
    style.contrast(features).backward()
    assert all(view.grad is None for view in features)
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in style.parameters())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_contrast_finds_the_channels_that_the_views_change(dimensions: int) -> None:
    """Two channels are the same in all views, two differ: from the start at one half, content becomes the former."""
    features = views(dimensions)
    features = [torch.cat((features[0][:, :2], view[:, 2:]), dim=1) for view in features]
    torch.manual_seed(6)
    style = ContentStyle(4, dimensions)
    optimizer = torch.optim.SGD(style.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = style.contrast(features)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == 0 and losses[-1] < losses[5] < 0
    content = style.shares()[0].detach()
    assert content[:2].min() > 0.5 > content[2:].max()


@pytest.mark.parametrize("patch", [(5, 7), (1, 40), (3, 5, 9), (1, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_patch_is_projected(patch: tuple[int, ...], dtype: torch.dtype) -> None:
    style = style_of(3, len(patch))
    features = [torch.randn(2, 3, *patch).to(dtype) for _ in range(2)]
    result = style.projections(features[0])
    torch.testing.assert_close(result.norm(dim=2), torch.ones(2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        style.contrast(features).backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in style.parameters())


def test_nothing_breaks_where_no_channel_is_style() -> None:
    style = style_of(4, 2)
    with torch.no_grad():
        style.prompt[0] += 50
    assert (style.shares()[1] == 0).all()
    style.contrast(views(2)).backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in style.parameters())


@pytest.mark.parametrize(("architecture", "dimensions"), KINDS)
def test_the_folded_network_is_the_gated_one(architecture: str, dimensions: int) -> None:
    network = network_of(architecture, dimensions).eval()
    style = style_of(stem_channels(network), dimensions)
    image = images(dimensions)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    bare = network(image)
    with gate(network, style):
        gated = network(image)
        folded = folded_state(network, style)
    assert not torch.allclose(gated, bare, atol=1e-3)
    assert len(folded) == 2 and folded.keys() <= state.keys()
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(image), bare)
    ordinary = copy.deepcopy(network)
    ordinary.load_state_dict(state | folded)
    torch.testing.assert_close(ordinary(image), gated, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "dimensions"), KINDS)
def test_the_gate_records_the_output_before_it_and_goes_away(architecture: str, dimensions: int) -> None:
    network = network_of(architecture, dimensions)
    style = style_of(stem_channels(network), dimensions)
    image = images(dimensions)
    seen: list[Tensor] = []
    handle = stem_of(network).register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    with gate(network, style, record=True) as passage:
        network.feature_maps(image)
        features = passage.taken()
        assert torch.equal(features, seen[0]) and not features.requires_grad
        assert features.shape == (2, stem_channels(network), *PATCHES[dimensions])
        with pytest.raises(AssertionError, match="no forward pass"):
            passage.taken()
        passage.record = False
        network(image)
        with pytest.raises(AssertionError, match="no forward pass"):
            passage.taken()
    handle.remove()
    assert all(not module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(("architecture", "dimensions"), [("plain", 3), ("resenc", 2), ("hybrid", 3)])
def test_checkpointed_stages_change_no_gradient(architecture: str, dimensions: int) -> None:
    """A training step as the trainer takes it: views one after the other, then the contrast of their features."""

    def gradients(checkpointed: int) -> list[Tensor]:
        network = to_device_layout(network_of(architecture, dimensions, checkpointed), torch.device("cpu"))
        style = style_of(stem_channels(network), dimensions)
        features = []
        with gate(network, style, record=True) as passage:
            for seed in range(3):
                torch.manual_seed(seed)
                loss = network.forward_all(images(dimensions, seed))[0].square().mean()
                features.append(passage.taken())
                (loss / 3).backward()
        assert style.prompt.grad is not None and style.prompt.grad.abs().max() > 0
        style.contrast(features).backward()
        parameters = [*network.parameters(), *style.parameters()]
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    for first, second in zip(gradients(0), gradients(2), strict=True):
        torch.testing.assert_close(first, second)


def test_a_step_in_bfloat16_is_near_float32() -> None:
    network = to_device_layout(network_of("resenc", 3), torch.device("cpu"))
    style = style_of(stem_channels(network), 3)

    def step(enabled: bool) -> Tensor:
        features = []
        with gate(network, style, record=True) as passage, torch.no_grad():
            for seed in range(3):
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    network(images(3, seed))
                features.append(passage.taken())
        assert features[0].dtype == (torch.bfloat16 if enabled else torch.float32)
        return torch.stack([style.projections(view) for view in features])

    torch.testing.assert_close(step(True), step(False), atol=0.02, rtol=0)


def test_networks_without_a_first_block_are_refused() -> None:
    class Other(Segmenter):
        pass

    with pytest.raises(UserError, match="a Other") as error:
        stem_of(Other())
    assert "plain, resenc or hybrid" in str(error.value)
    assert isinstance(network_of("plain", 2), UNet)
