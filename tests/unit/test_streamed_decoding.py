"""Laws of decoding: however logits arrive, and wherever classes are left out, every voxel has the same label."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from autoseg.data.preprocessing import Placement
from autoseg.data.resampling import linear_operators, resample_linear
from autoseg.inference import blocks, device_decoding
from autoseg.inference.blocks import BlockDecoder
from autoseg.inference.decoding import decode_labels, decode_stream
from autoseg.inference.device_decoding import DeviceDecoder

CPU = torch.device("cpu")
# prepared shape, image's shape, prepared spacing, image's spacing (mm); all in plan order
GRIDS = {
    "finer": ((11, 17, 19), (17, 26, 29), (1.5, 1.5, 1.5), (1.0, 1.0, 1.0)),
    "coarser": ((21, 27, 25), (9, 13, 11), (1.0, 1.0, 1.0), (2.3, 2.1, 2.2)),
    "mixed": ((9, 26, 14), (16, 13, 14), (2.0, 0.5, 1.0), (1.1, 1.0, 1.0)),
    "nearest": ((7, 20, 18), (18, 31, 29), (6.0, 1.0, 1.0), (2.4, 0.6, 0.6)),
    "nearest, thinned": ((18, 20, 18), (7, 31, 29), (2.0, 1.5, 1.5), (5.0, 1.0, 1.0)),
    "the same": ((9, 12, 14), (9, 12, 14), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "one axis": ((8, 15, 12), (8, 15, 30), (1.0, 1.0, 2.0), (1.0, 1.0, 0.8)),
    "one slice": ((1, 15, 12), (1, 31, 30), (1.0, 2.0, 2.0), (1.0, 1.0, 0.8)),
}


def placement_of(grid: str) -> Placement:
    shape, finer, spacing, own = GRIDS[grid]
    return Placement(finer, own, tuple((0, n) for n in finer), (0, 1, 2), finer, own, shape, spacing)


def blobs(classes: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Logits of ellipsoids that overlap, above a background of 0, with a little noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    logits = rng.normal(0, 0.2, (classes, *shape)).astype(np.float32)
    for index in range(1, classes):
        distance = np.linalg.norm((grid - rng.uniform(0, 1, 3) * shape) / (rng.uniform(0.1, 0.4, 3) * shape), axis=-1)
        logits[index] += np.clip(10 * (1 - distance), -12, 12).astype(np.float32)
    return logits


KINDS = {
    "noise": lambda classes, shape, seed: np.random.default_rng(seed).standard_normal((classes, *shape), np.float32),
    "blobs": blobs,
    "ties": lambda classes, shape, seed: np.round(blobs(classes, shape, seed) / 4).astype(np.float32),
    "equal": lambda classes, shape, seed: np.broadcast_to(blobs(2, shape, seed)[1], (classes, *shape)).copy(),
    "far apart": lambda classes, shape, seed: blobs(classes, shape, seed) * np.float32(1e6),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Some dozens of blocks in these small images."""
    monkeypatch.setattr(blocks, "THICKNESS", 4)
    monkeypatch.setattr(blocks, "WIDTH", 8)


def resampled(logits: np.ndarray, where: Placement) -> np.ndarray:
    operators = linear_operators(where.shape, where.spacing, where.cropped_shape, where.cropped_spacing)
    return np.stack([resample_linear(volume, operators) for volume in logits])


@pytest.mark.parametrize("grid", GRIDS)
def test_operators_make_convex_combinations(grid):
    """What leaving classes out rests on."""
    where = placement_of(grid)
    for operator in linear_operators(where.shape, where.spacing, where.cropped_shape, where.cropped_spacing):
        if operator.matrix is not None:
            assert operator.matrix.min() >= 0
            np.testing.assert_allclose(operator.matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 2, 7, 117])
def test_every_voxel_has_the_label_of_the_largest_logit(small_blocks, grid, kind, classes):
    where = placement_of(grid)
    logits = KINDS[kind](classes, where.shape, 3)
    labels = decode_labels(logits, where)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, resampled(logits, where).argmax(0))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["noise", "blobs", "ties"])
