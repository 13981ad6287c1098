"""Run one function over many cases, in processes when that pays, with progress and readable failures."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

from autoseg.errors import UserError
from autoseg.progress import ProgressBar, progress

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
) -> list[AnyResult]:
    """`[function(item) for item in items]`, in order, over `workers` processes, with progress on stderr.

    The first items run in this process and are timed; spawned workers start only once the work that is left
    would save more than their own start costs (`pool_pays`). So two hundred small cases never wait for
    a pool, and large ones lose at most the first item's time. `workers=1` stays in this process.

    Parameters
    ----------
    function : a module-level callable or a `functools.partial` of one; it is sent to each worker once.
    items : picklable; an item's `id` (else its text) names it in messages.

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
                results += _map_in_pool(function, items[len(results) :], workers, bar)
                break
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
    function: Callable[[AnyCase], AnyResult], items: Sequence[AnyCase], workers: int, bar: ProgressBar
) -> list[AnyResult]:
    """As `map_cases`, all items in spawned workers; at most one item more than workers is sent ahead."""
    workers = min(workers, len(items))
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (function,))
    results: dict[int, AnyResult] = {}
    in_flight: dict[Future[AnyResult], int] = {}
    waiting = iter(range(len(items)))
    try:
        while len(results) < len(items):
            while len(in_flight) <= workers and (position := next(waiting, None)) is not None:
                in_flight[executor.submit(_work, items[position])] = position
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
