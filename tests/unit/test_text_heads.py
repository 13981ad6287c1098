"""Heads made of vectors are ordinary heads with other numbers in them."""

from math import sqrt

import pytest
import torch
from test_feature_maps import Example, image_of, plan_of, seeded
from torch import Tensor

from autoseg.guidance.text_heads import TextHeads, forward_with, head_shapes
from autoseg.networks.builder import build_network
from autoseg.networks.segmenter import Segmenter

DIMENSION = 12
EXAMPLES = [
    Example("plain", (1.0, 1.0), (64, 96)), Example("resenc", (1.0, 1.0, 1.0), (16, 16, 32)),
    Example("hybrid", (1.0, 1.0), (64, 96)), Example("unetr", (1.0, 1.0), (64, 96)),
    Example("unetr-pp", (1.0, 1.0), (64, 96)), Example("mednext", (1.0, 1.0, 1.0), (16, 16, 32)),
    Example("mednext", (1.0, 1.0), (64, 96)),
]  # fmt: skip
SOME = pytest.mark.parametrize("example", EXAMPLES, ids=str)
PLAIN = EXAMPLES[0]


def unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> Tensor:
    drawn = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def heads_of(network: Segmenter, vectors: Tensor | None = None) -> TextHeads:
    """For the background and two labels, as the networks of these tests have them."""
    return TextHeads(network, unit(2) if vectors is None else vectors, torch.Generator().manual_seed(1))


@SOME
def test_generated_heads_are_those_of_the_state_dict(example: Example) -> None:
    network = seeded(example)
    state, heads = network.state_dict(), heads_of(network)
    generated = {name for name in state if network.is_task_head(name)}
    kernels = heads.kernels()
    assert generated and set(kernels) == generated
    assert all(kernels[name].shape == state[name].shape for name in generated)


@SOME
def test_generated_heads_predict_as_an_ordinary_network_that_got_them(example: Example) -> None:
    network, image = seeded(example), image_of(example)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        kernels = heads_of(network).kernels()
        torch.manual_seed(7)
        logits, maps = forward_with(network, image, kernels)
        assert all(torch.equal(value, own[name]) for name, value in network.named_parameters())
        ordinary = seeded(example)
        torch.manual_seed(7)
        before = ordinary.forward_all(image)
        ordinary.load_state_dict(ordinary.state_dict() | kernels)
        torch.manual_seed(7)
        expected = ordinary.forward_all(image)
        torch.manual_seed(7)
        expected_maps = ordinary.feature_maps(image)
    assert len(logits) == len(expected)
    for found, one, other in zip(logits, expected, before, strict=True):
        assert torch.equal(found, one) and not torch.equal(found, other)
    assert all(torch.equal(one, other) for one, other in zip(maps.decoder, expected_maps.decoder, strict=True))


def test_stages_computed_twice_give_the_same_gradients() -> None:
    found = []
    for checkpointed in (0, 2):
        network = seeded(PLAIN, checkpointed).train()
        heads = heads_of(network)
        logits, _ = forward_with(network, image_of(PLAIN), heads.kernels())
        torch.stack([one.square().mean() for one in logits]).sum().backward()
        found.append([one.grad for one in (*heads.parameters(), *network.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@SOME
def test_what_the_loss_sees_reaches_the_generators_and_not_the_replaced_heads(example: Example) -> None:
    network = seeded(example).train()
    heads = heads_of(network)
    logits, _ = forward_with(network, image_of(example), heads.kernels())
    torch.stack([one.square().mean() for one in logits]).sum().backward()
    assert heads.background.grad is not None and heads.background.grad.any()
    for generator in list(heads.generators)[: len(logits)]:
        assert all(weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()
                   for weight in generator.parameters())
    for name, weight in network.named_parameters():
        assert not network.is_task_head(name) or weight.grad is None


@pytest.mark.parametrize("features", [16, 64, 320])
def test_first_kernels_are_as_large_as_hes(features: int) -> None:
    """He, for leaky ReLU: variance 2 / features. Measured over many labels; biases begin at 0."""
    network = build_network("plain", _with_features(features), 1, 3)
    with torch.no_grad():
        kernels = heads_of(network, unit(2)).kernels_for(unit(400, 5))
    finest = network.task_heads()[0]
    weight, bias = (next(value for name, value in kernels.items() if name.startswith(finest) and name.endswith(end))
                    for end in ("weight", "bias"))
    assert weight.shape[:2] == (401, features)
    assert weight.std().item() == pytest.approx(sqrt(2 / features), rel=0.3) and not bias.any()


def _with_features(finest: int):
    planned = plan_of(PLAIN)
    features = (finest, *planned.topology.features[1:])
    return planned.model_copy(update={"topology": planned.topology.model_copy(update={"features": features})})


@pytest.mark.parametrize("example", [PLAIN, EXAMPLES[-1]], ids=str)
def test_labels_that_were_not_trained_have_kernels_too(example: Example) -> None:
    heads = heads_of(seeded(example))
    more = torch.cat([unit(2), unit(3, 6)])
    kernels = heads.kernels_for(more)
    torch.manual_seed(5)
    wider = build_network(example.architecture, plan_of(example), 2, 6)
    assert not wider.load_state_dict(kernels, strict=False).unexpected_keys
    transposed = {name: head.transposed for name, head in head_shapes(wider).items()}
    for name, value in heads.kernels().items():
        layer, _, kind = name.rpartition(".")
        first = kernels[name].narrow(int(transposed[layer] and kind == "weight"), 0, 3)
        assert torch.allclose(first, value, atol=1e-6)  # known labels keep theirs
    assert wider.eval()(image_of(example)).shape[1] == 6


def test_equal_words_make_equal_kernels_and_near_words_near_ones() -> None:
    heads = heads_of(seeded(PLAIN))
    near = torch.nn.functional.normalize(unit(1) + 0.05 * unit(1, 8), dim=1)
    kernels = heads.kernels_for(torch.cat([unit(1), unit(1), near, -unit(1)]))
    for name, rows in kernels.items():
        if name.endswith("weight"):
            _, one, same, close, far = rows
            assert torch.equal(one, same)
            assert 0 < (one - close).norm() < 0.2 * (one - far).norm()


def test_kernels_are_float32_within_autocast_and_repeatable() -> None:
    network = seeded(PLAIN)
    expected = heads_of(network).kernels()
    with torch.autocast("cpu", torch.bfloat16):
        found = heads_of(network).kernels()
        logits, _ = forward_with(network, image_of(PLAIN), found)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(one.isfinite().all() for one in logits)
