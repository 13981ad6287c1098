"""A cascade's previous masks from the store to the batch: they turn, move and end where the labels do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_streaming import CPU, RESIDENT, SETTINGS, STREAMED, assert_same, batches, store  # noqa: F401 (a fixture)

from autoseg.data.store import open_case, write_array
from autoseg.training import patches
from autoseg.training.batches import mask_channels
from autoseg.training.draws import SampleDraw
from autoseg.training.mask_draws import MaskDraw, Morphology

PATCHES = [(10, 12, 8), (3, 12, 10), (12, 16)]
WITHOUT = replace(SETTINGS, is_validation=True, augment=False)


def with_previous(store, folder, make):  # noqa: F811
    """The store as a cascade's: of every case a mask made from its labels."""
    files = {}
    for case_id in store.cases:
        files[case_id] = folder / f"{case_id}.previous.b2nd"
        write_array(files[case_id], make(open_case(store, case_id).labels[:]), in_slices=False)
    return replace(store, previous=files)


@pytest.fixture
def same_as_labels(store, tmp_path):  # noqa: F811
    return with_previous(store, tmp_path, lambda labels: labels)


def one_hot(labels):
    return torch.stack([labels == label for label in (1, 2)], dim=1).float()


def unchanged(monkeypatch):
    """Masks are turned and mirrored, and not made worse."""
    monkeypatch.setattr(patches, "draw_masks", lambda rng, labels: MaskDraw())


@pytest.mark.parametrize("patch_shape", PATCHES)
@pytest.mark.parametrize("settings", [SETTINGS, WITHOUT])
def test_the_channels_of_a_mask_that_equals_the_labels_are_the_turned_labels(
    same_as_labels, monkeypatch, patch_shape, settings
):
    """Whatever the draw; parts outside the image are background."""
    unchanged(monkeypatch)
    found = batches(same_as_labels, range(8), RESIDENT, settings, patch_shape)
    for batch in found:
        assert batch.image.shape == (3, 4, *patch_shape)
        assert torch.equal(batch.image[:, 2:], one_hot(batch.labels))
    assert any(batch.labels.any() for batch in found)


@pytest.mark.parametrize("patch_shape", PATCHES)
def test_a_cascade_draws_the_images_that_its_second_network_alone_would_see(same_as_labels, store, patch_shape):  # noqa: F811
    plain = batches(store, range(6), RESIDENT, SETTINGS, patch_shape)
    for ours, theirs in zip(batches(same_as_labels, range(6), RESIDENT, SETTINGS, patch_shape), plain, strict=True):
        assert torch.equal(ours.image[:, :2], theirs.image)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.case_ids == theirs.case_ids


@pytest.mark.parametrize("patch_shape", PATCHES)
def test_resident_streamed_and_resumed_sources_give_the_same_masks(same_as_labels, patch_shape):
    resident = batches(same_as_labels, range(12), RESIDENT, SETTINGS, patch_shape)
    assert_same(resident, batches(same_as_labels, range(12), STREAMED, SETTINGS, patch_shape))
    assert_same(resident[9:], batches(same_as_labels, range(9, 12), STREAMED, SETTINGS, patch_shape))
    masks = torch.cat([batch.image[:, 2:] for batch in resident])
    labels = torch.cat([one_hot(batch.labels) for batch in resident])
    assert (masks != labels).any(), "some were made worse"
    assert (masks.sum(1) <= 1).all(), "labels exclude each other"


def test_validation_sees_masks_as_they_are(store, tmp_path):  # noqa: F811
    shifted = with_previous(store, tmp_path, lambda labels: np.roll(labels, 1, axis=0))
    for batch, plain in zip(batches(shifted, range(8), RESIDENT, WITHOUT), batches(store, range(8), RESIDENT, WITHOUT),
                            strict=True):
        assert torch.equal(batch.image[:, :2], plain.image)
        assert set(batch.image[:, 2:].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("start", [(0, 0, 0), (-3, 4, -2), (5, 9, 3), (-20, 0, 0), (30, 30, 30)])
def test_a_box_of_labels_is_the_padded_array_cut_out(start):
    labels, extents, margin = np.random.default_rng(0).integers(0, 5, (9, 12, 7)).astype(np.uint8), (6, 5, 8), 40
    stop = tuple(first + length for first, length in zip(start, extents, strict=True))
    cut = tuple(slice(first + margin, last + margin) for first, last in zip(start, stop, strict=True))
    found = patches.read_box(labels, start, stop)
    assert np.array_equal(found, np.pad(labels, margin)[cut]) and found.dtype == labels.dtype


def test_each_sample_has_its_own_changes():
    masks = torch.zeros(2, 9, 9, 9, dtype=torch.uint8)
    masks[:, 4, 4, 4] = 2
    grown = MaskDraw(morphologies=(Morphology(2, "dilation", 1.0),))
    channels = mask_channels(masks, (SampleDraw(0, (0, 0, 0)), SampleDraw(0, (0, 0, 0), masks=grown)), 3)
    assert channels.shape == (2, 3, 9, 9, 9) and channels.device == CPU
    assert channels.sum((2, 3, 4)).tolist() == [[0, 1, 0], [0, 7, 0]]
