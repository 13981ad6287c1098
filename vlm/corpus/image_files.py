"""Where an image's bytes lie (a file or a tar's member below a root, nothing outside it), and how large it may be."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from tempfile import TemporaryDirectory

from autoseg.records import storage_error

TAR_MARK = ".tar!"
"""Between a tar and its member in an image's name: "train/dataset-000001.tar!000001.jpg"."""

MAX_FILE_BYTES = 4 * 2**30
"""A file is read into memory by one of many workers. Whole-slide images that are larger have to be cut into tiles;
volumes that are larger do not fit a worker."""

SMALLEST_SIDE = 16
"""Below it there is no anatomy left to describe: a broken export, an icon or a spacer of a web page."""

MAX_PIXELS = 100_000_000
"""300 MB as RGB in each worker; a mammogram has 20 to 30 million. More is a decompression bomb or a whole slide."""

TAR_INDICES = 8
"""Tars whose member lists a process remembers; rows of a tar follow each other, so few are in use at a time."""


class BadImage(Exception):
    """An image that no pair can be made from. Its text is the reason: one line for a person, without the file."""


@dataclass(frozen=True)
class ImageFile:
    """`image` : posix path below `root`, or "<tar below root>!<member>" where the tar's name ends in .tar."""

    root: Path
    image: str


ImageSource = ImageFile | Path | bytes
"""An image below a root, a file anywhere, or a file's bytes."""


@dataclass(frozen=True)
class OpenedImage:
    """A file or tar member that is being read.

    stream : at the image's first byte, which is byte `start` of it. size : bytes of the image. path : of a file that is
    the image and nothing else; None otherwise.
    """

    stream: io.BufferedIOBase
    start: int
    size: int
    path: Path | None

    def read(self, count: int | None = None) -> bytes:
        """The next `count` bytes, or all that are left; never beyond a member's end. BadImage: the disk fails."""
        try:
            left = self.size - (self.stream.tell() - self.start)
            return self.stream.read(left if count is None else min(count, left))
        except OSError as error:
            raise BadImage(_storage_reason(error, "the file")) from None


def open_source_bytes(root: Path, image: str) -> bytes:
    """The bytes of an image below `root`. BadImage: not there, outside the root, empty, too large."""
    with open_source(ImageFile(root, image)) as opened:
        return opened.read()


@contextmanager
def open_source(source: ImageSource) -> Iterator[OpenedImage]:
    """Open an image once, for as long as it is read. BadImage: not there, outside its root, empty, too large."""
    opened = OpenedImage(io.BytesIO(source), 0, len(source), None) if isinstance(source, bytes) else _opened(source)
    with opened.stream:
        if opened.size == 0:
            raise BadImage("the file is empty (0 bytes)")
        if opened.size > MAX_FILE_BYTES:
            raise BadImage(f"the file has {opened.size / 2**30:.1f} GiB; at most {MAX_FILE_BYTES // 2**30} are read")
        yield opened


def check_size(width: int, height: int) -> None:
    """BadImage unless a picture has at least 16 pixels on each side and at most 100 million."""
    if min(width, height) < SMALLEST_SIDE:
        raise BadImage(f"has {width} × {height} pixels; at least {SMALLEST_SIDE} on each side were expected")
    if width * height > MAX_PIXELS:
        raise BadImage(f"has {width} × {height} pixels; the limit is {MAX_PIXELS // 10**6} million")


@contextmanager
def as_path(opened: OpenedImage, start: bytes, name: str) -> Iterator[Path]:
    """A path called `name` whose content is the image, for readers that take paths only.

    start : what has been read of it. A file on the disk is linked, not copied.

    UserError: the folder for temporary files is full.
    """
    with TemporaryDirectory(prefix="vlm-image-") as folder:
        path = Path(folder) / name
        if opened.path is not None:
            path.symlink_to(opened.path.absolute())
        else:
            data = start + opened.read()
            try:
                path.write_bytes(data)
            except OSError as error:
                raise storage_error(error, path) from error
        yield path


def _opened(source: ImageFile | Path) -> OpenedImage:
    path, member = (source, None) if isinstance(source, Path) else _located(source)
    try:
        state = path.stat()
        if not S_ISREG(state.st_mode):  # opening a pipe would wait forever
            raise BadImage("the path is a folder" if S_ISDIR(state.st_mode) else "the path is no regular file")
        if member is None:
            return OpenedImage(path.open("rb"), 0, state.st_size, path)
        members = _members(path, state.st_mtime_ns, state.st_size)
        if member not in members:
            raise BadImage(f"{path.name} has no member {member}")
        start, size = members[member]
        stream = path.open("rb")
        stream.seek(start)
        return OpenedImage(stream, start, size, None)
    except OSError as error:
        raise BadImage(_storage_reason(error, "the file" if member is None else path.name)) from None


def _located(file: ImageFile) -> tuple[Path, str | None]:
    """(the file, the member of the tar); BadImage where that is not below the root, symbolic links followed."""
    outer, mark, member = file.image.partition(TAR_MARK)
    name = outer + mark.removesuffix("!")
    pure = PurePosixPath(name)
    if not name or "\0" in name:
        raise BadImage("the row names no image file")
    if pure.is_absolute() or ".." in pure.parts:
        raise BadImage("the path leaves the source's image folder")
    path = file.root / pure
    try:
        is_below = path.resolve().is_relative_to(_resolved(file.root))
    except RuntimeError:  # what Python before 3.13 raises for links in a circle
        raise BadImage("the path is a link that leads back to itself") from None
    if not is_below:
        raise BadImage("the path is a link that leaves the source's image folder")
    return path, member if mark else None


@lru_cache(maxsize=64)
def _resolved(root: Path) -> Path:
    return root.resolve()


@lru_cache(maxsize=TAR_INDICES)
def _members(path: Path, _modified_ns: int, _size: int) -> Mapping[str, tuple[int, int]]:
    """Member → (position of its first byte, bytes). Time and size are there so that a changed tar is read again."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}
    except tarfile.TarError:
        raise BadImage(f"{path.name} is not a whole, uncompressed tar") from None


def _storage_reason(error: OSError, what: str) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{what} does not exist"
    return f"{what} cannot be read: {error.strerror or error}"
