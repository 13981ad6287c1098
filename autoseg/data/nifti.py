"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz) or as a pair (.hdr, .img), by nibabel's headers.

A pair in the older format Analyze 7.5 is refused: it does not say reliably which side is left.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, Float64, Integer, Shaped

from autoseg.data.content import Content, Stated, check_file, unreadable
from autoseg.errors import UserError
from autoseg.geometry import Direction, Grid, SpacingMm

_GEOMETRY_FIELDS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
                    "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")
_SMALLEST_OFFSET = {1: 352, 2: 544}
PAIR_ENDING = ".hdr"
_HEADER_BYTES = {348: 1, 540: 2}


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of a NIfTI header that place its voxels, bit for bit.

    `pixdim` are its first four entries (qfac, x, y, z); `fields` the form codes, quaternion, offsets, rows
    and units.
    """

    version: int
    pixdim: np.ndarray
    fields: dict[str, np.ndarray]


def read_nifti(path: Path) -> Content:
    """The voxels and the grid of a NIfTI file; a 4-D file gives its fourth axis as channels.

    The affine is the sform where its code is set, else the qform, else nibabel's base affine. The spacing is
    the header's pixdim where it agrees with the lengths of the affine's columns (relative 1e-4: then it
    equals what SimpleITK reports), else those lengths.

    Raises
    ------
    UserError : not NIfTI, cut short, colour or complex voxels, more than four axes, an affine that is broken or
        singular, more voxels than fit into memory.
    """
    from nibabel.imageglobals import LoggingOutputSuppressor
    from nibabel.spatialimages import HeaderDataError

    voxel_path = _voxel_path(path)
    for file in dict.fromkeys((path, voxel_path)):
        check_file(file)
    expected = "gzip-compressed NIfTI" if path.name.lower().endswith(".gz") else "NIfTI"
    try:
        with _opened(path) as stream, _opened(voxel_path, stream, path) as voxel_stream, LoggingOutputSuppressor():
            version, header = _read_header(stream, paired=voxel_path != path)
            sizes = _checked_shape(path, tuple(int(size) for size in header.get_data_shape()))
            kind = np.dtype(header.get_data_dtype())
            if kind.kind not in "iuf":
                raise UserError(f"{path} holds voxels of type {kind}; one real number per voxel was "
                                "expected. Store each colour or component in its own channel file.")
            smallest = 0 if voxel_path != path else _SMALLEST_OFFSET[version]
            offset = max(int(header.get_data_offset()), smallest)
            raw = _read_voxels(voxel_stream, offset, math.prod(sizes), kind)
            slope, intercept = header.get_slope_inter()
            grid = _grid(path, header, sizes)
    except MemoryError:
        raise UserError(f"{path}: its header states {sizes} voxels of type {kind}, more than fit into memory. "
                        "Export the image again if that is wrong; else crop it, or use a larger machine.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, HeaderDataError, ValueError, OverflowError) as error:
        raise unreadable(path, expected, error) from None
    except OSError as error:
        raise unreadable(path, expected, error.strerror or error) from None
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    stated: Stated = "position" if placed else "spacing"
    voxels = _channels_first(raw, sizes)
    return Content(voxels, grid, _kept(header, version), stated,
                   1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def nifti_extent(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Voxels and spacing along the file's axes (x, y, …) as the header states them; no voxel is read.

    Whatever is wrong with the file raises: nibabel's errors, zlib's, OSError, EOFError, ValueError.
    """
    from nibabel.imageglobals import LoggingOutputSuppressor

    with _opened(path) as stream, LoggingOutputSuppressor():
        _, header = _read_header(stream, paired=_voxel_path(path) != path)
        return tuple(int(n) for n in header.get_data_shape()), tuple(float(mm) for mm in header.get_zooms())


def write_nifti(labels: Integer[np.ndarray, "z y x"], grid: Grid, header: object, path: Path) -> None:
    """Labels as .nii, .nii.gz or a pair: a NIfTI `header`'s geometry bit for bit, else that of `grid`."""
    array = (labels[0] if grid.is_2d else labels).T
    _write(array, grid, header, path)


def write_channels(
    channels: Float32[np.ndarray, "channel z y x"], grid: Grid, header: object, path: Path
) -> None:
    """Numbers as a 4-D .nii or .nii.gz, (x, y, z, channel), placed as `write_nifti` places labels."""
    _write(channels.T, grid, header, path)


def _write(array: np.ndarray, grid: Grid, header: object, path: Path) -> None:
    """`array` in the file's axis order."""
    kept = header if isinstance(header, NiftiHeader) else None
    kind = _image_kind(2 if kept is not None and kept.version == 2 else 1, _voxel_path(path) != path)
    fresh = kind.header_class()
    if kept is None:
        _place(fresh, affine_of(grid))
    else:
        for name, value in kept.fields.items():
            fresh[name] = value
    pixdim = fresh["pixdim"][:4].copy() if kept is None else kept.pixdim
    fresh.set_data_dtype(array.dtype)
    fresh.set_data_shape(array.shape)
    fresh["pixdim"][:4] = pixdim
    if array.ndim > 2 and fresh["pixdim"][3] == 0:  # a 2-D file's header leaves its third axis without a length
        fresh["pixdim"][3] = 1
    kind(array, None, header=fresh).to_filename(path)


def affine_of(grid: Grid) -> Float64[np.ndarray, "4 4"]:
    """The RAS+ affine of file axes (x, y, z) → mm."""
    affine = np.eye(4)
    affine[:3, :3] = (np.asarray(grid.direction) * np.asarray(grid.spacing))[:, ::-1]
    affine[:3, 3] = grid.origin
    return affine