def test_every_voxel_has_the_last_region_that_is_likely(small_blocks, grid, kind):
    where, painted = placement_of(grid), (2, 1, 3)
    logits = KINDS[kind](4, where.shape, 5)[1:]
    expected = np.zeros(where.original_shape, int)
    for label, volume in zip(painted, resampled(logits, where), strict=True):
        expected[volume > 0] = label
    np.testing.assert_array_equal(decode_labels(logits, where, painted), expected)


def test_classes_are_left_out(monkeypatch, small_blocks):
    """Else all of this proves nothing: of blobs, most classes are interpolated in few blocks."""
    where = placement_of("finer")
    logits, seen = blobs(20, where.shape, 0), []
    whole = blocks._interpolated
    monkeypatch.setattr(blocks, "_interpolated", lambda part, *how: seen.append(len(part)) or whole(part, *how))
    monkeypatch.setattr(blocks.BlockDecoder, "_plain", None)
    decode_labels(logits, where)
    assert 0 < sum(seen) < 0.4 * 20 * 5 * 4 * 4


def test_a_class_that_rounding_could_let_win_is_never_left_out(small_blocks):
    """Two classes a rounding error apart: either may win, and both do; never one that is further behind."""
    where = placement_of("finer")
    first = blobs(2, where.shape, 1)[1] + 50
    noise = np.random.default_rng(0).choice([-1, 0, 1], first.shape)
    logits = np.stack([np.zeros_like(first), first, first + noise.astype(np.float32) * np.spacing(first)])
    labels = decode_labels(logits, where)
    values = resampled(logits, where)
    behind = values.max(0) - np.take_along_axis(values, labels[None].astype(int), 0)[0]
    assert behind.max() <= 4 * np.spacing(np.float32(62))
    assert (labels == 1).any() and (labels == 2).any()


