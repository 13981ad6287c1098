"""Regions are pooled as by hand, and their losses obey the laws that make them comparable between runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autoseg.guidance.alignment import AlignmentSettings, RegionAlignment, Regions, choose_level, occupancy

FEATURES, DIMENSION = 5, 7
APART = torch.eye(4, dtype=torch.bool)[1:]
"""Three labels that share no voxel."""
NESTED = torch.tensor([[False, True, True, False], [False, False, True, False], [False, False, False, True]])
"""Whole = 1 and 2, core = 2, and 3 for itself."""


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dimension, generator=chance(seed)), dim=1)


def aligned(vectors: Tensor | None = None, distractors: int = 2, learned: bool = False) -> RegionAlignment:
    words = unit(3, 1) if vectors is None else vectors
    others = unit(distractors, 2, words.shape[1]) if distractors else torch.zeros(0, words.shape[1])
    return RegionAlignment(FEATURES, words, others, AlignmentSettings(), chance(3), learned)


def sample_of(shape: tuple[int, ...] = (8, 6), samples: int = 2, seed: int = 4) -> tuple[Tensor, Tensor]:
    """(features, labels), both at full resolution."""
    labels = torch.randint(0, 4, (samples, *shape), generator=chance(seed), dtype=torch.uint8)
    return torch.randn(samples, FEATURES, *shape, generator=chance(seed + 1)), labels


def regions_of(module: RegionAlignment, features: Tensor, labels: Tensor, members: Tensor = APART) -> Regions:
    return module(features, occupancy(labels, tuple(features.shape[2:]), members, None))


def text_loss(module: RegionAlignment, features: Tensor, labels: Tensor, members: Tensor = APART) -> Tensor:
    return module.text_loss(regions_of(module, features, labels, members), members)


# ---------------------------------------------------------------- pooling
def shares_by_hand(labels: np.ndarray, shape: tuple[int, ...], members: np.ndarray, ignore: int | None) -> np.ndarray:
    """Voxel by voxel; the windows of a coarse cell i are [floor(i n / m), ceil((i + 1) n / m))."""
    result = np.zeros((len(labels), len(members) + 1, *shape))
    for sample, *cell in np.ndindex(len(labels), *shape):
        window = tuple(slice(i * n // m, -(-(i + 1) * n // m))
                       for i, n, m in zip(cell, labels.shape[1:], shape, strict=True))
        inside = labels[sample][window].ravel()
        for value in inside[inside != ignore] if ignore is not None else inside:
            regions = np.flatnonzero(members[:, value])
            for row in [1 + region for region in regions] or [0]:
                result[(sample, row, *cell)] += 1 / inside.size
    return result


@pytest.mark.parametrize("members", [APART, NESTED], ids=["apart", "nested"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("ignore", [None, 4])
@pytest.mark.parametrize(("fine", "coarse"), [
    ((8, 12), (4, 3)), ((7, 10), (3, 4)), ((4, 8, 8), (4, 2, 4)), ((5, 9, 6), (2, 4, 6)), ((6, 6), (6, 6)),
    ((4, 4, 4), (1, 1, 1)),
])  # fmt: skip
def test_shares_are_counted_as_by_hand(fine, coarse, ignore, dtype, members):
    top = 4 if ignore is None else 5
    labels = torch.randint(0, top, (2, *fine), generator=chance(1), dtype=dtype)
    found = occupancy(labels, coarse, members, ignore)
    by_hand = shares_by_hand(labels.numpy(), coarse, members.numpy(), ignore)
    np.testing.assert_allclose(found.numpy(), by_hand, atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30)
def test_disjoint_shares_fill_every_cell(rows, columns, coarse_rows, coarse_columns):
    coarse = (min(rows, coarse_rows), min(columns, coarse_columns))
    labels = torch.randint(0, 4, (1, rows, columns), generator=chance(rows), dtype=torch.int16)
    assert occupancy(labels, coarse, APART, None).sum(1).allclose(torch.ones(1, *coarse))


def test_ignored_voxels_lie_nowhere():
    labels = torch.full((1, 4, 4), 9, dtype=torch.uint8)
    assert not occupancy(labels, (2, 2), APART, 9).any()


@pytest.mark.parametrize("coarse", [(2, 2), (3, 3)])
def test_values_that_no_label_has_lie_nowhere(coarse):
    """They are no label, not even the last or the background."""
    labels = torch.full((1, 4, 4), 7, dtype=torch.int16)
    labels[0, 2:] = -1
    assert not occupancy(labels, coarse, APART, None).any()


@pytest.mark.parametrize("members", [APART, NESTED], ids=["apart", "nested"])
def test_a_voxel_moves_only_the_regions_that_hold_it(members):
    features, labels = sample_of()
    module = aligned()
    before = regions_of(module, features, labels, members)
    moved = features.clone()
    moved[1, :, 2, 3] += 5
    after = regions_of(module, moved, labels, members)
    value = int(labels[1, 2, 3])
    expected = torch.zeros(2, 4, dtype=torch.bool)
    expected[1, 1:] = members[:, value]
    expected[1, 0] = not members[:, value].any()
    for one, other in ((before.prototypes, after.prototypes), (before.embeddings, after.embeddings)):
        assert torch.equal((one != other).any(2), expected)


def test_a_region_counts_from_one_feature_voxel_on():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, :2, :2], labels[0, 4:6, 4] = 1, 2  # four voxels are one cell of 2×2, two are half a cell
    valid = regions_of(aligned(), torch.randn(1, FEATURES, 4, 4, generator=chance(0)), labels).valid
    assert valid.tolist() == [[True, True, False, False]]


# ---------------------------------------------------------------- the loss between regions and words
def slow_loss(module: RegionAlignment, features: Tensor, labels: Tensor, members: Tensor) -> float:
    """In float64, region by region, as docstrings and formulas say."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (module.projection.weight, module.projection.bias))
    rows = [module.background.detach(), *module.vectors.detach(), *module.distractors]
    candidates = np.stack([row.double().numpy() / np.linalg.norm(row.double().numpy()) for row in rows])
    overlap = bool(((members.int() @ members.int().T) > 0).sum() > len(members))
    terms = []
    for sample, values in zip(features.double().numpy(), labels.numpy(), strict=True):
        for region in range(len(members) + 1):
            value_in = members[region - 1].numpy() if region else ~members.any(0).numpy()
            mask = value_in[values]
            if not mask.any():
                continue
            embedding = weight @ sample[:, mask].mean(1) + bias
            cosines = candidates @ (embedding / np.linalg.norm(embedding)) / module.settings.temperature
            if not overlap:
                terms.append(np.log(np.exp(cosines).sum()) - cosines[region])
                continue
            free = [c for c in range(len(candidates)) if c != region and not (
                region and 0 < c <= len(members) and (members[region - 1] & members[c - 1]).any())]
            negative = np.mean([np.log1p(np.exp(cosines[c])) for c in free])
            terms.append(0.5 * np.log1p(np.exp(-cosines[region])) + 0.5 * negative)
    return float(np.mean(terms))


