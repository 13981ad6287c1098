"""Laws of attention: an explicit loop is the oracle, distances in mm are all that positions tell."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoseg.networks import attention as module
from autoseg.networks.attention import (
    Attention,
    AttentionBlock,
    attend,
    attend_by_formula,
    rotate,
    rotation,
)

CPU = torch.device("cpu")


def seeded(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(layer: Attention, x: Tensor, token_spacing: tuple[float, ...], key_groups: list[list[int]]) -> Tensor:
    """The layer's definition with loops over heads, queries and keys; a key is the mean of a group of tokens."""
    batch, *shape, features = x.shape
    tokens = x.reshape(batch, -1, features)
    places = [
        [index * step / min(token_spacing) for index, step in zip(where, token_spacing, strict=True)]
        for where in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist()
    ]
    size = features // layer.heads
    out = torch.zeros_like(tokens)
    for sample in range(batch):
        seen = torch.stack([tokens[sample, group].mean(dim=0) for group in key_groups])
        seen_places = [[sum(places[i][axis] for i in group) / len(group) for axis in range(len(shape))]
                       for group in key_groups]
        for head in range(layer.heads):
            rows = slice(head * size, (head + 1) * size)
            queries = tokens[sample] @ layer.queries.weight[rows].T
            keys = seen @ layer.keys_values.weight[:features][rows].T
            values = seen @ layer.keys_values.weight[features:][rows].T
            for i, query in enumerate(queries):
                turned = turn(unit(query) * layer.query_scale, places[i])
                scores = [turned @ turn(unit(key) * layer.key_scale, place) / math.sqrt(size)
                          for key, place in zip(keys, seen_places, strict=True)]
                out[sample, i, rows] = torch.stack(scores).softmax(dim=0) @ values
    return (out @ layer.output.weight.T + layer.output.bias).reshape(x.shape)


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean() + 1e-6)


def turn(x: Tensor, place: list[float]) -> Tensor:
    """Turn channel pairs (i, i + pairs) by coordinate · 100^(−j / pairs per axis), axis after axis."""
    per_axis = len(x) // (2 * len(place))
    pairs, result = per_axis * len(place), x.clone()
    for axis, coordinate in enumerate(place):
        for j in range(per_axis):
            angle, i = coordinate * 100.0 ** (-j / per_axis), axis * per_axis + j
            a, b = x[i], x[pairs + i]
            result[i] = a * math.cos(angle) - b * math.sin(angle)
            result[pairs + i] = a * math.sin(angle) + b * math.cos(angle)
    return result


def layer_of(token_spacing: tuple[float, ...], key_shape: tuple[int, ...] | None, features: int = 32) -> Attention:
    torch.manual_seed(3)
    layer = Attention(features, 2, token_spacing, key_shape).double()
    with torch.no_grad():
        layer.query_scale.uniform_(0.5, 2)
        layer.key_scale.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize(("shape", "token_spacing"), [((2, 3, 4), (3.0, 1.0, 1.5)), ((4, 5), (2.0, 0.7))])
def test_attention_is_its_explicit_loop(shape: tuple[int, ...], token_spacing: tuple[float, ...]) -> None:
    layer, x = layer_of(token_spacing, None), seeded((2, *shape, 32))
    every = [[index] for index in range(math.prod(shape))]
    # Angles are float32 in the layer.
    assert torch.allclose(layer(x), loop(layer, x, token_spacing, every), atol=1e-6)


def test_pooled_attention_is_its_explicit_loop() -> None:
    token_spacing = (2.0, 0.7)
    layer, x = layer_of(token_spacing, (2, 3)), seeded((1, 4, 6, 32))
    groups = [[6 * (2 * a + i) + 2 * b + j for i in range(2) for j in range(2)] for a in range(2) for b in range(3)]
    assert torch.allclose(layer(x), loop(layer, x, token_spacing, groups), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 5), (7, 7, 7), (1, 7, 2)])
def test_pooled_attention_is_full_attention_where_nothing_is_pooled(shape: tuple[int, ...]) -> None:
    full, pooled = layer_of((1.0, 1.0, 1.0), None), layer_of((1.0, 1.0, 1.0), (7, 7, 7))
    pooled.load_state_dict(full.state_dict())
    x = seeded((1, *shape, 32))
    assert torch.equal(full(x), pooled(x))


@given(st.floats(-300, 300), st.floats(-300, 300), st.floats(-300, 300))
def test_only_distances_matter(z: float, y: float, x: float) -> None:
    """A constant added to every coordinate leaves attention unchanged (float64)."""
    queries, keys, values = (seeded((1, 2, 60, 48), seed) for seed in range(3))
    angles = rotation((3, 4, 5), (3.0, 1.0, 1.0), None, 48, CPU)[0].double()
    waves = 100.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    moved = angles + torch.cat([offset * waves for offset in (z, y, x)])
    here = attend_by_formula(rotate(queries, angles), rotate(keys, angles), values)
    there = attend_by_formula(rotate(queries, moved), rotate(keys, moved), values)
    assert torch.allclose(here, there, atol=1e-10)


