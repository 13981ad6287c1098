"""Laws of the hybrid: any plan, no weight that knows the patch, convolutions that move with the image."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from autoseg.errors import UserError
from autoseg.networks.attention import AttentionBlock
from autoseg.networks.builder import build_network, make_network
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.unet import Stage, UNet
from autoseg.planning.architectures import build_topology
from autoseg.planning.optimizers import RECIPES
from autoseg.planning.topology import Pooling, pool
from autoseg.schema import NetworkPlan, OptimizerPlan


def narrow(pooling: Pooling, architecture: str = "hybrid", widths: int = 16) -> NetworkPlan:
    """The plan's network with few features, so that a processor is done soon; attention of 8 channels per head."""
    topology = build_topology(architecture, pooling)  # type: ignore[arg-type]
    features = tuple(min(widths, 4 * 2**stage) for stage in range(pooling.stages))
    attention = topology.attention
    if attention is not None:
        heads = tuple(max(1, width // 8) for width in features)
        attention = attention.model_copy(update={"heads": heads})
    return NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=2, batch_dice=False, optimizer=RECIPES["adamw"], memory_gib=1.0,
        reasons=(), topology=topology.model_copy(update={"features": features, "attention": attention}),
    )


def seeded(plan: NetworkPlan, architecture: str = "hybrid", channels: int = 1) -> Segmenter:
    torch.manual_seed(0)
    return build_network(architecture, plan, channels, 3)  # type: ignore[arg-type]


GRIDS = st.one_of(
    st.tuples(st.lists(st.floats(0.5, 6.0), min_size=axes, max_size=axes),
              st.lists(st.integers(8, longest), min_size=axes, max_size=axes))
    for axes, longest in ((3, 37), (2, 90))
)


@settings(max_examples=20)
@given(GRIDS, st.integers(1, 4))
def test_random_plans_run_forward_and_backward(grid: tuple[list[float], list[int]], channels: int) -> None:
    """Anisotropic, odd, tiny, two- and three-dimensional."""
    pooling = pool(sorted(grid[0], reverse=True), grid[1])
    assume(pooling.stages > 1)
    plan = narrow(pooling)
    network = seeded(plan, channels=channels)
    assert plan.topology.attention is not None and sum(plan.topology.attention.blocks) > 0
    levels = network.forward_all(torch.randn(2, channels, *plan.patch_shape))
    assert levels[0].shape == (2, 3, *plan.patch_shape)
    sum(level.square().mean() for level in levels).backward()
    used = [value.grad for value in network.parameters() if value.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in used)
    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    assert all(value.grad is not None for block in blocks for value in block.parameters())


@pytest.mark.parametrize(("spacing", "shapes"), [
    ((1.0, 1.0, 1.0), [(32, 32, 32), (48, 32, 64)]), ((3.0, 1.0, 1.0), [(16, 32, 32), (16, 64, 32)]),
    ((1.0, 1.0), [(64, 64), (128, 96)]),
])  # fmt: skip
def test_weights_are_equal_across_patches(spacing: tuple[float, ...], shapes: list[tuple[int, ...]]) -> None:
    """One topology, two patches: the same state dict, and each network computes the other's patch."""
    plan = narrow(pool(spacing, shapes[0]))
    other = plan.model_copy(update={"patch_shape": shapes[1]})
    small, large = seeded(plan).eval(), seeded(other).eval()
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in large.state_dict().items()}
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 1, *shapes[1])
    assert torch.equal(small(x), large(x))


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_convolutions_without_norms_move_with_the_image(architecture: str) -> None:
    """A shift by the product of the strides shifts the logits, away from the borders (float64)."""
    plan = narrow(pool((1.0, 1.0), (64, 64)), architecture)
    network = seeded(plan, architecture).double()
    for module in network.modules():
        for name, child in list(module.named_children()):
            if type(child).__name__ == "InstanceNorm":
                setattr(module, name, _AddAndActivate(child.slope))  # type: ignore[arg-type]
    step = 16
    image = torch.zeros(1, 1, 64 * 8, 64, dtype=torch.float64)
    image[:, :, 224:288] = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    moved = network(image.roll(step, dims=2))
    assert torch.allclose(moved[:, :, 200:312], network(image).roll(step, dims=2)[:, :, 200:312], atol=1e-9)


