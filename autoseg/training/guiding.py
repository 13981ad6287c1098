"""Text guidance in training: the words of a dataset's labels as vectors, and the loss that draws regions to them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.guidance.alignment import (
    GRAM_LABELS,
    AlignmentSettings,
    RegionAlignment,
    Regions,
    occupancy,
    tapped_level,
)
from autoseg.guidance.banks import label_vectors, of_other_sentences, open_bank
from autoseg.guidance.checking import read_prompts
from autoseg.guidance.distractors import choose_distractors
from autoseg.guidance.geometry import arrange, collinear_sides
from autoseg.guidance.text_bank import TextBank
from autoseg.guidance.text_heads import TextHeads, forward_with
from autoseg.networks.segmenter import FeatureMaps, Segmenter
from autoseg.schema import NetworkPlan, Plan, TextGuidanceFacts
from autoseg.training.settings import TrainSettings
from autoseg.training.targets import Targets

logger = logging.getLogger("autoseg")

View: TypeAlias = Regions


@dataclass(frozen=True)
class Words:
    """The vectors that guide a training.

    Attributes
    ----------
    vectors : a unit vector per foreground label of the plan, in its order, arranged as the geometry asks.
    distractors : unit vectors of names that the dataset does not have; may be none.
    facts : where they come from; written into the model's record.
    """

    vectors: Float32[np.ndarray, "label dimension"]
    distractors: Float32[np.ndarray, "distractor dimension"]
    facts: TextGuidanceFacts


def read_words(
    plan: Plan, text_bank: str | None, settings: TrainSettings, seed: int, prompts: Path | None = None
) -> Words:
    """The words of a plan's labels from a bank (a folder, or a name of autoseg's own banks; None: the default).

    prompts : the run's prompts.json, where there is one: sentences in it that the bank's vectors do not stand for are
        said, because the training will not know them.

    Raises
    ------
    UserError : the bank is absent or was edited, a label is not in it, its vectors cannot be arranged as asked, or the
        route needs more labels.
    """
    labels = list(plan.foreground)
    if settings.text_route == "gram" and len(labels) < GRAM_LABELS:
        raise UserError(f"--text-route gram compares angles between at least {GRAM_LABELS} labels; this dataset has "
                        f"{len(labels)} ({', '.join(labels)}).\nUse --text-route alignment or heads.")
    bank = open_bank(text_bank)
    raw, matched = label_vectors(bank, labels, plan.name, plan.channel_names)
    if prompts is not None and prompts.exists():
        _say_unknown_sentences(bank, dict(zip(labels, matched, strict=True)), prompts)
    position = {name: row for row, name in enumerate(labels)}
    sided = [(position[left], position[right]) for left, right in plan.sided_labels]
    geometry = settings.text_geometry
    names: tuple[str, ...] = ()
    if settings.text_route == "alignment" and geometry in ("centred", "raw", "shuffled", "rotated"):
        names = choose_distractors(bank, matched, settings.guidance.distractors, seed)
    arranged = arrange(raw, "raw" if geometry == "learned" else geometry, seed, sided,
                       bank.vectors_of(names) if names else None)
    if geometry in ("centred", "raw") and (pairs := collinear_sides(raw, sided)):
        logger.warning("the words of %s hardly differ; an axis of their own parts left from right",
                       ", ".join(f"{labels[left]} and {labels[right]}" for left, right in pairs))
    return Words(arranged.labels, arranged.distractors, TextGuidanceFacts(
        route=settings.text_route, geometry=geometry, names=tuple(labels), matched=tuple(matched), distractors=names,
        bank_sha256=bank.record.sha256, tower=bank.record.tower.name, tower_sha256=bank.record.tower.sha256,
        tensors_sha256=None,
    ))


def _say_unknown_sentences(bank: TextBank, matched: dict[str, str], prompts: Path) -> None:
    written = read_prompts(prompts)
    known = {label: name for label, name in matched.items() if label in written}
    if edited := of_other_sentences(bank, known, written):
        logger.warning("%s: the sentences of %s are not those of the bank, so training does not use them; encode them "
                       "with `vlm encode-labels --prompts %s` and name that bank with --text-bank", prompts,
                       ", ".join(edited), prompts)


class Guide(nn.Module):
    """Alignment of region features with vectors (routes `alignment` and `gram`), or heads made of vectors (`heads`).

    `targets` say which labels make up each region (`members`), and which voxels count for nothing (`ignore`).
    """

    members: Tensor

    def __init__(
        self, words: Words, network: Segmenter, planned: NetworkPlan, channels: int, settings: TrainSettings, seed: int,
        targets: Targets,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings, self.ignore = settings.guidance, targets.ignore
        self.route = settings.text_route
        vectors = torch.from_numpy(words.vectors)
        self.register_buffer("members", targets.members.clone(), persistent=False)
        self.heads: TextHeads | None = None
        self.alignment: RegionAlignment | None = None
        generator = torch.Generator().manual_seed(seed)
        if self.route == "heads":
            self.heads = TextHeads(network, vectors, generator, learned=settings.text_geometry == "learned")
            return
        self.level, features, _ = tapped_level(network, planned, channels)
        numbers = AlignmentSettings(temperature=self.settings.temperature)
        self.alignment = RegionAlignment(features, vectors, torch.from_numpy(words.distractors), numbers, generator,
                                         learned=settings.text_geometry == "learned")

    def forward(self, network: Segmenter, image: Tensor) -> tuple[list[Tensor], FeatureMaps | None]:
        """Logits of every level, finest first, and the maps that `loss` needs."""
        if self.heads is not None:
            return forward_with(network, image, self.heads.kernels())
        maps = network.feature_maps(image)
        return network.logits_of(maps), maps

    def loss(
        self, maps: FeatureMaps | None, labels: Tensor, share: float, other: View | None,
        annotated: Tensor | None = None,
    ) -> tuple[Tensor | None, View | None]:  # fmt: skip
        """The weighted loss at `share` of the schedule (None for heads), and the view's regions for the next view.

        annotated : (sample, region) bool; None: every region is annotated in every sample.
        """
        if self.alignment is None or maps is None:
            return None, None
        features = maps.decoder[self.level]
        with torch.autocast(labels.device.type, enabled=False):
            taken = occupancy(labels, tuple(features.shape[2:]), self.members, self.ignore)
            if annotated is not None:  # background there may be anything that nobody looked for
                known = torch.cat([annotated.all(1, keepdim=True), annotated], dim=1)
                taken = taken * known.view(*known.shape, *[1] * (taken.ndim - 2))
            regions = self.alignment(features.float(), taken)
            loss = regions.embeddings.sum() * 0
            if self.settings.text_weight:
                of_text = self.alignment.gram_loss if self.route == "gram" else self.alignment.text_loss
                loss = loss + self.settings.text_weight * of_text(regions, self.members)
            if other is not None and self.settings.consistency_weight:
                loss = loss + self.settings.consistency_weight * self.alignment.consistency_loss(other, regions)
        return self.weight(share) * loss, regions.detached()

    def weight(self, share: float) -> float:
        """λ: rises linearly over the first `ramp_share` of the schedule."""
        ramp = self.settings.ramp_share
        return self.settings.weight * (min(1.0, share / ramp) if ramp > 0 else 1.0)
