"""Image files ↔ voxels in array order (z, y, x): the only entrance to file formats and their axis orders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float32, Integer, Shaped

from autoseg.data.content import Content, Stated
from autoseg.data.labels import smallest_type
from autoseg.data.metaimage import IMAGE_IO, read_itk, write_itk
from autoseg.data.nifti import read_nifti, write_nifti
from autoseg.data.pictures import PictureHeader, fit_channels, read_label_picture, read_picture, write_picture
from autoseg.errors import UserError
from autoseg.geometry import Grid, grid_differences
from autoseg.records import storage_error

PICTURE_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
READERS: dict[str, Callable[[Path], Content]] = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".hdr": read_nifti,
    **{ending: partial(read_itk, image_io=image_io) for ending, image_io in IMAGE_IO.items()},
    **dict.fromkeys(PICTURE_ENDINGS, read_picture),
}
LABEL_READERS: dict[str, Callable[[Path], Content]] = {
    **READERS,
    **dict.fromkeys(PICTURE_ENDINGS, read_label_picture),
}
WRITERS: dict[str, Callable[[np.ndarray, Grid, object, Path], None]] = {
    ".nii.gz": write_nifti,
    ".nii": write_nifti,
    ".hdr": write_nifti,
    **dict.fromkeys(IMAGE_IO, write_itk),
    **dict.fromkeys(PICTURE_ENDINGS, write_picture),
}
SUPPORTED_ENDINGS = tuple(READERS)
# Formats in two files: the file that names the case, and the endings of the file with its voxels.
VOXEL_ENDINGS = {".hdr": (".img",), ".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz")}
INTEGER_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Volume:
    """An image or labels in memory.

    Attributes
    ----------
    voxels : (channel, z, y, x), the file's axes reversed, never reoriented; 2-D images are (channel, 1, y,
        x).
    grid : where the voxels lie; mm, RAS+.
    header : opaque; what `write_labels` needs to write a file on exactly the same grid.
    stated : how much of the grid the file states: "position" (all), "spacing", or "shape" (a PNG); the rest
        is assumed.
    """

    voxels: Shaped[np.ndarray, "channel z y x"]
    grid: Grid
    header: object
    stated: Stated = "position"


def ending_of(path: Path) -> str:
    """The ending that names the format (".nii.gz", ".png"), in lower case; UserError if it is unsupported."""
    name = path.name.lower()
    for ending in sorted(SUPPORTED_ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return ending
    is_lossy = name.endswith((".jpg", ".jpeg"))
    lossy = " JPEG loses detail: export the images again without loss." if is_lossy else ""
    pair = " Of a NIfTI pair, give the .hdr file." if name.endswith(".img") else ""
    raise UserError(f"{path}: files ending in '{path.suffix}' are not supported; expected one of "
                    f"{', '.join(SUPPORTED_ENDINGS)}.{lossy}{pair} Convert the file first.")


def files_of(path: Path) -> tuple[Path, ...]:
    """`path` and, of a format in two files, the file of the same name that holds its voxels."""
    endings = VOXEL_ENDINGS.get(path.suffix.lower(), ())
    beside = (path.with_suffix(ending.upper() if path.suffix.isupper() else ending) for ending in endings)
    return (path, *(file for file in beside if file.is_file()))


def read_image(paths: Sequence[Path], channel_count: int, channels_in_one_file: bool = False) -> Volume:
    """One case's image: one file per channel, or one file that holds all (an RGB picture, a 4-D volume).

    Returns
    -------
    Volume with float32 voxels, scaled by the file's slope and intercept.

    Raises
    ------
    UserError : a file that cannot be read, another number of channels than `channel_count`, a 4-D file where
        one channel per file was expected, NaN or infinity, channels on different grids.
    """
    together = channels_in_one_file or (len(paths) == 1 and channel_count > 1)
    if len(paths) != (1 if together else channel_count):
        raise UserError(f"{', '.join(str(path) for path in paths) or 'the case'}: {len(paths)} channel files "
                        f"were given; {1 if together else channel_count} expected. Add or remove channel "
                        "files (case_0000, case_0001, …).")
    contents = [READERS[ending_of(path)](path) for path in paths]
    per_file = channel_count if together else 1
    first = contents[0]
    for path, content in zip(paths[1:], contents[1:], strict=True):
        if found := volume_differences(content, first):
            raise UserError(f"{path}: not on the grid of channel 0 ({paths[0].name}): {'; '.join(found)}. "
                            "Resample or export the channels onto one grid.")
    if len(contents) == 1:
        image = _float_channels(first, per_file, paths[0])
    else:
        image = np.empty((channel_count, *first.grid.shape), np.float32)
        for channel, content in enumerate(contents):
            image[channel] = _float_channels(content, 1, paths[channel])[0]
    return Volume(image, first.grid, first.header, first.stated)


def read_labels(path: Path) -> Volume:
    """A label file: integer voxels (1, z, y, x); stored floats must be integers within 1e-6.

    Raises
    ------
    UserError : a file that cannot be read, several channels, values that are not integers.
    """
    content = LABEL_READERS[ending_of(path)](path)
    voxels = content.voxels
    if isinstance(content.header, PictureHeader):
        voxels = fit_channels(content, 1, path)
    if voxels.shape[0] != 1:
        raise UserError(f"{path} holds {voxels.shape[0]} channels; labels are one integer per voxel. "
                        "Merge the masks into one 3-D file with one value per label.")
    if (content.slope, content.intercept) != (1.0, 0.0):
        voxels = voxels * np.float64(content.slope) + np.float64(content.intercept)
    return Volume(_integers(voxels, path), content.grid, content.header, content.stated)


def write_labels(labels: Integer[np.ndarray, "z y x"], like: Volume, path: Path) -> None:
    """Write labels on the grid of `like`, in the format of `path`'s ending and the smallest type for them.

    In the format of `like` the header's geometry is kept bit for bit. The file is written in a folder beside
    `path` and moved there when it is whole: what stood at `path` is never damaged.

    Raises
    ------
    UserError : unsupported ending, a format that cannot hold the values or the grid, a full disk, no
        permission.
    """
    if labels.shape != like.grid.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit a grid of {like.grid.shape}")
    writer = WRITERS[ending_of(path)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            array = np.ascontiguousarray(labels, _type_of(labels))
            writer(array, like.grid, like.header, Path(folder) / path.name)
            # Some formats keep their voxels in a second file; the file that names the case comes last.
            for file in sorted(Path(folder).iterdir(), key=lambda written: written.name == path.name):
                file.replace(path.parent / file.name)
    except OSError as error:
        raise storage_error(error, path) from error


def volume_differences(one: Volume | Content, other: Volume | Content) -> list[str]:
    """What differs between two grids, one phrase each, of what both files state (of a PNG only the shape)."""
    stated = {one.stated, other.stated}
    count = 1 if "shape" in stated else 2 if "spacing" in stated else 4
    topics = ("shape", "spacing", "direction", "origin")[:count]
    return [phrase for phrase in grid_differences(one.grid, other.grid) if phrase.startswith(topics)]


def _float_channels(content: Content, channel_count: int, path: Path) -> Float32[np.ndarray, "channel z y x"]:
    """The file's channels as float32, scaled; UserError on another number of channels, NaN or infinity."""
    voxels = content.voxels
    if isinstance(content.header, PictureHeader):
        voxels = fit_channels(content, channel_count, path)
    elif voxels.shape[0] != channel_count:
        raise UserError(_channel_message(path, voxels.shape, channel_count))
    plain = (content.slope, content.intercept) == (1.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        if plain:
            image = voxels.astype(np.float32, copy=False)
        else:
            image = np.empty(voxels.shape, np.float32)
            for index in np.ndindex(voxels.shape[:2]):  # slice by slice: float64 only for a moment
                image[index] = voxels[index] * np.float64(content.slope) + np.float64(content.intercept)
    if (voxels.dtype.kind == "f" or not plain) and not np.isfinite((image.min(), image.max())).all():
        bad_nan, bad_inf = int(np.isnan(image).sum()), int(np.isinf(image).sum())
        raise UserError(f"{path} holds {bad_nan} NaN and {bad_inf} infinite voxels; finite numbers were "
                        "expected. Replace them (by 0 or by the air's value) or remove the case.")
    return np.ascontiguousarray(image)


def _channel_message(path: Path, shape: tuple[int, ...], channel_count: int) -> str:
    if channel_count == 1:
        return (f"{path} is 4-D: {shape[0]} volumes of {shape[1:]} voxels (z, y, x); a 3-D image was "
                "expected. Export each channel as its own file (case_0000, case_0001, …), or one time frame "
                "as a 3-D image.")
    return (f"{path} holds {shape[0]} channels; {channel_count} were expected (channel_names in "
            "dataset.json). Store one 3-D file per channel, or all channels in one 4-D file.")


def _integers(voxels: np.ndarray, path: Path) -> Integer[np.ndarray, "channel z y x"]:
    if voxels.dtype.kind in "iu":
        return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    rounded = np.rint(voxels)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(voxels - rounded) <= INTEGER_TOLERANCE)
    if wrong.any():
        value = voxels[wrong][0]
        raise UserError(f"{path}: {int(wrong.sum())} voxels are not integers, the first is {value:.6g}; "
                        "labels are integers. Was the mask interpolated? Export it with nearest-neighbour "
                        "resampling.")
    largest = float(np.abs(rounded).max(initial=0))
    if largest >= 2**31:
        raise UserError(f"{path}: the value {largest:.6g} is no label; integers below 2147483648 were "
                        "expected. Is this an intensity image?")
    whole: np.ndarray = rounded.astype(np.int32)
    return whole.astype(_type_of(whole), copy=False)


def _type_of(labels: Integer[np.ndarray, "..."]) -> type[np.integer]:
    return smallest_type(int(labels.min(initial=0)), int(labels.max(initial=0)))
