"""Reading and writing image files: values, channels, pictures, 2-D, and files that are not what they seem."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from autoseg.data.volume import ending_of, read_image, read_labels, volume_differences, write_labels
from autoseg.errors import UserError

SHAPE = (4, 5, 6)


def nifti(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    return path


def refused(*needles: str):  # noqa: ANN201
    """A UserError whose message holds every needle."""
    return pytest.raises(UserError, match="(?s)" + "".join(f"(?=.*{needle})" for needle in needles))


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("kind", ["uint8", "int16", ">i2", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_are_the_files_with_axes_reversed(kind: str, version: type, tmp_path: Path) -> None:
    array = np.arange(120).reshape(SHAPE).astype(kind)
    image = version(array, np.diag([1.0, 2, 3, 1]))
    if kind == ">i2":
        image = version(array, np.eye(4), header=type(image.header)(endianness=">"))
        image.header.set_zooms((1, 2, 3))
        image.set_sform(np.diag([1.0, 2, 3, 1]), 1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_image([tmp_path / "a.nii.gz"], 1)
    np.testing.assert_array_equal(volume.voxels[0], array.T)
    assert volume.voxels.dtype == np.float32 and volume.voxels.flags.c_contiguous
    assert volume.grid.spacing == (3.0, 2.0, 1.0) and not volume.grid.is_2d


def test_slope_and_intercept_are_honored_for_images_and_labels(tmp_path: Path) -> None:
    stored = np.arange(120, dtype=np.int16).reshape(SHAPE)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nib.save(image, tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    assert nib.load(tmp_path / "a.nii").dataobj.slope == 2.0
    expected = nib.load(tmp_path / "a.nii").get_fdata().T
    np.testing.assert_allclose(read_image([tmp_path / "a.nii"], 1).voxels[0], expected)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.nii").voxels[0], np.rint(expected))
    assert raw == (tmp_path / "a.nii").read_bytes()


def test_spacing_is_the_affines_where_pixdim_disagrees(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([2.0, 3, 4, 1]))
    image.header["pixdim"][1:4] = 1
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[80:92] = np.ones(3, "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    assert read_image([tmp_path / "a.nii"], 1).grid.spacing == (4.0, 3.0, 2.0)


def test_channels_come_in_order_and_must_share_a_grid(tmp_path: Path) -> None:
    one = nifti(tmp_path / "c_0000.nii", np.full(SHAPE, 1, np.int16))
    two = nifti(tmp_path / "c_0001.nii", np.full(SHAPE, 2, np.int16))
    volume = read_image([one, two], 2)
    assert volume.voxels.shape == (2, *SHAPE[::-1]) and volume.voxels[:, 0, 0, 0].tolist() == [1, 2]
    nifti(two, np.full(SHAPE, 2, np.int16), (1.0, 2.0, 3.5))
    with refused("c_0001.nii", "spacing", "3.5", "against", "3.0"):
        read_image([one, two], 2)
    with refused("1 channel files were given; 2 expected|2 were expected"):
        read_image([one], 2)
    with refused("2 channel files", "1 expected"):
        read_image([one, two], 1)


def test_a_file_of_four_axes_holds_channels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 9, (*SHAPE, 3)).astype(np.int16)
    path = nifti(tmp_path / "a.nii.gz", voxels)
    np.testing.assert_array_equal(read_image([path], 3, channels_in_one_file=True).voxels, voxels.T)
    with refused("a.nii.gz", "4-D", "3 volumes", "3-D image was expected", "Export"):
        read_image([path], 1)
    with refused("a.nii.gz", "3 channels", "2 were expected"):
        read_image([path], 2, channels_in_one_file=True)
    with refused("a.nii.gz", "3 channels", "labels"):
        read_labels(path)


def test_a_fourth_axis_of_one_voxel_is_dropped(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", np.zeros((*SHAPE, 1), np.uint8))
    assert read_image([path], 1).voxels.shape == (1, *SHAPE[::-1])
    write_labels(np.zeros(SHAPE[::-1], np.uint8), read_image([path], 1), tmp_path / "m.nii.gz")
    assert nib.load(tmp_path / "m.nii.gz").shape == SHAPE


def test_itk_vectors_and_fourth_axes_are_channels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 9, (3, 4, 5, 2)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "vector.mha"))
    np.testing.assert_array_equal(read_image([tmp_path / "vector.mha"], 2).voxels, np.moveaxis(array, -1, 0))
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / "four.mha"))
    volume = read_image([tmp_path / "four.mha"], 3)
    np.testing.assert_array_equal(volume.voxels, array)
    write_labels(np.zeros((4, 5, 2), np.uint8), volume, tmp_path / "mask.mha")
    assert sitk.ReadImage(str(tmp_path / "mask.mha")).GetSize() == (2, 5, 4)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_two_dimensional_images_keep_their_spacing_and_dimension(ending: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(20, dtype=np.int16).reshape(4, 5))
    image.SetSpacing((0.5, 0.7))
    image.SetOrigin((3.0, 4.0))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    volume = read_image([tmp_path / f"a{ending}"], 1)
    assert volume.grid.is_2d and volume.voxels.shape == (1, 1, 4, 5)
    assert volume.grid.spacing == pytest.approx((1.0, 0.7, 0.5))
    assert volume.grid.origin[:2] == pytest.approx((-3.0, -4.0))
    for other in (".nii.gz", ".mha"):
        write_labels(np.arange(20).reshape(1, 4, 5), volume, tmp_path / f"m{other}")
        mask = sitk.ReadImage(str(tmp_path / f"m{other}"))
        assert mask.GetSize() == (5, 4)
        assert mask.GetSpacing() == pytest.approx((0.5, 0.7))
        assert mask.GetOrigin() == pytest.approx((3.0, 4.0))
        assert mask.GetDirection() == pytest.approx(image.GetDirection())
        assert volume_differences(read_labels(tmp_path / f"m{other}"), volume) == []


def test_a_header_without_forms_states_no_position(tmp_path: Path) -> None:
    """ITK and nibabel place such files differently, so only shape and spacing can be compared."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, tmp_path / "image.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "image.nii")), str(tmp_path / "labels.nii"))
    labels, volume = read_labels(tmp_path / "labels.nii"), read_image([tmp_path / "image.nii"], 1)
    assert labels.grid != volume.grid and volume_differences(labels, volume) == []


