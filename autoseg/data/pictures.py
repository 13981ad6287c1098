"""PNG, BMP and TIFF: 2-D grey, palette, RGB and RGBA pictures of 8 or 16 bits, and 3-D TIFF stacks."""

import importlib.util
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped

from autoseg.data.content import Content, check_file, plain_grid, unreadable
from autoseg.data.metaimage import read_itk
from autoseg.errors import UserError
from autoseg.geometry import Grid, SpacingMm
from autoseg.records import read_json, write_json

logger = logging.getLogger("autoseg")

_PILLOW_FORMATS = {".png": "PNG", ".bmp": "BMP"}
_TIFFFILE_COMPRESSIONS = {1, 8, 32946}  # none and zlib
# What Pillow, tifffile (TiffFileError is its own) and imagecodecs raise on damaged files.
_DECODING_ERRORS = (ValueError, SyntaxError, RuntimeError, EOFError, KeyError, IndexError, struct.error,
                    zlib.error)
_GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "F")


@dataclass(frozen=True)
class PictureHeader:
    """`sidecar`: a stack's spacing stood in `<case>.json` beside it, so labels get such a file, too."""

    sidecar: bool = False


def read_picture(path: Path) -> Content:
    """A picture's grey values or colours (a palette's colours, too) as channels.

    A 3-D TIFF stack has the spacing of its sidecar `<case>.json` ({"spacing": [z, y, x]} in mm, as
    nnU-Net's; the case is the name without channel number), else 1 mm and a log line. 2-D pictures have a
    spacing of 1.

    Raises
    ------
    UserError : not of the format that the ending names, damaged, neither grey nor RGB(A), a sidecar without
        spacing.
    """
    name = _stem(path)
    return _content(path, _pixels(path, palette_as_colors=True), (re.sub(r"_\d{4}$", "", name), name))


def read_label_picture(path: Path) -> Content:
    """As `read_picture`, but a palette's indices are the voxels; the sidecar is named as the labels."""
    return _content(path, _pixels(path, palette_as_colors=False), (_stem(path),))


def write_picture(labels: Integer[np.ndarray, "z y x"], grid: Grid, header: object, path: Path) -> None:
    """Labels as PNG or BMP (2-D), or TIFF (2-D, or a stack with its spacing in a sidecar if its source had
    one).

    Raises
    ------
    UserError : values below 0 or too large for the format; a volume as PNG or BMP.
    """
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    largest = 255 if path.suffix.lower() == ".bmp" else 65535
    if low < 0 or high > largest:
        raise UserError(f"{path.name}: labels from {low} to {high} were to be written; this format holds 0 "
                        f"to {largest}. Choose .nii.gz, or declare other values in dataset.json.")
    pixels = labels.astype(np.uint8 if high <= 255 else np.uint16, copy=False)
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        array = pixels[0] if grid.is_2d else pixels
        tifffile.imwrite(path, array, compression="zlib", photometric="minisblack")
        if isinstance(header, PictureHeader) and header.sidecar:
            write_json({"spacing": list(grid.spacing)}, path.with_suffix(".json"))
        return
    if pixels.shape[0] != 1:
        raise UserError(f"{path.name}: a volume of {pixels.shape[0]} slices does not fit into a 2-D picture. "
                        "Choose .nii.gz or .tif.")
    from PIL import Image

    Image.fromarray(pixels[0]).save(path)


def fit_channels(content: Content, channel_count: int, path: Path) -> Shaped[np.ndarray, "channel z y x"]:
    """The picture's channels as the dataset declares them.

    An alpha channel that hides nothing is dropped, and equal colour channels are one grey channel.

    Raises
    ------
    UserError : another number of channels; transparency where no alpha channel is declared.
    """
    voxels = content.voxels
    found = voxels.shape[0]
    if found in (2, 4) and channel_count < found:
        opaque = np.iinfo(voxels.dtype).max if voxels.dtype.kind in "iu" else 1
        if (hidden := int((voxels[-1] != opaque).sum())) > 0:
            raise UserError(f"{path}: {hidden} pixels are transparent (alpha below {opaque}), but "
                            f"{channel_count} channels without alpha are declared. Save it without "
                            "transparency, or declare alpha as a channel.")
        voxels = voxels[:-1]
    if voxels.shape[0] == 3 and channel_count == 1 and (voxels == voxels[:1]).all():
        voxels = voxels[:1]
    if voxels.shape[0] != channel_count:
        raise UserError(f"{path} holds {found} channels; {channel_count} were expected (channel_names in "
                        "dataset.json). Declare as many channels as the pictures have, or convert the "
                        "pictures.")
    return voxels


