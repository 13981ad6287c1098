"""What one image file holds before it becomes an image or labels, and why a file cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from autoseg.errors import UserError
from autoseg.geometry import Direction, Grid, Shape, SpacingMm

Stated = Literal["shape", "spacing", "position"]

# The patient axes of (z, y, x) when a file says nothing: x to the left, y to the posterior, as in ITK.
PLAIN_DIRECTION: Direction = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0))
_MAGIC = (
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"NRRD", "NRRD"),
    (b"\x89PNG", "PNG"),
    (b"BM", "BMP"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"ObjectType", "MetaImage"),
    (b"NDims", "MetaImage"),
    (b"PK\3\4", "a ZIP archive"),
    (b"<", "HTML or XML (a download page?)"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
)


@dataclass(frozen=True)
class Content:
    """One file as stored.

    Attributes
    ----------
    voxels : (channel, z, y, x), the file's axes reversed, in the file's type and not yet scaled.
    grid : where the voxels lie.
    header : what writing a file on the same grid needs; its class belongs to the format's module.
    stated : how much of the grid the file states ("position": all of it; "shape": a PNG); the rest is
        assumed.
    slope, intercept : value = slope * voxel + intercept.
    """

    voxels: Shaped[np.ndarray, "channel z y x"]
    grid: Grid
    header: object
    stated: Stated
    slope: float = 1.0
    intercept: float = 0.0


def plain_grid(shape: Shape, spacing: SpacingMm = (1.0, 1.0, 1.0), is_2d: bool = False) -> Grid:
    """The grid of a file that states no position: origin 0, axes as ITK assumes them."""
    return Grid(tuple(shape), spacing, (0.0, 0.0, 0.0), PLAIN_DIRECTION, is_2d)


def check_file(path: Path) -> None:
    """UserError unless `path` is a file with something in it."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Add the file, or take it out of the dataset.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder; an image file was expected.")
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes); an image was expected. Copy or export the file again.")


def unreadable(path: Path, expected: str, reason: object) -> UserError:
    """A file that is damaged, or not of the format `expected`, which its ending names."""
    detail = (" ".join(str(reason).split()) or type(reason).__name__).rstrip(".")
    kind = content_kind(path)
    if kind is None or kind.split()[0] == expected.split(maxsplit=1)[0]:
        remedy = "The file seems damaged or cut short: copy or export it again."
    else:
        remedy = f"Its content looks like {kind}: give it the ending of its real format, or export it again."
    return UserError(f"{path} cannot be read as {expected}: {detail}. {remedy}")


def unlistable(folder: Path, error: OSError) -> UserError:
    """A folder whose files cannot be listed, usually for want of permission."""
    return UserError(f"{folder} cannot be listed: {error.strerror or error}. A folder that you may read was expected; "
                     "change its permissions (chmod u+rx), or copy it.")


def content_kind(path: Path) -> str | None:
    """What the first bytes of a file are known to begin, or None."""
    try:
        with path.open("rb") as stream:
            start = stream.read(352)
    except OSError:
        return None
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] == b"n+2\0":
        return "NIfTI"
    if int.from_bytes(start[:4], "little") == 348 or int.from_bytes(start[:4], "big") == 348:
        return "Analyze 7.5"
    if start[128:132] == b"DICM":
        return "DICOM"
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)
