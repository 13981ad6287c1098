"""The levels of `predict --speed`: what each leaves out of nnU-Net's prediction, and why."""

from dataclasses import dataclass
from typing import Literal

SpeedName = Literal["exact", "balanced", "fast"]

LARGEST_LOSS = 0.002
"""Dice that a level may cost before `predict` warns."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One level.

    Attributes
    ----------
    copies : of every window, each mirrored otherwise, whose logits are averaged: at most so many, others for its
        neighbors (`mirrored_copies`); None: all mirrorings that training allowed.
    overlap : of neighboring windows, as a fraction of the patch. Windows are spread evenly from edge to edge, so every
        voxel is in one for any overlap from 0 on.
    fastest_precision : of the forward passes, the one in which the device is fastest (`autoseg.inference.precision`);
        else float32 on a CPU and float16 on CUDA.
    single_fold : of every model (and its first stage) the fold that validated best; else all that are asked for.
    reason : one sentence.
    """

    name: SpeedName
    copies: int | None
    overlap: float
    fastest_precision: bool
    single_fold: bool
    reason: str


SPEEDS: dict[SpeedName, Speed] = {
    speed.name: speed
    for speed in (
        Speed(name="exact", copies=None, overlap=0.5, fastest_precision=False, single_fold=False,
              reason="nnU-Net's settings: its masks, given its weights"),
        Speed(name="balanced", copies=2, overlap=0.5, fastest_precision=True, single_fold=True,
              reason="a window is seen twice, in opposite mirrorings and others than its neighbors': where windows "
                     "overlap by half, all mirrorings are still in the mean. The same two copies everywhere, or less "
                     "overlap, lost several times more Dice (docs/predicting.md)"),
        Speed(name="fast", copies=1, overlap=0.25, fastest_precision=True, single_fold=True,
              reason="a window is seen once, mirrored otherwise than its neighbors, and overlaps them by a quarter"),
    )
}
"""Weights averaged over folds are no level: networks that were trained from different draws do not lie where the mean
of their weights segments. One fold is the safe saving."""
