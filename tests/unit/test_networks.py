"""Laws of the networks, the builder and the precision probe."""

import pytest
import torch
from torch import Tensor

from autoseg.errors import UserError
from autoseg.networks.builder import build_network
from autoseg.networks.memory import keep_freed_memory
from autoseg.networks.unet import UNet
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import NetworkPlan, Topology
from autoseg.training.probe import choose_precision, to_device_layout

TOPOLOGY = Topology(
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)), features=(4, 6, 8),
    encoder_blocks=(1, 2, 1), decoder_blocks=(1, 1),
)  # fmt: skip
FLAT = Topology(
    strides=((1, 1), (2, 2), (2, 2)), kernel_sizes=((3, 3),) * 3, features=(4, 6, 8), encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1),
)  # fmt: skip


def plan(topology: Topology = TOPOLOGY, patch_shape: tuple[int, ...] = (4, 8, 8)) -> NetworkPlan:
    return NetworkPlan(
        patch_shape=patch_shape, batch_size=2, topology=topology, batch_dice=False, optimizer=RECIPES["sgd"],
        memory_gib=1.0, reasons=(),
    )  # fmt: skip


def seeded(architecture: str, network: NetworkPlan) -> UNet:
    torch.manual_seed(5)
    return build_network(architecture, network, 2, 3)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
@pytest.mark.parametrize(("topology", "patch"), [(TOPOLOGY, (4, 8, 8)), (FLAT, (8, 12))])
def test_logits_have_the_shape_of_the_image(architecture: str, topology: Topology, patch: tuple[int, ...]) -> None:
    network = seeded(architecture, plan(topology, patch))
    image = torch.randn(2, 2, *patch)
    assert network(image).shape == (2, 3, *patch)
    finest = network.forward_all(image)
    assert len(finest) == network.supervised_levels == 1
    assert torch.equal(finest[0], network(image))


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_the_patch_shape_leaves_no_trace_in_the_weights(architecture: str) -> None:
    small, large = seeded(architecture, plan()), seeded(architecture, plan(patch_shape=(8, 16, 12)))
    assert small.state_dict().keys() == large.state_dict().keys()
    for name, value in small.state_dict().items():
        assert torch.equal(value, large.state_dict()[name])
    image = torch.randn(1, 2, 8, 16, 12)
    assert torch.equal(small(image), large(image))


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_repeats_bit_for_bit(architecture: str, precision: str) -> None:
    def gradients() -> list[Tensor]:
        network = to_device_layout(seeded(architecture, plan()), torch.device("cpu"))
        image = torch.randn(2, 2, 8, 16, 16, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network.forward_all(image)
        logits[0].float().square().mean().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.isfinite(first).all()
        assert torch.equal(first, second)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_samples_of_a_batch_do_not_see_each_other(architecture: str) -> None:
    network = seeded(architecture, plan()).double()
    image = torch.randn(3, 2, 8, 16, 16, dtype=torch.float64)
    together = network(image)
    for i in range(3):
        torch.testing.assert_close(network(image[i : i + 1]), together[i : i + 1])


def test_bfloat16_stays_near_float32() -> None:
    network = to_device_layout(seeded("resenc", plan()), torch.device("cpu"))
    image = torch.randn(2, 2, 8, 16, 16)
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
@pytest.mark.parametrize("patch", [(2, 8, 8), (4, 8, 4), (8, 4, 4)])
def test_bfloat16_gradients_of_thin_patches_are_near_float32(architecture: str, patch: tuple[int, ...]) -> None:
    """oneDNN alone gives garbage here: see `convolve`."""

    def gradients(enabled: bool) -> list[Tensor]:
        network = to_device_layout(seeded(architecture, plan(patch_shape=patch)), torch.device("cpu"))
        image = torch.randn(2, 2, *patch, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(image)
        logits.float().square().mean().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    exact, half = gradients(False), gradients(True)
    scale = torch.stack([gradient.norm() for gradient in exact]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(exact, half, strict=True)]).norm()
    assert difference < 0.1 * scale


def test_the_layout_changes_no_value_and_no_name() -> None:
    network = seeded("resenc", plan())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = to_device_layout(network, torch.device("cpu")).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert isinstance(keep_freed_memory(), bool)


def test_every_contradiction_of_a_plan_is_reported_together() -> None:
    wrong = TOPOLOGY.model_copy(update={"encoder_blocks": (1, 2), "kernel_sizes": ((3, 3),) * 3})
    with pytest.raises(UserError) as error:
        build_network("plain", plan(wrong), 1, 2)
    assert "encoder_blocks has 2 entries; 3" in str(error.value)
    assert "kernel_sizes" in str(error.value) and "plan.json" in str(error.value)


@pytest.mark.parametrize(
    ("change", "patch", "message"),
    [
        ({}, (4, 6, 8), "multiples of all strides' product (2, 4, 4)"),
        ({"kernel_sizes": ((3, 3, 3), (2, 3, 3), (3, 3, 3))}, (4, 8, 8), "odd"),
        ({"strides": ((2, 1, 1), (1, 2, 2), (2, 2, 2))}, (4, 8, 8), "begin with (2, 1, 1)"),
        ({"decoder_blocks": (1, 0)}, (4, 8, 8), "decoder_blocks: 0"),
        ({}, (8, 8), "has 3 axes, the patch 2"),
    ],
)
def test_a_plan_that_cannot_be_built(change: dict[str, object], patch: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        build_network("resenc", plan(TOPOLOGY.model_copy(update=change), patch), 1, 2)


def test_the_probe_measures_and_leaves_no_trace() -> None:
    network = seeded("plain", plan())
    state = torch.get_rng_state()
    probed = choose_precision(network, (2, 2, 4, 8, 8), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert probed.float32_seconds is not None and probed.bfloat16_seconds is not None
    faster = probed.bfloat16_seconds < probed.float32_seconds
    assert probed.precision == ("bfloat16" if faster else "float32")
    assert str(probed).startswith(f"precision {probed.precision}")