# ------------------------------------------------------------------------------------------------ labels
def test_float_labels_must_be_integers(tmp_path: Path) -> None:
    path = nifti(tmp_path / "l.nii.gz", np.full(SHAPE, 2.0, np.float32))
    assert read_labels(path).voxels.dtype == np.uint8
    nifti(path, np.where(np.arange(120).reshape(SHAPE) == 7, 1.5, 2.0))
    with refused("l.nii.gz", "1 voxels are not integers", "1.5"):
        read_labels(path)
    nifti(path, np.full(SHAPE, np.nan, np.float32))
    with refused("l.nii.gz", "120 voxels", "nan"):
        read_labels(path)


@pytest.mark.parametrize(("low", "high", "kind"), [
    (0, 255, "uint8"), (0, 256, "int16"), (-1, 5, "int16"), (0, 40000, "uint16"), (-40000, 5, "int32"),
])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_labels_are_written_in_the_smallest_type(
    low: int, high: int, kind: str, ending: str, tmp_path: Path
) -> None:
    like = read_image([nifti(tmp_path / "a.nii", np.zeros((1, 1, 2), np.int16))], 1)
    labels = np.array([[[low]], [[high]]], np.int64)
    write_labels(labels, like, tmp_path / f"m{ending}")
    back = read_labels(tmp_path / f"m{ending}").voxels
    assert back.dtype == kind and back[0].tolist() == labels.tolist()


