"""Laws of reading ahead: order, bounds in items and bytes, errors, an early end."""

import threading
import time

import pytest

from autoseg.inference.reading_ahead import Limits, read_ahead


def limits(items=2, nbytes=100, expected=lambda item: 0):
    return Limits(items=items, nbytes=nbytes, expected=expected, size=lambda result: result)


class Counting:
    """Reads numbers: an item is as large as its value."""

    def __init__(self) -> None:
        self.started = []

    def __call__(self, item: int) -> int:
        self.started.append(item)
        return item


def settle(reader: Counting) -> int:
    """How many have been started once nothing happens any more."""
    seen = -1
    while seen != len(reader.started):
        seen = len(reader.started)
        time.sleep(0.05)
    return seen


def test_items_come_in_order_each_with_its_result():
    found = [(item, result.result()) for item, result in read_ahead([3, 1, 2, 5], Counting(), limits())]
    assert found == [(3, 3), (1, 1), (2, 2), (5, 5)]


@pytest.mark.parametrize(("items", "nbytes", "most"), [(1, 10**9, 1), (3, 10**9, 3), (9, 25, 3), (9, 1, 1)])
def test_few_items_and_bytes_wait(items, nbytes, most):
    """Of items of 10 bytes: as many wait as may, not counting the one that was taken."""
    reader = Counting()
    reading = read_ahead([10] * 12, reader, limits(items, nbytes))
    for taken in range(1, 6):
        next(reading)
        assert settle(reader) == min(taken + most, 12)
    reading.close()


def test_what_is_known_beforehand_counts_before_it_is_read():
    reader = Counting()
    reading = read_ahead([10, 10, 90, 10], reader, limits(9, 95, expected=lambda item: item))
    next(reading)
    assert settle(reader) == 2  # 10 wait, and 90 would be too many
    next(reading)
    assert settle(reader) == 3  # alone it may have any size
    reading.close()


def test_an_error_belongs_to_its_item():
    def read(item):
        if item == 2:
            raise OSError("broken")
        return item

    results = [result for _, result in read_ahead([1, 2, 3], read, limits())]
    assert [result.result() for result in results[::2]] == [1, 3]
    with pytest.raises(OSError, match="broken"):
        results[1].result()


def test_nothing_is_read_after_an_early_end():
    reader = Counting()
    reading = read_ahead(list(range(50)), reader, limits())
    next(reading)
    reading.close()
    assert len(reader.started) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "autoseg-reader"]


def test_an_item_beyond_the_limit_is_read_only_once_it_is_waited_for():
    """Nothing is in work then."""
    reader = Counting()
    reading = read_ahead([10, 200, 10], reader, limits(9, 95, expected=lambda item: item))
    next(reading)
    assert settle(reader) == 1
    item, result = next(reading)
    assert (item, result.result()) == (200, 200)
    reading.close()


def test_an_error_before_reading_belongs_to_the_item_too():
    def expected(item):
        if item == 2:
            raise ValueError("broken header")
        return 0

    results = [result for _, result in read_ahead([1, 2, 3], Counting(), limits(expected=expected))]
    assert [result.result() for result in results[::2]] == [1, 3]
    with pytest.raises(ValueError, match="broken header"):
        results[1].result()
