"""Masks for many cases: one is read and one written while another is computed; a bad case stops no other."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from autoseg.data.dataset import Case
from autoseg.data.labels import to_file_values
from autoseg.data.preprocessing import Placement, PreparedImage, prepare_image
from autoseg.data.volume import Volume, read_image, write_labels
from autoseg.errors import UserError, all_of
from autoseg.inference.decoding import decode_labels
from autoseg.inference.ensembling import Ensemble, make_ensemble, predict_logits_of
from autoseg.inference.sliding_window import WindowSettings
from autoseg.progress import ProgressBar, progress
from autoseg.records import storage_error, write_json, write_record
from autoseg.schema import CheckpointInfo, Failure, LabelNames

logger = logging.getLogger("autoseg")

READ_AHEAD = 2  # prepared cases that may wait for the network
WAITING_BYTES = 2 << 30  # logits that may wait to be decoded; one case may always
WAITING_CASES = 16
CPU_BATCH_VOXELS = 200_000  # measured: larger batches leave the caches, smaller ones pay per call


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How cases are predicted; the defaults are nnU-Net's settings (`--speed exact`).

    Attributes
    ----------
    tta : average the logits over all mirrorings that training allowed.
    overlap : of neighboring windows, as a fraction of the patch.
    overwrite : masks that exist are replaced; otherwise they are refused before anything is computed.
    """

    device: torch.device
    tta: bool = True
    overlap: float = 0.5
    overwrite: bool = False


@dataclass(frozen=True)
class _Logits:
    """What the writing thread needs of a computed case; `like` has lost its voxels."""

    case: Case
    logits: Float32[np.ndarray, "class z y x"]
    placement: Placement
    like: Volume


@dataclass
class _Outcome:
    """Grows while cases are finished, in the main thread only."""

    bar: ProgressBar
    written: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def succeeded(self, path: Path) -> None:
        self.written.append(path)
        self.bar.advance()

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        logger.error("case %s failed: %s", failure.id, failure.reason)
        self.bar.advance()


def predict_cases(
    cases: Sequence[Case],
    models: Sequence[tuple[nn.Module, CheckpointInfo]],
    output: Path,
    settings: PredictSettings,
) -> tuple[list[Path], list[Failure]]:
    """Write `<case id><file ending>` for every case, `labels.json`, and `failures.json` if any case failed.

    Parameters
    ----------
    models : the folds of one model; they are moved to the device and their logits averaged.

    Returns
    -------
    The masks written and the cases that could not be read or computed. Masks lie on their images' grids and
    hold the label values of the user's files. An earlier run's failures.json is removed when nothing fails.

    Raises
    ------
    UserError : folds that do not fit together, masks that exist (without `overwrite`) or would replace an
        input, an output folder that cannot be written, a full disk. Masks written before are whole and stay.
    """
    ensemble = make_ensemble(models, settings.device, settings.tta)
    paths = {case.id: output / f"{case.id}{ensemble.info.file_ending}" for case in cases}
    _refuse_replacing(cases, list(paths.values()), settings.overwrite)
    write_record(LabelNames(labels=ensemble.info.labels), output / "labels.json")
    with progress("predict", len(cases), "cases") as bar:
        outcome = _Outcome(bar)
        _predict_overlapped(cases, paths, ensemble, settings, outcome)
    _write_failures(outcome.failures, output / "failures.json")
    return sorted(outcome.written), sorted(outcome.failures, key=lambda failure: failure.id)


def _predict_overlapped(
    cases: Sequence[Case],
    paths: dict[str, Path],
    ensemble: Ensemble,
    settings: PredictSettings,
    outcome: _Outcome,
) -> None:
    """Read ahead in a thread, compute in this one, decode and write behind in another, in bounded memory."""
    waiting: deque[tuple[_Logits, Future[Path]]] = deque()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        for case, reading in _read_ahead(reader, cases, partial(_read, info=ensemble.info)):
            try:
                computed = _compute(case, *reading.result(), ensemble, settings, outcome.bar)
            except (UserError, OSError, MemoryError, RuntimeError) as error:
                outcome.failed(_failure(case, error))
                continue
            finally:
                del reading  # it holds the image
            writing = writer.submit(_decode_and_write, computed, ensemble.info, paths[case.id])
            waiting.append((computed, writing))
            del computed
            while waiting and (waiting[0][1].done() or _too_much(waiting)):
                _finish(*waiting.popleft(), outcome)
        while waiting:
            _finish(*waiting.popleft(), outcome)


