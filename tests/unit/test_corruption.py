"""Laws of what a sample loses: counts, independence, a permutation that its labels undo, losses that skip seams."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.initialization.corruption import (
    SEAM,
    PretextDraw,
    border_slices,
    corrupt,
    draw_corruption,
    draw_corruptions,
    hidden_voxels,
    in_order,
    shuffled,
)
from autoseg.initialization.record import PretextPlan

PATCH = (24, 16, 20)


def tasks(
    block: tuple[int, ...] = (4, 8, 8), ratio: float = 0.6, slabs: int | None = 4, borders: int = 1
) -> PretextPlan:
    weight = 0.2 if slabs else 0.0
    return PretextPlan(mask_block=block, mask_ratio=ratio, slabs=slabs, border_slices=borders if slabs else 0,
                       order_weight=weight, reasons=())


def numbered(samples: int, channels: int, patch: tuple[int, ...] = PATCH) -> torch.Tensor:
    """An image in which every voxel has a value of its own."""
    shape = (samples, channels, *patch)
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


# ---------------------------------------------------------------- drawing
@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=2, max_size=3),
       st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_exactly_the_asked_share_of_boxes_is_hidden(axes: list[tuple[int, int]], ratio: float, seed: int) -> None:
    block, patch = tuple(size for size, _ in axes), tuple(length for _, length in axes)
    draw = draw_corruption(tasks(block, ratio, None), patch, np.random.default_rng(seed))
    boxes = math.prod(math.ceil(length / size) for size, length in axes)
    assert draw.hidden_boxes.size == boxes and draw.hidden_boxes.sum() == round(ratio * boxes)
    assert draw.order is None and draw.borders == ()


def test_samples_and_steps_have_masks_and_orders_of_their_own() -> None:
    """The published code shares one mask and one order in a batch."""
    draws = [draw for step in range(4) for draw in draw_corruptions(tasks(slabs=6), PATCH, 3, step, 4)]
    assert len({draw.hidden_boxes.tobytes() for draw in draws}) == len(draws)
    assert len({draw.order for draw in draws}) > len(draws) // 2


def equal(one: PretextDraw, other: PretextDraw) -> bool:
    same_boxes = np.array_equal(one.hidden_boxes, other.hidden_boxes)
    return same_boxes and (one.order, one.borders) == (other.order, other.borders)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_a_draw_is_a_function_of_seed_step_and_sample(seed: int, step: int, few: int, many: int) -> None:
    """Whatever the batch size; and what is measured on is drawn apart."""
    one, other = (draw_corruptions(tasks(), PATCH, seed, step, count) for count in (few, many))
    assert all(map(equal, one, other))
    assert not equal(one[0], draw_corruptions(tasks(), PATCH, seed, step + 1, 1)[0])
    assert not equal(one[0], draw_corruptions(tasks(), PATCH, (seed + 1) % 2**32, step, 1)[0])
    assert not equal(one[0], draw_corruptions(tasks(), PATCH, seed, step, 1, measuring=True)[0])


def test_orders_and_boxes_are_uniform() -> None:
    """2,400 draws: each of 6 orders some 400 times (binomial, sd 18), each of 27 boxes hidden 16 of 27 times."""
    draws = draw_corruptions(tasks((8, 8, 8), slabs=3), (24, 24, 24), 0, 0, 2400)
    counts = Counter(draw.order for draw in draws)
    assert set(counts) == set(itertools.permutations(range(3)))
    assert all(abs(count - 400) < 5 * 18.3 for count in counts.values())
    often = np.mean([draw.hidden_boxes for draw in draws], axis=0)
    assert np.abs(often - 16 / 27).max() < 5 * math.sqrt(0.25 / 2400)


@given(st.integers(0, 3), st.integers(0, 1000))
def test_at_most_border_slices_are_hidden_at_every_border(most: int, step: int) -> None:
    draw = draw_corruptions(tasks(borders=most), PATCH, 1, step, 1)[0]
    assert len(draw.borders) == 4 and all(0 <= one <= most for pair in draw.borders for one in pair)


def test_every_border_width_occurs() -> None:
    draws = draw_corruptions(tasks(borders=3), PATCH, 1, 0, 200)
    assert {width for draw in draws for pair in draw.borders for width in pair} == {0, 1, 2, 3}


# ---------------------------------------------------------------- order
@given(st.permutations(range(6)))
def test_the_order_says_which_slab_stands_where_and_sorting_by_it_restores(order: list[int]) -> None:
    sample = numbered(1, 2)[0]
    mixed, thickness = shuffled(sample, order), PATCH[0] // 6
    slabs = sample.split(thickness, dim=1)
    for position, part in enumerate(mixed.split(thickness, dim=1)):
        assert torch.equal(part, slabs[order[position]])
    assert torch.equal(shuffled(mixed, np.argsort(order).tolist()), sample)


def test_labels_of_a_batch_are_the_orders_of_its_samples() -> None:
    image, draws = numbered(3, 2), draw_corruptions(tasks(), PATCH, 0, 5, 3)
    corrupted = corrupt(image, draws, tasks(), torch.zeros(2))
    assert corrupted.order is not None and corrupted.order.dtype == torch.int64
    assert corrupted.order.tolist() == [list(draw.order or ()) for draw in draws]
    thickness = PATCH[0] // 4
    for sample, position in itertools.product(range(3), range(4)):
        label = int(corrupted.order[sample, position])
        here, there = (slice(one * thickness, (one + 1) * thickness) for one in (position, label))
        assert torch.equal(corrupted.target[sample, :, here], image[sample, :, there])


# ---------------------------------------------------------------- hiding
@pytest.mark.parametrize(("patch", "block", "slabs"), [
    ((24, 16, 20), (4, 8, 8), 4), ((24, 16, 20), (5, 7, 6), None), ((17, 33), (4, 8), None), ((16, 16), (4, 4), None),
])  # fmt: skip
def test_hidden_voxels_take_their_channels_value_and_the_others_stay(
    patch: tuple[int, ...], block: tuple[int, ...], slabs: int | None
) -> None:
    plan, image = tasks(block, slabs=slabs), numbered(2, 3, patch)
    draws, value = draw_corruptions(plan, patch, 0, 0, 2), torch.tensor([-1.0, -2.0, -3.0])
    corrupted = corrupt(image, draws, plan, value)
    assert corrupted.target.shape == corrupted.image.shape == image.shape
    for sample, draw in enumerate(draws):
        mixed = image[sample] if draw.order is None else shuffled(image[sample], draw.order)
        assert torch.equal(corrupted.target[sample], mixed)
        for voxel in itertools.product(*map(range, patch)):
            box = tuple(index // size for index, size in zip(voxel, block, strict=True))
            assert corrupted.hidden[(sample, 0, *voxel)] == draw.hidden_boxes[box]
        in_border = border_slices(draw, patch[0])[0].view(-1, *(1 for _ in patch[1:]))
        covered = corrupted.hidden[sample, 0] | in_border
        for channel in range(3):
            seen = corrupted.image[sample, channel]
            assert torch.equal(seen[~covered], mixed[channel][~covered])
            assert (seen[covered] == value[channel]).all() and covered.any() and not covered.all()


def test_the_mask_value_gets_a_gradient_and_the_image_only_where_it_is_seen() -> None:
    image, plan = numbered(2, 2).requires_grad_(), tasks()
    draws, value = draw_corruptions(plan, PATCH, 0, 0, 2), torch.zeros(2, requires_grad=True)
    corrupted = corrupt(image, draws, plan, value)
    weights = torch.tensor([1.0, 10.0]).view(1, 2, 1, 1, 1)
    (corrupted.image * weights).sum().backward()
    assert value.grad is not None and image.grad is not None
    covered = sum(int((one.hidden_boxes.repeat(4, 0).repeat(8, 1).repeat(8, 2)[:, :16, :20]
                       | border_slices(one, PATCH[0])[0].numpy()[:, None, None]).sum()) for one in draws)
    assert value.grad.tolist() == [covered, 10 * covered]
    assert (image.grad[:, 0] != 0).sum() == 2 * math.prod(PATCH) - covered


def test_a_half_precision_image_stays_one() -> None:
    image, draws = numbered(1, 2).bfloat16(), draw_corruptions(tasks(), PATCH, 0, 0, 1)
    assert corrupt(image, draws, tasks(), torch.zeros(2)).image.dtype == torch.bfloat16


def test_boxes_that_do_not_divide_the_patch_are_cut_at_its_high_ends() -> None:
    boxes = np.zeros((3, 3), bool)
    boxes[2, 2] = True
    hidden = hidden_voxels(PretextDraw(boxes), (4, 5), (10, 11))
    expected = torch.zeros(1, 10, 11, dtype=torch.bool)
    expected[0, 8:, 10:] = True
    assert torch.equal(hidden, expected)


# ---------------------------------------------------------------- what counts
@given(st.integers(0, 300), st.integers(0, 3), st.sampled_from([2, 3, 4, 6]))
def test_seams_and_hidden_borders_are_not_scored_and_all_else_is(step: int, most: int, slabs: int) -> None:
    plan = tasks(slabs=slabs, borders=most)
    draw = draw_corruptions(plan, PATCH, 0, step, 1)[0]
    corrupted = corrupt(numbered(1, 1), [draw], plan, torch.zeros(1))
    thickness = PATCH[0] // slabs
    for index in range(PATCH[0]):
        position, offset = divmod(index, thickness)
        low, high = draw.borders[position]
        hidden = offset < low or offset >= thickness - high
        beside_seam = any(-SEAM <= index - seam < SEAM for seam in range(thickness, PATCH[0], thickness))
        scored = corrupted.scored[0, 0, index]
        assert bool(scored.all()) == bool(scored.any()) == (not hidden and not beside_seam)
        assert not hidden or (corrupted.image[0, 0, index] == 0).all()


def test_with_nothing_shuffled_every_voxel_is_scored() -> None:
    plan = tasks()
    draws = [in_order(draw) for draw in draw_corruptions(plan, PATCH, 0, 0, 2)]
    image = numbered(2, 1)
    corrupted = corrupt(image, draws, plan, torch.zeros(1))
    assert corrupted.order is None and corrupted.scored.all() and torch.equal(corrupted.target, image)
    assert torch.equal(corrupted.image == image, ~corrupted.hidden | (image == 0))


def test_without_masks_only_borders_are_hidden() -> None:
    plan = tasks(ratio=0.0, borders=1)
    draws = draw_corruptions(plan, PATCH, 0, 0, 2)
    corrupted = corrupt(numbered(2, 1) + 1, draws, plan, torch.zeros(1))
    assert not corrupted.hidden.any()
    gone = [(corrupted.image[sample] == 0).all(dim=(0, 2, 3)) for sample in range(2)]
    for lost, draw in zip(gone, draws, strict=True):
        assert torch.equal(lost, border_slices(draw, PATCH[0])[0])


# ---------------------------------------------------------------- samples that keep their order
def test_the_asked_share_of_samples_is_shuffled() -> None:
    """1,000 draws at a half: binomial, sd 16."""
    draws = draw_corruptions(tasks().model_copy(update={"shuffled_share": 0.5}), PATCH, 0, 0, 1000)
    assert abs(sum(draw.order is not None for draw in draws) - 500) < 5 * 16
    assert all((draw.order is None) == (draw.borders == ()) for draw in draws)


def test_in_a_mixed_batch_each_sample_is_as_it_would_be_alone() -> None:
    plan, image = tasks(), numbered(2, 1)
    shuffled_draw, other = draw_corruptions(plan, PATCH, 0, 0, 2)
    draws = [shuffled_draw, in_order(other)]
    together = corrupt(image, draws, plan, torch.zeros(1))
    for sample, draw in enumerate(draws):
        alone = corrupt(image[sample : sample + 1], [draw], plan, torch.zeros(1))
        for field in ("image", "target", "hidden", "scored"):
            assert torch.equal(getattr(together, field)[sample], getattr(alone, field)[0])
    assert together.order is not None and together.order.tolist() == [list(shuffled_draw.order or ()), [-1] * 4]
    assert together.scored[1].all() and torch.equal(together.target[1], image[1])


def test_padding_is_shuffled_with_its_slab_and_not_scored() -> None:
    plan = PretextPlan(mask_block=(2, 2, 2), mask_ratio=0.5, slabs=2, border_slices=0, order_weight=0.2, reasons=())
    image = torch.arange(1.0, 9.0).view(1, 1, 8, 1, 1).expand(2, 1, 8, 4, 4).contiguous()
    inside = torch.ones(2, 8, 4, 4, dtype=torch.bool)
    inside[:, 6:] = False
    image[:, :, 6:] = 0
    draws = [PretextDraw(np.zeros((4, 2, 2), bool), (1, 0), ((0, 0), (0, 0))), PretextDraw(np.zeros((4, 2, 2), bool))]
    result = corrupt(image, draws, plan, torch.zeros(1), inside)
    assert torch.equal(result.inside[:, 0], (result.target[:, 0] != 0)), "padding lies where the zeros lie"
    assert result.inside[0, 0, :, 0, 0].tolist() == [True, True, False, False, True, True, True, True]
    assert result.scored[0, 0, :, 0, 0].tolist() == [True, True, False, False, False, False, True, True], "a seam too"
    assert torch.equal(result.scored[1, 0], inside[1])
