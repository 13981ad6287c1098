"""Region features drawn to the vectors of words: pooling, projection, and the losses between both.

The mean feature of a label's voxels in a sample is that region's prototype; a linear map takes it to the vectors'
space (mapping and then averaging would be the same, at many times the cost). There it should be nearest to its own
label's vector: a softmax over all candidates (InfoNCE; Radford et al. 2021, with regions for images). Everything here
is float32, whatever the precision of the features.

With a free projection only the angles between the vectors can matter, not the vectors: turn them all, and the
projection turns with them. So words act through a handful of numbers here; `docs/generalization.md` measures whether
they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Bool, Float, Float32, Integer
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, logsigmoid, normalize

from autoseg.networks.segmenter import Segmenter
from autoseg.schema import NetworkPlan

FINEST_SHARE = 1 / 8
"""Features are taken from the finest decoder level that has at most this share of the patch's voxels: fine enough for
small organs, cheap, and past what the finest level alone decides."""
EPSILON = 1e-6
GRAM_LABELS = 3  # fewer have no angles
POOLING = {2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


@dataclass(frozen=True)
class AlignmentSettings:
    """temperature : of the softmax. least_voxels : a region counts from so many feature voxels on (summed shares); with
    more, small organs would never count at a coarse level."""

    temperature: float = 0.1
    least_voxels: float = 1.0


@dataclass(frozen=True)
class Regions:
    """What regions of a batch look like; row 0 is the background, rows 1 … K the labels.

    Attributes
    ----------
    prototypes : mean features. embeddings : unit vectors in the words' space. valid : whether the region is there.
    """

    prototypes: Float32[Tensor, "sample region feature"]
    embeddings: Float32[Tensor, "sample region dimension"]
    valid: Bool[Tensor, "sample region"]

    def detached(self) -> "Regions":
        """The same without gradients: what another view is compared with."""
        return replace(self, prototypes=self.prototypes.detach(), embeddings=self.embeddings.detach())


def choose_level(shapes: Sequence[tuple[int, ...]], patch: tuple[int, ...]) -> int:
    """The finest of the decoder's levels (finest first) with at most an eighth of the patch's voxels; else the last."""
    fitting = [level for level, shape in enumerate(shapes) if prod(shape) <= FINEST_SHARE * prod(patch)]
    return fitting[0] if fitting else len(shapes) - 1


def tapped_level(network: Segmenter, planned: NetworkPlan, channels: int) -> tuple[int, int, tuple[int, ...]]:
    """(level, features, shape) of the decoder's map that is aligned, from one pass of an empty patch."""
    was_training, weight = network.training, next(network.parameters())
    network.eval()
    with torch.no_grad():
        maps = network.feature_maps(torch.zeros(1, channels, *planned.patch_shape, device=weight.device))
    network.train(was_training)
    shapes = [tuple(one.shape[2:]) for one in maps.decoder]
    level = choose_level(shapes, tuple(planned.patch_shape))
    return level, maps.decoder[level].shape[1], shapes[level]


@torch.no_grad()
def occupancy(
    labels: Integer[Tensor, "sample *patch"], shape: tuple[int, ...], members: Bool[Tensor, "region label"],
    ignore: int | None,
) -> Float32[Tensor, "sample row *shape"]:  # fmt: skip
    """The share of each coarse voxel that each region fills: row 0 what is in no region, rows 1 … K the regions.

    Shares, not the nearest label, because small organs would vanish. Ignored voxels, and values that no label has,
    fill nothing. Where the patch is no multiple of `shape`, cells overlap as in torch's adaptive pooling.
    """
    labels, members = labels.long(), members.to(labels.device)
    known = (labels >= 0) & (labels < members.shape[1])
    if ignore is not None:
        known &= labels != ignore
    rows = torch.cat([~members.any(0, keepdim=True), members]).float()
    if all(fine % coarse == 0 for fine, coarse in zip(labels.shape[1:], shape, strict=True)):
        return _counted(torch.where(known, labels, members.shape[1]), shape, rows)
    inside = rows[:, torch.where(known, labels, 0)].movedim(0, 1) * known[:, None]
    pooled: Tensor = POOLING[len(shape)](inside, shape)  # type: ignore[operator, arg-type]
    return pooled


