"""Run one function over many cases, in processes when that pays, with progress and readable failures."""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

from autoseg.data.free_memory import available_memory_bytes
from autoseg.errors import UserError
from autoseg.progress import ProgressBar, progress

logger = logging.getLogger("autoseg")
AnyCase = TypeVar("AnyCase")
AnyResult = TypeVar("AnyResult")

# Starting spawned workers (a fresh interpreter, numpy, scipy, blosc2) takes about this long before they help.
POOL_START_SECONDS = 2.0
MOST_WORKERS = 8
# The products in our work are small: a second BLAS thread mostly waits, and takes a core from the next worker.
BLAS_THREADS = 1


def default_workers() -> int:
    """Cores this process may use, at most eight: every worker holds a whole case in memory."""
    available = getattr(os, "sched_getaffinity", None)
    cores = len(available(0)) if available else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores))


def map_cases(
    function: Callable[[AnyCase], AnyResult],
    items: Sequence[AnyCase],
    workers: int,
    description: str,
    unit: str = "cases",
    needed_bytes: Callable[[AnyCase], int] | None = None,
) -> list[AnyResult]:
    """`[function(item) for item in items]`, in order, over `workers` processes, with progress on stderr.

    The first items run in this process and are timed; spawned workers start only once the work that is left
    would save more than their own start costs (`pool_pays`). So two hundred small cases never wait for
    a pool, and large ones lose at most the first item's time. `workers=1` stays in this process.

    Parameters
    ----------
    function : a module-level callable or a `functools.partial` of one; it is sent to each worker once.
    items : picklable; an item's `id` (else its text) names it in messages.
    needed_bytes : the memory that an item takes. Workers are then given only items that fit together into the
        memory that is free at the start; one may always run, with a warning where it does not fit.

    Raises
    ------
    UserError : a worker process died; the message names the cases in flight. Whatever `function` raises
        is raised here unchanged, after the running items have ended and the waiting ones are cancelled.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; at least 1 is needed.")
    results: list[AnyResult] = []
    seconds: list[float] = []
    with progress(description, len(items), unit) as bar, threadpool_limits(BLAS_THREADS, "blas"):
        while len(results) < len(items):
            left = len(items) - len(results)
            if pool_pays(seconds, left, workers):
                results += _map_in_pool(function, items[len(results) :], workers, bar, needed_bytes)
                break
            if needed_bytes is not None and (needed := needed_bytes(items[len(results)])):
                _warn_if_large(items[len(results)], needed, available_memory_bytes())
            start = time.perf_counter()
            results.append(function(items[len(results)]))
            seconds.append(time.perf_counter() - start)
            bar.advance()
    return results


def pool_pays(seconds: Sequence[float], left: int, workers: int) -> bool:
    """Whether starting a pool now is expected to end sooner than going on in this process.

    Parameters
    ----------
    seconds : duration of each finished item, oldest first. The first one includes imports, so it alone
        decides only when it took longer than any import does (`POOL_START_SECONDS`).
    left : items to do.
    """
    workers = min(workers, left)
    if workers < 2 or not seconds or (len(seconds) == 1 and seconds[0] < POOL_START_SECONDS):
        return False
    usual = seconds[1:] or seconds
    expected = left * sum(usual) / len(usual)
    return expected * (1 - 1 / workers) > POOL_START_SECONDS


def _map_in_pool(
    function: Callable[[AnyCase], AnyResult],
    items: Sequence[AnyCase],
    workers: int,
    bar: ProgressBar,
    needed_bytes: Callable[[AnyCase], int] | None,
) -> list[AnyResult]:
    """As `map_cases`, all items in spawned workers; at most one item more than workers is sent ahead."""
    free = available_memory_bytes()
    needs: list[int] = []  # of the items sent, and of the next
    workers = min(workers, len(items))
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (function,))
    results: dict[int, AnyResult] = {}
    in_flight: dict[Future[AnyResult], int] = {}
    sent = 0
    try:
        while len(results) < len(items):
            while sent < len(items) and len(in_flight) <= workers:
                if len(needs) == sent:
                    needs.append(0 if needed_bytes is None else needed_bytes(items[sent]))
                if in_flight and sum(needs[position] for position in in_flight.values()) + needs[sent] > free:
                    break
                _warn_if_large(items[sent], needs[sent], free)
                in_flight[executor.submit(_work, items[sent])] = sent
                sent += 1
            done, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in done:
                results[in_flight[future]] = future.result()
                del in_flight[future]
                bar.advance()
    except BrokenProcessPool as error:
        lost = [_name(items[position]) for position in sorted(in_flight.values())]
        raise _died(lost) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return [results[position] for position in range(len(items))]


def _warn_if_large(item: object, needed: int, free: int) -> None:
    if needed > free:
        logger.warning("%s needs about %.1f GiB of memory and %.1f GiB are free: the system may end the process. If "
                       "it does, use a machine with more memory, or leave this one out.",
                       _name(item), needed / 2**30, free / 2**30)


def _died(names: Sequence[str]) -> UserError:
    return UserError(
        f"A worker process died while these cases were in work: {', '.join(names)}.\n"
        "Most often the system ended it because memory ran out.\n"
        "Run the same command again with fewer workers, for example --workers 1; finished cases are kept."
    )


def _name(item: object) -> str:
    return str(getattr(item, "id", item))


# What a worker process runs: set once when it starts, so that a function with large arguments travels once.
_worker_function: list[Callable[..., object]] = []


def _start_worker(function: Callable[..., object]) -> None:
    """In the worker: keep the function, take one core, end at once and silently on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threadpool_limits(BLAS_THREADS, "blas")
    _worker_function[:] = [function]


def _work(item: AnyCase) -> Any:
    return _worker_function[0](item)
