"""The opponents of the pretext tasks do what their definitions say, and no worse than they can."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from autoseg.initialization.baselines import inpaint_linearly, match_borders


def inpaint_by_loops(image, visible, spacing):
    """The definition, one hidden voxel at a time."""
    result = image.copy()
    for voxel in np.argwhere(~visible):
        total, weights = np.zeros(len(image)), 0.0
        for axis, step in enumerate(spacing):
            line = [slice(None) if other == axis else at for other, at in enumerate(voxel)]
            seen = np.flatnonzero(visible[tuple(line)])
            if not len(seen):
                continue
            values = image[(slice(None), *line)]
            gaps = np.abs(seen - voxel[axis]) * step
            before, after = gaps[seen < voxel[axis]], gaps[seen > voxel[axis]]
            variance = 1 / (1 / before.min() + 1 / after.min()) if len(before) and len(after) else gaps.min()
            total += [np.interp(voxel[axis], seen, channel[seen]) / variance for channel in values]
            weights += 1 / variance
        result[(slice(None), *voxel)] = total / weights if weights else image[:, visible].mean(axis=1)
    return result


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(1, 3),
    st.floats(0.05, 1.0),
)
def test_inpainting_is_its_definition(seed, shape, channels, share):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(channels, *shape))
    visible = rng.random(shape) < share
    visible.flat[rng.integers(visible.size)] = True
    spacing = tuple(rng.uniform(0.3, 5.0, len(shape)))
    found = inpaint_linearly(image, visible, spacing)
    np.testing.assert_allclose(found, inpaint_by_loops(image, visible, spacing), rtol=1e-9, atol=1e-12)
    assert np.array_equal(found[:, visible], image[:, visible])
    buried = np.where(visible, image, np.nan)
    assert np.array_equal(inpaint_linearly(buried, visible, spacing), found)  # hidden voxels are not read


@given(st.integers(0, 2**32 - 1))
def test_on_a_line_it_is_numpys_interpolation(seed):
    rng = np.random.default_rng(seed)
    image, visible = rng.normal(size=(2, 15)), rng.random(15) < 0.4
    visible[rng.integers(15)] = True
    places = np.arange(15)
    expected = np.stack([np.interp(places, places[visible], channel[visible]) for channel in image])
    np.testing.assert_allclose(inpaint_linearly(image, visible, (2.5,)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(18, 20), (11, 14, 16)])
def test_affine_images_come_back_from_behind_interior_blocks(shape):
    rng = np.random.default_rng(len(shape))
    slopes = rng.normal(size=(2, len(shape)))
    image = np.stack([sum(a * g for a, g in zip(row, np.indices(shape), strict=True)) for row in slopes])
    visible = np.ones(shape, dtype=bool)
    for _ in range(6):
        corner = [rng.integers(1, n - 4) for n in shape]
        visible[tuple(slice(at, at + 3) for at in corner)] = False
    found = inpaint_linearly(np.where(visible, image, np.nan), visible, (3.0, 0.7, 0.7)[: len(shape)])
    assert not visible.all()
    np.testing.assert_allclose(found, image, atol=1e-9)


def test_the_near_axis_has_the_greater_say():
    image = np.zeros((1, 3, 3))
    image[0, [0, 2], 1], image[0, 1, [0, 2]] = 1.0, -1.0
    visible = np.ones((3, 3), dtype=bool)
    visible[1, 1] = False
    assert inpaint_linearly(image, visible, (1.0, 1.0))[0, 1, 1] == pytest.approx(0.0)
    # Variances 0.5 and 2.5: weights 5 to 1.
    assert inpaint_linearly(image, visible, (1.0, 5.0))[0, 1, 1] == pytest.approx(4 / 6)
    assert inpaint_linearly(image, visible, (5.0, 1.0))[0, 1, 1] == pytest.approx(-4 / 6)


@pytest.mark.parametrize("shape", [(48, 48), (24, 32, 32)])
def test_on_a_smooth_field_it_beats_the_mean_by_far(shape):
    rng = np.random.default_rng(3)
    image = gaussian_filter(rng.normal(size=(2, *shape)), (0, *[4] * len(shape))).astype(np.float32)
    blocks = rng.random([n // 4 for n in shape]) < 0.4
    visible = np.kron(blocks, np.ones([4] * len(shape))).astype(bool)
    found = inpaint_linearly(image, visible, (1.0,) * len(shape))
    assert found.dtype == np.float32
    means = image[:, visible].mean(axis=1, keepdims=True)
    error = np.mean((found - image)[:, ~visible] ** 2)
    by_mean = np.mean((means - image[:, ~visible]) ** 2)
    assert error < by_mean / 3


def test_nothing_visible_is_refused():
    with pytest.raises(ValueError, match="no voxel is visible"):
        inpaint_linearly(np.zeros((1, 4, 4)), np.zeros((4, 4), dtype=bool), (1.0, 1.0))
    with pytest.raises(ValueError):
        inpaint_linearly(np.zeros((1, 4, 4)), np.ones((4, 4), dtype=bool), (1.0,))


def shuffled_slabs(volume, visible, order):
    """Position t holds the original slab order[t]; (slab, channel, thickness, *plane) and its visible mask."""
    pieces = np.split(volume, len(order), axis=1)
    masks = np.split(visible, len(order), axis=0)
    return np.stack([pieces[at] for at in order]), np.stack([masks[at] for at in order])


def walk(rng, length, plane):
    """A random walk along axis 0 of every column, alike in neighbouring columns: (2, length, *plane)."""
    steps = rng.normal(size=(2, length, *plane))
    return gaussian_filter(steps, (0, 0, *[2] * len(plane))).cumsum(axis=1)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("plane", [(20, 20), (40,)])
def test_border_matching_undoes_every_shuffle_of_a_continuous_volume(plane, hidden):
    rng = np.random.default_rng(0)
    for count in range(2, 7):
        volume = walk(rng, count * 8, plane)
        visible = np.ones(volume.shape[1:], dtype=bool)
        if hidden:  # at every column the borders are hidden to another depth; some columns altogether
            depth = rng.integers(0, 3, (count, 2, *plane))
            for slab, thickness in product(range(count), range(8)):
                visible[slab * 8 + thickness] = (thickness >= depth[slab, 0]) & (thickness < 8 - depth[slab, 1])
            visible[:, :3] = False
            volume = np.where(visible, volume, np.nan)
        orders = list(permutations(range(count)))
        for at in rng.permutation(len(orders))[:24]:
            assert match_borders(*shuffled_slabs(volume, visible, orders[at])) == orders[at]


def test_border_matching_is_at_chance_on_noise():
    rng = np.random.default_rng(5)
    right = []
    for _ in range(600):
        order = rng.permutation(4)
        slabs, visible = shuffled_slabs(rng.normal(size=(1, 12, 4, 4)), rng.random((12, 4, 4)) < 0.5, order)
        right.append(np.mean(np.array(match_borders(slabs, visible)) == order))
    assert abs(np.mean(right) - 1 / 4) < 4 * np.std(right) / np.sqrt(len(right))


def test_border_matching_guesses_without_a_comparable_column():
    slabs = np.random.default_rng(0).normal(size=(3, 1, 4, 5))
    assert match_borders(slabs, np.zeros((3, 4, 5), dtype=bool)) == (0, 1, 2)
    only = np.zeros((3, 4, 5), dtype=bool)
    only[0, :, 0] = only[1, :, 0] = only[2, :, 1] = True
    assert sorted(match_borders(slabs, only)) == [0, 1, 2]
    assert match_borders(slabs[:1], np.ones((1, 4, 5), dtype=bool)) == (0,)


def test_padding_that_is_not_visible_does_not_turn_the_order() -> None:
    """Two padded ends fit each other perfectly; left visible they make the chain wrap around."""
    rng = np.random.default_rng(4)
    right, wrapped = [], []
    for _ in range(20):
        column = np.cumsum(rng.normal(size=(40, 6, 6)), axis=0)
        column[:3] = column[37:] = 0
        order = rng.permutation(5)
        slabs = column.reshape(5, 1, 8, 6, 6)[order]
        inside = np.ones((40, 6, 6), bool)
        inside[:3] = inside[37:] = False
        visible = inside.reshape(5, 8, 6, 6)[order]
        right.append(np.mean(match_borders(slabs, visible) == order))
        wrapped.append(np.mean(match_borders(slabs, np.ones_like(visible)) == order))
    assert np.mean(right) == 1
    assert np.mean(wrapped) < 0.9, "else this test proves nothing"
