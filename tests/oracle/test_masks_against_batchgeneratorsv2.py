"""Changes of a previous mask are those of batchgeneratorsv2's transforms, which nnU-Net's cascade uses."""

from functools import partial

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.nnunet import random_binary_operator as theirs
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)

from autoseg.training.mask_augmentation import apply_morphology, remove_component
from autoseg.training.mask_draws import Morphology, Removal


def label_map(seed: int) -> torch.Tensor:
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (4, 5, 4)).astype(np.uint8))
    return coarse.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)


def channels(labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([labels == label for label in (1, 2, 3)]).float()


@pytest.mark.parametrize("name", ["dilation", "erosion", "opening", "closing"])
@pytest.mark.parametrize("radius", [1, 2, 5, 8])
def test_morphology(name: str, radius: int) -> None:
    """Whole radii: see `dilate` on the others."""
    labels = label_map(radius)
    transform = theirs.ApplyRandomBinaryOperatorTransform([0, 1, 2])
    expected = transform._apply_to_image(
        channels(labels), apply_to_channels=[1], operators=[getattr(theirs, f"binary_{name}_torch")],
        strel_size=[radius])
    found = apply_morphology(labels, Morphology(2, name, float(radius)))  # type: ignore[arg-type]
    assert torch.equal(channels(found), expected)
    assert not torch.equal(found, labels) or name in ("opening", "closing")


@pytest.mark.parametrize("seed", range(6))
def test_removal(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same components each is removed for some choice, and nothing else is."""
    labels = label_map(seed)
    transform = RemoveRandomConnectedComponentFromOneHotEncodingTransform(
        [0, 1, 2], fill_with_other_class_p=0, dont_do_if_covers_more_than_x_percent=0.15)
    expected, number, seen = set(), 0, [1]
    while number < seen[0]:
        monkeypatch.setattr(np.random, "choice", partial(_nth, number=number, seen=seen))
        removed = transform._apply_to_image(channels(labels), apply_to_channels=[2])
        expected.add(removed.numpy().tobytes())
        number += 1
    found = {channels(remove_component(labels, Removal(3, choice))).numpy().tobytes()
             for choice in np.linspace(0, 0.999, 200)}
    assert found == expected


def _nth(options: list[int], number: int, seen: list[int]) -> int:
    seen[0] = len(options)
    return options[number]
