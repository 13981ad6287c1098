"""Voxels and spacing of real NIfTI files equal what nnU-Net's reader gives; masks equal in SimpleITK's eyes."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import real_dataset
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from autoseg.data.dataset import open_dataset
from autoseg.data.volume import read_image, read_labels, write_labels


@pytest.mark.parametrize("name", ["Cardiac_MSCMR_LGE", "AbdMR_CHAOS_T2", "BraTS2013_2ch", "Hippocampus_MSD04"])
def test_real_images_are_read_as_nnunet_reads_them(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(real_dataset(name))
    for case in dataset.cases[:3]:
        volume = read_image(case.images, len(dataset.channel_names))
        with contextlib.redirect_stdout(io.StringIO()):
            array, properties = SimpleITKIO().read_images([str(path) for path in case.images])
        np.testing.assert_array_equal(volume.voxels, array)
        np.testing.assert_allclose(volume.grid.spacing, properties["spacing"], rtol=1e-7)
        labels = read_labels(case.label)
        write_labels(labels.voxels[0], volume, tmp_path / "mask.nii.gz")
        mask, image = sitk.ReadImage(str(tmp_path / "mask.nii.gz")), sitk.ReadImage(str(case.images[0]))
        assert mask.GetSpacing() == image.GetSpacing() and mask.GetOrigin() == image.GetOrigin()
        assert mask.GetDirection() == image.GetDirection()
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(mask), labels.voxels[0])