@pytest.mark.parametrize("members", [APART, NESTED], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("distractors", [0, 3])
def test_the_loss_is_that_of_the_formula(members, distractors):
    features, labels = sample_of((5, 4, 3))
    labels[0][labels[0] == 3] = 0  # a region that one sample lacks
    module = aligned(distractors=distractors)
    found = text_loss(module, features, labels, members)
    assert found.item() == pytest.approx(slow_loss(module, features, labels, members), rel=1e-5)


@pytest.mark.parametrize("members", [APART, NESTED], ids=["softmax", "sigmoid"])
def test_copies_and_finer_grids_change_no_loss(members):
    (features, labels), module = sample_of(), aligned()
    loss = text_loss(module, features, labels, members)
    assert text_loss(module, features.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1), members).allclose(loss)

    def finer(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2, -1).repeat_interleave(3, -2)
    assert text_loss(module, finer(features), finer(labels), members).allclose(loss)
    assert text_loss(module, features, finer(labels), members).allclose(loss)


def test_swapping_the_words_of_two_labels_changes_the_loss():
    (features, labels), module = sample_of(), aligned()
    loss = text_loss(module, features, labels)
    module.vectors.copy_(module.vectors[[1, 0, 2]].clone())
    assert abs(text_loss(module, features, labels) - loss) > 1e-3
    renamed = torch.tensor([0, 2, 1, 3], dtype=torch.uint8)[labels.long()]  # labels swapped as their words were
    assert text_loss(module, features, renamed).allclose(loss)


