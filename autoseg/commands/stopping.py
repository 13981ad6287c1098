"""Ctrl-C and SIGTERM end a training after the step in hand, so that its state can be written."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from autoseg.launch import launched


@contextmanager
def stop_on_signals() -> Iterator[Callable[[int], bool]]:
    """A function that says, after each step, whether a stop was asked for; a second Ctrl-C interrupts at once."""
    asked = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if launched().is_first:
            sys.stderr.write("\nstopping after this step; the state is being written (again: stop at once)\n")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda _: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
