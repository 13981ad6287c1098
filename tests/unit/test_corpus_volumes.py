"""Slices of NIfTI files: how they are drawn, windowed and hashed; windows of values with more than 8 bits."""

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from vlm.corpus.images import BadImage, EncodedImage, encode_image, inspect_image
from vlm.corpus.windowing import robust_range, to_bytes, window_range


def pixels_of(encoded: EncodedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded.data)))


def test_window_range_is_that_of_dicom():
    assert window_range(40.0, 400.0) == (-160.0, 239.0)
    values = np.array([-2000.0, -160.0, 39.5, 239.0, 3000.0, np.nan])
    assert to_bytes(values, *window_range(40.0, 400.0)).tolist() == [0, 0, 128, 255, 255, 0]


@pytest.mark.parametrize("values", [np.array([], np.float32), np.full(5, np.nan, np.float32), np.full(9, 7, np.uint16)])
def test_ranges_of_nothing_do_not_fail(values):
    low, high = robust_range(values)
    assert low == high and (to_bytes(values, low, high) == 0).all()


def test_a_small_range_is_shown_in_full():
    assert robust_range(np.r_[np.full(9999, 100), 355].astype(np.int16)) == (100.0, 355.0)
    assert robust_range(np.r_[np.zeros(9999), 5000].astype(np.int16)) == (0.0, 5000.0)  # all percentiles are equal


AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


def written_nifti(path: Path, ras: np.ndarray, codes: str) -> None:
    """A volume given in the axes right, anterior, superior, stored along other axes."""
    image = nibabel.Nifti1Image(ras, np.diag([1.0, 1.0, 1.0, 1.0]))
    target = nibabel.orientations.axcodes2ornt(codes)
    nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), target)),
                 path)


@pytest.mark.parametrize(("codes", "expected"), [
    ("RAS", "axial"), ("LPS", "axial"), ("ARI", "axial"), ("RSA", "coronal"), ("SLP", "coronal"), ("PIR", "sagittal"),
    ("ASL", "sagittal"),
])
def test_nifti_slices_are_drawn_as_radiologists_draw_them(tmp_path, codes, expected):
    ras = np.zeros((32, 40, 48), np.float32)
    ras += np.arange(32)[:, None, None] * 1.0 + np.arange(40)[None, :, None] * 100.0 + np.arange(48) * 10000.0
    written_nifti(tmp_path / "v.nii.gz", ras, codes)
    axis = AXES[expected]
    middle = ras.shape[axis] // 2 - (codes[2] in "LPI")  # the slowest axis runs the other way
    plane = ras.take(middle, axis)
    drawn = plane.T[::-1, ::-1]  # rows from head or front, columns from the right or the front
    low, high = robust_range(ras[ras != 0])
    stored = pixels_of(encode_image(tmp_path / "v.nii.gz"))
    assert np.array_equal(stored, to_bytes(np.ascontiguousarray(drawn), low, high))


def test_nifti_slices_windows_and_hashes(tmp_path):
    hounsfield = np.random.default_rng(0).integers(-1000, 1500, (40, 30, 5)).astype(np.int16)
    hounsfield[:, :, 4] = -1000
    nibabel.save(nibabel.Nifti1Image(hounsfield, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "ct.nii")
    found = [inspect_image(tmp_path / "ct.nii", index, (40.0, 400.0)) for index in range(4)]
    assert len({image.sha256 for image in found}) == 4 and {image.form for image in found} == {"png"}
    shown = pixels_of(encode_image(tmp_path / "ct.nii", 2, (40.0, 400.0)))
    assert np.array_equal(shown, to_bytes(hounsfield[:, :, 2].T.astype(np.float32), -160.0, 239.0))
    assert inspect_image(tmp_path / "ct.nii") .sha256 == found[2].sha256  # the middle one
    with pytest.raises(BadImage, match="has 5 slices; slice 5"):
        inspect_image(tmp_path / "ct.nii", 5)
    with pytest.raises(BadImage, match="blank"):
        inspect_image(tmp_path / "ct.nii", 4)
    data = (tmp_path / "ct.nii").read_bytes()
    assert inspect_image(data, 1, (40.0, 400.0)).sha256 == found[1].sha256
    with pytest.raises(BadImage, match="volume cannot be read as NIfTI: it ends after"):
        inspect_image(data[:-100], 1)


def test_nifti_pixels_become_square(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((40, 20, 3)).astype(np.float32),
                                     np.diag([-1.0, -2.5, 1.0, 1.0])), tmp_path / "v.nii.gz")
    encoded = encode_image(tmp_path / "v.nii.gz")
    assert (encoded.width, encoded.height) == (40, 50)


def test_volumes_with_several_values_per_voxel_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 4, 6), np.float32), np.eye(4)), tmp_path / "v.nii.gz")
    with pytest.raises(BadImage, match="the volume is 4-D") as caught:
        inspect_image(tmp_path / "v.nii.gz")
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
