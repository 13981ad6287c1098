"""The fingerprint holds what nnU-Net v2's own extractor finds, up to the error of its random sampling."""

import json
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from conftest import real_dataset

from autoseg.data.dataset import open_dataset
from autoseg.planning.fingerprint import measure
from autoseg.schema import Fingerprint

DRAWS = 1_000_000
NAME = "Dataset007_Made"


def nnunet_fingerprint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What nnunetv2 extracts from folder/raw/NAME, with fewer draws and threads instead of processes."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(folder / name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

        context = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
        monkeypatch.setattr(fingerprint_extractor, "multiprocessing", context)
        extractor = fingerprint_extractor.DatasetFingerprintExtractor(NAME, num_processes=1)
        extractor.show_progress_bar = False
        extractor.num_foreground_voxels_for_intensitystats = DRAWS
        return extractor.run(overwrite_existing=True)


def assert_same(ours: Fingerprint, theirs: dict) -> None:
    assert [list(case.cropped_shape) for case in ours.cases] == [list(one) for one in theirs["shapes_after_crop"]]
    spacings = np.array([case.spacing for case in ours.cases])
    np.testing.assert_allclose(spacings, np.array(theirs["spacings"]), rtol=1e-6)
    assert ours.median_relative_size_after_cropping == pytest.approx(theirs["median_relative_size_after_cropping"])
    for channel, statistics in enumerate(ours.intensities):
        drawn = theirs["foreground_intensity_properties_per_channel"][channel]
        noise = statistics.std / np.sqrt(DRAWS)
        assert drawn["mean"] == pytest.approx(statistics.mean, abs=6 * noise + 1e-5 * abs(statistics.mean))
        assert drawn["std"] == pytest.approx(statistics.std, rel=0.02)
        assert statistics.min <= drawn["min"] and drawn["max"] <= statistics.max
        # A percentile of draws scatters in rank: compare where the neighbouring ranks lie.
        spread = statistics.percentile_99_5 - statistics.percentile_00_5
        for key, value in (("percentile_00_5", statistics.percentile_00_5), ("median", statistics.median),
                           ("percentile_99_5", statistics.percentile_99_5)):
            assert drawn[key] == pytest.approx(value, abs=0.01 * spread)


def write_case(folder: Path, case: str, seed: int, file_spacing: tuple[float, float, float]) -> None:
    """Two channels, empty margins, a hole of zeros inside, labels 0, 1, 2; sizes and contrasts differ."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(14, 40, 3))
    affine = np.diag([*file_spacing, 1.0])
    labels = np.zeros(shape, np.uint8)
    labels[4:9, 4:9, 4:9], labels[6:12, 5:8, 6:10] = 1, 2
    for channel in range(2):
        voxels = rng.gamma(2.0, 30.0 * (seed + 1), shape).astype(np.float32) + labels * 50
        voxels[: 2 + channel], voxels[..., -3:], voxels[7, 6, 7] = 0, 0, 0
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "labelsTr" / f"{case}.nii.gz")


def test_generated_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "raw" / NAME
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    cases = [f"case_{seed}" for seed in range(5)]
    for seed, case in enumerate(cases):
        write_case(folder, case, seed, (0.8 + 0.1 * seed, 1.5, 3.0))
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "core": 1, "shell": 2},
        "numTraining": len(cases), "file_ending": ".nii.gz",
        "dataset": {case: {"images": [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in range(2)],
                           "label": f"labelsTr/{case}.nii.gz"} for case in cases},
    }))
    assert_same(measure(open_dataset(folder), workers=1), nnunet_fingerprint(tmp_path, monkeypatch))


def test_hippocampus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = real_dataset("Hippocampus_MSD04")
    folder = tmp_path / "raw" / NAME
    folder.mkdir(parents=True)
    manifest = json.loads((source / "dataset.json").read_text())
    cases = [path.name.removesuffix(".nii.gz") for path in sorted((source / "labelsTr").glob("*.nii.gz"))]
    manifest["dataset"] = {
        case: {"images": [str(source / "imagesTr" / f"{case}_0000.nii.gz")],
               "label": str(source / "labelsTr" / f"{case}.nii.gz")} for case in cases
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    assert_same(measure(open_dataset(source), workers=1), nnunet_fingerprint(tmp_path, monkeypatch))
