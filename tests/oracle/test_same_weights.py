"""Random weights in nnU-Net's checkpoints, imported: the logits and masks of `autoseg predict` are nnU-Net's."""

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

pytest.importorskip("nnunetv2")

from nnunet_folders import configuration, dataset, plans
from nnunet_results import random_network, write_folds

from autoseg.cli import app

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import weights_against_nnunet as comparison

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
ORDER = {"regions_class_order": [1, 2, 3]}
CASES = {
    "2d": ("2d", "plain", dataset(channels=2), (0,)),
    "3d": ("3d_fullres", "resenc", dataset(channels=2), (0, 2)),
    "3d not mirrored": ("3d_fullres", "plain", dataset(channels=2), None),
    "regions": ("3d_fullres", "plain", dataset(REGIONS, channels=2, **ORDER), (0, 1, 2)),
}


def write_image(folder: Path, seed: int) -> list[Path]:
    """Two channels of tissue inside zeros, spacing unlike the plans'."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    paths = []
    for channel in (0, 1):
        voxels = np.zeros((21, 15, 27), np.float32)  # z, y, x
        voxels[1:19, 2:14, 3:25] = 100 + 400 * gaussian_filter(rng.normal(size=(18, 12, 22)), 1.5)
        image = SimpleITK.GetImageFromArray(voxels)
        image.SetSpacing((1.5, 2.0, 1.2))
        paths.append(folder / f"case_{channel:04d}.nii.gz")
        SimpleITK.WriteImage(image, str(paths[-1]))
    return paths


def call_in_this_process(*arguments: object) -> None:
    assert app([str(one) for one in arguments], result_action="return_value") == 0


@pytest.mark.parametrize("kind", CASES)
def test_same_weights_give_the_same_masks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fold and two, mirrored (where the checkpoint allows it) and not."""
    monkeypatch.setattr(comparison, "call_autoseg", call_in_this_process)
    name, architecture, declared, mirrored = CASES[kind]
    schemes = ["ZScoreNormalization", "CTNormalization"]
    described = configuration(architecture, 2 if name == "2d" else 3, normalization_schemes=schemes,
                              use_mask_for_norm=[True, False])
    planned = plans({name: described}, channels=2)
    networks = [random_network(planned, declared, name, seed) for seed in (0, 1)]
    folder = write_folds(tmp_path / "results", planned, declared, name, networks,
                         inference_allowed_mirroring_axes=mirrored)
    images = write_image(tmp_path / "images", seed=3)
    call_in_this_process("import-nnunet", folder, "--run", tmp_path / "run", "--name", "same")
    theirs, ours = comparison.NnUNet(folder), comparison.Ours(tmp_path / "run", "same", name)
    masks = {}
    for number, setting in enumerate(comparison.SETTINGS):
        ours.predict(tmp_path / "images", tmp_path / str(number), setting)
        masks[setting] = tmp_path / str(number) / "case.nii.gz"
    image, _ = theirs.prepare(images)
    window = comparison.centre_window(image, theirs.patch_shape)
    assert comparison.window_difference(theirs, ours, window) <= 1e-4
    compared = list(comparison.compare_case("case", images, theirs, ours, masks))
    assert len(compared) == 4
    for one in compared:
        assert one.spread > 0.3 and one.largest < 15 and one.windows > 4
        assert (one.same_input or 0.0) <= 1e-4 and one.logits <= 1e-4 and one.half <= 2e-2, one.setting
        assert one.mask.different <= 1 and one.mask.unexplained == 0, one.setting
        assert one.mask_of_half.equal >= 0.995 and one.mask_of_half.unexplained == 0, one.setting
    assert min(len(one.labels) for one in compared) > 1 and max(len(one.labels) for one in compared) > 2
