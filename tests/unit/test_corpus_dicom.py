"""DICOM files become what a viewer shows: against pydicom, which also writes them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.corpus.image_files import BadImage, ImageFile
from vlm.corpus.images import encode_image, inspect_image
from vlm.corpus.windowing import robust_range, to_bytes

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pydicom.pixels")


def dicom(pixels: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 16, **elements: object) -> bytes:
    """A file of secondary capture with these elements; pixels are [frame,] y, x[, color]."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
    is_color = pixels.shape[-1] == 3
    shape = pixels.shape[:-1] if is_color else pixels.shape
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = shape[-2:]
    if len(shape) == 3:
        data.NumberOfFrames = shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3 if is_color else 1), photometric
    if is_color:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * pixels.itemsize, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def shown(data: bytes | Path, *arguments) -> np.ndarray:
    encoded = encode_image(data, *arguments)
    assert encoded.form == "png" and encoded.reencoded
    return np.asarray(Image.open(io.BytesIO(encoded.data)))


def viewer(data: bytes) -> np.ndarray:
    """What pydicom makes of it: rescaled, windowed, inverted, 0 … 255."""
    from pydicom.pixels import apply_modality_lut, apply_windowing

    content = pydicom.dcmread(io.BytesIO(data))
    values = apply_windowing(apply_modality_lut(content.pixel_array, content), content)
    kind = np.dtype(content.pixel_array.dtype)
    slope, intercept = float(content.get("RescaleSlope", 1)), float(content.get("RescaleIntercept", 0))
    # pydicom's window ends at the smallest and largest value that the stored bits can hold, rescaled
    low, high = (0, 2**content.BitsStored - 1) if kind.kind == "u" else (
        -(2 ** (content.BitsStored - 1)), 2 ** (content.BitsStored - 1) - 1)
    share = (values - (low * slope + intercept)) / ((high - low) * slope)
    return 255 * ((1 - share) if content.PhotometricInterpretation == "MONOCHROME1" else share)


RAMP = np.tile(np.arange(0, 4096, 16, dtype=np.uint16), (40, 1)) + np.arange(40, dtype=np.uint16)[:, None] // 4


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -1024},
                                     {"RescaleSlope": 0.5, "RescaleIntercept": 3}])
def test_windows_are_those_of_pydicom(photometric, signed, rescale):
    pixels = RAMP.astype(np.int16) - 2000 if signed else RAMP
    data = dicom(pixels, photometric, 16 if signed else 12, WindowCenter=[40, 900], WindowWidth=[400, 10], **rescale)
    assert np.abs(shown(data).astype(float) - viewer(data)).max() <= 0.51
    # the file's own window goes before the card's
    assert np.array_equal(shown(data, None, (-600.0, 1500.0)), shown(data))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_window_of_the_card_is_used_where_the_file_has_none(photometric):
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    bare = dicom(RAMP, photometric, 12, **rescale)
    windowed = dicom(RAMP, photometric, 12, WindowCenter=40, WindowWidth=400, **rescale)
    assert np.array_equal(shown(bare, None, (40.0, 400.0)), shown(windowed))
    assert not np.array_equal(shown(bare), shown(windowed))


def test_without_a_window_12_bits_keep_their_gradient():
    row = shown(dicom(RAMP, bits=12))[20].astype(int)
    assert (np.diff(row) >= 0).all() and row[0] == 0 and row[-1] == 255 and len(np.unique(row)) > 240
    inverted = shown(dicom(RAMP, "MONOCHROME1", bits=12))[20].astype(int)
    assert (np.diff(inverted) <= 0).all() and inverted[0] == 255 and inverted[-1] == 0


@pytest.mark.parametrize("window", [{"WindowCenter": 20000, "WindowWidth": 10}, {"WindowCenter": 100, "WindowWidth": 0},
                                    {"WindowCenter": 100}])
def test_a_window_that_shows_nothing_is_passed_over(window):
    assert np.array_equal(shown(dicom(RAMP, bits=12, **window)), shown(dicom(RAMP, bits=12)))


def test_padding_does_not_shape_the_window():
    padded = RAMP.astype(np.int16)
    padded[:, :100] = -32768
    low, high = robust_range(padded[:, 100:])
    assert np.array_equal(shown(dicom(padded, PixelPaddingValue=-32768)), to_bytes(padded, low, high))


def test_eight_bits_without_a_window_stay_as_they_are():
    pixels = (RAMP // 32 + 20).astype(np.uint8)
    assert np.array_equal(shown(dicom(pixels, bits=8)), pixels)
    assert np.array_equal(shown(dicom(pixels, "MONOCHROME1", bits=8)), 255 - pixels)


def test_color_stays_color():
    colors = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    assert np.array_equal(shown(dicom(colors, "RGB", 8)), colors)
    from pydicom.pixels import convert_color_space

    expected = convert_color_space(colors, "YBR_FULL", "RGB").astype(int)
    assert np.abs(shown(dicom(colors, "YBR_FULL", 8)) - expected).max() <= 1


def test_frames_by_index_and_the_middle_one():
    frames = np.random.default_rng(0).integers(0, 4096, (5, 30, 40)).astype(np.uint16)
    data = dicom(frames, bits=12)
    for index, frame in enumerate(frames):
        assert np.array_equal(shown(data, index), to_bytes(frame, *robust_range(frame)))
    assert np.array_equal(shown(data), shown(data, 2))
    assert len({inspect_image(data, index).sha256 for index in range(5)}) == 5
    with pytest.raises(BadImage, match="has 5 slices; slice 5"):
        inspect_image(data, 5)


def test_pixels_that_are_not_square():
    encoded = encode_image(dicom(RAMP, bits=12, PixelSpacing=[2.0, 1.0]))
    assert (encoded.width, encoded.height) == (256, 80)


def test_files_by_content_and_determinism(tmp_path):
    data = dicom(RAMP, bits=12)
    (tmp_path / "IM00001").write_bytes(data)
    found = inspect_image(ImageFile(tmp_path, "IM00001"))
    assert found.sha256 == inspect_image(data).sha256 and found.reencoded and found.form == "png"
    assert encode_image(ImageFile(tmp_path, "IM00001")) == encode_image(data)
    assert (found.width, found.height) == (256, 40)
    small = encode_image(data, long_side=128)
    assert (small.width, small.height, small.form) == (128, 20, "png")


def test_damaged_blank_and_tiny_files_are_refused():
    data = dicom(RAMP, bits=12)
    for share in (0.1, 0.5, 0.99):
        with pytest.raises(BadImage, match="damaged DICOM"):
            inspect_image(data[: int(len(data) * share)])
    with pytest.raises(BadImage, match="blank"):
        inspect_image(dicom(np.full((40, 40), 7, np.uint16)))
    with pytest.raises(BadImage, match="1 × 1 pixels"):
        inspect_image(dicom(np.full((1, 1), 7, np.uint16)))
