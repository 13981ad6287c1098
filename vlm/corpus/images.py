"""What is known of an image before a corpus is built of it, and the bytes that the corpus stores of it.

A JPEG or PNG of 8 bits, gray or RGB, is stored as it is found. Everything else becomes a JPEG (where the source had
lost detail already) or a PNG; metadata and color profiles are left behind. Equal input gives equal bytes.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt64
from PIL import Image

from vlm.corpus.fingerprints import perceptual_hashes
from vlm.corpus.image_files import (
    BadImage,
    ImageFile,
    ImageSource,
    OpenedImage,
    as_path,
    check_size,
    open_source,
    open_source_bytes,
)
from vlm.corpus.pictures import (
    chosen_frame,
    eight_bits,
    gray_for_hash,
    is_flat,
    is_lossy,
    opened_picture,
    refuse_blank,
    stored_form,
)
from vlm.corpus.volumes import VOLUME_NAMES, Window, read_dicom, read_nifti_slice, volume_kind

__all__ = ["BadImage", "EncodedImage", "ImageFile", "ImageSource", "InspectedImage", "encode_image", "inspect_image",
           "open_source_bytes"]

Form = Literal["jpg", "png"]

RESIZED_QUALITY = 92
REENCODED_QUALITY = 95
"""JPEG qualities, both without chroma subsampling, since stains and vessels are thin and colored. A picture that keeps
its size has been compressed before and shall not lose visibly again; one that is made smaller loses more by that."""

START_BYTES = 4096
"""Read to tell volumes from pictures: so much of a gzip stream holds a NIfTI header."""

LARGEST_ASPECT = 20.0
"""Pixels 20 times as high as wide are a header's mistake; 5 mm slices of 0.3 mm pixels are 17 times."""


@dataclass(frozen=True)
class InspectedImage:
    """sha256 : 64 hexadecimal digits of the file, or of the slice's values where the file holds several slices.
    phash, mirrored : perceptual hash of the image, and of it flipped left to right. width, height, form, reencoded : of
    what is stored without resizing.
    """

    sha256: str
    phash: UInt64[np.ndarray, "4"]
    mirrored: UInt64[np.ndarray, "4"]
    width: int
    height: int
    form: Form
    reencoded: bool


@dataclass(frozen=True)
class EncodedImage:
    """Bytes to store; `reencoded`: they are not the file's."""

    data: bytes
    form: Form
    width: int
    height: int
    reencoded: bool


def inspect_image(
    image: ImageSource, slice_index: int | None = None, window: Window | None = None
) -> InspectedImage:
    """Read all of an image: its hashes, and what would be stored of it.

    Parameters
    ----------
    slice_index : slice of a NIfTI file, frame of a DICOM file, page of a TIFF or GIF; None: the middle slice or frame,
        the first page.
    window : center and width for Hounsfield units that bring no window of their own.

    Raises
    ------
    BadImage : missing, empty, damaged or cut short, not an image, smaller than 16 pixels on a side, more than 100
        million pixels, one single value everywhere, outside its root, a slice that does not exist.
    """
    with open_source(image) as opened:
        start = opened.read(START_BYTES)
        if volume_kind(start) is not None:
            shown, digest = _volume_picture(opened, start, slice_index, window)
            phash, mirrored = perceptual_hashes(np.asarray(shown.convert("L")))
            return InspectedImage(digest, phash, mirrored, shown.width, shown.height, "png", True)
        data = start + opened.read()
    with opened_picture(data) as picture:
        frame_digest = chosen_frame(picture, slice_index)
        kept = stored_form(picture, data) if frame_digest is None else None
        shown = picture if kept is not None else eight_bits(picture, window)
        form = kept or _form(picture, data)
        width, height = shown.size  # before a JPEG is decoded at a smaller scale
        gray = gray_for_hash(shown)
    if is_flat(gray):  # the colors, or what the smaller scale has averaged, may still differ
        with opened_picture(data) as picture:
            chosen_frame(picture, slice_index)
            refuse_blank(eight_bits(picture, window))
    phash, mirrored = perceptual_hashes(np.asarray(gray))
    digest = frame_digest or hashlib.sha256(data).hexdigest()
    return InspectedImage(digest, phash, mirrored, width, height, form, kept is None)


