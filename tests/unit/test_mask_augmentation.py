"""How a previous mask is made worse: morphology is exact, labels exclude each other, chances are nnU-Net's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from autoseg.training.mask_augmentation import (
    LARGEST_REMOVED,
    apply_morphology,
    change_mask,
    dilate,
    erode,
    remove_component,
)
from autoseg.training.mask_draws import MaskDraw, Morphology, Removal, draw_masks


def random_mask(seed: int, shape: tuple[int, ...] = (11, 14, 9), share: float = 0.05) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape) < share)


def label_map(seed: int = 0) -> torch.Tensor:
    """Three labels in blobs."""
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (3, 4, 3)).astype(np.uint8))
    return coarse.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)


@given(st.integers(0, 100), st.floats(1, 8), st.sampled_from([(11, 14, 9), (3, 20, 17), (1, 5, 30), (16, 13)]))
def test_dilation_reaches_exactly_the_radius(seed: int, radius: float, shape: tuple[int, ...]) -> None:
    mask, axes = random_mask(seed, shape, 0.02), len(shape)
    grid = np.stack(np.meshgrid(*[np.arange(-8, 9)] * axes, indexing="ij"))
    expected = binary_dilation(mask.numpy(), (grid**2).sum(0) <= radius**2)
    assert np.array_equal(dilate(mask, radius).numpy(), expected)


@given(st.integers(0, 100), st.floats(1, 8))
def test_erosion_is_the_dilation_of_what_is_not_there(seed: int, radius: float) -> None:
    mask = random_mask(seed, share=0.95)
    assert torch.equal(erode(mask, radius), ~dilate(~mask, radius))
    assert not (erode(mask, radius) & ~mask).any()
    assert erode(torch.ones(6, 6, 6, dtype=torch.bool), radius).all(), "the patch's border erodes nothing"


@pytest.mark.parametrize("name", ["dilation", "erosion", "opening", "closing"])
def test_a_label_wins_voxels_from_others_and_leaves_background(name: str) -> None:
    labels = label_map()
    changed = apply_morphology(labels, Morphology(2, name, 1.5))  # type: ignore[arg-type]
    won, lost = (changed == 2) & (labels != 2), (labels == 2) & (changed != 2)
    assert (changed[lost] == 0).all()
    assert torch.equal(changed[~won & ~lost], labels[~won & ~lost])
    shrinks = {"erosion", "opening"}
    assert not (won if name in shrinks else lost).any()
    assert changed.dtype == labels.dtype
    again = apply_morphology(changed, Morphology(2, name, 1.5))  # type: ignore[arg-type]
    assert name in ("dilation", "erosion") or torch.equal(again, changed), "opening and closing are idempotent"


def test_one_small_component_is_removed_and_never_a_large_one() -> None:
    labels = torch.zeros(20, 20, 20, dtype=torch.uint8)
    labels[:12] = 1  # more than 15 %
    labels[15, 2, 2], labels[16, 3, 3] = 1, 1  # touch at a corner: one component
    labels[18, 10:13, 10] = 1
    labels[14, 15, 15] = 2
    assert (labels[:12] == 1).sum() > LARGEST_REMOVED * labels.numel()
    removed = {choice: (labels != remove_component(labels, Removal(1, choice))).nonzero().tolist()
               for choice in (0.0, 0.4, 0.6, 0.999)}
    assert removed[0.0] == removed[0.4] == [[15, 2, 2], [16, 3, 3]]
    assert removed[0.6] == removed[0.999] == [[18, 10, 10], [18, 11, 10], [18, 12, 10]]
    only = torch.where(labels == 2, 2, 0).to(torch.uint8)
    assert torch.equal(remove_component(only, Removal(1, 0.5)), only)
    assert not remove_component(only, Removal(2, 0.5)).any()
    large = torch.ones(4, 4, 4, dtype=torch.uint8)
    assert torch.equal(remove_component(large, Removal(1, 0.5)), large)


def test_changes_are_made_in_order_and_the_input_stays() -> None:
    labels = label_map(3)
    before = labels.clone()
    grow, other = Morphology(1, "dilation", 2.0), Morphology(3, "dilation", 2.0)
    changed = change_mask(labels, MaskDraw((grow, other), (Removal(2, 0.3),)))
    expected = remove_component(apply_morphology(apply_morphology(labels, grow), other), Removal(2, 0.3))
    assert torch.equal(changed, expected) and torch.equal(labels, before)
    assert not torch.equal(change_mask(labels, MaskDraw((other, grow))), change_mask(labels, MaskDraw((grow, other))))


def test_how_often_masks_are_changed() -> None:
    """Frequencies of 6000 draws lie within five standard errors of nnU-Net's probabilities."""
    count, labels, rng = 6000, 3, np.random.default_rng(0)
    drawn = [draw_masks(rng, labels) for _ in range(count)]

    def assert_frequency(times: int, of: int, probability: float) -> None:
        assert abs(times / of - probability) < 5 * np.sqrt(probability * (1 - probability) / of)

    for label in (1, 2, 3):
        assert_frequency(sum(label in [one.label for one in d.morphologies] for d in drawn), count, 0.4 * 0.5)
        assert_frequency(sum(label in [one.label for one in d.removals] for d in drawn), count, 0.2 * 0.5)
    both = [d for d in drawn if {1, 2} <= {one.label for one in d.morphologies}]
    first = [next(one.label for one in d.morphologies if one.label in (1, 2)) for d in both]
    assert_frequency(first.count(1), len(first), 0.5)
    morphologies = [one for d in drawn for one in d.morphologies]
    for name in ("dilation", "erosion", "opening", "closing"):
        assert_frequency(sum(one.name == name for one in morphologies), len(morphologies), 0.25)
    radii = [one.radius for one in morphologies]
    assert 1 <= min(radii) < 1.1 and 7.9 < max(radii) < 8
    assert abs(np.mean(radii) - 4.5) < 0.2
