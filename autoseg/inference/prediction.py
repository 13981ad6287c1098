"""Masks for many cases: one is read and one written while another is computed; a bad case stops no other."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from autoseg.data.case_memory import preparation_bytes
from autoseg.data.dataset import Case
from autoseg.data.free_memory import available_memory_bytes, reachable_memory_bytes
from autoseg.data.labels import to_file_values
from autoseg.data.probability_files import PROBABILITIES, writing_probabilities
from autoseg.data.volume import Volume, read_image, write_labels
from autoseg.errors import UserError, all_of
from autoseg.inference.computing import (
    Advance,
    CaseComputation,
    Prepared,
    default_precision,
    prepare_for,
    window_settings,
)
from autoseg.inference.ensembling import Ensemble, Folds, Member, make_ensembles
from autoseg.inference.postprocessing import keep_largest_components
from autoseg.inference.probabilities import Part, segment
from autoseg.inference.reading_ahead import Limits, read_ahead
from autoseg.inference.sliding_window import is_out_of_memory
from autoseg.progress import ProgressBar, progress
from autoseg.records import storage_error, write_json, write_record
from autoseg.schema import CheckpointInfo, Failure, LabelNames

logger = logging.getLogger("autoseg")

READ_AHEAD = 2  # prepared cases that may wait for the network
READ_AHEAD_BYTES = 1 << 30  # of them, or …
READ_AHEAD_SHARE = 0.25  # … of the memory that is free at the start
WAITING_BYTES = 2 << 30  # labels and logits that may wait for the writer; one case may always
WAITING_CASES = 16


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How cases are predicted; the defaults are nnU-Net's settings (`--speed exact`).

    Attributes
    ----------
    tta : average the logits over mirrorings that training allowed.
    copies : of every window at most so many, 1 or 2, others for its neighbors; None: all mirrorings.
    overlap : of neighboring windows, as a fraction of the patch.
    precision : of the forward passes; None: float32 on a CPU, float16 on CUDA.
    skip_constant : windows in which every channel has one value (padding, air) are left out.
    overwrite : masks that exist are replaced; otherwise they are refused before anything is computed.
    save_probabilities : `<case>_probabilities.nii.gz` beside every mask; channels as in labels.json: its regions in
        order, or else its labels, background first.
    largest_components : what `keep_largest_components` does to every mask: names of labels or regions, and None for
        all foreground together.
    """

    device: torch.device
    tta: bool = True
    copies: int | None = None
    overlap: float = 0.5
    precision: torch.dtype | None = None
    skip_constant: bool = False
    overwrite: bool = False
    save_probabilities: bool = False
    largest_components: tuple[str | None, ...] = ()

    @property
    def precision_name(self) -> str:
        """ "float32", "float16" or "bfloat16": what the forward passes are computed in."""
        return str(self.precision or default_precision(self.device)).removeprefix("torch.")


@dataclass(frozen=True)
class Destination:
    """A folder for masks, and the models (positions) whose mean probabilities they are made from."""

    folder: Path
    models: tuple[int, ...]


@dataclass(frozen=True)
class _Predictor:
    """All that stays the same from case to case."""

    ensembles: tuple[Ensemble, ...]
    destinations: tuple[Destination, ...]
    settings: PredictSettings

    @property
    def info(self) -> CheckpointInfo:
        """The first model's; labels, channels and the file ending are those of all."""
        return self.ensembles[0].info

    @property
    def combines(self) -> bool:
        """Whether any mask is made from several models: then whole logits are needed."""
        return any(len(to.models) > 1 for to in self.destinations)

    def paths(self, case: Case) -> tuple[Path, ...]:
        """A case's masks, one per destination."""
        return tuple(to.folder / f"{case.id}{self.info.file_ending}" for to in self.destinations)


@dataclass(frozen=True)
class _Computed:
    """What the writing thread needs of a case; `like` has lost its voxels.

    `found`: per destination the labels or, of several models, their logits. `files`: to close when these are no longer
    needed, which also writes the probabilities of single models.
    """

    case: Case
    found: tuple[np.ndarray | tuple[Part, ...], ...]
    like: Volume
    files: ExitStack

    @property
    def nbytes(self) -> int:
        """In memory."""
        arrays = [array for one in self.found
                  for array in ([one] if isinstance(one, np.ndarray) else [part.logits for part in one])]
        return sum(array.nbytes for array in arrays if not isinstance(array, np.memmap))


