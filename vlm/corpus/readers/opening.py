"""Text files and paths as they come from strangers: UTF-8 or a plain word about it, and nothing outside the root."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from autoseg.errors import UserError

csv.field_size_limit(1 << 24)
"""Characters of one field, for all readers of this process: lists of captions and reports exceed csv's 131072."""

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_END = "\x04end of the file"
"""Put behind the last line: inside a quoted field it shows that the quote never closed, which `csv` does not tell."""

_DRIVE = re.compile(r"^[A-Za-z]:")
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file to be read line by line; line ends are kept, a byte order mark is not; .gz is decompressed.

    Raises
    ------
    UserError : when entered, the file is absent or cannot be read; inside the block, the text is not UTF-8 (line and
        byte offset are named), or the compressed file is damaged or cut off.
    """
    try:
        binary = _open_binary(path)
        with TextIOWrapper(binary, encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off: {error}.\nDownload it again.") from None


def csv_rows(lines: TextIO, delimiter: str, path: Path) -> Iterator[list[str]]:
    """The rows of an opened CSV file, header first, without blank lines. UserError for a quote that never closes."""
    reader = csv.reader(chain(lines, [_END]), delimiter=delimiter)
    before = 0
    try:
        for row in reader:
            if row == [_END]:
                return
            if row and row[-1].endswith(_END):
                raise csv.Error("the end of the file was reached inside a quoted field")
            if row:
                yield row
            before = reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{path}, line {before + 1}: a quotation mark opens there and does not close ({error}).\n"
            "Close it, or double it where it is part of the text."
        ) from None


def column_positions(path: Path, header: Sequence[str], wanted: Sequence[str | int], delimiter: str) -> tuple[int, ...]:
    """Where each wanted column (a name, or a position from 0) stands in the header line of `path`.

    Raises
    ------
    UserError : a column is missing (all that are, and those that exist), stands there twice, or the file has another
        delimiter than was said.
    """
    names = [name.strip() for name in header]
    missing = [str(want) for want in wanted if (want >= len(names) if isinstance(want, int) else want not in names)]
    if missing:
        if other := _other_delimiter(header, wanted, delimiter):
            raise UserError(
                f"{path}: its columns are separated by {DELIMITERS[other]}, not by "
                f"{DELIMITERS.get(delimiter, delimiter)}.\n"
                f"Set delimiter = {other!r} in the source's card, or save the file with the expected one."
            )
        raise UserError(f"{path}: no column {', '.join(missing)}.\nIts columns: {', '.join(names)}.\n"
                        "Name the columns in the source's card, or get the file that the card describes.")
    twice = sorted({want for want in wanted if isinstance(want, str) and names.count(want) > 1})
    if twice:
        raise UserError(f"{path}: the column {', '.join(twice)} stands there twice. Remove or rename one.")
    return tuple(want if isinstance(want, int) else names.index(want) for want in wanted)


def _other_delimiter(header: Sequence[str], wanted: Sequence[str | int], delimiter: str) -> str | None:
    """A delimiter with which the header line has all wanted columns, and more than one."""
    for other in DELIMITERS:
        names = [name.strip().strip('"') for name in delimiter.join(header).split(other)]
        least = max((want + 1 for want in wanted if isinstance(want, int)), default=2)
        if other != delimiter and len(names) >= max(least, 2) and set(names).issuperset(
            want for want in wanted if isinstance(want, str)
        ):
            return other
    return None


def safe_relative(path: str) -> str | None:
    """A path below some root with "/" between its parts and no "." in them; None where it is empty, absolute, or "..".

    Backslashes are taken for slashes, because lists made under Windows have them.
    """
    posix = path.strip().replace("\\", "/")
    if posix.startswith("/") or "\0" in posix or _DRIVE.match(posix):
        return None
    parts = [part for part in posix.split("/") if part not in ("", ".")]
    return "/".join(parts) if parts and ".." not in parts else None


def has_no_surrogate(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    return text.isascii() or _SURROGATE.search(text) is None


def mended(text: str) -> str:
    """A text with U+FFFD for what is no character: halves of a surrogate pair, which JSON may hold (a caption that was
    cut in the middle of a sign)."""
    return text if has_no_surrogate(text) else _SURROGATE.sub("\ufffd", text)


def first_group(pattern: str | None, text: str) -> str | None:
    """What the one group of `pattern` holds where it is first found in `text`; None for no match or an empty one."""
    match = re.search(pattern, text) if pattern is not None else None
    return (match.group(1) or None) if match is not None else None


def told_or_found(pattern: str | None, told: str | None, image: str) -> str | None:
    """A patient, article or label as a layout has it: the group of `pattern` in what a column told, or in the image's
    path where there is no such column (`told` is None); without a pattern, what was told."""
    if pattern is None:
        return told or None
    return first_group(pattern, image if told is None else told)


def _open_binary(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _not_utf8(path: Path, error: UnicodeDecodeError) -> Exception:
    """Reads the file again to say where; the decoder itself only knows the place in its own buffer."""
    offset = 0
    with _open_binary(path) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as found:
                kind = " It looks like UTF-16." if offset == 0 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                return UserError(
                    f"{path}, line {number}: byte {offset + found.start} (0x{line[found.start]:02x}) is not UTF-8."
                    f"{kind}\nConvert it: iconv -f LATIN1 -t UTF-8 (or the encoding it has)."
                )
            offset += len(line)
    return error  # of another text that was read inside the block