@pytest.mark.parametrize("members", [APART, NESTED], ids=["softmax", "sigmoid"])
def test_only_angles_matter(members):
    """Turned words, with projection and background turned likewise, give the same loss."""
    (features, labels), module = sample_of(), aligned()
    with torch.no_grad():
        module.projection.bias.normal_(generator=chance(9))
    loss = text_loss(module, features, labels, members)
    rotation = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=chance(8)))[0]
    with torch.no_grad():
        for rows in (module.vectors, module.distractors, module.background, module.projection.bias):
            rows.copy_(rows @ rotation)
        module.projection.weight.copy_(rotation.T @ module.projection.weight)
    assert text_loss(module, features, labels, members).allclose(loss, rtol=1e-5)


def test_nested_regions_are_not_pushed_apart():
    """With one region there, the words that it meets say nothing; those that it never meets do."""
    features, labels = sample_of()
    labels[(labels == 0) | (labels == 2) | (labels == 3)] = 1  # only the whole is there
    module = aligned(distractors=0)
    whole = regions_of(module, features, labels, NESTED)
    assert whole.valid.tolist() == [[False, True, False, False]] * 2
    loss = module.text_loss(whole, NESTED)
    for row, matters in ((1, False), (2, True)):
        other = aligned(distractors=0)
        other.vectors[row] = unit(1, 20)[0]
        assert torch.equal(other.text_loss(whole, NESTED), loss) is not matters
    apart = aligned(distractors=0)
    apart.vectors[1] = unit(1, 20)[0]
    assert apart.text_loss(whole, APART) != module.text_loss(whole, APART)


@pytest.mark.parametrize("members", [APART, NESTED], ids=["softmax", "sigmoid"])
def test_a_batch_without_regions_costs_nothing_and_reaches_every_parameter(members):
    module = aligned(learned=True)
    features = torch.randn(2, FEATURES, 4, 4, generator=chance(0), requires_grad=True)
    taken = occupancy(torch.full((2, 4, 4), 9, dtype=torch.uint8), (4, 4), members, 9)
    loss = module.text_loss(module(features, taken), members)
    loss.backward()
    assert loss == 0
    for tensor in (features, *module.parameters()):
        assert tensor.grad is not None and not tensor.grad.any()


def test_one_label_stands_against_the_background_and_distractors():
    module, members = aligned(unit(1)), torch.tensor([[False, True]])
    features, labels = sample_of()
    loss = text_loss(module, features, labels.clamp(max=1), members)
    assert loss.item() == pytest.approx(slow_loss(module, features, labels.clamp(max=1), members), rel=1e-5)
    assert module.gram_loss(regions_of(module, features, labels.clamp(max=1), members), members) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("members", [APART, NESTED], ids=["softmax", "sigmoid"])
