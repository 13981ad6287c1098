"""One case through every model: prepared once per grid, and through both networks of a cascade."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from autoseg.data.preprocessing import PreparedImage, labels_on_grid, prepare_image
from autoseg.data.previous_stage import one_hot
from autoseg.data.volume import Volume
from autoseg.inference.ensembling import Ensemble, predict_logits_of
from autoseg.inference.probabilities import Part, segment
from autoseg.inference.sliding_window import WindowSettings
from autoseg.schema import CheckpointInfo, StoreRecord

CPU_BATCH_VOXELS = 200_000  # measured: larger batches leave the caches, smaller ones pay per call

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """An image as several networks see it: the record of a store → the image made as it says."""

    images: tuple[tuple[StoreRecord, PreparedImage], ...]

    def of(self, store: StoreRecord) -> PreparedImage:
        """The image for a network trained on `store`."""
        return next(prepared for made_as, prepared in self.images if _same_image(made_as, store))


def prepare_for(volume: Volume, ensembles: Sequence[Ensemble]) -> Prepared:
    """What all networks see of a volume; equal preparations are made once. Raises as `prepare_image` does."""
    stores: list[StoreRecord] = []
    for stage in (stage for ensemble in ensembles for stage in ensemble.stages):
        if not any(_same_image(stage.info.store, other) for other in stores):
            stores.append(stage.info.store)
    return Prepared(tuple((store, prepare_image(volume, store)) for store in stores))


def compute_parts(
    prepared: Prepared,
    ensembles: Sequence[Ensemble],
    device: torch.device,
    overlap: float,
    advance: Advance,
) -> tuple[Part, ...]:
    """Every model's logits of one case; a network that serves several models is computed once.

    `advance(model, done, total)` is called after every batch of windows.
    """
    done: dict[tuple[int, ...], Part] = {}
    return tuple(_compute(prepared, ensemble, (device, overlap), advance, done) for ensemble in ensembles)


def _compute(
    prepared: Prepared,
    ensemble: Ensemble,
    where: tuple[torch.device, float],
    advance: Advance,
    done: dict[tuple[int, ...], Part],
) -> Part:
    identity = tuple(id(network) for network, _ in ensemble.members)
    if identity in done:
        return done[identity]
    own = prepared.of(ensemble.info.store)
    image = own.image
    if ensemble.previous is not None:
        first = _compute(prepared, ensemble.previous, where, advance, done)
        mask = segment([first], ensemble.previous.info)
        image = with_previous(image, labels_on_grid(mask, own.placement), len(ensemble.info.labels))

    def report(windows: int, total: int) -> None:
        advance(f"{ensemble.info.name} {ensemble.info.configuration}", windows, total)

    settings = window_settings(ensemble.info, *where)
    logits = predict_logits_of(ensemble, torch.from_numpy(image), settings, report)
    done[identity] = Part(logits.cpu().numpy(), own.placement)
    return done[identity]


def with_previous(
    image: Float32[np.ndarray, "channel z y x"], previous: np.ndarray, label_count: int
) -> Float32[np.ndarray, "channel2 z y x"]:
    """The image's channels, then one of zeros and ones for every foreground label of the mask (z, y, x)."""
    return np.concatenate([image, one_hot(previous, label_count)])


def window_settings(info: CheckpointInfo, device: torch.device, overlap: float) -> WindowSettings:
    """The CPU computes in float32; CUDA in float16, as nnU-Net, in batches as large as training's."""
    on_cuda = device.type == "cuda"
    return WindowSettings(
        device=device,
        precision=torch.float16 if on_cuda else torch.float32,
        overlap=overlap,
        batch_voxels=info.network.batch_size * int(np.prod(info.network.patch_shape)) if on_cuda else CPU_BATCH_VOXELS,
    )


def _same_image(one: StoreRecord, other: StoreRecord) -> bool:
    return (one.axes, one.spacing, one.normalization) == (other.axes, other.spacing, other.normalization)