class _AddAndActivate(nn.Module):
    """What `InstanceNorm` does apart from normalizing."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None, owned: bool = False) -> torch.Tensor:
        x = x if residual is None else x + residual
        return nn.functional.leaky_relu(x, self.slope)


def test_without_attention_a_hybrid_is_a_resenc() -> None:
    pooling = pool((1.0, 1.0, 1.0), (32, 32, 32))
    hybrid = narrow(pooling)
    bare = hybrid.model_copy(update={"topology": hybrid.topology.model_copy(update={"attention": None})})
    x = torch.randn(1, 1, 32, 32, 32)
    torch.manual_seed(0)
    network = make_network("hybrid", bare, 1, 3)
    network.initialize()
    assert torch.equal(network(x), seeded(narrow(pooling, "resenc"), "resenc")(x))


@pytest.mark.parametrize(("change", "words"), [
    ({"heads": (1, 1, 3, 4)}, "divisor of its 16 features"), ({"heads": (1, 1, 0, 4)}, "divisor"),
    ({"blocks": (0, 0, 2)}, "blocks has 3 entries"), ({"blocks": (0, 0, 9, 2)}, "0 to 3 was expected"),
    ({"blocks": (0, 0, -1, 2)}, "0 to 3 was expected"), ({"blocks": (0, 0, 0, 0)}, "are all 0"),
    ({"spacing": (1.0, 1.0)}, "spacing has 2 entries"), ({"key_shapes": (None, None)}, "key_shapes has 2 entries"),
    ({"key_shapes": (None, None, (7, 7), None)}, "3 numbers above 0"),
    ({"key_shapes": (None, None, (7, 7, 0), None)}, "3 numbers above 0"),
])  # fmt: skip
def test_an_edited_attention_is_refused_in_one_message(change: dict[str, object], words: str) -> None:
    plan = narrow(pool((1.0, 1.0, 1.0), (32, 32, 32)))
    assert plan.topology.attention is not None and len(plan.topology.features) == 4
    topology = plan.topology.model_copy(update={"attention": plan.topology.attention.model_copy(update=change)})
    with pytest.raises(UserError, match=words):
        seeded(plan.model_copy(update={"topology": topology}))


def test_what_an_architecture_lacks_is_refused() -> None:
    pooling = pool((1.0, 1.0, 1.0), (32, 32, 32))
    hybrid, resenc = narrow(pooling), narrow(pooling, "resenc")
    with pytest.raises(UserError, match="`resenc` network has it"):
        seeded(hybrid, "resenc")
    with pytest.raises(UserError, match="`hybrid` network lacks it"):
        seeded(resenc, "hybrid")
    with pytest.raises(UserError, match="only plain, resenc, hybrid can compute stages twice"):
        seeded(resenc.model_copy(update={"checkpointed_stages": 1}), "unetr-pp")
    with pytest.raises(UserError, match="less than the number of stages"):
        seeded(resenc.model_copy(update={"checkpointed_stages": 4}), "resenc")


@pytest.mark.parametrize(("field", "value"), [
    ("learning_rate", -1.0), ("momentum", 1.5), ("warmup_share", 1.0), ("gradient_clip", 0.0), ("weight_decay", -1.0),
])  # fmt: skip
def test_numbers_of_an_optimizer_are_bounded(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        OptimizerPlan.model_validate({**RECIPES["adamw"].model_dump(), field: value})


def test_attention_ends_the_eligible_stages() -> None:
    plan = narrow(pool((1.0, 1.0, 1.0), (64, 64, 64)))
    network = seeded(plan)
    assert isinstance(network, UNet) and plan.topology.attention is not None
    for stage, count in zip(network.encoder.stages, plan.topology.attention.blocks, strict=True):
        assert isinstance(stage, Stage)
        kinds = [isinstance(block, AttentionBlock) for block in stage]
        assert kinds == [False] * (len(kinds) - count) + [True] * count
    probabilities = [block.drop_probability for block in network.modules() if isinstance(block, AttentionBlock)]
    assert probabilities[0] == 0 and probabilities[-1] == pytest.approx(0.2) and probabilities == sorted(probabilities)


@pytest.mark.parametrize("architecture", ["plain", "resenc", "hybrid"])
@pytest.mark.parametrize("checkpointed", [1, 2])
def test_checkpointing_changes_no_gradient(architecture: str, checkpointed: int) -> None:
    plan = narrow(pool((1.0, 1.0, 1.0), (16, 32, 16)), architecture)
    x = torch.randn(2, 1, *plan.patch_shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for count in (0, checkpointed):
        network = seeded(plan.model_copy(update={"checkpointed_stages": count}), architecture)
        torch.manual_seed(7)  # of the dropped paths
        sum(level.square().mean() for level in network.forward_all(x)).backward()
        gradients.append({name: value.grad for name, value in network.named_parameters()})
    for name, value in gradients[0].items():
        assert (value is None and gradients[1][name] is None) or torch.equal(value, gradients[1][name]), name


@pytest.mark.parametrize("architecture", ["plain", "resenc", "hybrid"])
def test_the_parts_hold_every_weight(architecture: str) -> None:
    network = seeded(narrow(pool((1.0, 1.0), (64, 64)), architecture), architecture)
    held = [id(value) for part in network.parts() for value in part.module.parameters()]
    assert sorted(held) == sorted(id(value) for value in network.parameters())