def _read_ahead(
    reader: ThreadPoolExecutor, cases: Sequence[Case], read: Callable[[Case], tuple[Volume, PreparedImage]]
) -> Iterator[tuple[Case, Future[tuple[Volume, PreparedImage]]]]:
    """The cases in order, each with its image being read; at most `READ_AHEAD` beyond the last one taken."""
    ahead: deque[tuple[Case, Future[tuple[Volume, PreparedImage]]]] = deque()
    for case in cases:
        ahead.append((case, reader.submit(read, case)))
        if len(ahead) > READ_AHEAD:
            yield ahead.popleft()
    while ahead:
        yield ahead.popleft()


def _read(case: Case, info: CheckpointInfo) -> tuple[Volume, PreparedImage]:
    volume = read_image(case.images, len(info.channel_names))
    prepared = prepare_image(volume, info.store)
    return replace(volume, voxels=volume.voxels[:, :0, :0, :0].copy()), prepared


def _compute(
    case: Case,
    like: Volume,
    prepared: PreparedImage,
    ensemble: Ensemble,
    settings: PredictSettings,
    bar: ProgressBar,
) -> _Logits:
    def advance(done: int, total: int) -> None:
        bar.advance(0, f"{case.id}: window {done} of {total}")

    image = torch.from_numpy(prepared.image)
    logits = predict_logits_of(ensemble, image, _window_settings(ensemble, settings), advance)
    return _Logits(case, logits.cpu().numpy(), prepared.placement, like)


def _window_settings(ensemble: Ensemble, settings: PredictSettings) -> WindowSettings:
    """The CPU computes in float32; CUDA in float16, as nnU-Net, in batches as large as training's."""
    network = ensemble.info.network
    on_cuda = settings.device.type == "cuda"
    return WindowSettings(
        device=settings.device,
        precision=torch.float16 if on_cuda else torch.float32,
        overlap=settings.overlap,
        batch_voxels=network.batch_size * int(np.prod(network.patch_shape)) if on_cuda else CPU_BATCH_VOXELS,
    )


def _decode_and_write(computed: _Logits, info: CheckpointInfo, path: Path) -> Path:
    internal = decode_labels(computed.logits, computed.placement)
    write_labels(to_file_values(internal, tuple(info.labels.values())), computed.like, path)
    return path


def _too_much(waiting: Sequence[tuple[_Logits, Future[Path]]]) -> bool:
    size = sum(computed.logits.nbytes for computed, _ in waiting)
    return len(waiting) > WAITING_CASES or (len(waiting) > 1 and size > WAITING_BYTES)


def _finish(computed: _Logits, writing: Future[Path], outcome: _Outcome) -> None:
    """Wait for one mask; a write that fails would fail for the other cases too, so that error goes on."""
    try:
        outcome.succeeded(writing.result())
    except MemoryError as error:
        outcome.failed(_failure(computed.case, error))


def _failure(case: Case, error: Exception) -> Failure:
    """Why a case could not be predicted; an error that is a bug of ours is raised again."""
    if isinstance(error, UserError):
        reason = str(error)
    elif isinstance(error, OSError):
        reason = f"{error.filename or case.images[0]} cannot be read: {error.strerror or error}"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        reason = ("There is not enough memory for this case. Use a machine with more, or --device cpu where "
                  "the GPU's memory was too small.")
    else:
        raise error
    named = [str(path) for path in case.images if str(path) in reason]
    return Failure(id=case.id, file=(named or [str(case.images[0])])[0], reason=reason)


def _refuse_replacing(cases: Sequence[Case], paths: Sequence[Path], overwrite: bool) -> None:
    inputs = {image.resolve() for case in cases for image in case.images}
    if replaced := [str(path) for path in paths if path.resolve() in inputs]:
        raise all_of(replaced, "These masks would replace the images they are made from:",
                     "Choose another output folder.")
    if not overwrite and (existing := [str(path) for path in paths if path.exists()]):
        raise all_of(existing, f"{len(existing)} of {len(paths)} masks exist already:",
                     "Give --overwrite to replace them, or choose another output folder.")


def _write_failures(failures: Sequence[Failure], path: Path) -> None:
    if failures:
        write_json([failure.model_dump(mode="json") for failure in failures], path)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
