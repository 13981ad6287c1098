"""JPEG, PNG, BMP, GIF, TIFF and WebP: which files may be kept as they are, and how the others become 8 bits."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from vlm.corpus.image_files import MAX_PIXELS, BadImage, check_size
from vlm.corpus.volumes import Window, chosen_slice
from vlm.corpus.windowing import robust_range, to_bytes, window_range

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")

HASHED_SIDE = 256
"""JPEGs are decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that leaves both sides at least this long: four times
the 64 pixels that are hashed. Against decoding in full, 0 to 4 of 256 bits differed in 60 images that were
enlarged to 2048 pixels."""

_ORIENTATION = 0x0112
_MIN_IS_WHITE = 0
_PHOTOMETRIC = 262
_COMPRESSION = 259
_LOSSY_TIFF = (6, 7, 34933, 50001)  # JPEG (old and new), WebP
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TRANSPARENT_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_COLOR_MODES = ("P", "CMYK", "YCbCr", "RGBX")
_NO_IMAGES = (
    (b"<", "HTML or XML (a download page?)"), (b"PK\3\4", "a ZIP archive"), (b"\x1f\x8b", "gzip-compressed data"),
    (b"%PDF", "a PDF"), (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"), (b"{", "JSON or text"),
)


@contextmanager
def opened_picture(data: bytes) -> Iterator[Image.Image]:
    """The picture, its pixels not yet decoded. Whatever goes wrong inside the `with` becomes a BadImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures are refused below, odd metadata are of no concern
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_size(*image.size)
                yield image
        except BadImage:
            raise
        except Image.DecompressionBombError:
            raise BadImage(f"has more than {MAX_PIXELS // 10**6} million pixels, the limit") from None
        except Image.UnidentifiedImageError:
            raise BadImage(_not_an_image(data)) from None
        except Exception as error:  # Pillow's decoders raise nearly every kind of error on damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadImage(f"is damaged or cut short ({reason})") from None


def stored_form(image: Image.Image, data: bytes) -> Literal["jpg", "png"] | None:
    """ "jpg" or "png" where the file can be kept byte for byte: 8 bits, gray or RGB, upright; else None."""
    if image.mode not in ("L", "RGB") or _orientation(image) != 1:
        return None
    if image.format in ("JPEG", "MPO"):
        return "jpg"
    eight_bits = image.format == "PNG" and data[24:25] == b"\x08"  # the depth in the header: Pillow widens 2 and 4 bits
    return "png" if eight_bits else None


def is_lossy(image: Image.Image, data: bytes) -> bool:
    """Whether the file's compression loses detail, so that a JPEG may take its place."""
    if image.format == "TIFF":
        return image.tag_v2.get(_COMPRESSION) in _LOSSY_TIFF
    return image.format in ("JPEG", "MPO") or (image.format == "WEBP" and b"VP8L" not in data[:4096])


def eight_bits(image: Image.Image, window: Window | None) -> Image.Image:
    """The picture as 8-bit gray or RGB, upright.

    Transparent pixels become white: transparency is met in figures of publications, which are drawn to stand on
    white paper. Palettes (but of grays) and CMYK become RGB, 1 bit becomes gray. More than 8 bits of gray are shown in
    `window` where the values have a sign or a fraction (they may be Hounsfield units), else in their robust range. Of
    RGB with 16 bits the upper 8 are taken.

    BadImage: damaged, or a color space that is not known here.
    """
    image.load()
    upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
    if upright.mode in ("L", "RGB"):
        return upright
    if upright.mode == "1":
        return upright.convert("L")
    if upright.mode in _DEEP_MODES:
        return _windowed(upright, image, window)
    if upright.mode in _TRANSPARENT_MODES or "transparency" in upright.info:
        return _on_white(upright)
    if upright.mode in _COLOR_MODES:
        return upright.convert("L" if _has_gray_palette(upright) else "RGB")
    raise BadImage(f"has the color mode {upright.mode}; gray, RGB, palette or CMYK was expected")


def chosen_frame(image: Image.Image, slice_index: int | None) -> str | None:
    """Go to a page of a file with several: SHA-256 of its pixels; None where it has one page or none was asked for.

    Where none is asked for, the first is taken: later pages are an animation's, or smaller copies.
    """
    count = int(getattr(image, "n_frames", 1)) if slice_index is not None else 1
    if slice_index is None or (count == 1 and slice_index == 0):
        return None
    image.seek(chosen_slice(count, slice_index))
    return hashlib.sha256(f"{image.mode} {image.size}\n".encode() + image.tobytes()).hexdigest()


def gray_for_hash(image: Image.Image) -> Image.Image:
    """Gray pixels of a picture that has not been decoded; a JPEG's at a smaller scale. Every byte of it is read."""
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        image.draft("L", (min(image.width, HASHED_SIDE), min(image.height, HASHED_SIDE)))
    image.load()
    return image if image.mode == "L" else image.convert("L")


def is_flat(image: Image.Image) -> bool:
    """Whether all pixels of a gray or RGB picture are equal."""
    return all(low == high for low, high in _extrema(image))


def refuse_blank(image: Image.Image) -> None:
    """BadImage where all pixels of a gray or RGB picture are equal."""
    if is_flat(image):
        raise BadImage(f"is blank: every pixel is {', '.join(str(low) for low, _ in _extrema(image))}")


def _extrema(image: Image.Image) -> tuple[tuple[int, int], ...]:
    """(lowest, highest) of each band."""
    found = image.getextrema()
    return found if isinstance(found[0], tuple) else (found,)


def _orientation(image: Image.Image) -> int:
    """1 … 8 of EXIF. Pillow turns TIFF pictures itself when it decodes them."""
    if image.format == "TIFF" or not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _has_gray_palette(image: Image.Image) -> bool:
    colors = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3) if image.mode == "P" else np.empty((0, 3))
    return bool(len(colors) and (colors == colors[:, :1]).all())


def _on_white(image: Image.Image) -> Image.Image:
    colored = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored)
    return flat.convert("L" if image.mode in ("LA", "La") else "RGB")


def _windowed(upright: Image.Image, image: Image.Image, window: Window | None) -> Image.Image:
    values = np.asarray(upright)
    low, high = robust_range(values)
    if window is not None and (values.dtype.kind == "f" or values.min() < 0):
        low, high = window_range(*window)
    pixels = to_bytes(values, low, high)
    is_negative = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _MIN_IS_WHITE
    return Image.fromarray(255 - pixels if is_negative else pixels)


def _not_an_image(data: bytes) -> str:
    kind = next((kind for magic, kind in _NO_IMAGES if data.lstrip()[: len(magic)] == magic), None)
    expected = "JPEG, PNG, BMP, GIF, TIFF, WebP, DICOM or NIfTI was expected"
    return f"is no image that can be read; {expected}" + (f", its content looks like {kind}" if kind else "")
