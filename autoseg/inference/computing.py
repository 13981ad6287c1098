"""One case through every model: prepared once per grid, and through both networks of a cascade."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Integer

from autoseg.data.disk_arrays import reserved_array
from autoseg.data.free_memory import available_memory_bytes
from autoseg.data.preprocessing import PreparedImage, labels_on_grid, prepare_image
from autoseg.data.previous_stage import one_hot
from autoseg.data.volume import Volume
from autoseg.inference.blocks import BlockDecoder
from autoseg.inference.decoding import MakeDecoder, decode_stream, painted_labels
from autoseg.inference.device_decoding import DeviceDecoder
from autoseg.inference.ensembling import Ensemble, described, stream_logits_of
from autoseg.inference.needs import refuse_too_large
from autoseg.inference.probabilities import Part
from autoseg.inference.slabs import Array
from autoseg.inference.sliding_window import Piece, WindowSettings
from autoseg.records import storage_error
from autoseg.schema import CheckpointInfo, StoreRecord

logger = logging.getLogger("autoseg")

CPU_BATCH_VOXELS = 200_000  # measured: larger batches leave the caches, smaller ones pay per call
LOGITS_SHARE = 0.25  # of the memory that is free: larger logits of one of several models go to the disk
CERTAIN_LOGIT = 20.0  # beside it another class has a probability of e^-40

Advance = Callable[[str, int, int], None]
Windows = Callable[[CheckpointInfo], WindowSettings]
Identity = tuple[int, ...]  # of a model: its networks


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


class CaseComputation:
    """One case through models; what several of them share is computed once.

    Parameters
    ----------
    windows : `windows(info)` says how a model's windows are computed.
    advance : `advance(model, done, total)` is called after every batch of them.
    folder : on its disk lie logits that are larger than `LOGITS_SHARE` of the memory that is free; None: never there.
    """

    def __init__(self, prepared: Prepared, windows: Windows, advance: Advance, folder: Path | None = None) -> None:
        self._prepared, self._windows, self._advance, self._folder = prepared, windows, advance, folder
        self._parts: dict[Identity, Part] = {}
        self._masks: dict[Identity, np.ndarray] = {}
        self._wanted: frozenset[Identity] = frozenset()

    def parts(self, ensembles: Sequence[Ensemble]) -> tuple[Part, ...]:
        """Every model's logits. Raises as `stream_logits_of` and `refuse_too_large` do."""
        self._wanted = frozenset(_identity(ensemble) for ensemble in ensembles)
        return tuple(self._part(ensemble) for ensemble in ensembles)

    def mask(self, ensemble: Ensemble, file: np.ndarray | None = None) -> Integer[np.ndarray, "z y x"]:
        """Internal labels of the whole image by one model, array order, decoded while windows are computed.

        file : receives the probabilities, as in `decode_stream`. Raises as `parts` does.
        """
        identity, painted = _identity(ensemble), painted_labels(ensemble.info)
        if identity in self._masks and file is None:
            return self._masks[identity]
        if identity in self._wanted:
            part = self._part(ensemble)
            mask = decode_stream([(0, part.logits)], part.placement, painted, file)
        else:
            pieces, decoder = self._pieces(ensemble)
            placement = self._prepared.of(ensemble.info.store).placement
            mask = decode_stream(pieces, placement, painted, file, decoder)
        self._masks[identity] = mask
        return mask

    def _part(self, ensemble: Ensemble) -> Part:
        identity = _identity(ensemble)
        if identity not in self._parts:
            placement = self._prepared.of(ensemble.info.store).placement
            logits = self._space((len(ensemble.info.outputs), *placement.shape), ensemble.info)
            for first, planes in self._logits(ensemble):
                logits[:, first : first + planes.shape[1]] = planes.cpu().numpy()
            self._parts[identity] = Part(logits, placement)
        return self._parts[identity]

    def _pieces(self, ensemble: Ensemble) -> tuple[Iterator[tuple[int, Array]], MakeDecoder]:
        """A model's planes of logits, and what decodes them: on a GPU the GPU."""
        device = self._windows(ensemble.info).device
        if device.type == "cuda":
            return self._logits(ensemble), partial(DeviceDecoder, device)
        return ((first, planes.numpy()) for first, planes in self._logits(ensemble)), BlockDecoder

    def _logits(self, ensemble: Ensemble) -> Iterator[Piece]:
        info, settings = ensemble.info, self._windows(ensemble.info)
        own = self._prepared.of(info.store)
        image = own.image
        if ensemble.previous is not None:
            mask = self.mask(ensemble.previous)
            image = with_previous(image, labels_on_grid(mask, own.placement), len(info.labels))
        refuse_too_large(ensemble, image.shape[1:], own.placement.original_shape, settings)

        def report(finished: int, total: int) -> None:
            self._advance(described(info), finished, total)

        yield from stream_logits_of(ensemble, torch.from_numpy(image), settings, report)

    def _space(self, shape: Sequence[int], info: CheckpointInfo) -> np.ndarray:
        """Room for a model's logits: in memory, or on the disk."""
        size, free = 4 * math.prod(shape), available_memory_bytes()
        if self._folder is None or size <= LOGITS_SHARE * free:
            return np.empty(shape, np.float32)
        logger.info("the logits of %s take %.1f GiB of the %.1f GiB of memory that are free: they go to the disk",
                    described(info), size / 2**30, free / 2**30)
        try:
            return reserved_array(self._folder, shape)
        except OSError as error:
            raise storage_error(error, self._folder) from error


def with_previous(
    image: Float32[np.ndarray, "channel z y x"], previous: np.ndarray, label_count: int
) -> Float32[np.ndarray, "channel2 z y x"]:
    """The image's channels, then one of zeros and ones for every foreground label of the mask (z, y, x)."""
    return np.concatenate([image, one_hot(previous, label_count)])


def _identity(ensemble: Ensemble) -> Identity:
    return tuple(id(network) for network, _ in ensemble.members)


def default_precision(device: torch.device) -> torch.dtype:
    """Of the forward passes: float32, and on CUDA float16, as nnU-Net."""
    return torch.float16 if device.type == "cuda" else torch.float32


def window_settings(
    info: CheckpointInfo,
    device: torch.device,
    overlap: float,
    precision: torch.dtype | None = None,
    skip_constant: bool = False,
    copies: int | None = None,
) -> WindowSettings:
    """The CPU computes in float32; CUDA in float16, as nnU-Net, in batches as large as training's.

    precision : another one.
    skip_constant : windows in which every channel has one value are left out: background is there, and no region.
    copies : of every window, as in `WindowSettings`.
    """
    on_cuda = device.type == "cuda"
    return WindowSettings(
        device=device,
        precision=precision or default_precision(device),
        overlap=overlap,
        copies=copies,
        constant_logits=_certain_background(info) if skip_constant else (),
        batch_voxels=info.network.batch_size * int(np.prod(info.network.patch_shape)) if on_cuda else CPU_BATCH_VOXELS,
    )


def _certain_background(info: CheckpointInfo) -> tuple[float, ...]:
    nothing = [-CERTAIN_LOGIT] * len(info.outputs)
    return tuple(nothing if info.regions else [CERTAIN_LOGIT, *nothing[1:]])


def _same_image(one: StoreRecord, other: StoreRecord) -> bool:
    return (one.axes, one.spacing, one.normalization) == (other.axes, other.spacing, other.normalization)
