"""Laws of decoding: permutation, box, ties, slabs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.preprocessing import Placement
from autoseg.inference import blocks
from autoseg.inference.decoding import decode_labels


def placement_of(shape, crop, axes, factors=(1.0, 1.0, 1.0)):
    """An image of `shape` (array order), cropped, permuted, resampled by `factors` (plan order)."""
    cropped = tuple(crop[axis][1] - crop[axis][0] for axis in axes)
    prepared = tuple(max(1, round(n * factor)) for n, factor in zip(cropped, factors, strict=True))
    spacing = tuple(1 / factor for factor in factors)
    return Placement(shape, (1.0, 1.0, 1.0), crop, axes, cropped, (1.0, 1.0, 1.0), prepared, spacing)


@st.composite
def placements(draw):
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    crop = tuple((start, draw(st.integers(start + 1, n))) for start, n in zip(starts, shape, strict=True))
    axes = tuple(draw(st.permutations(range(3))))
    return shape, crop, axes  # no Placement here: beartype draws random numbers to check it


@settings(max_examples=60, deadline=None)
@given(placed=placements(), seed=st.integers(0, 99))
def test_without_resampling_every_voxel_finds_its_way_back(placed, seed):
    placement = placement_of(*placed)
    whole = np.random.default_rng(seed).integers(0, 4, placement.original_shape)
    box = tuple(slice(*span) for span in placement.crop)
    prepared = whole[box].transpose(placement.axes)
    logits = np.stack([(prepared == label).astype(np.float32) for label in range(4)])
    expected = np.zeros_like(whole)
    expected[box] = whole[box]
    labels = decode_labels(logits, placement)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)


def test_ties_go_to_the_lower_class_as_in_argmax():
    logits = np.random.default_rng(0).integers(0, 3, (5, 6, 7, 8)).astype(np.float32)
    before = logits.copy()
    labels = decode_labels(logits, placement_of((6, 7, 8), ((0, 6), (0, 7), (0, 8)), (0, 1, 2)))
    np.testing.assert_array_equal(labels, logits.argmax(0))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (100, 100)])
def test_slabs_and_blocks_do_not_show(monkeypatch, sizes):
    shape, factors = (13, 11, 17), (0.6, 1.3, 0.5)
    placement = placement_of(shape, ((1, 13), (0, 9), (2, 17)), (2, 0, 1), factors)
    logits = np.random.default_rng(1).standard_normal((4, *placement.shape), dtype=np.float32)
    whole = decode_labels(logits, placement)
    monkeypatch.setattr(blocks, "THICKNESS", sizes[0])
    monkeypatch.setattr(blocks, "WIDTH", sizes[1])
    assert (decode_labels(logits, placement) == whole).mean() > 0.9999


def test_resampling_leaves_a_constant_class_alone():
    placement = placement_of((20, 20, 20), ((0, 20), (3, 20), (0, 11)), (1, 2, 0), (0.4, 0.7, 1.6))
    logits = np.zeros((3, *placement.shape), np.float32)
    logits[2] = 1
    labels = decode_labels(logits, placement)
    assert (labels[:, 3:, :11] == 2).all()
    assert labels.sum() == 2 * 20 * 17 * 11


def test_many_classes_need_a_wider_type():
    placement = placement_of((1, 2, 3), ((0, 1), (0, 2), (0, 3)), (0, 1, 2))
    logits = np.zeros((300, 1, 2, 3), np.float32)
    logits[299] = 1
    labels = decode_labels(logits, placement)
    assert labels.dtype == np.int16
    assert (labels == 299).all()
