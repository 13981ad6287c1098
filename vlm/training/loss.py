"""Contrastive losses of a batch of pairs, as functions of unit embeddings; and which pairs belong to each other."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vlm.training.settings import LossName

Embeddings = Float[Tensor, "pair dimension"]


class Embedded(NamedTuple):
    """What the towers give: unit embeddings of images and of texts, the factor of a cosine in a logit, and a bias."""

    images: Float[Tensor, "image dimension"]
    texts: Float[Tensor, "text dimension"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None


class Keys(NamedTuple):
    """Hashes of what makes pairs mean the same: of a source and its labels, and of a caption (`vlm.training.pairs`)."""

    labels: Int64[Tensor, " pair"]
    texts: Int64[Tensor, " pair"]


BatchLoss = Callable[[Embedded, Keys], Float[Tensor, ""]]
"""The loss of pairs whose image and text are in the same row."""


def positive_pairs(keys: Keys) -> Bool[Tensor, "pair pair"]:
    """Which images and captions of a batch belong together: those of equal label keys or of equal text keys.

    The relation is symmetric, and every pair belongs to itself.
    """
    same_labels = keys.labels[:, None] == keys.labels[None, :]
    same_text = keys.texts[:, None] == keys.texts[None, :]
    return same_labels | same_text


def infonce_loss(images: Embeddings, texts: Embeddings, scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of finding a pair's caption among all, and its image among all (CLIP)."""
    logits = scale * images @ texts.T
    own = logits.diagonal()
    return (logits.logsumexp(1) + logits.logsumexp(0) - 2 * own).mean() / 2


def multi_positive_loss(
    images: Embeddings, texts: Embeddings, scale: Float[Tensor, ""], positives: Bool[Tensor, "pair pair"]
) -> Float[Tensor, ""]:
    """Symmetric Kullback-Leibler divergence from the uniform distribution over each row's positives.

    The cross-entropy of UniCL and SupCon less the entropy of its targets: the gradients are the same, and the
    minimum is 0 whatever the batch holds, so that losses of different batches can be compared. With one positive per
    row it is `infonce_loss`.
    """
    logits = scale * images @ texts.T
    count = positives.sum(1).to(logits.dtype)
    wanted = logits.where(positives, 0)
    from_images = logits.logsumexp(1) - wanted.sum(1) / count - count.log()
    from_texts = logits.logsumexp(0) - wanted.sum(0) / count - count.log()  # positives are symmetric
    return (from_images + from_texts).mean() / 2


def siglip_loss(
    images: Embeddings, texts: Embeddings, scale: Float[Tensor, ""], bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Sum of the logistic losses of all images and captions, per pair; own captions are positive (SigLIP)."""
    logits = scale * images @ texts.T + bias
    own = logits.diagonal()
    # softplus(x) is the loss of a negative; that of a positive, softplus(-x), is less by x.
    return (F.softplus(logits).sum() - own.sum()) / len(images)


def _infonce(embedded: Embedded, keys: Keys) -> Float[Tensor, ""]:
    return infonce_loss(embedded.images, embedded.texts, embedded.scale)


def _multi_positive(embedded: Embedded, keys: Keys) -> Float[Tensor, ""]:
    return multi_positive_loss(embedded.images, embedded.texts, embedded.scale, positive_pairs(keys))


def _siglip(embedded: Embedded, keys: Keys) -> Float[Tensor, ""]:
    if embedded.bias is None:
        raise ValueError("the sigmoid loss needs a network with a logit bias")
    return siglip_loss(embedded.images, embedded.texts, embedded.scale, embedded.bias)


LOSSES: dict[LossName, BatchLoss] = {"infonce": _infonce, "siglip": _siglip, "multi_positive": _multi_positive}
