"""Progress of long loops and log lines: always on stderr, with a rate and the time left."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from autoseg.launch import launched

LOGGER_NAME = "autoseg"
LINE_EVERY_SECONDS = 10.0


class ProgressBar:
    """Counts finished items; on a terminal a live line, elsewhere a line every ten seconds and at the end.

    Of several processes that train together only the first shows anything.
    """

    def __init__(self, description: str, total: int | None, unit: str, limit_seconds: float | None = None) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._limit_seconds = limit_seconds
        self._done = 0
        self._start = self._last = time.perf_counter()
        self._silent = not launched().is_first
        self._live = sys.stderr.isatty() and not self._silent

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are finished; `note` is appended to the line (the current loss, a case id)."""
        self._done += count
        now = time.perf_counter()
        every = 0.1 if self._live else LINE_EVERY_SECONDS
        is_end = self._total is not None and self._done >= self._total
        due = now - self._last >= every or (is_end and (self._live or now - self._start > every))
        if due and not self._silent:
            self._last = now
            self._show(now, note)

    def close(self) -> None:
        """End the live line."""
        if self._live and self._done:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _show(self, now: float, note: str) -> None:
        elapsed = now - self._start
        rate = self._done / max(elapsed, 1e-9)
        left, goal = self._left(elapsed, rate)
        text = f"{self._description}: {self._done}{goal} {self._unit}"
        if self._done:  # before that there is no rate to tell
            text += f", {readable_rate(rate, self._unit)}"
            text += f", {readable_seconds(left)} left" if left is not None else ""
        text += f"  {note}" if note else ""
        sys.stderr.write(f"\r\x1b[2K{text}" if self._live else f"{text}\n")
        sys.stderr.flush()

    def _left(self, elapsed: float, rate: float) -> tuple[float | None, str]:
        """(seconds left, what stands behind the count); None where neither a total nor a limit is known."""
        left, goal = None, ""
        if self._total is not None:
            left, goal = max(self._total - self._done, 0) / max(rate, 1e-9), f"/{self._total}"
        if self._limit_seconds is not None and (left is None or self._limit_seconds - elapsed < left):
            left, goal = max(self._limit_seconds - elapsed, 0), ""
        return left, goal


@contextmanager
def progress(
    description: str, total: int | None, unit: str, limit_seconds: float | None = None
) -> Iterator[ProgressBar]:
    """`with progress("preprocess", 200, "cases") as bar: … bar.advance()`.

    `total`: None where it is not known beforehand: a rate is shown, and no time left.
    `limit_seconds`: the loop ends after this long even if items are left; the time left says so.
    """
    bar = ProgressBar(description, total, unit, limit_seconds)
    try:
        yield bar
    finally:
        bar.close()


def readable_rate(rate: float, unit: str) -> str:
    """"3.2 cases/s", or seconds per item when it is slow."""
    singular = unit.removesuffix("s")
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{singular}"


def readable_seconds(seconds: float) -> str:
    """"45 s", "3 min 20 s" or "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def start_logging() -> None:
    """Send this package's log lines (INFO and above) to stderr, once; errors only in all but the first process."""
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if launched().is_first else logging.ERROR)
        logger.propagate = False
