"""A gray or color picture of 8 bits from a DICOM file or from a slice of a NIfTI volume."""

import hashlib
import math
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from autoseg.data.volume import Volume, read_image
from autoseg.errors import UserError
from vlm.corpus.image_files import BadImage, check_size
from vlm.corpus.windowing import robust_range, to_bytes, window_range

Window = tuple[float, float]
"""Center and width."""

_WORLD_AXES = 3  # right, anterior, superior

VolumeKind = Literal["dicom", "nifti", "nifti in gzip"]
VOLUME_NAMES: dict[VolumeKind, str] = {"dicom": "image.dcm", "nifti": "volume.nii", "nifti in gzip": "volume.nii.gz"}
"""Names by which the readers know the formats."""

_GZIP = 31  # zlib's number for a stream with a gzip header


@dataclass(frozen=True)
class Slice:
    """A picture of a volume.

    pixels : (y, x) gray or (y, x, 3) color. aspect : height of a pixel divided by its width. sha256 : of the values
    before windowing; None: of a DICOM file with one frame, whose hash is the file's.
    """

    pixels: UInt8[np.ndarray, "y x *color"]
    aspect: float
    sha256: str | None


def volume_kind(start: bytes) -> VolumeKind | None:
    """DICOM or NIfTI, by the first bytes of a file; None: neither.

    A DICOM file without the usual preamble begins with an element of group 2 or 8.
    """
    if start[128:132] == b"DICM" or (start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0"):
        return "dicom"
    if start[:2] == b"\x1f\x8b":
        try:
            return "nifti in gzip" if _is_nifti(zlib.decompressobj(_GZIP).decompress(start, 352)) else None
        except zlib.error:
            return None
    return "nifti" if _is_nifti(start) else None


def _is_nifti(start: bytes) -> bool:
    return start[344:347] == b"n+1" or start[4:7] == b"n+2"


def read_dicom(path: Path, slice_index: int | None, window: Window | None) -> Slice:
    """One frame of a DICOM file as a viewer shows it.

    Rescale slope and intercept are applied, MONOCHROME1 is inverted, palettes and YBR become RGB (all by GDCM). Color
    stays as it is. Gray values are shown in the file's first window, else in `window`, else eight-bit values as they
    are, else in their robust range (without padding). A window that would show a single gray is passed over.
    Of a sigmoid VOI function center and width are used as a linear window; VOI tables are not applied.

    BadImage: damaged, not an image, too small or too large, a frame that does not exist.
    """
    reader = _dicom_reader(path)
    try:
        reader.ReadImageInformation()
        check_size(*reader.GetSize()[:2])
        image = reader.Execute()
    except RuntimeError:
        raise BadImage("is damaged DICOM, or DICOM without an image (GDCM cannot read it)") from None
    values: np.ndarray = _simple_itk().GetArrayFromImage(image)
    color = image.GetNumberOfComponentsPerPixel() > 1
    frames = values.reshape(-1, *values.shape[-3:] if color else values.shape[-2:])
    frame = frames[chosen_slice(len(frames), slice_index)]
    digest = values_sha256(frame) if len(frames) > 1 else None
    width, height = image.GetSpacing()[:2]
    aspect = float(height / width)
    if color:
        shown = frame[..., :3] if frame.dtype == np.uint8 else to_bytes(frame[..., :3], *robust_range(frame[..., :3]))
        return Slice(shown, aspect, digest)
    return Slice(_shown(frame, reader, window), aspect, digest)


def read_nifti_slice(path: Path, slice_index: int | None, window: Window | None) -> Slice:
    """One slice along the slowest axis of a NIfTI file, drawn as radiologists draw it where the header says how.

    Axial: the patient's front is up; coronal and sagittal: the head is up; the patient's right is at the left, and of
    sagittal slices the front is at the left. Where the header gives no position, its axes are taken to run as nibabel
    takes them: to the left, to the front, to the head. Values are shown in `window`, else in the robust range of the
    volume's values other than 0.

    BadImage: damaged, more than three axes, NaN, a slice that does not exist.
    """
    state = path.stat()
    volume, value_range = _volume(_VolumeFile(state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size, path))
    voxels = volume.voxels[0]
    chosen = voxels[chosen_slice(len(voxels), slice_index)]
    low, high = window_range(*window) if window is not None else value_range
    if not high > low:
        low, high = robust_range(chosen)
    upright, aspect = _upright(chosen, np.asarray(volume.grid.direction), volume.grid.spacing)
    return Slice(to_bytes(np.ascontiguousarray(upright), low, high), aspect, values_sha256(chosen))


def chosen_slice(count: int, slice_index: int | None) -> int:
    """The slice asked for, or the middle one. BadImage where there is no such slice."""
    if slice_index is None:
        return count // 2
    if not 0 <= slice_index < count:
        raise BadImage(f"has {count} slices; slice {slice_index} was asked for (the first is 0)")
    return slice_index


def values_sha256(values: Shaped[np.ndarray, "..."]) -> str:
    """SHA-256 of an array's type, shape and values."""
    digest = hashlib.sha256(f"{values.dtype.str} {values.shape}\n".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _VolumeFile:
    """A file by what it is on the disk: its path may be a link that is different every time."""

    device: int
    inode: int
    modified_ns: int
    size: int
    path: Path = field(compare=False)


@lru_cache(maxsize=1)
def _volume(file: _VolumeFile) -> tuple[Volume, tuple[float, float]]:
    """The last volume and its range: rows of a volume's slices follow each other, and reading it takes seconds."""
    try:
        volume = read_image([file.path], 1)
    except UserError as error:
        reason = " ".join(str(error).split()).replace(str(file.path), "").lstrip(": ")
        raise BadImage(f"the volume {reason}") from None
    voxels = volume.voxels
    return volume, robust_range(voxels[voxels != 0])


def _upright(
    pixels: Float32[np.ndarray, "y x"], direction: Float[np.ndarray, "3 3"], spacing: tuple[float, ...]
) -> tuple[Float32[np.ndarray, "..."], float]:
    """(the slice turned for display, height of its pixels divided by their width).

    direction, spacing : of the volume's grid, axes (z, y, x); world axes right, anterior, superior. The vertical axis
    of the picture is the patient's head-foot axis, or front-back in a slice that lies across it; rows go to foot or
    back, columns to the left or back.
    """
    across = int(np.argmax(np.abs(direction[:, 0])))
    horizontal_world, vertical_world = (axis for axis in range(_WORLD_AXES) if axis != across)
    if across == 0:
        horizontal_world, vertical_world = 1, 2
    rows, columns = (1, 2) if abs(direction[vertical_world, 1]) >= abs(direction[vertical_world, 2]) else (2, 1)
    turned = pixels if rows == 1 else pixels.T
    if direction[vertical_world, rows] > 0:
        turned = turned[::-1]
    if direction[horizontal_world, columns] > 0:
        turned = turned[:, ::-1]
    return turned, spacing[rows] / spacing[columns]


def _shown(
    values: Shaped[np.ndarray, "y x"], reader: Any, window: Window | None  # noqa: ANN401
) -> UInt8[np.ndarray, "y x"]:
    """Gray values of a frame as bytes; see `read_dicom`."""
    own = _own_window(reader)
    for low, high in [_as_inverted(reader, *window_range(*shown)) for shown in (own, window) if shown is not None]:
        pixels = to_bytes(values, low, high)
        if high > low and pixels.min() < pixels.max():
            return pixels
    if values.dtype == np.uint8:
        return values
    padding = _number(reader, "0028|0120")
    if padding is None:
        return to_bytes(values, *robust_range(values))
    slope, intercept = _rescale(reader)
    padded = _as_inverted(reader, *[padding * slope + intercept] * 2)[0]
    return to_bytes(values, *robust_range(values[values != padded]))


def _own_window(reader: Any) -> Window | None:  # noqa: ANN401
    center, width = _number(reader, "0028|1050"), _number(reader, "0028|1051")
    return None if center is None or width is None else (center, width)


def _rescale(reader: Any) -> tuple[float, float]:  # noqa: ANN401
    slope, intercept = _number(reader, "0028|1053"), _number(reader, "0028|1052")
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def _as_inverted(reader: Any, low: float, high: float) -> tuple[float, float]:  # noqa: ANN401
    """A range of a MONOCHROME1 image in the values that GDCM gives.

    GDCM inverts the stored values before it rescales them: s becomes 2^bits - 1 - s, or -1 - s where they have a sign.
    """
    if _text(reader, "0028|0004") != "MONOCHROME1":
        return low, high
    slope, intercept = _rescale(reader)
    signed, bits = _number(reader, "0028|0103"), _number(reader, "0028|0101")
    largest = -1.0 if signed else 2.0 ** (bits or 16.0) - 1.0
    total = slope * largest + 2 * intercept
    return total - high, total - low


def _number(reader: Any, key: str) -> float | None:  # noqa: ANN401
    """The first number of an element, or None where it is missing or is no finite number."""
    try:
        value = float(_text(reader, key).split("\\")[0])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _text(reader: Any, key: str) -> str:  # noqa: ANN401
    return str(reader.GetMetaData(key)).strip(" \0") if reader.HasMetaDataKey(key) else ""


def _dicom_reader(path: Path) -> Any:  # noqa: ANN401 (SimpleITK has no types)
    simple_itk = _simple_itk()
    reader = simple_itk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _simple_itk() -> Any:  # noqa: ANN401
    """SimpleITK, imported when first needed, without its warnings on stderr."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