def test_a_failing_write_leaves_what_was_there(tmp_path: Path) -> None:
    like = read_image([nifti(tmp_path / "a.nii", np.zeros(SHAPE, np.int16))], 1)
    (tmp_path / "m.bmp").write_bytes(b"before")
    picture = read_image([_png(tmp_path / "g.png", "L")], 1)
    with refused("m.bmp", "300"):
        write_labels(np.full((1, 5, 6), 300), picture, tmp_path / "m.bmp")
    with refused("m.png", "6 slices"):
        write_labels(np.zeros(SHAPE[::-1], np.uint8), like, tmp_path / "m.png")
    (tmp_path / "file").write_text("")
    with refused("cannot be written"):
        write_labels(np.zeros(SHAPE[::-1], np.uint8), like, tmp_path / "file" / "m.nii.gz")
    assert (tmp_path / "m.bmp").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "file", "g.png", "m.bmp"]


def test_a_format_that_cannot_hold_the_direction_is_refused(tmp_path: Path) -> None:
    like = read_image([nifti(tmp_path / "a.nii", np.zeros(SHAPE, np.int16))], 1)
    with refused("m.gipl", "position in space"):
        write_labels(np.zeros(SHAPE[::-1], np.uint8), like, tmp_path / "m.gipl")


# ------------------------------------------------------------------------------------------------ pictures
def _png(path: Path, mode: str, seed: int = 0) -> Path:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "I;16": ()}[mode]
    kind, top = (np.uint16, 65536) if mode == "I;16" else (np.uint8, 256)
    pixels = np.random.default_rng(seed).integers(0, top, (5, 6, *channels)).astype(kind)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize(("mode", "count"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("I;16", 1)])