def _counted(
    values: Integer[Tensor, "sample *patch"], shape: tuple[int, ...], rows: Float32[Tensor, "row label"]
) -> Float32[Tensor, "sample row *shape"]:
    """Shares by counting every label in every cell, whatever the number of labels; a value past the last is no label.

    Nothing of the patch's size exists once per label: with 104 labels a fifth of the time and half the memory.
    """
    samples, bins, cells = len(values), rows.shape[1] + 1, prod(shape)
    cell = torch.zeros((), dtype=torch.long, device=values.device)
    for axis, coarse in enumerate(shape, start=1):
        fine = values.shape[axis]
        along = torch.arange(fine, device=values.device) // (fine // coarse)
        cell = cell[..., None] * coarse + along
    first = torch.arange(samples, device=values.device).reshape(-1, *(1,) * len(shape)) * cells
    counts = torch.bincount(((first + cell) * bins + values).flatten(), minlength=samples * cells * bins)
    known = counts.reshape(samples, cells, bins)[..., :-1].float()
    with torch.autocast(values.device.type, enabled=False):
        taken = torch.einsum("scl,rl->src", known, rows) / (values[0].numel() // cells)
    return taken.reshape(samples, len(rows), *shape)


class RegionAlignment(nn.Module):
    """The projection to the words' space, the background's own vector, and the losses.

    vectors : (label, dimension) unit; distractors : (name, dimension) unit, may be none. `learned`: the vectors are
    parameters, drawn anew: a control that has as many numbers to learn, and no words.
    """

    vectors: Tensor
    distractors: Tensor

    def __init__(  # noqa: PLR0913, PLR0917
        self, features: int, vectors: Float32[Tensor, "label dimension"],
        distractors: Float32[Tensor, "name dimension"], settings: AlignmentSettings, generator: torch.Generator,
        learned: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = settings
        dimension = vectors.shape[1]
        self.projection = nn.Linear(features, dimension)
        with torch.no_grad():
            self.projection.weight.normal_(0, features**-0.5, generator=generator)
            self.projection.bias.zero_()
        self.background = nn.Parameter(normalize(torch.randn(dimension, generator=generator), dim=0))
        if learned:
            self.vectors = nn.Parameter(normalize(torch.randn(vectors.shape, generator=generator), dim=1))
        else:
            self.register_buffer("vectors", vectors.clone())
        self.register_buffer("distractors", distractors.clone())

    def forward(
        self, features: Float[Tensor, "sample feature *shape"], taken: Float32[Tensor, "sample region *shape"]
    ) -> Regions:
        """Prototypes and embeddings of the regions that `occupancy` gave."""
        with torch.autocast(features.device.type, enabled=False):
            flat, shares = features.float().flatten(2), taken.flatten(2)
            mass = shares.sum(2)
            prototypes = torch.einsum("brv,bfv->brf", shares, flat) / mass.clamp_min(EPSILON)[..., None]
            embeddings = normalize(self.projection(prototypes), dim=2, eps=EPSILON)
        return Regions(prototypes, embeddings, mass >= self.settings.least_voxels)

    def candidates(self) -> Float32[Tensor, "candidate dimension"]:
        """Unit vectors: the background's, the labels', the distractors'."""
        own = torch.cat([self.background[None], self.vectors])
        return torch.cat([normalize(own, dim=1, eps=EPSILON), self.distractors])

    def text_loss(self, regions: Regions, members: Bool[Tensor, "region label"]) -> Float32[Tensor, ""]:
        """The mean over the batch's regions of −log softmax over candidates of cosine / temperature, at their own.

        Where regions share voxels (whole tumor and core), one must not be pushed from the other: then the mean of
        −log σ over a region's own vector and over those of regions that never meet it, background and distractors.
        0 without a region, with gradients (of 0) for every parameter.
        """
        with torch.autocast(regions.embeddings.device.type, enabled=False):
            logits = regions.embeddings @ self.candidates().T / self.settings.temperature
            meets = self._meeting(members, logits.shape[2])
            rows = torch.arange(logits.shape[1], device=logits.device)
            if bool((meets.sum(1) == 1).all()):
                own = torch.log_softmax(logits, dim=2)[:, rows, rows]
            else:
                free = (~meets).float()
                own = 0.5 * logsigmoid(logits[:, rows, rows])
                own = own + 0.5 * (logsigmoid(-logits) * free).sum(2) / free.sum(1).clamp_min(1)
            valid = regions.valid.float()
            return -(own * valid).sum() / valid.sum().clamp_min(1)

    def consistency_loss(self, first: Regions, second: Regions) -> Float32[Tensor, ""]:
        """The mean of 1 − cosine between two views of one region; each is drawn to the other as it stands."""
        both = (first.valid & second.valid).float()
        toward = 1 - (first.embeddings.detach() * second.embeddings).sum(2)
        back = 1 - (first.embeddings * second.embeddings.detach()).sum(2)
        return ((toward + back) / 2 * both).sum() / both.sum().clamp_min(1)

    def gram_loss(self, regions: Regions, _: Bool[Tensor, "region label"]) -> Float32[Tensor, ""]:
        """The mean squared difference between cosines of the labels' prototypes and cosines of their vectors.

        Prototypes are averaged over the batch; they and the vectors are centered over the labels that the batch has,
        because angles about different centers cannot agree. Nothing projects them, so the angles that the words give
        are asked of the features themselves. (Inter-class structure as in TCSA-UDA, arXiv 2511.05782.)
        0 with fewer than `GRAM_LABELS` labels in the batch: centered, two are opposite whatever they are.
        """
        with torch.autocast(regions.prototypes.device.type, enabled=False):
            valid = regions.valid[:, 1:].float()
            counts = valid.sum(0)
            means = (regions.prototypes[:, 1:] * valid[..., None]).sum(0) / counts.clamp_min(1)[:, None]
            there = (counts > 0).float()
            directions, words = _about_center(means, there), _about_center(normalize(self.vectors, dim=1), there)
            pairs = torch.triu(there[:, None] * there[None], diagonal=1)
            difference = (directions @ directions.T - words @ words.T).square()
            return (difference * pairs).sum() / pairs.sum().clamp_min(1) + 0 * regions.embeddings.sum()

    def _meeting(self, members: Tensor, candidates: int) -> Bool[Tensor, "region candidate"]:
        """Which candidates a region must not be pushed from: its own, and those of regions that share voxels."""
        shared = (members.float() @ members.float().T) > 0
        meets = torch.zeros(len(members) + 1, candidates, dtype=torch.bool, device=members.device)
        meets[0, 0] = True
        meets[1:, 1 : len(members) + 1] = shared
        return meets


def _about_center(
    rows: Float32[Tensor, "label dimension"], there: Float32[Tensor, " label"]
) -> Float32[Tensor, "label dimension"]:
    """Unit directions from the mean of the rows that are `there`."""
    center = (rows * there[:, None]).sum(0) / there.sum().clamp_min(1)
    return normalize(rows - center, dim=1, eps=EPSILON)
