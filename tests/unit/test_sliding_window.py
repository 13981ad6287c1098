"""Laws of sliding windows that need no oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.inference.sliding_window import WindowSettings, ensemble_logits, predict_logits
from autoseg.inference.windows import lay_windows, window_importance

CPU = torch.device("cpu")
EXACT = WindowSettings(device=CPU)


class Pointwise(torch.nn.Module):
    """Logits that depend on their own voxel alone: windows, padding and mirroring must not show."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x.square(), 1 - x], dim=1)


class Uneven(torch.nn.Module):
    """Logits that depend on the position in the window: nothing may be hidden by symmetry."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(x[0, 0].numel(), dtype=x.dtype).view(x.shape[2:])
        return torch.cat([x * ramp, x - ramp], dim=1)


shapes = st.tuples(*[st.integers(1, 14)] * 3)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, patch=st.tuples(*[st.integers(1, 9)] * 3), dimensions=st.sampled_from([2, 3]))
def test_a_pointwise_network_is_reproduced_exactly(shape, patch, dimensions):
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    patch = patch[3 - dimensions :]
    logits = predict_logits(Pointwise(), image, patch, tuple(range(dimensions)), EXACT)
    torch.testing.assert_close(logits, Pointwise()(image[None])[0], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, patch=shapes, overlap=st.sampled_from([0.25, 0.5, 0.75]))
def test_windows_cover_the_padded_image_and_overlap_enough(shape, patch, overlap):
    grid = lay_windows(shape, patch, overlap)
    for n, p, (before, after), starts in zip(shape, patch, grid.padding, grid.starts, strict=True):
        assert before + after == max(p - n, 0)
        assert after - before in (0, 1)
        assert starts[0] == 0
        assert starts[-1] + p == n + before + after
        assert all(b - a <= p * (1 - overlap) + 1 for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("batch_voxels", [1, 3 * 120, 10**9])
def test_the_batch_does_not_change_the_logits(batch_voxels):
    image = torch.randn(1, 9, 7, 8, generator=torch.Generator().manual_seed(1))
    batched = WindowSettings(device=CPU, batch_voxels=batch_voxels)
    one_by_one = predict_logits(Uneven(), image, (4, 5, 6), (0, 2), EXACT)
    torch.testing.assert_close(predict_logits(Uneven(), image, (4, 5, 6), (0, 2), batched), one_by_one)


def test_an_ensemble_is_the_mean_and_members_keep_their_mirror_axes():
    image = torch.randn(1, 9, 7, 8, generator=torch.Generator().manual_seed(2))
    members = [(Uneven(), ()), (Uneven(), (0, 1)), (Uneven(), (2,))]
    apart = [predict_logits(network, image, (4, 5, 6), axes, EXACT) for network, axes in members]
    together = ensemble_logits(members, image, (4, 5, 6), EXACT)
    torch.testing.assert_close(together, torch.stack(apart).mean(0), rtol=1e-5, atol=1e-4)


def test_mirroring_an_image_mirrors_the_logits():
    image = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(3))
    logits = predict_logits(Uneven(), image, (8, 6, 6), (0, 1, 2), EXACT)
    mirrored = predict_logits(Uneven(), image.flip(1, 3), (8, 6, 6), (0, 1, 2), EXACT)
    torch.testing.assert_close(mirrored.flip(1, 3), logits, rtol=1e-4, atol=1e-4)


def test_importance_is_positive_and_largest_at_the_center():
    weight = window_importance((33, 5, 64))
    assert weight.min() > 0
    assert weight[16, 2, 32] == weight.max() == 10


def test_progress_counts_every_copy():
    seen = []
    image = torch.zeros(1, 8, 6, 6)
    ensemble_logits([(Uneven(), (0,)), (Uneven(), ())], image, (4, 6, 6), EXACT, lambda *two: seen.append(two))
    assert seen == [(done, 9) for done in range(1, 10)]
