"""A mask lies on its image whatever the axes: file → Volume → mask file keeps the voxel → world mapping."""

import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autoseg.data.nifti import affine_of
from autoseg.data.volume import read_image, read_labels, volume_differences, write_labels
from autoseg.geometry import left_right_axis

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (3, 4, 5)  # file axes x, y, z


@st.composite
def affines(draw: st.DrawFn, sheared: bool = False) -> np.ndarray:
    """RAS affines: any axis order and handedness, any rotation, spacing 0.1 to 10 mm."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    matrix = np.eye(3)[list(draw(st.permutations(range(3))))] * draw(
        st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3).map(np.array)
    )
    if draw(st.booleans()):
        matrix = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() @ matrix
    if sheared:
        matrix[:, 2] += rng.uniform(0.05, 0.3) * matrix[:, 1]
        matrix[:, 2] /= np.linalg.norm(matrix[:, 2])
    affine = np.eye(4)
    affine[:3, :3] = matrix * rng.uniform(0.1, 10, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def itk_affine(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def save_nifti(path: Path, affine: np.ndarray, forms: str = "both") -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(SHAPE), affine)
    if forms in ("both", "qform"):
        image.set_qform(affine, 1)
    image.set_sform(affine, 2 if forms in ("both", "sform") else 0)
    nib.save(image, path)


def save_itk(path: Path, affine: np.ndarray) -> None:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(SHAPE[::-1]))
    image.SetSpacing(spacing)
    image.SetDirection((lps[:3, :3] / spacing).ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, str(path))


@settings(max_examples=30, deadline=None)
@given(affines(), st.sampled_from(("both", "sform", "qform")), st.sampled_from((".nii", ".nii.gz", ".hdr")))
def test_a_nifti_mask_has_its_images_header(affine: np.ndarray, forms: str, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, mask = Path(folder) / f"image{ending}", Path(folder) / f"mask{ending}"
        save_nifti(source, affine, forms)
        write_labels(np.zeros(SHAPE[::-1], np.uint8), read_image([source], 1), mask)
        before, after = nib.load(source), nib.load(mask)
        for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
                      "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):
            np.testing.assert_array_equal(after.header[field], before.header[field])
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(itk_affine(mask), itk_affine(source))


@settings(max_examples=20, deadline=None)
@given(affines(), st.sampled_from((".mha", ".nrrd", ".mhd", ".nhdr")))
def test_an_itk_mask_lies_on_its_image(affine: np.ndarray, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, mask = Path(folder) / f"image{ending}", Path(folder) / f"mask{ending}"
        save_itk(source, affine)
        write_labels(np.ones(SHAPE[::-1], np.uint8), read_image([source], 1), mask)
        np.testing.assert_allclose(itk_affine(mask), itk_affine(source), atol=1e-9)
        assert read_labels(mask).voxels.all()


@settings(max_examples=20, deadline=None)
@given(affines(), st.sampled_from((".mha", ".nrrd")))
def test_a_mask_in_another_format_lies_on_its_image(affine: np.ndarray, ending: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_nifti(folder / "image.nii.gz", affine)
        save_itk(folder / f"image{ending}", affine)
        one, other = read_image([folder / "image.nii.gz"], 1), read_image([folder / f"image{ending}"], 1)
        assert volume_differences(one, other) == []  # the same image, the same grid
        write_labels(np.zeros(SHAPE[::-1], np.uint8), one, folder / f"mask{ending}")
        write_labels(np.zeros(SHAPE[::-1], np.uint8), other, folder / "mask.nii.gz")
        np.testing.assert_allclose(itk_affine(folder / f"mask{ending}"), affine, atol=1e-3)
        np.testing.assert_allclose(nib.load(folder / "mask.nii.gz").affine, affine, atol=1e-3)
        np.testing.assert_allclose(itk_affine(folder / "mask.nii.gz"), affine, atol=2e-3)


@settings(max_examples=15, deadline=None)
@given(affines(sheared=True))
def test_a_sheared_grid_survives(affine: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_nifti(folder / "image.nii", affine, "sform")
        volume = read_image([folder / "image.nii"], 1)
        labels = np.zeros(SHAPE[::-1], np.uint8)
        write_labels(labels, volume, folder / "mask.nii")
        write_labels(labels, volume, folder / "mask.nrrd")
        kept = nib.load(folder / "image.nii").affine
        np.testing.assert_array_equal(nib.load(folder / "mask.nii").affine, kept)
        np.testing.assert_allclose(itk_affine(folder / "mask.nrrd"), affine, atol=1e-3)
        write_labels(labels, read_image([folder / "mask.nrrd"], 1), folder / "back.nii")
        np.testing.assert_allclose(nib.load(folder / "back.nii").affine, affine, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(affines())
def test_the_grid_is_nibabels_affine_with_axes_reversed(affine: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii"
        save_nifti(path, affine)
        grid = read_image([path], 1).grid
        np.testing.assert_allclose(affine_of(grid), nib.load(path).affine, rtol=1e-4, atol=1e-5)
        codes = nib.aff2axcodes(affine)
        if np.abs(affine[0, :3] / np.linalg.norm(affine[:3, :3], axis=0)).max() > 0.99:
            axis = next(index for index, code in enumerate(codes) if code in "LR")
            assert left_right_axis(grid) == 2 - axis


@settings(max_examples=10, deadline=None)
@given(affines(), st.sampled_from((".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")),
       st.sampled_from((".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")), st.integers(0, 2**31))
def test_labels_survive_any_two_formats(affine: np.ndarray, one: str, other: str, seed: int) -> None:
    labels = np.random.default_rng(seed).choice((-7, 0, 1, 300, 40000), SHAPE[::-1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_nifti(folder / "image.nii", affine)
        volume = read_image([folder / "image.nii"], 1)
        write_labels(labels, volume, folder / f"one{one}")
        write_labels(labels, read_labels(folder / f"one{one}"), folder / f"other{other}")
        back = read_labels(folder / f"other{other}")
        np.testing.assert_array_equal(back.voxels[0], labels)
        assert volume_differences(back, volume) == []


@pytest.mark.parametrize(("degrees", "axis"), [(0, 2), (30, 2), (60, 1), (90, 1), (180, 2)])
@pytest.mark.parametrize("ending", [".mha", ".nii.gz"])
def test_left_right_of_a_slice_is_the_axis_that_its_file_says(
    degrees: float, axis: int, ending: str, tmp_path: Path
) -> None:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    image = sitk.GetImageFromArray(np.zeros((4, 5), np.uint8))
    image.SetDirection((c, -s, s, c))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    assert left_right_axis(read_image([tmp_path / f"a{ending}"], 1).grid) == axis


def test_left_right_of_a_picture_is_x(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), str(tmp_path / "a.png"))
    assert left_right_axis(read_image([tmp_path / "a.png"], 1).grid) == 2


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".gipl"])
def test_voxels_are_in_simpleitks_order(ending: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    path = tmp_path / f"image{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    np.testing.assert_array_equal(read_image([path], 1).voxels[0], array)
