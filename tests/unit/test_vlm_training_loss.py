"""Contrastive losses: against open_clip's, against loops over rows, and what they do to pairs that mean the same."""

import math

import pytest
import torch
from torch.nn import functional as F

from vlm.model.libraries import import_open_clip
from vlm.training.loss import (
    LOSSES,
    Embedded,
    Keys,
    infonce_loss,
    multi_positive_loss,
    positive_pairs,
    siglip_loss,
)


def unit(count, seed, dimension=6):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    return F.normalize(rows, dim=1).requires_grad_()


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def keys(labels, texts=None):
    return Keys(torch.tensor(labels), torch.tensor(texts if texts is not None else range(100, 100 + len(labels))))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_infonce_is_open_clips_loss_with_its_gradients(count):
    images, texts, scale = unit(count, 0), unit(count, 1), tensor(9.0).requires_grad_()
    ours = infonce_loss(images, texts, scale)
    theirs = import_open_clip().ClipLoss()(images, texts, scale)
    assert torch.allclose(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, [images, texts, scale]),
                           torch.autograd.grad(theirs, [images, texts, scale]), strict=True):
        assert torch.allclose(mine, other)


def test_siglip_is_open_clips_loss_with_its_gradients():
    images, texts = unit(5, 2), unit(5, 3)
    scale, bias = tensor(10.0).requires_grad_(), tensor(-10.0).requires_grad_()
    ours = siglip_loss(images, texts, scale, bias)
    theirs = import_open_clip().loss.SigLipLoss()(images, texts, scale, bias)
    assert torch.allclose(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, [images, texts, scale, bias]),
                           torch.autograd.grad(theirs, [images, texts, scale, bias]), strict=True):
        assert torch.allclose(mine, other)


def test_with_one_positive_per_row_multi_positive_is_open_clips_loss():
    images, texts, scale = unit(6, 4), unit(6, 5), tensor(14.0)
    positives = positive_pairs(keys(range(6)))
    assert torch.equal(positives, torch.eye(6, dtype=torch.bool))
    expected = import_open_clip().ClipLoss()(images, texts, scale)
    assert torch.allclose(multi_positive_loss(images, texts, scale, positives), expected)


@pytest.mark.parametrize("seed", range(3))
def test_multi_positive_against_a_loop_over_rows(seed):
    labels = torch.randint(4, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    images, texts = unit(9, 10 + seed), unit(9, 20 + seed)
    logits = (7.0 * images @ texts.T).detach()
    total = 0.0
    for rows in (logits, logits.T):
        for own in range(9):
            same = [other for other in range(9) if labels[other] == labels[own]]
            log_p = rows[own] - torch.logsumexp(rows[own], 0)
            cross_entropy = -sum(log_p[other] for other in same) / len(same)
            total += float(cross_entropy) - math.log(len(same))
    found = multi_positive_loss(images, texts, tensor(7.0), positive_pairs(keys(labels)))
    assert float(found.detach()) == pytest.approx(total / 18)


def test_pairs_belong_together_by_labels_or_by_text():
    found = positive_pairs(Keys(torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 8, 9])))
    assert found.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_equal_captions_are_not_pushed_apart_by_multi_positive_but_are_by_infonce():
    # Images 0 and 1 have the same caption, and all four embeddings are already equal: nothing is left to learn.
    first, second = F.one_hot(torch.tensor([0, 0, 1]), 4).double(), F.one_hot(torch.tensor([0, 0, 1]), 4).double()
    images, texts = first.requires_grad_(), second.requires_grad_()
    same = Keys(torch.tensor([1, 2, 3]), torch.tensor([5, 5, 6]))
    scale = tensor(100.0)
    loss = LOSSES["multi_positive"](Embedded(images, texts, scale, None), same)
    gradient, = torch.autograd.grad(loss, images)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12) and gradient.abs().max() < 1e-12
    plain = LOSSES["infonce"](Embedded(images, texts, scale, None), same)
    # Each of the two takes the other's caption for its own every second time, in both directions.
    assert float(plain.detach()) == pytest.approx(2 / 3 * math.log(2))


def test_gradients_of_multi_positive_are_those_of_the_plain_cross_entropy():
    # Taking off the targets' entropy changes the value, and no gradient.
    images, texts, positives = unit(5, 30), unit(5, 31), positive_pairs(keys([1, 1, 2, 2, 2]))
    targets = positives / positives.sum(1, keepdim=True)
    logits = 5.0 * images @ texts.T
    plain = (F.cross_entropy(logits, targets.double()) + F.cross_entropy(logits.T, targets.double())) / 2
    ours = multi_positive_loss(images, texts, tensor(5.0), positives)
    assert not torch.allclose(ours, plain)
    assert torch.allclose(torch.autograd.grad(ours, images)[0], torch.autograd.grad(plain, images)[0])


def test_the_sigmoid_loss_needs_a_bias():
    with pytest.raises(ValueError, match="logit bias"):
        LOSSES["siglip"](Embedded(unit(2, 0), unit(2, 1), tensor(1.0), None), keys([1, 2]))
