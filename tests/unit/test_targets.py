"""Regions, ignored voxels and absent annotation: what they demand of the loss, the draws and the scores."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from autoseg.data.store import sample_foreground
from autoseg.evaluation.scoring import Tolerance, score_case
from autoseg.labelling import Labelled, Region
from autoseg.training.losses import deep_supervision_loss, dice_and_cross_entropy, dice_counts
from autoseg.training.placement import draw_annotated_voxel, draw_voxel
from autoseg.training.targets import make_targets

CPU = torch.device("cpu")
LABELS = Labelled(labels={"background": 0, "a": 1, "b": 2}, ignore=3)
REGIONS = Labelled(labels={"background": 0, "edema": 1, "core": 4}, ignore=9, regions=(
    Region(name="whole", values=(1, 4), painted=1), Region(name="core", values=(4,), painted=4)))
both = pytest.mark.parametrize("labelled", [LABELS, REGIONS])
batch_dice_each = pytest.mark.parametrize("batch_dice", [True, False])


def drawn(labelled: Labelled, values: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, len(labelled.outputs), 6, 8, generator=generator)
    return logits, torch.randint(0, values, (3, 6, 8), generator=generator)


@both
@batch_dice_each
def test_logits_at_ignored_voxels_change_nothing_and_get_no_gradient(labelled: Labelled, batch_dice: bool) -> None:
    targets = make_targets(labelled, {}, CPU)
    logits, labels = drawn(labelled, 4)
    ignored = (labels == labelled.internal_ignore)[:, None].expand_as(logits)
    assert ignored.any()
    leaf = logits.clone().requires_grad_()
    loss = dice_and_cross_entropy(leaf, labels, batch_dice, targets)
    loss.backward()
    assert leaf.grad is not None and not leaf.grad[ignored].any() and leaf.grad[~ignored].any()
    other = torch.where(ignored, 50 * torch.randn(logits.shape), logits)
    torch.testing.assert_close(dice_and_cross_entropy(other, labels, batch_dice, targets), loss.detach())
    assert torch.equal(dice_counts(other, labels, targets), dice_counts(logits, labels, targets))


@both
def test_nothing_known_gives_a_finite_loss(labelled: Labelled) -> None:
    logits, labels = drawn(labelled, 3)
    leaf = logits.requires_grad_()
    nothing = torch.full_like(labels, labelled.internal_ignore or 0)
    dice_and_cross_entropy(leaf, nothing, True, make_targets(labelled, {}, CPU)).backward()
    assert leaf.grad is not None and not leaf.grad.any()


@batch_dice_each
def test_where_an_output_is_not_annotated_background_may_be_it(batch_dice: bool) -> None:
    """Probability that moves between background and b in a sample without b changes no loss; in another it does."""
    targets = make_targets(LABELS, {"x": ("a",)}, CPU)
    annotated = targets.annotated_in(("x", "y", "y"), CPU)
    assert annotated is not None and annotated.tolist() == [[True, False], [True, True], [True, True]]
    logits, labels = drawn(LABELS, 2)

    def loss(changed: torch.Tensor) -> torch.Tensor:
        return dice_and_cross_entropy(changed, labels, batch_dice, targets, annotated)

    for sample, same in ((0, True), (1, False)):
        moved = logits.clone()
        moved[sample, 0], moved[sample, 2] = logits[sample, 2], logits[sample, 0]
        assert torch.isclose(loss(moved), loss(logits), atol=1e-6).item() == same


@both
@batch_dice_each
def test_full_annotation_is_the_plain_loss(labelled: Labelled, batch_dice: bool) -> None:
    logits, labels = drawn(labelled, 3)
    plain = dice_and_cross_entropy(logits, labels, batch_dice, make_targets(labelled, {}, CPU))
    listed = make_targets(labelled, {"x": (next(iter(labelled.foreground)),)}, CPU)
    everything = torch.ones(3, len(labelled.foreground), dtype=torch.bool)
    torch.testing.assert_close(dice_and_cross_entropy(logits, labels, batch_dice, listed, everything), plain)
    torch.testing.assert_close(dice_and_cross_entropy(logits, labels, batch_dice, listed, None), plain)


def test_a_region_that_is_not_annotated_gets_no_gradient() -> None:
    targets = make_targets(REGIONS, {"x": ("whole",)}, CPU)
    logits, labels = drawn(REGIONS, 3)
    leaf = logits.requires_grad_()
    deep_supervision_loss([leaf], labels, True, targets, targets.annotated_in(("x", "y", "x"), CPU)).backward()
    assert leaf.grad is not None
    assert not leaf.grad[[0, 2], 1].any() and leaf.grad[[0, 2], 0].any() and leaf.grad[1, 1].any()


def test_foreground_by_region_and_annotated_voxels() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 2, 3], np.uint8), (4, 9, 8), p=[0.5, 0.2, 0.01, 0.29])
    rows, offsets, counts = sample_foreground(labels, 3, "case", ignore=3)
    assert counts == tuple(int((labels == value).sum()) for value in range(3))
    assert len(offsets) == 4 and all(low <= high for low, high in pairwise(offsets))
    known = [labels[draw_annotated_voxel(rng, rows, offsets)] for _ in range(300)]
    assert set(known) == {0, 1, 2}
    by_region = [labels[draw_voxel(rng, rows, offsets[:-1], ((1, 2), (2,)))] for _ in range(400)]
    assert set(by_region) == {1, 2} and 120 < by_region.count(2) < 280  # half of the draws are the rare region's


def test_scores_of_regions_and_ignored_voxels() -> None:
    reference = np.array([[[0, 1, 4, 4, 9, 9]]], np.uint8)
    prediction = np.array([[[0, 1, 1, 4, 4, 0]]], np.uint8)
    scores = score_case("case", prediction, reference, (1.0, 1.0, 1.0), labels=REGIONS, tolerance=Tolerance()).labels
    assert scores["whole"].dice == 1 and scores["core"].dice == pytest.approx(2 / 3)
    only = score_case("case", prediction, reference, (1.0, 1.0, 1.0), labels=REGIONS, tolerance=Tolerance(),
                      names=("core",))
    assert list(only.labels) == ["core"]


def test_what_a_record_says_of_its_labels() -> None:
    assert REGIONS.values == (0, 1, 4, 9) and REGIONS.internal_ignore == 3
    assert REGIONS.outputs == ("whole", "core") and REGIONS.members == ((1, 2), (2,))
    assert LABELS.outputs == ("background", "a", "b") and LABELS.members == ((1,), (2,))
