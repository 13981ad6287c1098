"""Sources of batches: cases resident in memory, or streamed from the disk by worker processes; the same batches."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from autoseg.data.free_memory import available_memory_bytes
from autoseg.data.store import CaseArrays, Store, array_bytes, in_memory, open_case
from autoseg.errors import UserError
from autoseg.schema import NetworkPlan, StoreRecord
from autoseg.training.batches import Batch, BatchForm, StagedStep, finish, stage
from autoseg.training.draws import DrawSettings
from autoseg.training.patches import RawSample, StepReader

_RESIDENT_SHARE = 0.4


class PatchSource:
    """Batches by step number. Asking in order is fast; any order is right."""

    def __init__(
        self,
        read: Callable[[int], Sequence[RawSample]],
        form: BatchForm,
        background: ThreadPoolExecutor | None,
    ) -> None:
        self._read, self._form, self._background = read, form, background
        self._ahead: tuple[int, Future[StagedStep]] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step (0, 1, …): a function of the draws' seed and the step alone."""
        if self._background is None:
            return finish(self._stage(step), self._form)
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = step, self._background.submit(self._stage, step)
        staged = self._ahead[1].result()
        self._ahead = step + 1, self._background.submit(self._stage, step + 1)
        return finish(staged, self._form)

    def _stage(self, step: int) -> StagedStep:
        return stage(self._read(step), self._form)


CaseOpener = Callable[[], CaseArrays]
"""Opens one case, memory-mapped."""


def open_patches(
    store: Store,
    case_ids: Sequence[str],
    network: NetworkPlan,
    draws: DrawSettings,
    device: torch.device,
    memory_budget_bytes: int,
    workers: int,
) -> AbstractContextManager[PatchSource]:
    """Batches of `network`'s patch shape and batch size from cases of a store; as `open_case_patches`.

    Raises UserError when there are no cases, one cannot be read, or a worker is killed.
    """
    if not case_ids:
        raise UserError(
            f"{store.folder}: there are no cases to draw patches from; at least one was expected. Choose another fold."
        )
    openers = [partial(open_case, store, case_id) for case_id in case_ids]
    return open_case_patches(openers, store.record, network, draws, device, memory_budget_bytes, workers)


@contextmanager
def open_case_patches(
    openers: Sequence[CaseOpener],
    record: StoreRecord,
    network: NetworkPlan,
    draws: DrawSettings,
    device: torch.device,
    memory_budget_bytes: int,
    workers: int,
) -> Iterator[PatchSource]:
    """Batches of `network`'s patch shape and batch size from cases that were prepared as `record` says.

    When the cases take at most `memory_budget_bytes` they are kept in memory; otherwise `workers` processes read
    patches from the disk. On CUDA a background thread prepares the next step in pinned memory.
    """
    sizes = [(array_bytes(case), case.previous is not None) for case in (opener() for opener in openers)]
    resident = sum(size for size, _ in sizes) <= memory_budget_bytes
    masks = (len(record.labels) - 1) * any(is_cascade for _, is_cascade in sizes)
    open_at = _Resident(tuple(in_memory(opener()) for opener in openers)) if resident else _OnDisk(tuple(openers))
    form = _batch_form(record, network, device, masks)
    reader = StepReader(
        open_case=open_at,
        case_count=len(openers),
        channels=form.channels,
        settings=draws,
        patch_shape=network.patch_shape,
        batch_size=network.batch_size,
        masks=masks,
    )
    with ExitStack() as stack:
        read = reader.read if resident else _streamed(reader, workers, stack)
        background = None
        if device.type == "cuda":
            background = stack.enter_context(ThreadPoolExecutor(1, "autoseg-patches"))
        yield PatchSource(read, form, background)


def default_memory_budget() -> int:
    """Bytes that resident cases may take by default: two fifths of the memory that is free now."""
    return int(_RESIDENT_SHARE * available_memory_bytes())


@dataclass(frozen=True)
class _Resident:
    """Opens cases that are in memory."""

    cases: tuple[CaseArrays, ...]

    def __call__(self, position: int) -> CaseArrays:
        return self.cases[position]


@dataclass(frozen=True)
class _OnDisk:
    """Opens memory-mapped cases; none stays open, so thousands of cases need no file handles."""

    openers: tuple[CaseOpener, ...]

    def __call__(self, position: int) -> CaseArrays:
        return self.openers[position]()


def _streamed(reader: StepReader, workers: int, stack: ExitStack) -> Callable[[int], Sequence[RawSample]]:
    # Imported here: whoever keeps cases in memory need not load batchgenerators.
    from autoseg.training.workers import streamed_steps

    return stack.enter_context(streamed_steps(reader, workers)).read


def _batch_form(record: StoreRecord, network: NetworkPlan, device: torch.device, masks: int) -> BatchForm:
    channels = record.normalization
    return BatchForm(
        patch_shape=network.patch_shape,
        channels=len(channels),
        device=device,
        label_dtype=torch.uint8 if len(record.labels) + (record.ignore is not None) <= 256 else torch.int16,
        masked_channels=tuple(position for position, channel in enumerate(channels) if channel.within_nonzero),
        masks=masks,
    )