def _content(path: Path, voxels: np.ndarray, sidecars: tuple[str, ...]) -> Content:
    """(channel, y, x) pixels or (channel, z, y, x) voxels with their grid."""
    if voxels.ndim == 3:
        voxels = voxels[:, None]
        return Content(voxels, plain_grid(voxels.shape[1:], is_2d=True), PictureHeader(), "shape")
    for name in sidecars:
        if (sidecar := path.with_name(f"{name}.json")).exists():
            grid = plain_grid(voxels.shape[1:], _sidecar_spacing(sidecar))
            return Content(voxels, grid, PictureHeader(sidecar=True), "spacing")
    logger.info("%s: no %s.json states the spacing, so 1 mm is assumed along every axis", path, sidecars[0])
    return Content(voxels, plain_grid(voxels.shape[1:]), PictureHeader(), "shape")


def _sidecar_spacing(path: Path) -> SpacingMm:
    content = read_json(path, 'It should hold {"spacing": [z, y, x]} in mm.')
    spacing = content.get("spacing") if isinstance(content, dict) else None
    items = spacing if isinstance(spacing, list) else []
    numbers = [value for value in items if isinstance(value, int | float)]
    if len(items) != 3 or len(numbers) != 3 or not all(0 < value < float("inf") for value in numbers):
        raise UserError(f"{path}: the spacing is {spacing}; three positive numbers were expected. "
                        'Write {"spacing": [z, y, x]} in mm.')
    return tuple(float(value) for value in numbers)


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix)


def _pixels(path: Path, palette_as_colors: bool) -> np.ndarray:
    """(channel, y, x), or (channel, z, y, x) for a stack."""
    check_file(path)
    suffix = path.suffix.lower()
    expected = _PILLOW_FORMATS.get(suffix, "TIFF")
    try:
        if expected == "TIFF":
            pixels = _tiff_pixels(path)
        elif _is_deep_color_png(path):  # Pillow would cut these to 8 bits
            pixels = read_itk(path, "PNGImageIO").voxels[:, 0]
        else:
            pixels = _pillow_pixels(path, expected, palette_as_colors)
    except OSError as error:
        raise unreadable(path, expected, error.strerror or error) from None
    except _DECODING_ERRORS as error:
        raise unreadable(path, expected, error) from None
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def _pillow_pixels(path: Path, expected: str, palette_as_colors: bool) -> np.ndarray:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # whole-slide pictures are large on purpose
    with Image.open(path) as image:
        if image.format != expected:
            raise ValueError(f"its content is {image.format}")
        if image.mode == "P" and palette_as_colors:
            colors = image.convert("RGBA" if "transparency" in image.info else "RGB")
            return _channels_first(np.asarray(colors))
        if image.mode not in (*_GREY_MODES, "P", "LA", "RGB", "RGBA"):
            raise ValueError(f"its colour mode is {image.mode}; grey, palette, RGB or RGBA was expected")
        return _channels_first(np.asarray(image))


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]


def _is_deep_color_png(path: Path) -> bool:
    """A PNG with several channels of 16 bits (its header: width, height, depth, colour type from byte 16)."""
    if path.suffix.lower() != ".png":
        return False
    with path.open("rb") as stream:
        start = stream.read(26)
    return start.startswith(b"\x89PNG") and start[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def _tiff_pixels(path: Path) -> np.ndarray:
    """The pixels of a TIFF's only image, samples first."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError(f"it holds {len(file.series)} images of different shapes; one was expected")
        series = file.series[0]
        axes, shape = series.axes, series.shape
        codec = {page.compression for page in series.pages if page is not None}
        pixels = _pillow_frames(path, shape) if _needs_pillow(codec) else np.asarray(series.asarray())
    samples = [position for position, letter in enumerate(axes) if letter in "SC"]
    pixels = np.moveaxis(pixels, samples[0], 0) if samples else pixels[None]
    if len(samples) > 1 or pixels.ndim not in (3, 4) or pixels.dtype.kind not in "biuf":
        raise ValueError(f"it holds {pixels.dtype} values on axes {axes} of {shape}; a 2-D picture or a 3-D "
                         "stack was expected")
    return pixels


def _needs_pillow(compressions: set[int]) -> bool:
    """Whether tifffile lacks the package imagecodecs for a compression that Pillow's libtiff knows."""
    return importlib.util.find_spec("imagecodecs") is None and not compressions <= _TIFFFILE_COMPRESSIONS


def _pillow_frames(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        frames = [np.array(frame) for frame in ImageSequence.Iterator(image)]
    pixels = frames[0] if len(frames) == 1 else np.stack(frames)
    if pixels.shape != shape:
        raise ValueError("its compression needs another package here; install it: pip install imagecodecs")
    return pixels
