"""The loss is nnU-Net's: DC_and_CE_loss inside DeepSupervisionWrapper on labels downsampled by its transform."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.labelling import Labelled, Region
from autoseg.training.losses import (
    deep_supervision_loss,
    dice_and_cross_entropy,
    dice_counts,
    downsample_labels,
    level_weights,
)
from autoseg.training.targets import make_targets

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, get_tp_fp_fn_tn


def peer_loss(batch_dice: bool) -> DC_and_CE_loss:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)


def draw(shape: tuple[int, ...], classes: int, present: int) -> tuple[Tensor, Tensor]:
    """Logits and labels; labels from `present` up never occur."""
    generator = torch.Generator().manual_seed(len(shape) + classes)
    logits = 3 * torch.randn(2, classes, *shape, generator=generator)
    return logits, torch.randint(0, present, (2, *shape), generator=generator)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("shape", [(8, 12), (4, 6, 8)])
@pytest.mark.parametrize("present", [1, 2, 4])
def test_one_level_and_its_gradient(batch_dice: bool, shape: tuple[int, ...], present: int) -> None:
    logits, labels = draw(shape, 4, present)
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = dice_and_cross_entropy(mine, labels, batch_dice)
    expected = peer_loss(batch_dice)(theirs, labels[:, None])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    found.backward(), expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("scales", [(1, 2, 4), ((1, 1, 1), (1, 2, 2), (2, 4, 4), (2, 8, 8))])
def test_deep_supervision(batch_dice: bool, scales: tuple[int | tuple[int, ...], ...]) -> None:
    """The peer also takes the lowest level, with weight zero; ours is never given it."""
    factors = [(scale,) * 3 if isinstance(scale, int) else scale for scale in scales]
    patch = (4, 16, 8)
    labels = torch.randint(0, 3, (2, *patch), generator=torch.Generator().manual_seed(0))
    shapes = [tuple(size // f for size, f in zip(patch, factor, strict=True)) for factor in factors]
    logits = [torch.randn(2, 3, *shape) for shape in shapes]

    downsample = DownsampleSegForDSTransform([tuple(1 / f for f in factor) for factor in factors])
    per_sample = [downsample(segmentation=sample[None].to(torch.int16))["segmentation"] for sample in labels]
    references = [torch.stack(level).long() for level in zip(*per_sample, strict=True)]
    weights = np.array([1 / 2**level for level in range(len(scales))])
    weights[-1] = 0
    weights = weights / weights.sum()

    expected = DeepSupervisionWrapper(peer_loss(batch_dice), weights)(logits, references)
    found = deep_supervision_loss(logits[:-1], labels, batch_dice)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)
    assert level_weights(len(scales) - 1) == pytest.approx(tuple(weights[:-1]))
    for shape, reference in zip(shapes, references, strict=True):
        assert torch.equal(downsample_labels(labels, shape), reference[:, 0])


def test_a_single_level_has_weight_one() -> None:
    logits, labels = draw((4, 6, 8), 3, 3)
    assert level_weights(1) == (1.0,)
    torch.testing.assert_close(deep_supervision_loss([logits], labels, True), peer_loss(True)(logits, labels[:, None]))


def test_half_precision_logits_are_weighed_in_float32() -> None:
    logits, labels = draw((4, 6, 8), 3, 3)
    half = logits.bfloat16()
    found = deep_supervision_loss([half], labels, False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, peer_loss(False)(half.float(), labels[:, None]))


def test_memory_format_and_label_type_do_not_matter() -> None:
    logits, labels = draw((4, 6, 8), 3, 3)
    expected = deep_supervision_loss([logits], labels, False)
    last = logits.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(deep_supervision_loss([last], labels.to(torch.uint8), False), expected)


def test_labels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        downsample_labels(torch.zeros(1, 5, 4, dtype=torch.long), (2, 2))


def test_dice_counts() -> None:
    logits, labels = draw((4, 6, 8), 4, 3)
    hard = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    true, false_positive, false_negative, _ = get_tp_fp_fn_tn(hard, labels[:, None], axes=[0, 2, 3, 4])
    expected = torch.stack((true, false_positive, false_negative), dim=1)[1:]
    assert torch.equal(dice_counts(logits, labels), expected.long())


REGIONS = Labelled(labels={"background": 0, "edema": 1, "core": 2, "enhancing": 3}, regions=(
    Region(name="whole", values=(1, 2, 3), painted=1), Region(name="inner", values=(2, 3), painted=2),
    Region(name="enhancing", values=(3,), painted=3)))


@pytest.mark.parametrize("batch_dice", [True, False])
def test_regions(batch_dice: bool) -> None:
    logits, labels = draw((4, 6, 8), 3, 4)
    targets = make_targets(REGIONS, {}, torch.device("cpu"))
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": True, "ddp": False}
    peer = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
    one_hot = torch.stack([torch.isin(labels, torch.tensor(region.values)) for region in REGIONS.regions], dim=1)
    found = dice_and_cross_entropy(logits, labels, batch_dice, targets)
    torch.testing.assert_close(found, peer(logits, one_hot.float()))


@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_ignore_label(batch_dice: bool) -> None:
    logits, labels = draw((4, 6, 8), 3, 4)  # 3 is the ignore label
    labelled = Labelled(labels={"background": 0, "a": 1, "b": 2}, ignore=3)
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    peer = DC_and_CE_loss(dice, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)
    found = dice_and_cross_entropy(logits, labels, batch_dice, make_targets(labelled, {}, torch.device("cpu")))
    torch.testing.assert_close(found, peer(logits, labels[:, None]))
