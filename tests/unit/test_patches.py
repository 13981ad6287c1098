"""What is read for a draw, and where draws lie."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autoseg.data.store import CaseArrays
from autoseg.schema import StoredCase
from autoseg.training import draws, patches, placement
from autoseg.training.draws import DrawSettings, SampleDraw


def a_case(shape=(9, 12, 7), channels=2, foreground=None):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    tables = [np.argwhere(labels == label) for label in (1, 2)] if foreground is None else foreground
    info = StoredCase(
        id="case", shape=shape, original_shape=shape, crop=tuple((0, n) for n in shape), spacing=(1, 1, 1),
        original_spacing=(1, 1, 1), class_counts=(0, 0, 0), inputs=(),
        foreground_offsets=(0, len(tables[0]), len(tables[0]) + len(tables[1])))
    return CaseArrays(image=rng.normal(size=(channels, *shape)).astype(np.float16), labels=labels, info=info,
                      foreground=np.concatenate([np.zeros((0, 3), int), *tables]).astype(np.int32))


def a_reader(case, patch_shape, settings, batch_size=2):
    return patches.StepReader(open_case=lambda _: case, case_count=1, channels=case.image.shape[0],
                              patch_shape=patch_shape, batch_size=batch_size, settings=settings)


@pytest.mark.parametrize("start", [(0, 0, 0), (-3, 4, -2), (5, 9, 3), (-20, 0, 0), (30, 30, 30)])
def test_a_region_is_the_padded_image_cut_out(start):
    case, extents, margin = a_case(), (6, 5, 8), 40
    stop = tuple(s + n for s, n in zip(start, extents, strict=True))
    image, labels = patches.read_region(case, start, stop)
    cut = tuple(slice(s + margin, e + margin) for s, e in zip(start, stop, strict=True))
    widths = ((margin, margin),) * 3
    assert np.array_equal(image, np.pad(case.image, ((0, 0), *widths))[(slice(None), *cut)])
    assert np.array_equal(labels, np.pad(case.labels, widths)[cut])
    assert (image.dtype, labels.dtype) == (case.image.dtype, case.labels.dtype)


def test_an_unturned_draw_reads_exactly_its_patch():
    box = patches.region_box(SampleDraw(case=0, start=(-1, 2, 3)), (4, 5, 6), (9, 9, 9))
    assert box == ((-1, 2, 3), (3, 7, 9))


@pytest.mark.parametrize("patch", [(8, 9, 10), (2, 12, 10), (7, 8)])
@pytest.mark.parametrize("seed", range(20))
def test_the_region_of_a_turned_draw_holds_every_neighbor_inside_the_image(patch, seed):
    """Interpolating at any voxel of the patch needs no image voxel outside the region; nothing else is read."""
    rng, shape = np.random.default_rng(seed), (11, 14, 13)
    matrix = None
    while matrix is None:
        matrix = draws.draw_matrix(rng, patch)
    start = tuple(int(rng.integers(-4, n - 2)) for n in shape)
    draw = SampleDraw(case=0, start=start, matrix=matrix)
    low, high = patches.region_box(draw, patch, shape)
    center = np.array(patches.patch_center(draw, patch))[3 - len(matrix):]
    turned = placement.as_3d(patch)[3 - len(matrix):]
    offsets = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in turned], indexing="ij"), -1)
    points = offsets @ np.array(matrix).T + center
    for axis in range(len(matrix)):
        full = 3 - len(matrix) + axis
        needed = np.unique(np.concatenate([np.floor(points[..., axis]), np.floor(points[..., axis]) + 1]))
        needed = needed[(needed >= 0) & (needed < shape[full])]
        assert 0 <= low[full] < high[full] <= shape[full]
        if len(needed):
            assert low[full] <= needed.min()
            assert needed.max() < high[full]
            assert low[full] >= needed.min() - 1
            assert high[full] <= needed.max() + 3
    if len(matrix) == 2:
        assert (low[0], high[0]) == (start[0], start[0] + placement.as_3d(patch)[0])


@pytest.mark.parametrize("patch", [(4, 5, 6), (5, 6)])
def test_forced_samples_hold_foreground_and_labels_are_equally_likely(patch):
    case = a_case((20, 30, 25), foreground=[np.array([[0, 0, 0]]), np.argwhere(np.ones((4, 5, 6))) + 10])
    reader = a_reader(case, patch, DrawSettings(seed=3, augment=False), batch_size=1)
    reader = replace(reader, settings=replace(reader.settings, foreground_fraction=1.0))
    counts = {1: 0, 2: 0}
    for step in range(300):
        (sample,) = reader.read(step)
        stop = tuple(s + n for s, n in zip(sample.draw.start, placement.as_3d(patch), strict=True))
        inside = [all(s <= v < e for s, v, e in zip(sample.draw.start, voxel, stop, strict=True))
                  for voxel in case.foreground]
        assert any(inside)
        counts[1 if inside[0] else 2] += 1
    assert 110 < counts[1] < 190


def test_without_foreground_the_patch_is_anywhere():
    case = a_case((20, 30, 25), foreground=[np.zeros((0, 3)), np.zeros((0, 3))])
    reader = a_reader(case, (4, 5, 6), DrawSettings(seed=3, augment=False, is_validation=True), batch_size=2)
    starts = np.array([reader.read(step)[1].draw.start for step in range(200)])
    assert starts.min() >= 0
    assert (starts.max(0) <= (16, 25, 19)).all()
    assert (starts.std(0) > 3).all()


def test_an_absent_label_is_never_drawn():
    offsets, table = (0, 0, 5, 5, 9), np.arange(27).reshape(9, 3).astype(np.int32)
    rng = np.random.default_rng(0)
    rows = {placement.draw_voxel(rng, table, offsets)[0] // 3 for _ in range(200)}
    assert rows == set(range(9))


def test_draws_depend_on_seed_stream_step_and_sample_only():
    case = a_case((20, 30, 25))
    settings = DrawSettings(seed=3, mirror_axes=(0, 1, 2))
    reader = a_reader(case, (8, 9, 10), settings, batch_size=4)
    again = [sample.draw for sample in reader.read(7)]
    assert [sample.draw for sample in reader.read(7)] == again
    assert len(set(again)) == 4
    for other in (replace(settings, seed=4), replace(settings, is_validation=True)):
        assert [s.draw for s in replace(reader, settings=other).read(7)] != again
    assert [s.draw for s in reader.read(8)] != again


def test_augmentation_does_not_move_the_patches():
    case = a_case((20, 30, 25))
    reader = a_reader(case, (8, 9, 10), DrawSettings(seed=3, mirror_axes=(0, 1, 2)), batch_size=3)
    plain = replace(reader, settings=replace(reader.settings, augment=False))
    for step in range(20):
        assert [s.draw.start for s in reader.read(step)] == [s.draw.start for s in plain.read(step)]
        assert all(s.draw == SampleDraw(case=0, start=s.draw.start) for s in plain.read(step))


def test_how_often_each_change_is_drawn():
    """Frequencies of 6000 draws lie within five standard errors of nnU-Net's probabilities."""
    count, channels, patch = 6000, 2, (20, 80, 90)
    rng = np.random.default_rng(0)
    drawn = [SimpleNamespace(matrix=draws.draw_matrix(rng, patch), mirror=draws.draw_mirror(rng, (0, 2)),
                             i=draws.draw_intensity(rng, channels, patch)) for _ in range(count)]

    def assert_frequency(chosen, probability, of=count):
        assert abs(sum(chosen) / of - probability) < 5 * np.sqrt(probability * (1 - probability) / of)

    assert_frequency((d.matrix is not None for d in drawn), 1 - 0.8 * 0.8)
    assert_frequency((d.i.noise is not None for d in drawn), 0.1)
    assert_frequency((d.i.blur[0] is not None for d in drawn), 0.1)
    assert_frequency((d.i.brightness[0] is not None for d in drawn), 0.15)
    assert_frequency((d.i.contrast[0] is not None for d in drawn), 0.15)
    assert_frequency((d.i.low_resolution[1] is not None for d in drawn), 0.125)
    assert_frequency((d.i.inverted_gamma[0] is not None for d in drawn), 0.1)
    assert_frequency((d.i.gamma[0] is not None for d in drawn), 0.3)
    assert_frequency((0 in d.mirror for d in drawn), 0.5)
    assert not any(1 in d.mirror for d in drawn)
    gammas = [d.i.gamma[1] for d in drawn if d.i.gamma[1] is not None]
    assert 0.7 <= min(gammas) < 0.75
    assert 1.45 < max(gammas) <= 1.5
    assert_frequency((g < 1 for g in gammas), 0.5, len(gammas))
    assert {d.i.low_resolution[0][0] for d in drawn if d.i.low_resolution[0]} == {1.0}, "axis 0 is spared"


def test_a_turned_patch_of_four_times_longer_slices_stays_in_its_slices():
    assert placement.rotation_rule((20, 80, 61)).in_plane
    assert not placement.rotation_rule((20, 60, 60)).in_plane
    matrices = [draws.draw_matrix(np.random.default_rng(seed), (20, 80, 61)) for seed in range(50)]
    assert {len(matrix) for matrix in matrices if matrix is not None} == {2}