def _place(header: Any, affine: Float64[np.ndarray, "4 4"]) -> None:
    """Write an affine as scanner coordinates: the sform always, the qform where the axes are orthogonal."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    square = np.allclose(columns.T @ columns, np.eye(3), atol=1e-4)
    header.set_qform(affine, code=1 if square else 0, strip_shears=True)
    header.set_sform(affine, code=1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_xyzt_units("mm")


def _voxel_path(path: Path) -> Path:
    """The file with the voxels: of a pair the .img file (.IMG for .HDR), else `path` itself."""
    if path.suffix.lower() != PAIR_ENDING:
        return path
    return path.with_suffix(".IMG" if path.suffix.isupper() else ".img")


def _image_kind(version: int, paired: bool) -> Any:
    """nibabel's class of images of this version, whose `header_class` reads their headers."""
    import nibabel

    if paired:
        return nibabel.Nifti1Pair if version == 1 else nibabel.Nifti2Pair
    return nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image


@contextmanager
def _opened(path: Path, opened: BufferedIOBase | None = None, opened_path: Path | None = None) -> Iterator[Any]:
    """A stream of a file's bytes, decompressed; `opened` itself where that is the stream of the same file."""
    if opened is not None and path == opened_path:
        yield opened
        return
    with path.open("rb") as file:
        yield gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file


def _read_header(stream: BufferedIOBase, paired: bool) -> tuple[int, Any]:
    """The version (1 or 2) and nibabel's header, checked by nibabel; ValueError when it is not NIfTI."""
    start = stream.read(4)
    for endianness in ("<", ">"):
        size = int.from_bytes(start, "little" if endianness == "<" else "big")
        if size in _HEADER_BYTES:
            version = _HEADER_BYTES[size]
            block = start + stream.read(size - 4)
            if len(block) < size:
                raise EOFError(f"it ends within its header, after {len(block)} of {size} bytes")
            magic = f"{'ni' if paired else 'n+'}{version}".encode()
            start_of_magic = block[344:347] if version == 1 else block[4:7]
            if start_of_magic != magic:
                raise ValueError(f"its header does not say '{magic.decode()}', so it is not NIfTI-{version} in "
                                 f"{'a pair of files' if paired else 'one file'}")
            return version, _image_kind(version, paired).header_class(block, endianness)
    raise ValueError("it does not begin with a NIfTI header")


def _checked_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(x, y), (x, y, z) or (x, y, z, channel): trailing axes of one voxel are dropped."""
    sizes = shape
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if len(sizes) == 5 and sizes[3] == 1:
        sizes = (*sizes[:3], sizes[4])
    if not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise UserError(f"{path} has {len(shape)} axes of {shape} voxels; 2, 3 or, with channels, 4 axes of "
                        "at least one voxel were expected. Export one 3-D image per file.")
    return sizes


def _read_voxels(stream: BufferedIOBase, offset: int, count: int, kind: Any) -> np.ndarray:
    """`count` voxels after the header; EOFError when cut short. Reads on to the end: gzip's checksum."""
    while (ahead := offset - stream.tell()) > 0:
        if not stream.read(min(ahead, 1 << 20)):
            raise EOFError("it ends before its voxels begin")
    total = count * kind.itemsize
    buffer = np.empty(total, np.uint8)
    view, done = buffer.data, 0
    while done < total:
        taken = stream.readinto(view[done:])
        if not taken:
            raise EOFError(f"it ends after {done} of {total} bytes of voxels")
        done += taken
    if isinstance(stream, gzip.GzipFile):
        while stream.read(1 << 20):
            pass
    return buffer.view(kind)


def _channels_first(raw: np.ndarray, sizes: tuple[int, ...]) -> Shaped[np.ndarray, "channel z y x"]:
    """File order (x fastest) is C order of the reversed axes: no copy."""
    reversed_sizes = sizes[::-1]
    missing = {2: (1, 1), 3: (1,), 4: ()}[len(sizes)]
    return raw.reshape(*missing, *reversed_sizes)


def _grid(path: Path, header: Any, sizes: tuple[int, ...]) -> Grid:
    """The grid of a header; in 2-D a third column without length becomes the normal of the first two."""
    affine = np.array(header.get_best_affine(), np.float64)
    if len(sizes) == 2 and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-30)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    sound = np.isfinite(affine).all() and lengths.min() > 0
    if not sound or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise UserError(f"{path}: the header's affine {np.round(affine[:3], 4).tolist()} does not span "
                        "space; three independent axes were expected. Export the image again, or mend its "
                        "sform and qform.")
    pixdim = np.abs(np.array(header["pixdim"][1:4], np.float64))
    spacing = np.where(np.isclose(pixdim, lengths, rtol=1e-4, atol=0), pixdim, lengths)
    if len(sizes) == 2:
        spacing[2] = 1.0
    shape = (1, *sizes[:3][::-1]) if len(sizes) == 2 else sizes[:3][::-1]
    columns = (affine[:3, :3] / lengths)[:, ::-1]
    origin = cast(tuple[float, float, float], _floats(affine[:3, 3]))
    direction = cast(Direction, tuple(_floats(row) for row in columns))
    return Grid(tuple(shape), _floats(spacing[::-1]), origin, direction, is_2d=len(sizes) == 2)


def _kept(header: Any, version: int) -> NiftiHeader:
    """The fields that place the voxels, in this machine's byte order."""
    fields = {name: _native(header[name]) for name in _GEOMETRY_FIELDS}
    return NiftiHeader(version, _native(header["pixdim"][:4]), fields)


def _native(value: np.ndarray) -> np.ndarray:
    array = np.array(value)
    return array.astype(array.dtype.newbyteorder("="))


def _floats(values: np.ndarray) -> SpacingMm:
    return tuple(float(value) for value in values)
