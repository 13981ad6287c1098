"""How a model does on the val split: the loss, and retrieval both ways. Pairs of the test split are never read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from autoseg.errors import UserError
from vlm.corpus.image_files import BadImage
from vlm.model.embedding import Embedder
from vlm.model.records import Score
from vlm.model.retrieval import DIRECTIONS, Ranks, bootstrap_interval, rank_pairs
from vlm.training.captions import choose_caption
from vlm.training.images import decode
from vlm.training.loss import LOSSES, Embedded, Keys
from vlm.training.pairs import label_key, text_key
from vlm.training.processes import Processes
from vlm.training.settings import CaptionChoice, CaptionPolicyName, LossName
from vlm.training.shards import Part

GROUP_PAIRS = 128
"""The loss is the mean over groups of so many pairs, whatever the batch of training: losses of recipes can be compared.
Guessing has an InfoNCE of ln 128 = 4.85."""
VALIDATION_SEED = 0
"""Fixes the pairs and the caption of each, whatever the seed of the training."""
RECALLS = (1, 5, 10)
MAIN_RECALL = 5
"""R@5, the mean of both directions, says whether a model is better than another."""
IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class ValidationSet:
    """images : bytes. captions : one per image. patients : numbers from 0, equal for pairs of one patient."""

    images: tuple[bytes, ...]
    captions: tuple[str, ...]
    keys: Keys
    patients: Int64[np.ndarray, " pair"]


@dataclass(frozen=True)
class Validation:
    """losses : by name; the sigmoid loss only of networks that have a bias."""

    losses: dict[str, float]
    ranks: Ranks

    def figures(self) -> dict[str, float]:
        """Every number by name: "infonce", "image_to_text_r1", …, and "r5", the mean of both directions."""
        recalls = {f"{direction}_r{k}": float(self.ranks.hits(direction, k).mean())
                   for direction in DIRECTIONS for k in RECALLS}
        return {**self.losses, **recalls, f"r{MAIN_RECALL}": float(self.ranks.mean_hits(MAIN_RECALL).mean())}

    def scores(self, patients: Int64[np.ndarray, " pair"]) -> dict[str, Score]:
        """The same with intervals over patients, and what guessing gives."""
        found = {name: Score(value=value, measure=f"mean loss of groups of {GROUP_PAIRS} validation pairs")
                 for name, value in self.losses.items()}
        for direction in DIRECTIONS:
            for k in RECALLS:
                found[f"{direction}_r{k}"] = _score(
                    self.ranks.hits(direction, k), patients, self.ranks.chance(direction, k),
                    f"validation pairs whose {'caption' if direction == 'image_to_text' else 'image'} is among the "
                    f"first {k}")
        found[f"r{MAIN_RECALL}"] = _score(self.ranks.mean_hits(MAIN_RECALL), patients,
                                          self.ranks.mean_chance(MAIN_RECALL),
                                          f"retrieval R@{MAIN_RECALL} on validation pairs, mean of both directions")
        return found

    def gain_over(self, start: "Validation", patients: Int64[np.ndarray, " pair"]) -> Score:
        """By how much the mean R@5 is above that of another model on the same pairs, with a paired interval."""
        gain = self.ranks.mean_hits(MAIN_RECALL) - start.ranks.mean_hits(MAIN_RECALL)
        low, high = _interval(gain, patients)
        return Score(value=float(gain.mean()), low=low, high=high, chance=0.0,
                     measure=f"gain in validation R@{MAIN_RECALL} (mean of both directions) over the initial weights")


def read_validation_set(
    parts: Sequence[Part], most: int, policy: CaptionPolicyName = "uniform"
) -> ValidationSet:
    """At most `most` pairs of the val split, chosen evenly over all of it, each with one of its captions."""
    places = [(part, pair) for part in parts for pair in range(len(part))]
    if len(places) < 2:
        raise UserError(f"The corpus has {len(places)} validation pairs; at least 2 were expected.\n"
                        "Build it with a val split (`vlm build-corpus` makes one).")
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(places))[:most]
    choice = CaptionChoice(policy=policy)
    images, captions, labels, numbers = list[bytes](), list[str](), list[int](), dict[str, int]()
    patients = np.empty(len(order), np.int64)
    for row, place in enumerate(order.tolist()):
        part, number = places[place]
        pair = part.read(number)
        try:
            decode(pair.image)
        except BadImage as error:
            raise UserError(f"{part.shards[int(part.rows[number, 0])]} is damaged: the image of {pair.uid} {error}.\n"
                            "Copy the shard again, or build the corpus again.") from None
        images.append(pair.image)
        captions.append(choose_caption(pair, choice, VALIDATION_SEED, 0))
        labels.append(label_key(pair))
        patient = pair.uid if pair.patient is None else f"{pair.source} {pair.patient}"
        patients[row] = numbers.setdefault(patient, len(numbers))
    keys = Keys(torch.tensor(labels), torch.tensor([text_key(caption) for caption in captions]))
    return ValidationSet(tuple(images), tuple(captions), keys, patients)


def validate(
    embedder: Embedder, data: ValidationSet, bias: float | None = None, processes: Processes | None = None
) -> Validation:
    """Losses and ranks of a model on validation pairs, which the processes share among each other."""
    images, texts = _embed(embedder, data, processes or Processes())
    scale = torch.tensor(embedder.logit_scale)
    names: list[LossName] = ["infonce", "multi_positive"]
    if bias is not None:
        names.append("siglip")
    width = min(GROUP_PAIRS, len(images))
    groups = [slice(start, start + width) for start in range(0, len(images) - width + 1, width)]
    with torch.autocast("cpu", enabled=False):  # the caller's is for the towers: losses are float32
        losses: dict[str, float] = {
            name: float(np.mean([
                float(LOSSES[name](
                    Embedded(images[rows], texts[rows], scale, None if bias is None else torch.tensor(bias)),
                    Keys(*(key[rows] for key in data.keys))))
                for rows in groups]))
            for name in names
        }
    return Validation(losses, rank_pairs(images.numpy(), texts.numpy(), data.captions))


def _embed(embedder: Embedder, data: ValidationSet, processes: Processes) -> tuple[Tensor, Tensor]:
    """Embeddings of all images and all captions; each process computes every so many-th."""
    count = len(data.captions)
    distinct = {caption: number for number, caption in enumerate(dict.fromkeys(data.captions))}
    mine = range(processes.rank, count, processes.world)
    image_rows = torch.cat([
        embedder.encode_images([decode(data.images[place]) for place in mine[start : start + IMAGES_AT_ONCE]])
        for start in range(0, len(mine), IMAGES_AT_ONCE)]) if mine else torch.empty(0, embedder.dimension)
    text_rows = embedder.encode_texts(list(distinct)[processes.rank :: processes.world])
    place = torch.tensor([distinct[caption] for caption in data.captions])
    return (_interleaved(image_rows, count, processes, embedder.device),
            _interleaved(text_rows, len(distinct), processes, embedder.device)[place])


def _interleaved(rows: Tensor, count: int, processes: Processes, device: torch.device) -> Tensor:
    """All processes' rows in their order, where process r has rows r, r + world, …"""
    if processes.world == 1:
        return rows
    longest = -(-count // processes.world)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), rows.shape[1])]).to(device)
    gathered = processes.gather(padded).cpu().reshape(processes.world, longest, -1)
    return gathered.transpose(0, 1).reshape(processes.world * longest, -1)[:count]


def _score(
    hits: Float64[np.ndarray, " pair"], patients: Int64[np.ndarray, " pair"], chance: float, measure: str
) -> Score:
    low, high = _interval(hits, patients)
    return Score(value=float(hits.mean()), low=low, high=high, chance=chance, measure=measure)


def _interval(
    values: Float64[np.ndarray, " pair"], patients: Int64[np.ndarray, " pair"]
) -> tuple[float, float] | tuple[None, None]:
    """Over patients; none where there is only one, from whom nothing can be said about others."""
    return bootstrap_interval(values, patients) if patients.max() > patients.min() else (None, None)