class _CaseFailed(Exception):
    """One case cannot be predicted; the others can."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass
class _Outcome:
    """Grows while cases are finished, in the main thread only."""

    bar: ProgressBar
    written: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def succeeded(self, paths: Sequence[Path]) -> None:
        self.written.extend(paths)
        self.bar.advance()

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        logger.error("case %s failed: %s", failure.id, failure.reason)
        self.bar.advance()


def predict_cases(
    cases: Sequence[Case],
    models: Folds,
    output: Path,
    settings: PredictSettings,
    previous: Member | None = None,
) -> tuple[list[Path], list[Failure]]:
    """`predict_members` with the folds of one model; `previous`: of a cascade, the model whose masks it takes."""
    return predict_members(cases, [Member(models, previous)], output, settings)


def predict_members(
    cases: Sequence[Case], members: Sequence[Member], output: Path, settings: PredictSettings
) -> tuple[list[Path], list[Failure]]:
    """Write `<case id><file ending>` for every case, `labels.json`, and `failures.json` if any case failed.

    Parameters
    ----------
    members : one model, whose folds' logits are averaged; or several, whose probabilities are averaged then.
        Networks are moved to the device.

    Returns
    -------
    The masks written and the cases that could not be read or computed. Masks lie on their images' grids and
    hold the label values of the user's files. An earlier run's failures.json is removed when nothing fails.

    Raises
    ------
    UserError : models or folds that do not fit together, masks that exist (without `overwrite`) or would replace
        an input, an output folder that cannot be written, a full disk. Masks written before are whole and stay.
    """
    destinations = [Destination(output, tuple(range(len(members))))]
    with progress("predict", len(cases), "cases") as bar:
        return predict_into(cases, members, destinations, settings, bar)


def predict_into(
    cases: Sequence[Case],
    members: Sequence[Member],
    destinations: Sequence[Destination],
    settings: PredictSettings,
    bar: ProgressBar,
) -> tuple[list[Path], list[Failure]]:
    """As `predict_members`, into several folders at once: every model sees a case once, however many share it.

    `bar` counts cases.
    """
    ensembles = make_ensembles(members, settings.device, settings.tta)
    predictor = _Predictor(ensembles, tuple(destinations), settings)
    _refuse_replacing(cases, [path for case in cases for path in predictor.paths(case)], settings.overwrite)
    info = predictor.info
    for to in destinations:
        names = LabelNames(labels=info.labels, regions=info.regions, ignore=info.ignore)
        write_record(names, to.folder / "labels.json")
    outcome = _Outcome(bar)
    _predict_overlapped(cases, predictor, outcome)
    for to in destinations:
        write_failures(outcome.failures, to.folder / "failures.json")
    return sorted(outcome.written), sorted(outcome.failures, key=lambda failure: failure.id)


def _predict_overlapped(cases: Sequence[Case], predictor: _Predictor, outcome: _Outcome) -> None:
    """Read ahead in a thread, compute in this one, write behind in another, in bounded memory."""
    waiting: deque[tuple[_Computed, Future[tuple[Path, ...]]]] = deque()
    limits = Limits[Case, tuple[Volume, Prepared]](
        items=READ_AHEAD,
        nbytes=max(READ_AHEAD_BYTES, int(READ_AHEAD_SHARE * available_memory_bytes())),
        expected=partial(_reading_bytes, ensembles=predictor.ensembles),
        size=lambda result: sum(prepared.image.nbytes for _, prepared in result[1].images),
    )
    read = partial(_read, ensembles=predictor.ensembles)
    most = 1 if predictor.settings.save_probabilities else WAITING_CASES  # a case's probabilities lie on the disk
    with ThreadPoolExecutor(1) as writer, closing(read_ahead(cases, read, limits)) as readings:
        for case, reading in readings:
            try:
                computed = _compute(case, reading, predictor, outcome.bar)
            except _CaseFailed as failed:
                outcome.failed(failed.failure)
                continue
            finally:
                del reading  # it holds the image
            waiting.append((computed, writer.submit(_write, computed, predictor)))
            del computed
            while waiting and (waiting[0][1].done() or _too_much(waiting, most)):
                _finish(*waiting.popleft(), outcome)
        while waiting:
            _finish(*waiting.popleft(), outcome)


def _reading_bytes(case: Case, ensembles: Sequence[Ensemble]) -> int:
    """Memory for reading a case and preparing it for all networks, at most (what cropping saves is not known)."""
    stores = {stage.info.store.model_dump_json(): stage.info.store
              for ensemble in ensembles for stage in ensemble.stages}
    return sum(preparation_bytes(case, store) for store in stores.values())


def _read(case: Case, ensembles: Sequence[Ensemble]) -> tuple[Volume, Prepared]:
    needed, available = _reading_bytes(case, ensembles), reachable_memory_bytes()
    if needed > available:
        raise UserError(f"{case.images[0]}: reading and preparing this image takes about {needed / 2**30:.1f} GiB, and "
                        f"{available / 2**30:.1f} GiB of memory are free.\nClose other programs, use a machine with "
                        "more memory, or cut the image into parts.")
    volume = read_image(case.images, len(ensembles[0].info.channel_names))
    prepared = prepare_for(volume, ensembles)
    return replace(volume, voxels=volume.voxels[:, :0, :0, :0].copy()), prepared


def _compute(
    case: Case, reading: Future[tuple[Volume, Prepared]], predictor: _Predictor, bar: ProgressBar
) -> _Computed:
    """Raises _CaseFailed; what opening files raises goes on, since it would fail for the other cases too."""
    settings = predictor.settings
    windows = partial(window_settings, device=settings.device, overlap=settings.overlap, precision=settings.precision,
                      skip_constant=settings.skip_constant, copies=settings.copies)
    with _failing(case):
        like, prepared = reading.result()
    with ExitStack() as stack:
        files = [_open_probabilities(case, to, like, predictor, stack) for to in predictor.destinations]
        folder = predictor.destinations[0].folder if predictor.combines else None
        with _failing(case):
            computation = CaseComputation(prepared, windows, _advance(case, bar), folder)
            if predictor.combines:
                parts = computation.parts(predictor.ensembles)
                found = tuple(tuple(parts[model] for model in to.models) for to in predictor.destinations)
                return _Computed(case, found, like, stack.pop_all())
            masks = tuple(computation.mask(predictor.ensembles[to.models[0]], file)
                          for to, file in zip(predictor.destinations, files, strict=True))
            return _Computed(case, masks, like, stack.pop_all())


@contextmanager
def _failing(case: Case) -> Iterator[None]:
    """What goes wrong with a case becomes _CaseFailed; bugs of ours do not."""
    try:
        yield
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        raise _CaseFailed(_failure(case, error)) from error


def _open_probabilities(
    case: Case, to: Destination, like: Volume, predictor: _Predictor, stack: ExitStack
) -> np.ndarray | None:
    """The file that receives one model's probabilities while they are computed; None: not asked for, or later."""
    if not predictor.settings.save_probabilities or predictor.combines:
        return None
    path = to.folder / f"{case.id}{PROBABILITIES}"
    return stack.enter_context(writing_probabilities(path, like, len(predictor.info.outputs)))


