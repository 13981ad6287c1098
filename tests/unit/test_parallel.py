"""map_cases keeps order, starts processes only where they pay, and reports a dead worker."""

import os
import time

import pytest

from autoseg.data import parallel
from autoseg.data.parallel import POOL_START_SECONDS, default_workers, map_cases, pool_pays
from autoseg.errors import UserError


def process_of(item: int) -> tuple[int, int]:
    return item, os.getpid()


def double_slowly(item: int) -> int:
    time.sleep(0.02 * (5 - item % 5))
    return 2 * item


def end_abruptly(item: int) -> int:
    if item == 3:
        time.sleep(0.2)
        os._exit(9)
    return item


def refuse(item: int) -> int:
    if item == 2:
        raise UserError("case 2 is wrong")
    return item


@pytest.fixture
def _pool_at_once(monkeypatch):
    monkeypatch.setattr(parallel, "pool_pays", lambda seconds, left, workers: workers > 1)


def test_small_items_never_start_a_process():
    results = map_cases(process_of, range(50), workers=4, description="test")
    assert results == [(item, os.getpid()) for item in range(50)]


def test_no_items():
    assert map_cases(process_of, [], workers=2, description="test") == []


@pytest.mark.usefixtures("_pool_at_once")
def test_the_pool_keeps_the_order():
    assert map_cases(double_slowly, range(11), workers=2, description="test") == [
        2 * item for item in range(11)
    ]


@pytest.mark.usefixtures("_pool_at_once")
def test_the_pool_runs_elsewhere():
    assert all(
        pid != os.getpid() for _, pid in map_cases(process_of, range(3), workers=2, description="test")
    )


@pytest.mark.usefixtures("_pool_at_once")
def test_a_dead_worker_is_a_user_error_naming_the_cases_in_flight():
    with pytest.raises(UserError, match=r"(?s)while these cases were in work: .*3.*--workers 1"):
        map_cases(end_abruptly, range(6), workers=2, description="test")


@pytest.mark.usefixtures("_pool_at_once")
def test_an_error_of_a_case_comes_back_unchanged():
    with pytest.raises(UserError, match="^case 2 is wrong$"):
        map_cases(refuse, range(6), workers=2, description="test")


def test_at_least_one_worker():
    with pytest.raises(UserError, match="--workers is 0"):
        map_cases(process_of, [1], workers=0, description="test")
    assert default_workers() >= 1


def test_when_a_pool_pays():
    assert not pool_pays([], left=100, workers=8)
    assert not pool_pays([60.0], left=1, workers=8), "one item cannot be shared"
    assert not pool_pays([60.0], left=10, workers=1)
    assert not pool_pays([1.5], left=100, workers=8), "a first item may be slow because of imports"
    assert not pool_pays([1.5, 0.005], left=198, workers=2)
    assert pool_pays([1.5, 0.5], left=98, workers=2)
    assert pool_pays([POOL_START_SECONDS * 3], left=4, workers=2)


def interval_of(item: int) -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(0.15)
    return start, time.monotonic()


def overlapping(intervals) -> int:
    """How many pairs ran at the same time."""
    return sum(one[0] < other[1] and other[0] < one[1] for i, one in enumerate(intervals) for other in intervals[:i])


@pytest.mark.usefixtures("_pool_at_once")
@pytest.mark.parametrize(("needed", "together"), [(40, True), (60, False), (1000, False)])
def test_items_in_work_fit_into_memory_together(monkeypatch, caplog, needed, together):
    """Two of 40 fit into 100, two of 60 do not; one that does not fit at all runs alone, with a warning."""
    monkeypatch.setattr(parallel, "available_memory_bytes", lambda: 100)
    with caplog.at_level("WARNING", "autoseg"):
        intervals = map_cases(interval_of, range(4), workers=2, description="test", needed_bytes=lambda item: needed)
    assert (overlapping(intervals) > 0) == together
    assert ("needs about" in caplog.text) == (needed > 100)
