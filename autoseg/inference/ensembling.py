"""The folds of one model as one predictor: their logits are averaged, never their masks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoseg.errors import UserError, all_of
from autoseg.inference.sliding_window import WindowSettings, ensemble_logits
from autoseg.networks.memory import keep_freed_memory
from autoseg.schema import CheckpointInfo

logger = logging.getLogger("autoseg")

SHARED = ("configuration", "architecture", "labels", "channel_names", "store", "file_ending", "is_2d")


@dataclass(frozen=True)
class Ensemble:
    """Networks on the device, ready, each with the patch positions to mirror; `info` is the first one's."""

    members: tuple[tuple[nn.Module, tuple[int, ...]], ...]
    info: CheckpointInfo


def make_ensemble(
    models: Sequence[tuple[nn.Module, CheckpointInfo]], device: torch.device, tta: bool = True
) -> Ensemble:
    """The models, moved to `device` (in place) and ready; without `tta` nothing is mirrored.

    Raises
    ------
    UserError : the models were not trained alike, listing what differs between the folds.
    """
    if not models:
        raise ValueError("an ensemble needs at least one model")
    first = models[0][1]
    problems = [
        f"fold {info.fold}: {field} differs from fold {first.fold}'s"
        for _, info in models[1:]
        for field in _differences(first, info)
    ]
    if problems:
        heading = f"The folds of model {first.name} ({first.configuration}) do not fit together:"
        raise all_of(problems, heading,
                     "Train them from the same plan, or predict with the folds that agree (--folds).")
    if device.type == "cpu":
        keep_freed_memory()
    for network, info in models:
        network.to(device).eval()
        if len(info.network.patch_shape) == 3:  # measured: up to a fifth faster on CPUs in float32
            network.to(memory_format=torch.channels_last_3d)
    return Ensemble(tuple((network, info.mirror_axes if tta else ()) for network, info in models), first)


def predict_logits_of(
    ensemble: Ensemble,
    image: Float[Tensor, "channel z y x"],
    settings: WindowSettings,
    advance: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "class z y x"]:
    """Mean logits over the ensemble, float32, on the prepared image's grid.

    Raises
    ------
    UserError : logits that are not finite (half precision overflowed, or the weights are broken).
    """
    patch_shape = ensemble.info.network.patch_shape
    try:
        logits = ensemble_logits(ensemble.members, image, patch_shape, settings, advance)
    except torch.OutOfMemoryError:
        if settings.batch_voxels == 1:
            raise
        logger.info("the GPU's memory is too small for a batch of windows: one is computed at a time")
        torch.cuda.empty_cache()
        one_window = replace(settings, batch_voxels=1)
        logits = ensemble_logits(ensemble.members, image, patch_shape, one_window, advance)
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"model {ensemble.info.name} gives NaN or infinity here; finite logits were "
                        "expected.\nTry --device cpu (float32); if it persists, its training has diverged.")
    return logits


def _differences(one: CheckpointInfo, other: CheckpointInfo) -> list[str]:
    fields = [name for name in SHARED if getattr(one, name) != getattr(other, name)]
    if one.network.patch_shape != other.network.patch_shape:
        fields.append("patch_shape")
    return fields
