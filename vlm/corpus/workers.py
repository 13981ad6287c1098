"""Map a function over a stream of jobs, in processes, with few jobs in flight: memory does not grow with the stream."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from autoseg.errors import UserError

AnyJob = TypeVar("AnyJob")
AnyResult = TypeVar("AnyResult")

JOBS_IN_FLIGHT_PER_WORKER = 2  # one in work, one waiting: a worker never waits for the parent


def all_cores() -> int:
    """Cores that this process may use. A worker holds an image at a time, so memory does not limit their number."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def stream_map(
    function: Callable[[AnyJob], AnyResult], jobs: Iterable[AnyJob], workers: int
) -> Iterator[AnyResult]:
    """Results of `function(job)` as they come, not in the order of the jobs.

    Parameters
    ----------
    function : a module-level callable or a `functools.partial` of one.
    workers : 1 runs in this process; more start as many spawned processes.

    Raises
    ------
    UserError : a worker process died. What `function` raises is raised here unchanged.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; at least 1 is needed.")
    if workers == 1:
        for job in jobs:
            yield function(job)
        return
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _die_quietly)
    in_flight: set[Future[AnyResult]] = set()
    try:
        for job in jobs:
            in_flight.add(executor.submit(function, job))
            if len(in_flight) >= workers * JOBS_IN_FLIGHT_PER_WORKER:
                done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        while in_flight:
            done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process died; most often the system ended it because memory ran out.\n"
            "Run the same command again with fewer workers, for example --workers 1; finished work is kept."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _die_quietly() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
