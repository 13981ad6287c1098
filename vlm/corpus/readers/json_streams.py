"""Objects out of a JSON file of any size, one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from autoseg.errors import UserError
from vlm.corpus.readers.opening import open_text

CHUNK = 1 << 20
"""Characters that are read at a time; more than any object that the published files hold."""

LARGEST_OBJECT = 1 << 24
"""Characters. A longer object is a file that broke in its middle."""

_DECODER = json.JSONDecoder()


def streamed_objects(path: Path) -> Iterator[tuple[str, object]]:
    """(key, element) for every element of a list, or of the lists in an object: `[…]` (key "") or `{"a": […], …}`.

    Memory is that of one element and one chunk (1 MiB), whatever the file's size.

    Raises
    ------
    UserError : the file is absent, not UTF-8, not JSON (with the character at which it breaks), or holds neither.
    """
    with open_text(path) as lines:
        yield from _Stream(path, lines).groups()


class _Stream:
    """A window that moves over the file's text. `at` : position in it; `before` : characters that have left it."""

    def __init__(self, path: Path, lines: TextIO) -> None:
        self.path, self.lines = path, lines
        self.text, self.at, self.before, self.ended = "", 0, 0, False

    def groups(self) -> Iterator[tuple[str, object]]:
        opening = self._next_sign("[{")
        if opening == "[":
            yield from (("", element) for element in self._elements())
            return
        while self._peek() != "}":
            key = self._value()
            if not isinstance(key, str):
                raise self._broken("a key was expected")
            self._next_sign(":")
            self._next_sign("[")
            yield from ((key, element) for element in self._elements())
            if self._peek() == ",":
                self.at += 1

    def _elements(self) -> Iterator[object]:
        while self._peek() != "]":
            yield self._value()
            if self._peek() == ",":
                self.at += 1
            elif self._peek() != "]":
                raise self._broken("a comma or ] was expected")
        self.at += 1

    def _value(self) -> object:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                if self.ended or len(self.text) - self.at > LARGEST_OBJECT:
                    raise self._broken(str(error)) from None
            else:
                if end < len(self.text) or self.ended:  # a number at the end of the window may go on
                    self.at = end
                    return value
            self._read()

    def _peek(self) -> str:
        """The next sign that is no blank; it is not consumed."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                raise self._broken("it ends too early")
            self._read()

    def _next_sign(self, signs: str) -> str:
        found = self._peek()
        if found not in signs:
            raise self._broken(f"one of {' '.join(signs)} was expected, not {found!r}")
        self.at += 1
        return found

    def _read(self) -> None:
        """Another chunk behind what has not been used yet."""
        chunk = self.lines.read(CHUNK)
        self.before += self.at
        self.text, self.at, self.ended = self.text[self.at:] + chunk, 0, not chunk

    def _broken(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not the JSON that was expected, at character {self.before + self.at}: "
                         f"{reason}.\nA list of objects, or an object of such lists, was expected; download it again.")
