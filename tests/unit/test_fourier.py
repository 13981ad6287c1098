"""Laws of the low-frequency view, and a slow reference of its definition."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.domains.fourier import fourier_view, low_frequencies, partners

PATCHES = [(32, 40), (33, 27), (4, 24, 21), (1, 30, 30)]


def batch(samples: int, patch: tuple[int, ...], channels: int = 2) -> Tensor:
    return 4 * torch.rand(samples, channels, *patch, generator=torch.Generator().manual_seed(3))


def chances(samples: int, seed: int = 5) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, sample]) for sample in range(samples)]


def shares_of(samples: int, seed: int = 5) -> list[float]:
    return [0.05 + 0.1 * rng.random() for rng in chances(samples, seed)]


def reference(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """One coefficient after the other, over the whole transform of one channel."""
    own, given = np.fft.fftn(image), np.fft.fftn(other)
    result = own.copy()
    for index in product(*(range(length) for length in image.shape)):
        signed = [at if at <= length // 2 else at - length for at, length in zip(index, image.shape, strict=True)]
        if all(abs(k) <= np.floor(share * length) for k, length in zip(signed, image.shape, strict=True)):
            result[index] = np.abs(given[index]) * np.exp(1j * np.angle(own[index]))
    back = np.fft.ifftn(result)
    assert np.abs(back.imag).max() < 1e-10
    return back.real


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("samples", [2, 3])
def test_the_view_is_its_definition(patch: tuple[int, ...], samples: int) -> None:
    image = batch(samples, patch)
    view = fourier_view(image, chances(samples))
    assert view.dtype == torch.float32 and view.shape == image.shape
    exact = image.double().numpy()
    for sample, (share, partner) in enumerate(zip(shares_of(samples), partners(samples), strict=True)):
        for channel in range(2):
            expected = reference(exact[sample, channel], exact[partner, channel], share)
            np.testing.assert_allclose(view[sample, channel].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("patch", PATCHES)
def test_the_phase_stays_and_amplitudes_change_in_the_box_alone(patch: tuple[int, ...]) -> None:
    image = batch(2, patch)
    axes = tuple(range(2, image.dim()))
    before = torch.fft.rfftn(image.double(), dim=axes)
    after = torch.fft.rfftn(fourier_view(image, chances(2)).double(), dim=axes)
    for sample, share in enumerate(shares_of(2)):
        box = low_frequencies(patch, share)
        torch.testing.assert_close(after[sample][:, ~box], before[sample][:, ~box], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(after[sample][:, box].abs(), before[1 - sample][:, box].abs(), atol=1e-3, rtol=1e-4)
    aligned = after * before.conj()
    assert (aligned.real > 0).all()
    torch.testing.assert_close(aligned.imag / aligned.abs(), torch.zeros_like(aligned.imag), atol=1e-3, rtol=0)


def test_the_box_covers_the_drawn_share_of_every_axis() -> None:
    assert low_frequencies((10, 40), 0.1).nonzero().tolist() == [[y, x] for y in (0, 1, 9) for x in range(5)]
    assert low_frequencies((4, 20, 20), 0.149).sum() == 1 * 5 * 3


def test_equal_images_keep_their_values() -> None:
    image = batch(1, (20, 24)).expand(3, -1, -1, -1)
    torch.testing.assert_close(fourier_view(image, chances(3)), image, atol=1e-5, rtol=0)


def test_no_image_is_its_own_partner() -> None:
    assert partners(2) == [1, 0] and partners(4) == [3, 2, 1, 0] and partners(5) == [4, 3, 3, 1, 0]
    assert all(partner != index for count in range(2, 9) for index, partner in enumerate(partners(count)))


def test_an_image_alone_has_its_low_frequencies_scaled() -> None:
    patch = (32, 40)
    image = batch(1, patch)
    before = torch.fft.rfftn(image.double(), dim=(2, 3))[0]
    after = torch.fft.rfftn(fourier_view(image, chances(1)).double(), dim=(2, 3))[0]
    box = low_frequencies(patch, shares_of(1)[0])
    torch.testing.assert_close(after[:, ~box], before[:, ~box], atol=1e-3, rtol=1e-4)
    factors = (after / before)[:, box]
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-3, rtol=0)
    assert (factors.real >= 0.5).all() and (factors.real <= 2).all()
    assert (factors.real - 1).abs().min() > 0.01 and (factors[0, 0] - factors[1, 0]).abs() > 0.01


@pytest.mark.parametrize("samples", [1, 2])
def test_chance_alone_decides(samples: int) -> None:
    image = batch(samples, (32, 40))
    before = image.clone()
    first = fourier_view(image, chances(samples))
    torch.manual_seed(99)
    assert torch.equal(first, fourier_view(image, chances(samples)))
    assert not torch.equal(first, fourier_view(image, chances(samples, seed=6)))
    assert torch.equal(image, before)


@pytest.mark.parametrize("samples", [1, 2])
def test_empty_patches_stay_finite(samples: int) -> None:
    image = batch(samples, (16, 20))
    image[0] = 0
    assert torch.isfinite(fourier_view(image, chances(samples))).all()


def test_autocast_changes_nothing() -> None:
    image = batch(2, (32, 40))
    with torch.autocast("cpu", torch.bfloat16):
        view = fourier_view(image, chances(2))
    assert torch.equal(view, fourier_view(image, chances(2)))
