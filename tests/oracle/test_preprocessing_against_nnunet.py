"""A prepared case equals what nnU-Net's DefaultPreprocessor makes of it."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, gaussian_filter

from autoseg.data.dataset import Case
from autoseg.data.integrity import LoadedCase
from autoseg.data.intensity import normalize_channel
from autoseg.data.preprocessing import nonzero_box, nonzero_mask, prepare_case
from autoseg.data.volume import Volume
from autoseg.geometry import Grid, permuted
from autoseg.schema import ChannelNormalization, IntensityStatistics, StoreRecord

STATISTICS = IntensityStatistics(
    mean=60.0, median=55.0, std=45.0, min=-150.0, max=400.0, percentile_00_5=-90.0, percentile_99_5=190.0
)
NNUNET_SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "nonorm": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
IDENTITY = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


@dataclass(frozen=True)
class Generated:
    image: np.ndarray
    spacing: tuple[float, ...]
    schemes: tuple[tuple[str, bool], ...]
    axes: tuple[int, int, int]
    target: tuple[float | None, float, float]


def ct(rng):
    """A CT-like volume, slices along the last axis; nothing is cropped as air is -1000."""
    image = -1000 + 1000 * gaussian_filter(rng.normal(1, 3, (40, 44, 12)), (2, 2, 0.5))
    return Generated(image[None], (0.8, 0.8, 4.0), (("ct", False),), (2, 0, 1), (3.0, 1.0, 1.0))


def mr_in_zeros(rng):
    """A brain-like volume with a zero border and a hole of zeros inside."""
    image = np.zeros((30, 36, 28))
    image[5:25, 6:31, 3:24] = rng.gamma(3, 40, (20, 25, 21)) + 1
    image[12:15, 14:18, 10:14] = 0
    return Generated(image[None], (1.0, 1.0, 1.0), (("zscore", True),), (0, 1, 2), (0.8, 0.9, 0.85))


def two_channels(rng):
    """Channels whose nonzero boxes differ, at a grid that needs no resampling."""
    image = np.zeros((2, 18, 26, 22))
    image[0, 2:14, 4:20, 5:18] = rng.normal(300, 50, (12, 16, 13))
    image[1, 4:17, 3:18, 6:20] = rng.normal(90, 20, (13, 15, 14))
    return Generated(
        image, (2.0, 1.0, 1.0), (("zscore", True), ("zscore", False)), (0, 1, 2), (2.0, 1.0, 1.0)
    )


def picture(rng):
    """A 2-D RGB picture."""
    image = rng.integers(1, 256, (3, 1, 50, 61)).astype(float)
    return Generated(image, (999.0, 1.0, 1.0), (("rgb_to_0_1", False),) * 3, (0, 1, 2), (None, 1.0, 1.3))


def slices(rng):
    """A short-axis stack for a 2d configuration: slices keep their own distance."""
    image = rng.gamma(2, 60, (1, 9, 48, 40)) + 1
    return Generated(image, (9.5, 1.4, 1.4), (("zscore", False),), (0, 1, 2), (None, 1.25, 1.25))


def mixed(rng):
    """The remaining schemes, two channels, all axes permuted."""
    image = rng.gamma(2, 60, (2, 17, 21, 25)) + 1
    return Generated(
        image, (1.1, 1.6, 1.2), (("rescale_to_0_1", False), ("nonorm", False)), (1, 0, 2), (1.4, 1.0, 1.0)
    )


def generated(make, seed):
    rng = np.random.default_rng(seed)
    case = make(rng)
    fields = [gaussian_filter(rng.normal(size=case.image.shape[1:]), 3) for _ in range(4)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    # Annotations lie on tissue: well inside, as nnU-Net's −1 beside them would count as a label of its own.
    edge = np.ones(labels.shape, bool)
    edge[tuple(slice(8, -8) if n > 24 else slice(4, -4) if n > 9 else slice(None) for n in labels.shape)] = (
        False
    )
    labels[edge] = 0
    return case, labels


def by_nnunet(case, labels):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    spacing = [mm for mm in case.target if mm is not None]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset001_Generated",
        "plans_name": "generated",
        "transpose_forward": list(case.axes),
        "transpose_backward": [case.axes.index(axis) for axis in range(3)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): STATISTICS.model_dump() for channel in range(len(case.image))
        },
        "configurations": {
            "generated": {
                "spacing": spacing,
                "patch_size": [32] * len(spacing),
                "normalization_schemes": [NNUNET_SCHEMES[scheme] for scheme, _ in case.schemes],
                "use_mask_for_norm": [masked for _, masked in case.schemes],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
            }
        },
    }
    dataset_json = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "file_ending": ".nii.gz"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager = PlansManager(plans)
        image, labels, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            case.image.astype(np.float32),
            labels[None].astype(np.int16),
            {"spacing": case.spacing},
            manager,
            manager.get_configuration("generated"),
            dataset_json,
        )
    return image, np.maximum(labels[0], 0), properties


def by_us(case, labels):
    grid = Grid(labels.shape, case.spacing, (0.0, 0.0, 0.0), IDENTITY, is_2d=labels.shape[0] == 1)
    volume = Volume(case.image.astype(np.float32), grid, None)
    normalization = tuple(
        ChannelNormalization(scheme=scheme, within_nonzero=masked, statistics=STATISTICS)
        for scheme, masked in case.schemes
    )
    names = {"background": 0, "a": 1, "b": 2, "c": 3}
    store = StoreRecord(axes=case.axes, spacing=case.target, normalization=normalization, labels=names)
    return prepare_case(
        LoadedCase(Case("generated", (Path("image"),), Path("labels")), volume, labels), store
    )


@pytest.mark.parametrize("make", [ct, mr_in_zeros, two_channels, picture, slices, mixed])
def test_a_prepared_case_equals_nnunets(make):
    case, labels = generated(make, seed=7)
    theirs, their_labels, properties = by_nnunet(case, labels)
    prepared, our_labels = by_us(case, labels)
    where = prepared.placement
    assert where.shape == theirs.shape[1:] == our_labels.shape
    assert where.cropped_shape == properties["shape_after_cropping_and_before_resampling"]
    assert permuted(where.crop, case.axes) == tuple(map(tuple, properties["bbox_used_for_cropping"]))
    for ours, channel in zip(prepared.image, theirs, strict=True):
        np.testing.assert_allclose(ours, channel, rtol=0, atol=1e-4 * max(1.0, channel.std()))
    assert np.mean(our_labels != their_labels) <= 1e-3
    assert set(np.unique(our_labels)) == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(5))
def test_box_and_mask_equal_nnunets(seed):
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask, crop_to_nonzero

    rng = np.random.default_rng(seed)
    image = np.where(gaussian_filter(rng.normal(size=(2, 20, 24, 22)), (0, 1.5, 1.5, 1.5)) > 0.15, 1, 0)
    image[:, :3], image[:, :, -4:] = 0, 0
    image = image.astype(np.float32)
    cropped, _, box = crop_to_nonzero(image)
    assert nonzero_box(image) == tuple(map(tuple, box))
    whole = create_nonzero_mask(image)
    np.testing.assert_array_equal(nonzero_mask(image), whole)
    np.testing.assert_array_equal(nonzero_mask(cropped), whole[tuple(slice(*span) for span in box)])
    assert binary_fill_holes(whole).sum() == whole.sum()


def test_an_image_of_zeros_keeps_its_extent():
    assert nonzero_box(np.zeros((1, 4, 5, 6), np.float32)) == ((0, 4), (0, 5), (0, 6))


@pytest.mark.parametrize("scheme", NNUNET_SCHEMES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_normalization_schemes(scheme, masked, constant):
    import nnunetv2.preprocessing.normalization.default_normalization_schemes as schemes

    rng = np.random.default_rng(8)
    image = (
        np.full((9, 8, 7), 3, np.float32) if constant else rng.uniform(0, 255, (9, 8, 7)).astype(np.float32)
    )
    mask = rng.random(image.shape) < 0.7
    before = image.copy()
    how = ChannelNormalization(scheme=scheme, within_nonzero=masked, statistics=STATISTICS)
    ours = normalize_channel(image, mask, how)
    np.testing.assert_array_equal(image, before, "the input must not change")
    oracle = getattr(schemes, NNUNET_SCHEMES[scheme])(masked, STATISTICS.model_dump())
    theirs = oracle.run(image.copy(), np.where(mask, 0, -1))
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-6)