def _advance(case: Case, bar: ProgressBar) -> Advance:
    def advance(model: str, done: int, total: int) -> None:
        bar.advance(0, f"{case.id}: {model}, window {done} of {total}")

    return advance


def _write(computed: _Computed, predictor: _Predictor) -> tuple[Path, ...]:
    """The masks of one case; a mask comes last, so that whatever has one is whole."""
    info, settings = predictor.info, predictor.settings
    paths = predictor.paths(computed.case)
    with computed.files:
        internals = []
        for to, found in zip(predictor.destinations, computed.found, strict=True):
            beside = to.folder / f"{computed.case.id}{PROBABILITIES}" if settings.save_probabilities else None
            internals.append(found if isinstance(found, np.ndarray) else segment(found, info, computed.like, beside))
    for path, internal in zip(paths, internals, strict=True):
        mask = to_file_values(internal, tuple(info.labels.values()))
        mask = keep_largest_components(mask, info, settings.largest_components)
        write_labels(mask, computed.like, path)
    return paths


def _too_much(waiting: Sequence[tuple[_Computed, Future[tuple[Path, ...]]]], most: int) -> bool:
    size = sum(computed.nbytes for computed, _ in waiting)
    return len(waiting) > most or (len(waiting) > 1 and size > WAITING_BYTES)


def _finish(computed: _Computed, writing: Future[tuple[Path, ...]], outcome: _Outcome) -> None:
    """Wait for a case's masks; a write that fails would fail for the other cases too, so that error goes on."""
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
    elif is_out_of_memory(error):
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


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """Write failures.json, or remove an older one where nothing failed."""
    if failures:
        write_json([failure.model_dump(mode="json") for failure in failures], path)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