def test_pictures_give_their_channels(ending: str, mode: str, count: int, tmp_path: Path) -> None:
    if ending == ".bmp" and mode in ("RGBA", "I;16"):
        pytest.skip("BMP has neither")
    path = _png(tmp_path / f"a_0000{ending}", mode)
    volume = read_image([path], count)
    pixels = np.asarray(Image.open(path)).reshape(5, 6, count)
    np.testing.assert_array_equal(volume.voxels, np.moveaxis(pixels, -1, 0)[:, None])
    assert volume.grid.is_2d and volume.grid.spacing == (1.0, 1.0, 1.0)
    labels = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    write_labels(labels, volume, tmp_path / f"m{ending}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"m{ending}").voxels[0], labels)


def test_sixteen_bit_color_keeps_its_bits(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (5, 6, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.png"))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    for ending in (".png", ".tif"):
        voxels = read_image([tmp_path / f"a{ending}"], 3).voxels
        np.testing.assert_array_equal(voxels, np.moveaxis(array, -1, 0)[:, None])


def test_alpha_is_dropped_only_where_it_hides_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image([tmp_path / "a.png"], 3).voxels.shape == (3, 1, 5, 6)
    pixels[2, 3, 3] = 7
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with refused("a.png", "1 pixels are transparent", "alpha"):
        read_image([tmp_path / "a.png"], 3)


def test_wrong_channel_counts_of_pictures_are_refused(tmp_path: Path) -> None:
    with refused("a.png", "holds 3 channels", "1 were expected"):
        read_image([_png(tmp_path / "a.png", "RGB")], 1)
    with refused("b.png", "holds 1 channels", "3 were expected"):
        read_image([_png(tmp_path / "b.png", "L")], 3)


def test_palette_indices_are_labels_and_colors_are_images(tmp_path: Path) -> None:
    indices = np.arange(30, dtype=np.uint8).reshape(5, 6) % 3
    picture = Image.fromarray(indices, mode=None).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255] + [0] * 759)
    picture.putdata(indices.ravel().tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").voxels[0, 0], indices)
    assert read_image([tmp_path / "a.png"], 3).voxels[0].max() == 255


def test_label_pictures_in_grey_rgb_are_accepted(tmp_path: Path) -> None:
    labels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    Image.fromarray(np.dstack([labels] * 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").voxels[0, 0], labels)
    with refused("b.png", "3 channels"):
        read_labels(_png(tmp_path / "b.png", "RGB"))


def test_tiff_stacks_take_the_sidecars_spacing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = np.random.default_rng(0).integers(0, 9, (4, 5, 6)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a_0000.tif", stack, photometric="minisblack")
    with caplog.at_level(logging.INFO, "autoseg"):
        assert read_image([tmp_path / "a_0000.tif"], 1).grid.spacing == (1.0, 1.0, 1.0)
    assert "a.json" in caplog.text
    (tmp_path / "a.json").write_text('{"spacing": [3, 0.5, 0.4]}')
    volume = read_image([tmp_path / "a_0000.tif"], 1)
    assert volume.grid.spacing == (3.0, 0.5, 0.4) and not volume.grid.is_2d
    np.testing.assert_array_equal(volume.voxels[0], stack)
    (tmp_path / "out").mkdir()
    write_labels(stack, volume, tmp_path / "out" / "a.tif")
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == {"spacing": [3.0, 0.5, 0.4]}
    back = read_labels(tmp_path / "out" / "a.tif")
    np.testing.assert_array_equal(back.voxels[0], stack)
    assert volume_differences(back, volume) == []
    (tmp_path / "a.json").write_text('{"spacing": [3, 0, 0.4]}')
    with refused("a.json", "three positive numbers"):
        read_image([tmp_path / "a_0000.tif"], 1)


def test_lzw_tiffs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, compression="tiff_lzw")
    np.testing.assert_array_equal(read_image([path], 3).voxels[:, 0], np.moveaxis(pixels, -1, 0))


# ------------------------------------------------------------------------------------------------ damaged
def _valid(path: Path) -> bytes:
    rng = np.random.default_rng(0)
    if path.name.endswith((".nii", ".nii.gz")):
        nifti(path, rng.integers(0, 999, (20, 20, 20)).astype(np.int16))
    elif path.suffix in (".mha", ".nrrd"):
        voxels = rng.integers(0, 999, (20, 20, 20)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    elif path.suffix == ".tif":
        tifffile.imwrite(path, rng.integers(0, 255, (50, 60)).astype(np.uint8), photometric="minisblack")
    else:
        Image.fromarray(rng.integers(0, 255, (50, 60)).astype(np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("part", [0.5, 0.02])
def test_truncated_files_are_refused(ending: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    content = _valid(path)
    path.write_bytes(content[: max(int(len(content) * part), 8)])
    with refused(f"a{ending}", "cannot be read as"):
        read_image([path], 1)
    with refused(f"a{ending}", "cannot be read as"):
        read_labels(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".png", ".bmp", ".tif"])
def test_empty_and_absent_files_and_folders_are_refused(ending: str, tmp_path: Path) -> None:
    with refused(f"a{ending}", "does not exist"):
        read_image([tmp_path / f"a{ending}"], 1)
    (tmp_path / f"a{ending}").touch()
    with refused(f"a{ending}", "empty", "0 bytes"):
        read_image([tmp_path / f"a{ending}"], 1)
    (tmp_path / f"b{ending}").mkdir()
    with refused(f"b{ending}", "is a folder"):
        read_image([tmp_path / f"b{ending}"], 1)


@pytest.mark.parametrize("content", [".nii", ".nii.gz", ".mha", ".nrrd", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".png", ".bmp", ".tif"])
def test_a_wrong_suffix_is_named(content: str, ending: str, tmp_path: Path) -> None:
    if content == ending:
        pytest.skip("the right one")
    raw = _valid(tmp_path / f"right{content}")
    (tmp_path / f"a{ending}").write_bytes(raw)
    with refused(f"a{ending}", "cannot be read as", "looks like"):
        read_image([tmp_path / f"a{ending}"], 1)


def test_a_flipped_bit_in_gzip_is_noticed(tmp_path: Path) -> None:
    raw = bytearray(_valid(tmp_path / "a.nii.gz"))
    raw[len(raw) // 2] ^= 0x10
    (tmp_path / "a.nii.gz").write_bytes(raw)
    with refused("a.nii.gz", "cannot be read as gzip-compressed NIfTI"):
        read_image([tmp_path / "a.nii.gz"], 1)


@pytest.mark.parametrize(("bad", "count"), [(np.nan, "1 NaN and 0 inf"), (np.inf, "0 NaN and 1 inf")])
def test_nan_and_infinity_are_counted(bad: float, count: str, tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[1, 2, 3] = bad
    with refused("a.nii.gz", count):
        read_image([nifti(tmp_path / "a.nii.gz", voxels)], 1)
    with refused("a.nii", "infinite"):
        read_image([nifti(tmp_path / "a.nii", np.full(SHAPE, 1e300))], 1)


def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.complex64), np.eye(4)), tmp_path / "a.nii")
    with refused("a.nii", "complex64"):
        read_image([tmp_path / "a.nii"], 1)
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "b.nii")
    with refused("b.nii", "one real number per voxel"):
        read_image([tmp_path / "b.nii"], 1)


def test_a_singular_affine_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:296] = bytes(16)
    (tmp_path / "a.nii").write_bytes(raw)
    with refused("a.nii", "affine", "does not span space"):
        read_image([tmp_path / "a.nii"], 1)


def _patched(path: Path, offset: int, values: list[float], kind: str) -> Path:
    """A NIfTI file with some bytes of its header replaced."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4))
    image.set_sform(np.eye(4), 0)
    image.set_qform(np.eye(4), 1)
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    part = np.array(values, kind).tobytes()
    raw[offset : offset + len(part)] = part
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("offset", "values", "kind", "needle"), [
    (256, [1.0, 1.0, 1.0], "<f4", "cannot be read as NIfTI"),  # a quaternion longer than one
    (256, [np.nan, 0.0, 0.0], "<f4", "does not span space"),
    (40, [3, 32767, 32767, 32767], "<i2", "more than fit into memory"),
    (40, [7, *[32767] * 7], "<i2", "7 axes"),
    (40, [3, -4, 5, 6], "<i2", "at least one voxel"),
    (108, [np.inf], "<f4", "cannot be read as NIfTI"),  # where the voxels begin
    (108, [np.nan], "<f4", "cannot be read as NIfTI"),
])
def test_nonsense_in_a_header_is_refused(
    offset: int, values: list[float], kind: str, needle: str, tmp_path: Path
) -> None:
    with refused("a.nii", needle):
        read_image([_patched(tmp_path / "a.nii", offset, values, kind)], 1)


def test_pairs_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.hdr", np.arange(120, dtype=np.int16).reshape(SHAPE))
    assert read_labels(path).voxels[0].T.ravel().tolist() == list(range(120))
    voxels = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(voxels[:-1])
    with refused("a.hdr", "239 of 240 bytes"):
        read_labels(path)
    (tmp_path / "a.img").unlink()
    with refused("a.img", "does not exist"):
        read_labels(path)
    nib.save(nib.AnalyzeImage(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "old.hdr")
    with refused("old.hdr", "looks like Analyze 7.5"):
        read_labels(tmp_path / "old.hdr")
    with refused("a.img", "give the .hdr file"):
        read_labels(tmp_path / "a.img")


def test_unsupported_endings_are_refused() -> None:
    assert ending_of(Path("x.y.NII.GZ")) == ".nii.gz"
    with refused("a.jpg", "not supported", "JPEG loses detail"):
        read_image([Path("a.jpg")], 1)


def test_reading_and_writing_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[76:80] = bytes(4)  # qfac 0: nibabel and ITK would both remark on it
    (tmp_path / "a.nii").write_bytes(raw)
    volume = read_image([tmp_path / "a.nii"], 1)
    write_labels(np.zeros(SHAPE[::-1], np.uint8), volume, tmp_path / "m.nii.gz")
    write_labels(np.zeros(SHAPE[::-1], np.uint8), volume, tmp_path / "m.mha")
    read_labels(tmp_path / "m.mha")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