def test_half_precision_of_features_is_computed_as_float32(members, dtype):
    features, labels = sample_of()
    module, half = aligned(), (features * 100).to(dtype)

    def losses(given: Tensor) -> list[Tensor]:
        regions, other = regions_of(module, given, labels, members), regions_of(module, given.flip(0), labels, members)
        return [module.text_loss(regions, members), module.gram_loss(regions, members),
                module.consistency_loss(regions, other)]
    exact = losses(half.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(half)
    assert all(one.dtype == torch.float32 and one.isfinite() and torch.equal(one, other)
               for one, other in zip(found, exact, strict=True))


def test_only_learned_vectors_learn():
    features, labels = sample_of()
    frozen, learned = aligned(), aligned(learned=True)
    assert {name for name, _ in learned.named_parameters()} == {"vectors", *dict(frozen.named_parameters())}
    for module in (frozen, learned):
        text_loss(module, features, labels).backward()
        assert all(one.grad is not None and one.grad.any() for one in module.parameters())
    assert not frozen.vectors.requires_grad and not frozen.distractors.requires_grad
    assert not torch.allclose(frozen.vectors, learned.vectors)


def test_first_weights_are_a_function_of_the_generator():
    pairs = zip(aligned().parameters(), aligned().parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_descent_brings_regions_to_their_words():
    features, labels = sample_of((8, 8), 4)
    features += 2 * unit(4, 30, FEATURES)[labels.long()].movedim(-1, 1)
    module = aligned()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        text_loss(module, features, labels).backward()
        optimizer.step()
    nearest = (regions_of(module, features, labels).embeddings @ module.candidates().T).argmax(2)
    assert torch.equal(nearest, torch.arange(4).expand(4, 4))


# ---------------------------------------------------------------- the loss between views
def test_equal_views_agree_and_others_are_drawn_to_each_other():
    (features, labels), module = sample_of(), aligned()
    features.requires_grad_()
    regions = regions_of(module, features, labels)
    same = module.consistency_loss(regions, regions)
    assert abs(same) < 1e-6
    (gradient,) = torch.autograd.grad(same, features, retain_graph=True)
    assert gradient.isfinite().all()
    other = regions_of(module, sample_of(seed=40)[0], labels)
    loss = module.consistency_loss(regions.detached(), other)
    assert 0 < loss <= 2 and module.consistency_loss(other, regions.detached()).allclose(loss)
    loss.backward()
    assert features.grad is None and module.projection.weight.grad.any()


def test_views_are_compared_where_both_have_the_region():
    (features, labels), module = sample_of(), aligned()
    first, second = regions_of(module, features, labels), regions_of(module, features.flip(1), labels)
    only = torch.zeros_like(first.valid)
    only[0, 2] = True
    expected = 1 - (first.embeddings * second.embeddings).sum(2)[0, 2]
    assert module.consistency_loss(replace(first, valid=only), second).allclose(expected)
    assert module.consistency_loss(first, replace(second, valid=torch.zeros_like(only))) == 0


def test_each_view_is_drawn_to_the_other_as_it_stands():
    """Gradients of both live views are halves of those toward a fixed other."""
    (features, labels), module = sample_of(), aligned()
    first, second = features.clone().requires_grad_(), features.flip(1).requires_grad_()
    one, other = regions_of(module, first, labels), regions_of(module, second, labels)
    for live, fixed, moved in ((one, other, first), (other, one, second)):
        both = torch.autograd.grad(module.consistency_loss(one, other), moved, retain_graph=True)[0]
        cosine = (live.embeddings * fixed.embeddings.detach()).sum(2)[live.valid & fixed.valid]
        toward = torch.autograd.grad((1 - cosine).mean() / 2, moved, retain_graph=True)[0]
        assert toward.any() and torch.allclose(both, toward, atol=1e-7)


# ---------------------------------------------------------------- the loss between angles
def with_prototypes(prototypes: Tensor, valid: Tensor | None = None) -> Regions:
    there = torch.ones(prototypes.shape[:2], dtype=torch.bool) if valid is None else valid
    return Regions(prototypes, torch.zeros(*prototypes.shape[:2], DIMENSION), there)


def test_angles_of_the_words_cost_nothing():
    """However the prototypes are turned, stretched and moved, and whichever labels are there."""
    module = aligned(unit(4, 1))
    rotation = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=chance(8)))[0]
    prototypes = torch.cat([torch.zeros(1, DIMENSION), 3 * module.vectors @ rotation + 2])[None]
    members = torch.eye(5, dtype=torch.bool)[1:]
    for absent in (None, 1, 4):
        valid = torch.ones(1, 5, dtype=torch.bool)
        if absent is not None:
            valid[0, absent] = False
        assert module.gram_loss(with_prototypes(prototypes, valid), members) < 1e-10
    assert module.gram_loss(with_prototypes(prototypes[:, [0, 3, 2, 4, 1]]), members) > 1e-2


@pytest.mark.parametrize("labels", [0, 1, 2])
def test_few_labels_have_no_angles(labels):
    module = aligned()
    valid = torch.tensor([[True] + [row < labels for row in range(3)]])
    prototypes = torch.randn(1, 4, FEATURES, generator=chance(1), requires_grad=True)
    loss = module.gram_loss(with_prototypes(prototypes, valid), APART)
    loss.backward()
    assert loss < 1e-10 and prototypes.grad.abs().max() < 1e-5


def test_angles_are_asked_of_the_features_themselves():
    (features, labels), module = sample_of(), aligned()
    features.requires_grad_()
    loss = module.gram_loss(regions_of(module, features, labels), APART)
    loss.backward()
    assert loss > 1e-3 and features.grad.any() and not module.projection.weight.grad.any()


# ---------------------------------------------------------------- the level
@pytest.mark.parametrize(("shapes", "level"), [
    ([(64, 64), (32, 32), (16, 16)], 2), ([(64, 64, 64), (32, 32, 32), (16, 16, 16)], 1),
    ([(64, 64), (64, 32)], 1), ([(64, 64)], 0), ([(16, 64, 64), (16, 32, 32), (8, 16, 16)], 2),
])
def test_the_level_is_the_finest_with_an_eighth_of_the_voxels(shapes, level):
    assert choose_level(shapes, shapes[0]) == level
