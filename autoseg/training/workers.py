"""Reading steps in worker processes (batchgenerators' loader), in a fixed order, ending cleanly, failing loudly."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import blosc2
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

from autoseg.errors import UserError
from autoseg.training.patches import RawSample, StepReader

_STEPS_CACHED_PER_WORKER = 2
_POLL_SECONDS = 0.002
# What reading a damaged or vanished file raises, blosc2's RuntimeError included; anything else is a bug.
_READ_ERRORS = (UserError, OSError, RuntimeError, ValueError, MemoryError)


class WorkerSteps:
    """What batchgenerators copies into each worker: worker i of n reads steps start + i, start + i + n, …"""

    def __init__(self, reader: StepReader, start: int, workers: int) -> None:
        self._reader, self._step, self._workers = reader, start, workers

    def set_thread_id(self, worker: int) -> None:
        """Called once in the worker process: it leaves Ctrl-C to its parent and never outlives it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        blosc2.set_nthreads(1)
        self._step += worker

    def __iter__(self) -> "WorkerSteps":
        return self

    def __next__(self) -> dict[str, Any]:
        """The next step of this worker: `step` and `samples`, or `problem`, why it could not be read."""
        step = self._step
        self._step += self._workers
        try:
            return {"step": step, "samples": self._reader.read(step)}
        except _READ_ERRORS as error:
            return {"step": step, "problem": f"{type(error).__name__}: {error}"}


class StreamedSteps:
    """Steps from worker processes, which start at the first step that is asked for and read ahead from there."""

    def __init__(self, reader: StepReader, workers: int) -> None:
        self._reader, self._workers = reader, workers
        self._augmenter: MultiThreadedAugmenter | None = None
        self._processes: list[multiprocessing.Process] = []
        self._next = 0

    def read(self, step: int) -> tuple[RawSample, ...]:
        """The samples of a step; UserError when it cannot be read or a worker was killed."""
        augmenter = self._augmenter
        if augmenter is None or step != self._next:
            augmenter = self._start(step)
        self._next = step + 1
        try:
            item = next(augmenter)
        except RuntimeError:  # batchgenerators' word for a dead worker; a bug of ours was printed by the worker
            self._raise_if_killed()
            raise
        if "problem" in item:
            self.close()
            raise UserError(
                f"The patches of step {item['step']} could not be read: {item['problem']}.\nIf files of "
                "the run's `preprocessed` folder were moved or damaged, remove that folder and run "
                "`autoseg plan` again."
            )
        assert item["step"] == step
        samples: tuple[RawSample, ...] = item["samples"]
        return samples

    def close(self) -> None:
        """End the workers and wait for them."""
        if self._augmenter is not None:
            self._augmenter._finish()
            self._augmenter = None
        for process in self._processes:
            process.join()
            process.close()
        self._processes = []

    def _start(self, step: int) -> MultiThreadedAugmenter:
        self.close()
        steps = WorkerSteps(self._reader, step, self._workers)
        augmenter = MultiThreadedAugmenter(
            steps, None, self._workers, _STEPS_CACHED_PER_WORKER, wait_time=_POLL_SECONDS
        )
        self._augmenter = augmenter
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside torch's threads; the workers use numpy and blosc2 alone.
            warnings.simplefilter("ignore", DeprecationWarning)
            augmenter._start()
        self._processes = list(augmenter._processes)
        return augmenter

    def _raise_if_killed(self) -> None:
        """End the workers; UserError when one was killed from outside."""
        for process in self._processes:
            process.join()
        signals = [-code for process in self._processes if (code := process.exitcode) is not None and code < 0]
        self.close()
        if signals:
            raise UserError(
                f"A process that reads patches was killed (signal {signals[0]}), most often because memory "
                "ran out. Close other programs, or use fewer workers, and continue with --resume."
            )


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers; they would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def streamed_steps(reader: StepReader, workers: int) -> Iterator[StreamedSteps]:
    """Steps read by `workers` processes, which end with the block."""
    steps = StreamedSteps(reader, workers)
    try:
        yield steps
    finally:
        steps.close()