# ---------------------------------------------------------------- planes arrive one after the other
def in_pieces(logits: np.ndarray, cuts: list[int], wipe: bool = True):
    """(first plane, planes) between the cuts; each piece is spoilt once the next is asked for."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < logits.shape[1]}), logits.shape[1]]
    for start, stop in zip(edges, edges[1:], strict=False):
        piece = logits[:, start:stop].copy()
        yield start, piece
        if wipe:
            piece[:] = np.nan


@settings(max_examples=40, deadline=None)
@given(grid=st.sampled_from(sorted(GRIDS)), cuts=st.lists(st.integers(1, 30), max_size=12), seed=st.integers(0, 99),
       thickness=st.sampled_from([1, 3, 8, 50]))
def test_pieces_do_not_show(grid, cuts, seed, thickness):
    where = placement_of(grid)
    logits = blobs(5, where.shape, seed)

    def make(*arguments):
        decoder = BlockDecoder(*arguments)
        decoder.thickness = thickness
        return decoder

    whole, file = decode_labels(logits, where), np.zeros((5, *where.original_shape), np.float32)
    found = decode_stream(in_pieces(logits, cuts), where, None, file, make)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_allclose(file, softmax(resampled(logits, where), axis=0), atol=1e-6)


def test_slices_are_made_as_soon_as_their_planes_are_there():
    """Nothing waits for the last plane, and of earlier pieces no more than one plane is kept."""
    where, made = placement_of("finer"), []
    logits = blobs(3, where.shape, 0)

    class Noting(BlockDecoder):
        def __call__(self, planes, along_z):
            made.append(along_z.size_out)
            return super().__call__(planes, along_z)

        def concatenate(self, arrays, axis):
            assert arrays[0].shape[1] == 1 or len(arrays) == 1
            return super().concatenate(arrays, axis)

    done = []
    for first, piece in [(n, logits[:, n : n + 1]) for n in range(where.shape[0])]:
        done.append((first, piece))
    counts = []

    def counted():
        for one in done:
            counts.append(sum(made))
            yield one

    decode_stream(counted(), where, None, None, Noting)
    # Plane n is asked for once all slices are made that lie before plane n - 1.
    ratio = where.cropped_shape[0] / where.shape[0]
    assert all(count >= (n - 1) * ratio - 1 for n, count in enumerate(counts))


def test_regions_probabilities_are_each_their_own():
    where = placement_of("mixed")
    logits = blobs(3, where.shape, 2)
    file = np.zeros((3, *where.original_shape), np.float32)
    decode_stream(in_pieces(logits, [3, 5]), where, (1, 2, 3), file)
    np.testing.assert_allclose(file, expit(resampled(logits, where)), atol=1e-6)


# ---------------------------------------------------------------- on a device
def on_device(operators, painted, dtype):
    return DeviceDecoder(CPU, operators, painted, dtype)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("painted", [None, (2, 1, 3, 4, 5)])
def test_a_device_gives_the_hosts_labels(monkeypatch, grid, painted):
    where = placement_of(grid)
    monkeypatch.setattr(device_decoding, "SLAB_VOXELS", 3000)
    logits = blobs(5, where.shape, 7)
    pieces = ((first, torch.from_numpy(piece)) for first, piece in in_pieces(logits, [2, 5, 6]))
    found = decode_stream(pieces, where, painted, None, on_device)
    expected = decode_labels(logits, where, painted)
    assert found.dtype == expected.dtype
    values = np.sort(resampled(logits, where), axis=0)
    margin = values[-1] - values[-2] if painted is None else np.abs(values).min(0)
    differs = found != expected
    assert not (differs & (margin > 1e-5)).any()


def test_a_device_without_memory_leaves_the_rest_to_the_host(monkeypatch, caplog):
    where = placement_of("finer")
    logits = blobs(5, where.shape, 7)
    monkeypatch.setattr(device_decoding, "SLAB_VOXELS", 3000)
    calls, whole = [], DeviceDecoder._labels

    def exhausted(self, *arguments):
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *arguments)

    monkeypatch.setattr(DeviceDecoder, "_labels", exhausted)
    with caplog.at_level("INFO", "autoseg"):
        found = decode_stream([(0, torch.from_numpy(logits))], where, None, None, on_device)
    np.testing.assert_array_equal(found, decode_labels(logits, where))
    assert len(calls) == 2
    assert "on the host" in caplog.text


@pytest.mark.parametrize("room", [True, False])
def test_planes_that_do_not_fit_together_on_the_device_are_put_together_on_the_host(monkeypatch, caplog, room):
    """Where labels do not fit either, the device is not asked to put planes together at all."""
    where = placement_of("finer")
    logits = blobs(5, where.shape, 7)
    tried, labelled, join, whole = [], [], torch.cat, DeviceDecoder._labels

    def exhausted(arrays, axis):
        if room and not tried:
            tried.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return join(arrays, axis)

    def labels(self, *arguments):
        labelled.append(1)
        if not room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *arguments)

    monkeypatch.setattr(device_decoding, "SLAB_VOXELS", 3000)
    monkeypatch.setattr(torch, "cat", exhausted)
    monkeypatch.setattr(DeviceDecoder, "_labels", labels)
    with caplog.at_level("INFO", "autoseg"):
        pieces = ((first, torch.from_numpy(piece)) for first, piece in in_pieces(logits, [2, 5, 6]))
        found = decode_stream(pieces, where, None, None, on_device)
    assert (found == decode_labels(logits, where)).mean() > 0.999  # they differ where two logits are equal but rounding
    assert len(tried) == caplog.text.count("put together on the host") == room
    assert (len(labelled) > 1) is room


@pytest.mark.parametrize("full", [True, False])
def test_nothing_moves_to_a_device_that_is_full_or_whose_sums_are_on_the_host(full):
    """The device is one without storage: to take planes there and back would lose them."""
    where = placement_of("finer")
    decoder = DeviceDecoder(CPU, linear_operators(where.shape, where.spacing, where.cropped_shape,
                                                  where.cropped_spacing), None, np.dtype(np.uint8))
    decoder._device, decoder._fits = torch.device("meta"), not full
    planes = torch.from_numpy(blobs(2, where.shape, 0))
    joined = decoder.concatenate([planes[:, :3], planes[:, 3:]], 1)
    assert joined.device == CPU
    torch.testing.assert_close(joined, planes)


def test_other_errors_than_memory_are_not_hidden():
    where = placement_of("finer")
    decoder = on_device(linear_operators(where.shape, where.spacing, where.cropped_shape, where.cropped_spacing), None,
                        np.dtype(np.uint8))
    with pytest.raises(RuntimeError, match="[Ss]izes"):
        decoder.concatenate([torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 4, 3)], 1)
