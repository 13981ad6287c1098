"""What a case needs is known from its headers, and is what preparing it takes."""

import io
import logging
import tracemalloc

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel import imageglobals
from tiny_models import model_info

from autoseg.data.case_memory import SMALL_FILE_BYTES, preparation_bytes, read_extent, reading_bytes
from autoseg.data.dataset import Case
from autoseg.data.preprocessing import prepare_image
from autoseg.data.volume import read_image

SHAPE, SPACING = (90, 70, 64), (1.0, 1.5, 2.0)  # file order (x, y, z)


def write_noise(path, shape=SHAPE, seed=0):
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*SPACING, 1.0])), path)
    else:
        image = SimpleITK.GetImageFromArray(voxels.transpose())
        image.SetSpacing(SPACING)
        SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_the_header_says_what_reading_finds(tmp_path, ending):
    path = write_noise(tmp_path / f"case_0000{ending}")
    volume = read_image([path], 1)
    extent = read_extent(path)
    assert (extent.values, extent.spacing) == (volume.voxels.size, pytest.approx(volume.grid.spacing))
    assert reading_bytes(Case("case", (path,), None)) == volume.voxels.nbytes


def test_files_too_small_to_matter_are_not_opened(tmp_path):
    path = write_noise(tmp_path / "case_0000.nii.gz", (8, 8, 8))
    assert path.stat().st_size < SMALL_FILE_BYTES and read_extent(path) is None
    assert reading_bytes(Case("case", (path,), None)) == 0


def test_broken_and_absent_files_are_left_to_the_reader(tmp_path):
    noise = np.random.default_rng(0).bytes(SMALL_FILE_BYTES)
    sound = write_noise(tmp_path / "sound.nii.gz").read_bytes()
    header = bytearray(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    header[70:72] = (9999).to_bytes(2, "little")  # a datatype that does not exist
    for name, content in {"noise.nii.gz": noise, "cut.nii.gz": sound[:20] + noise, "type.nii": header + noise}.items():
        (tmp_path / name).write_bytes(content)
        assert read_extent(tmp_path / name) is None
    assert read_extent(tmp_path / "absent.nii.gz") is None


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("target", [(2.0, 1.5, 1.0), (1.0, 1.0, 1.0)])
def test_the_estimate_is_what_preparing_takes(tmp_path, channels, target):
    """Neither below nor twice the largest sum of arrays that are alive together."""
    paths = tuple(write_noise(tmp_path / f"case_000{n}.nii.gz", seed=n) for n in range(channels))
    store = model_info(channels=channels).store.model_copy(update={"axes": (0, 1, 2), "spacing": target})
    prepare_image(read_image(paths, channels), store)  # operators and imports, which stay
    tracemalloc.start()
    prepare_image(read_image(paths, channels), store)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 * preparation_bytes(Case("case", paths, None), store) < peak
    assert peak < 1.1 * preparation_bytes(Case("case", paths, None), store)


def test_broken_headers_are_looked_at_in_silence(tmp_path):
    """What is wrong with a file is said once, by who reads it, and not by nibabel."""
    header = bytearray(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    header[70:72] = (9999).to_bytes(2, "little")
    path = tmp_path / "case_0000.nii"
    path.write_bytes(header + bytes(SMALL_FILE_BYTES))
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    imageglobals.logger.addHandler(handler)
    try:
        assert read_extent(path) is None
    finally:
        imageglobals.logger.removeHandler(handler)
    assert not said.getvalue()
