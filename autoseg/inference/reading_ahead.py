"""A thread that reads a few cases ahead of the one in work, in bounded memory."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Limits(Generic[Item, Result]):
    """How much may wait.

    Attributes
    ----------
    items : read, and not taken yet.
    nbytes : of them, together with the one being read. An item that takes more is read only once it is waited for:
        nothing else is in work then.
    expected : bytes that reading an item takes, as far as is known before.
    size : bytes that a result has.
    """

    items: int
    nbytes: int
    expected: Callable[[Item], int]
    size: Callable[[Result], int]


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Result], limits: Limits[Item, Result]
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """The items in order, each with what `read` gave or raised; close it to stop reading."""
    shelf = _Shelf(limits)
    thread = threading.Thread(target=_fill, args=(items, read, shelf), name="autoseg-reader", daemon=True)
    thread.start()
    try:
        for item in items:
            yield item, shelf.take()
    finally:
        shelf.stop()
        thread.join()


class _Shelf(Generic[Item, Result]):
    """What waits between the two threads."""

    def __init__(self, limits: Limits[Item, Result]) -> None:
        self._limits = limits
        self._waiting: deque[tuple[Future[Result], int]] = deque()
        self._changed = threading.Condition()
        self._stopped = self._is_awaited = False

    def wait_for_room(self, item: Item) -> bool:
        """Return once the item may be read: True, or False when nothing more is to be read."""
        expected = self._limits.expected(item)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(expected))
            return not self._stopped

    def put(self, result: Future[Result]) -> None:
        size = 0 if result.exception() is not None else self._limits.size(result.result())
        with self._changed:
            self._waiting.append((result, size))
            self._changed.notify_all()

    def take(self) -> Future[Result]:
        with self._changed:
            self._is_awaited = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._waiting))
            self._is_awaited = False
            result, _ = self._waiting.popleft()
            self._changed.notify_all()
        return result

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()

    def _has_room(self, expected: int) -> bool:
        held = sum(size for _, size in self._waiting)
        if not self._waiting and self._is_awaited:
            return True
        return len(self._waiting) < self._limits.items and held + expected <= self._limits.nbytes


def _fill(items: Sequence[Item], read: Callable[[Item], Result], shelf: _Shelf[Item, Result]) -> None:
    for item in items:
        result: Future[Result] = Future()
        try:
            if not shelf.wait_for_room(item):
                return
            result.set_result(read(item))
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            result.set_exception(error)
        shelf.put(result)
        del result  # what was read belongs to whoever takes it