def test_positions_are_in_mm() -> None:
    """Tokens twice as far apart in mm along one axis turn as those of every second place do."""
    coarse = rotation((4, 3), (2.0, 1.0), None, 16, CPU)[0].view(4, 3, -1)
    fine = rotation((8, 3), (1.0, 1.0), None, 16, CPU)[0].view(8, 3, -1)
    assert torch.equal(coarse, fine[::2])


def test_without_positions_the_order_would_not_matter_and_with_them_it_does() -> None:
    layer, x = layer_of((1.0, 1.0), None), seeded((1, 3, 4, 32))
    assert not torch.allclose(layer(x.flip(1)).flip(1)[:, :, :1], layer(x.roll(1, 2))[:, :, 1:2], atol=1e-4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = x.reshape(1, 12, 32)[:, order].reshape(x.shape)
    assert not torch.allclose(layer(shuffled).reshape(1, 12, 32), layer(x).reshape(1, 12, 32)[:, order], atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_the_formula_and_the_fused_kernel_agree(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = seeded((2, 3, 50, 16)), seeded((2, 3, 20, 16), 1), seeded((2, 3, 20, 16), 2)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", rows * 2 * 3 * 20)
    assert torch.allclose(attend(queries, keys, values), attend_by_formula(queries, keys, values), atol=1e-6)


def test_by_the_formula_the_backward_pass_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = (seeded((1, 2, 64, 8), seed).requires_grad_() for seed in range(3))
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2 * 64 * 8)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        mixed = attend_by_formula(queries, keys, values)
    assert max(kept, default=0) < 64 * 64
    gradients = torch.autograd.grad(mixed.square().sum(), (queries, keys, values))
    expected = torch.autograd.grad(attend(queries, keys, values).square().sum(), (queries, keys, values))
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_without_a_fused_kernel_one_line_says_so_and_the_result_is_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queries, keys, values = (seeded((1, 2, 9, 8), seed) for seed in range(3))
    fused = attend(queries, keys, values)
    monkeypatch.setattr(module, "has_fused_kernel", lambda *_: False)
    module._say_that_formula_is_used.cache_clear()
    with caplog.at_level(logging.INFO, logger="autoseg"):
        by_formula = [attend(queries, keys, values) for _ in range(3)]
    assert all(torch.allclose(fused, other, atol=1e-6) for other in by_formula)
    assert len(caplog.records) == 1 and "no fused kernel" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_on_a_gpu_whichever_way_is_taken_the_result_is_the_formulas(dtype: torch.dtype) -> None:
    """No kernel computes in float64 there: that case goes by the formula."""
    exact = seeded((2, 3, 50, 32)), seeded((2, 3, 20, 32), 1), seeded((2, 3, 20, 32), 2)
    queries, keys, values = (one.to("cuda", dtype) for one in exact)
    assert module.has_fused_kernel(queries, keys, values) == (dtype != torch.float64)
    tolerance = {torch.bfloat16: 0.05, torch.float32: 5e-3, torch.float64: 1e-10}[dtype]
    mixed = attend(queries, keys, values).double().cpu()
    assert torch.allclose(mixed, attend_by_formula(*exact), atol=tolerance)


def block(dimensions: int = 3, drop_probability: float = 0.0) -> AttentionBlock:
    torch.manual_seed(0)
    made = AttentionBlock(32, 2, (3,) * dimensions, (1.0,) * dimensions, None, drop_probability)
    made.initialize()
    return made


def test_a_block_whose_scales_are_zero_is_the_identity() -> None:
    made, x = block(), seeded((1, 32, 3, 4, 5)).float()
    with torch.no_grad():
        made.scale_attention.zero_()
        made.scale_mlp.zero_()
    assert torch.equal(made(x), x)


def test_every_weight_of_a_block_receives_a_gradient() -> None:
    made = block()
    made(seeded((2, 32, 3, 4, 5)).float()).square().mean().backward()
    silent = [name for name, value in made.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert silent == []


def test_a_dropped_path_is_the_identity_and_the_mean_over_draws_is_the_block() -> None:
    made, x = block(2, 0.5), seeded((1, 32, 3, 4)).float()
    made.eval()
    expected = made(x)
    made.train()
    torch.manual_seed(1)
    draws = [made(x).detach() for _ in range(400)]
    assert any(torch.equal(draw, x) for draw in draws)
    assert torch.allclose(torch.stack(draws).mean(0), expected, atol=0.05)


def test_the_memory_format_of_the_map_is_kept() -> None:
    x = seeded((1, 32, 3, 4, 5)).float().to(memory_format=torch.channels_last_3d)
    assert block()(x).is_contiguous(memory_format=torch.channels_last_3d)