def encode_image(
    image: ImageSource, slice_index: int | None = None, window: Window | None = None, long_side: int | None = None
) -> EncodedImage:
    """The bytes to store of an image that `inspect_image` has accepted (a file that is kept is not decoded again).

    Parameters
    ----------
    slice_index, window : as of `inspect_image`.
    long_side : pixels; a picture whose longer side is longer is made smaller (Lanczos, aspect kept). None: never.

    Raises
    ------
    BadImage : as of `inspect_image`; of a file that is kept, only what its header shows.
    """
    with open_source(image) as opened:
        start = opened.read(START_BYTES)
        if volume_kind(start) is not None:
            shown, _ = _volume_picture(opened, start, slice_index, window)
            return _encoded(shown, "png", _target(shown.size, long_side))
        data = start + opened.read()
    with opened_picture(data) as picture:
        frame_digest = chosen_frame(picture, slice_index)
        kept = stored_form(picture, data) if frame_digest is None else None
        size = picture.size
        if kept is not None and _target(size, long_side) == size:
            return EncodedImage(data, kept, picture.width, picture.height, False)
        form = kept or _form(picture, data)
        if kept == "jpg":  # a JPEG decoder makes it smaller at no cost; Lanczos does the last halving or two
            width, height = _target(size, long_side)
            picture.draft(None, (min(2 * width, size[0]), min(2 * height, size[1])))
        shown = eight_bits(picture, window)
    refuse_blank(shown)
    return _encoded(shown, form, _target(size if kept is not None else shown.size, long_side))


def _volume_picture(
    opened: OpenedImage, start: bytes, slice_index: int | None, window: Window | None
) -> tuple[Image.Image, str]:
    """(the picture of a slice, its hash). BadImage: too small, too large, blank, and as the reader says."""
    kind = volume_kind(start)
    if kind == "dicom":
        start += opened.read()
    read = read_dicom if kind == "dicom" else read_nifti_slice
    with as_path(opened, start, VOLUME_NAMES[kind or "dicom"]) as path:
        found = read(path, slice_index, window)
    height, width = found.pixels.shape[:2]
    check_size(width, height)
    picture = Image.fromarray(found.pixels)
    refuse_blank(picture)
    if 1 / LARGEST_ASPECT < found.aspect < LARGEST_ASPECT:
        square = (round(width * max(1 / found.aspect, 1)), round(height * max(found.aspect, 1)))
        check_size(*square)
        picture = picture if square == picture.size else picture.resize(square, Image.Resampling.LANCZOS)
    return picture, found.sha256 or hashlib.sha256(start).hexdigest()


def _form(picture: Image.Image, data: bytes) -> Form:
    """Of a picture that is not kept."""
    return "jpg" if is_lossy(picture, data) else "png"


def _target(size: tuple[int, int], long_side: int | None) -> tuple[int, int]:
    """(width, height) with a longer side of at most `long_side`."""
    longest = max(size)
    if long_side is None or longest <= long_side:
        return size
    return max(round(size[0] * long_side / longest), 1), max(round(size[1] * long_side / longest), 1)


def _encoded(picture: Image.Image, form: Form, size: tuple[int, int]) -> EncodedImage:
    """The picture at a size as a file without metadata."""
    is_resized = size != picture.size
    stored = picture.resize(size, Image.Resampling.LANCZOS) if is_resized else picture.copy()
    stored.info = {}  # Pillow would write color profiles, comments and resolutions
    stream = io.BytesIO()
    if form == "jpg":
        stored.save(stream, "JPEG", quality=RESIZED_QUALITY if is_resized else REENCODED_QUALITY, subsampling=0)
    else:
        stored.save(stream, "PNG")
    return EncodedImage(stream.getvalue(), form, stored.width, stored.height, True)
