"""Laws of windows computed row by row: planes come in order, whole, in little memory, even where it runs out."""

import logging
import math
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.inference import accumulating, sliding_window
from autoseg.inference.accumulating import RollingMean
from autoseg.inference.sliding_window import WindowSettings, collect, ensemble_logits, stream_logits
from autoseg.inference.windows import LEAST_PLANES, PEAK, WASTE, coverage, lay_windows, window_importance

CPU = torch.device("cpu")
EXACT = WindowSettings(device=CPU)


class Uneven(torch.nn.Module):
    """Logits that depend on the position in the window and on its content; counts the batches it sees."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        self.limit, self.batches = limit, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ramp = torch.arange(x[0, 0].numel(), dtype=x.dtype).view(x.shape[2:]) / x[0, 0].numel()
        return torch.cat([x * ramp, x - ramp], dim=1)


def image_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def all_at_once(members, image, patch, overlap):
    """The definition: every window of every network added to sums of the whole padded image."""
    grid = lay_windows(tuple(image.shape[1:]), patch, overlap)
    pads = [n for before, after in reversed(grid.padding) for n in (before, after)]
    padded = torch.nn.functional.pad(image, pads)
    weights, total = torch.zeros(padded.shape[1:], dtype=torch.float64), 0
    for corner in grid.corners:
        weights[sliding_window._span(corner, grid)] += window_importance(grid.shape)
    for network, axes in members:
        sums = torch.zeros(2, *padded.shape[1:], dtype=torch.float64)
        for corner in grid.corners:
            where = (slice(None), *sliding_window._span(corner, grid))
            window = padded[where][None] if len(patch) == 3 else padded[where][None].squeeze(2)
            dimensions = [axis + 2 for axis in axes]
            subsets = [[]]
            for axis in dimensions:
                subsets += [[*subset, axis] for subset in subsets]
            logits = sum(network(window.flip(subset)).flip(subset) for subset in subsets) / len(subsets)
            logits = logits[0] if len(patch) == 3 else logits.unsqueeze(2)[0]
            sums[where] += logits * window_importance(grid.shape)
        total = total + sums / weights / len(members)
    inner = [slice(before, before + n) for (before, _), n in zip(grid.padding, image.shape[1:], strict=True)]
    return total[(slice(None), *inner)].float()


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 15)] * 3), patch=st.tuples(*[st.integers(1, 7)] * 3),
       dimensions=st.sampled_from([2, 3]), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
       batch_voxels=st.sampled_from([1, 100, 1000]))
def test_planes_come_in_order_and_are_those_of_the_whole(shape, patch, dimensions, overlap, batch_voxels):
    image, patch = image_of(*shape), patch[3 - dimensions :]
    members = [(Uneven(), (0,)), (Uneven(), ())]
    how = WindowSettings(device=CPU, overlap=overlap, batch_voxels=batch_voxels)
    end, pieces = 0, []
    for first, planes in stream_logits(members, image, patch, how):
        assert first == end and planes.shape[1] > 0 and planes.shape[2:] == image.shape[2:]
        end += planes.shape[1]
        pieces.append(planes.clone())
    assert end == shape[0]
    expected = all_at_once(members, image, patch, overlap)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ensemble_logits(members, image, patch, how), torch.cat(pieces, 1))


def test_sums_are_held_for_one_row_of_windows(monkeypatch):
    depths, whole = [], RollingMean.__init__

    def noted(self, grid, shape, depth, *others):
        depths.append(depth)
        whole(self, grid, shape, depth, *others)

    monkeypatch.setattr(RollingMean, "__init__", noted)
    list(stream_logits([(Uneven(), ())], image_of(100, 12, 12), (10, 6, 6), EXACT))
    list(stream_logits([(Uneven(), ())], image_of(100, 12, 12), (6, 6), EXACT))
    assert depths == [10, LEAST_PLANES]


@pytest.mark.parametrize(("patch", "batch", "axes"), [((6, 6, 6), 2, ()), ((6, 6, 6), 5, (0,)), ((6, 6), 7, ())])
def test_few_batches_are_not_full(patch, batch, axes):
    network, image = Uneven(), image_of(60, 9, 6)
    voxels = math.prod((1, *patch)[-3:])
    list(stream_logits([(network, axes)], image, patch, replace(EXACT, batch_voxels=batch * voxels)))
    copies = len(lay_windows((60, 9, 6), patch, 0.5).corners) * 2 ** len(axes)
    assert sum(network.batches) == copies
    assert max(network.batches) == batch
    assert len(network.batches) <= math.ceil(copies / batch * (1 + 1 / WASTE)) + 1


def test_a_2d_network_computes_several_slices_before_it_hands_them_on():
    rows = lay_windows((33, 8, 8), (8, 8), 0.5).rows(1, 1)
    assert [len(row) for row in rows[:-1]] == [LEAST_PLANES] * 4 and sum(map(len, rows)) == 33


def test_progress_counts_all_networks():
    seen = []
    members = [(Uneven(), (0,)), (Uneven(), ())]
    list(stream_logits(members, image_of(16, 6, 6), (4, 6, 6), EXACT, lambda *two: seen.append(two)))
    assert seen == [(done, 21) for done in range(1, 22)]


def test_pieces_leave_no_inference_mode_behind():
    """Whoever takes them may go on as before."""
    for _ in stream_logits([(Uneven(), ())], image_of(16, 6, 6), (4, 6, 6), EXACT):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
    how = replace(EXACT, precision=torch.bfloat16)
    for _ in stream_logits([(Uneven(), ())], image_of(16, 6, 6), (4, 6, 6), how):
        assert not torch.is_autocast_enabled("cpu")


# ---------------------------------------------------------------- out of memory
def test_batches_shrink_until_they_fit_and_nothing_is_lost(caplog):
    network, image = Uneven(limit=2), image_of(20, 9, 9)
    how = replace(EXACT, batch_voxels=9 * 216)
    with caplog.at_level(logging.INFO, "autoseg"):
        found = ensemble_logits([(network, (0,))], image, (6, 6, 6), how)
    torch.testing.assert_close(found, ensemble_logits([(Uneven(), (0,))], image, (6, 6, 6), EXACT))
    assert network.batches[:4] == [9, 4, 2, 2] and max(network.batches[2:]) == 2
    assert "9 windows at a time" in caplog.text and "from here on 2" in caplog.text


@pytest.mark.parametrize("fails", range(1, 13))
@pytest.mark.parametrize("where", ["mirroring back", "weighting"])
def test_memory_that_runs_out_while_logits_are_added_loses_and_doubles_nothing(monkeypatch, caplog, where, fails):
    """Batches of 9 copies of windows in 4 mirrorings: windows are split between batches, and after a failure anew."""
    image, how = image_of(20, 9, 9), replace(EXACT, batch_voxels=9 * 216)
    expected = ensemble_logits([(Uneven(), (0, 2))], image, (6, 6, 6), how)
    owner, name = (sliding_window, "_mirrored") if where == "mirroring back" else (RollingMean, "adding")
    calls, whole = [], getattr(owner, name)

    def failing(*arguments):
        if where == "weighting" or len(arguments[0]) == 2:  # of 2 classes: logits, not the window
            calls.append(1)
            if len(calls) == fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments)

    monkeypatch.setattr(owner, name, failing)
    seen = []
    with caplog.at_level(logging.INFO, "autoseg"):
        found = ensemble_logits([(Uneven(), (0, 2))], image, (6, 6, 6), how, lambda *two: seen.append(two))
    torch.testing.assert_close(found, expected)
    assert "9 windows at a time" in caplog.text and seen[-1][0] == seen[-1][1]


@torch.inference_mode()
def test_sums_stay_as_they_are_until_all_memory_is_had():
    grid = lay_windows((8, 6, 6), (6, 6, 6), 0.5)
    sums, logits = RollingMean(grid, (8, 6, 6), 8, CPU), torch.ones(2, 6, 6, 6)
    add = sums.adding(logits, (0, 0, 0), 1.0)
    assert not sums._sum.any()
    add()
    torch.testing.assert_close(sums._sum[:, :6], window_importance((6, 6, 6)).expand(2, 6, 6, 6))


def test_mirrored_copies_are_added_up_one_at_a_time(monkeypatch):
    alive, most, whole = set(), [0], sliding_window._mirrored

    def noted(array, axes):
        made = whole(array, axes)
        if axes and len(array) == 2:  # logits
            alive.add(id(made))
            weakref.finalize(made, alive.discard, id(made))
            most[0] = max(most[0], len(alive))
        return made

    monkeypatch.setattr(sliding_window, "_mirrored", noted)
    ensemble_logits([(Uneven(), (0, 1, 2))], image_of(6, 6, 6), (6, 6, 6), replace(EXACT, batch_voxels=8 * 216))
    assert 1 <= most[0] <= 2


def test_one_window_too_many_is_raised():
    with pytest.raises(torch.OutOfMemoryError):
        ensemble_logits([(Uneven(limit=0), ())], image_of(8, 8, 8), (6, 6, 6), EXACT)


def test_other_errors_are_not_taken_for_memory():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        ensemble_logits([(Broken(), ())], image_of(8, 8, 8), (6, 6, 6), replace(EXACT, batch_voxels=10**6))


def test_sums_move_to_the_host_when_one_window_does_not_fit_beside_them(monkeypatch, caplog):
    """A device that is out of memory as long as the sums are there."""
    moved, whole = [], RollingMean.to_host

    class Crowded(Uneven):
        def forward(self, x):
            if len(self.batches) >= 3 and not moved:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    monkeypatch.setattr(RollingMean, "device", property(lambda _: torch.device("cpu" if moved else "cuda")))
    monkeypatch.setattr(RollingMean, "to_host", lambda self: (moved.append(1), whole(self)))
    image = image_of(20, 9, 9)
    with caplog.at_level(logging.INFO, "autoseg"):
        found = ensemble_logits([(Crowded(), ())], image, (6, 6, 6), EXACT)
    torch.testing.assert_close(found, ensemble_logits([(Uneven(), ())], image, (6, 6, 6), EXACT))
    assert moved == [1] and "move to the host" in caplog.text


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 15)] * 3), patch=st.tuples(*[st.integers(1, 7)] * 3))
@torch.inference_mode()
def test_ones_have_the_mean_one_and_their_weights_are_rounded_once(shape, patch):
    grid = lay_windows(shape, patch, 0.5)
    depth = shape[0] + sum(grid.padding[0])
    sums, weights = RollingMean(grid, shape, depth, CPU), torch.zeros(1, depth, *sums_shape(grid, shape))
    for corner in grid.corners:
        sums.adding(torch.ones(1, *grid.shape), corner, 1.0)()
        weights[(slice(None), *sliding_window._span(corner, grid))] += window_importance(grid.shape)
    inner = [slice(before, before + n) for (before, _), n in zip(grid.padding, shape, strict=True)]
    z, y, x = (coverage(starts, length, n + sum(padding)) for starts, length, n, padding
               in zip(grid.starts, grid.shape, shape, grid.padding, strict=True))
    exact = (PEAK * z[:, None, None] * y[:, None] * x).float()
    finished = sums.finished(depth)
    mean = finished.planes
    assert finished.first == 0 and finished.unreached is None
    assert torch.equal(mean, (weights / exact)[(slice(None), *inner)])
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=1e-5, atol=1e-5)


def sums_shape(grid, shape):
    """(y, x) of the padded image."""
    return [n + sum(padding) for n, padding in zip(shape[1:], grid.padding[1:], strict=True)]


def test_entries_move_to_the_front_whatever_the_step():
    for size in range(1, 9):
        for by in range(1, size + 1):
            array = torch.arange(size, dtype=torch.float32)[None].repeat(2, 1)
            accumulating._shift(array, 1, by)
            assert array[1].tolist() == [*range(by, size), *[0] * by]


# ---------------------------------------------------------------- windows of one value
def test_windows_of_one_value_are_left_out_and_are_background(caplog):
    image = image_of(24, 8, 8)
    image[:, 8:] = -3.5
    network = Uneven()
    how = replace(EXACT, constant_logits=(7.0, -7.0))
    with caplog.at_level(logging.INFO, "autoseg"):
        found = ensemble_logits([(network, (0,))], image, (8, 8, 8), how)
    everything = ensemble_logits([(Uneven(), (0,))], image, (8, 8, 8), EXACT)
    assert len(network.batches) == 2 * 2  # windows start at planes 0, 4, 8, 12 and 16
    assert "3 of 5 windows" in caplog.text
    torch.testing.assert_close(found[:, :8], everything[:, :8])  # no window there is left out
    # Planes 8 … 11 are reached by one window that was computed: its logits alone.
    alone = ensemble_logits([(Uneven(), (0,))], image[:, 4:12], (8, 8, 8), EXACT)
    torch.testing.assert_close(found[:, 8:12], alone[:, 4:])
    assert (found[0, 12:] == 7).all() and (found[1, 12:] == -7).all()


def test_an_image_of_one_value_needs_no_window_at_all():
    network, image = Uneven(), torch.zeros(1, 20, 8, 8)
    found = collect(stream_logits([(network, ())], image, (8, 8, 8), replace(EXACT, constant_logits=(5.0, -5.0))), 20)
    assert not network.batches and (found[0] == 5).all() and (found[1] == -5).all()


def test_leaving_out_changes_nothing_where_no_window_has_one_value():
    image, how = image_of(20, 9, 9), replace(EXACT, constant_logits=(5.0, -5.0))
    torch.testing.assert_close(
        ensemble_logits([(Uneven(), (1,))], image, (6, 6, 6), how),
        ensemble_logits([(Uneven(), (1,))], image, (6, 6, 6), EXACT),
    )


@pytest.mark.parametrize("classes", [2, 20])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_sums_do_not_depend_on_how_logits_lie_in_memory(classes, memory_format):
    values = torch.randn(2, classes, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    logits = values.to(memory_format=memory_format)
    total, weight = torch.ones(classes, 5, 6, 7), window_importance((3, 4, 5))
    accumulating._add_weighted(total[:, 1:4, 2:6, 1:6], logits[1], weight, 0.25)
    expected = torch.ones(classes, 5, 6, 7)
    expected[:, 1:4, 2:6, 1:6] += 0.25 * logits[1] * weight
    torch.testing.assert_close(total, expected)
