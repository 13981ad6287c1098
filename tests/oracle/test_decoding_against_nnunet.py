"""Decoding against nnunetv2's own export of logits."""

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from autoseg.data.preprocessing import Placement
from autoseg.inference.decoding import decode_labels
from autoseg.inference.probabilities import Part, mean_probabilities, segment
from autoseg.labelling import Labelled, Region

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    export = pytest.importorskip("nnunetv2.inference.export_prediction")
    resampling = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    label_handling = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling")

RESAMPLE = partial(
    resampling.resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None
)
# original shape, crop, original spacing (array order), axes, prepared spacing (plan order)
PLACEMENTS = {
    "isotropic": ((30, 40, 35), ((2, 30), (0, 40), (5, 33)), (1.0, 1.0, 1.0), (0, 1, 2), (1.3, 1.3, 1.3)),
    "permuted": ((40, 30, 25), ((0, 33), (4, 30), (1, 25)), (0.7, 1.5, 1.1), (1, 2, 0), (1.2, 1.0, 1.0)),
    "coarse_now": ((40, 48, 12), ((0, 40), (3, 48), (1, 12)), (0.6, 0.6, 5.0), (2, 0, 1), (5.0, 0.9, 0.8)),
    "coarse_and_resliced": ((14, 40, 48), ((0, 14), (0, 40), (0, 48)), (5.0, 0.6, 0.6), (0, 1, 2), (3.0, 0.9, 0.9)),
    "coarse_then": ((12, 40, 30), ((0, 12), (0, 40), (0, 30)), (6.0, 1.0, 1.0), (0, 1, 2), (2.0, 1.0, 1.0)),
    "unchanged": ((20, 24, 22), ((1, 20), (0, 24), (0, 20)), (1.0, 1.0, 1.0), (0, 2, 1), (1.0, 1.0, 1.0)),
}


def placement_of(shape, crop, spacing, axes, target):
    cropped = tuple(crop[axis][1] - crop[axis][0] for axis in axes)
    cropped_spacing = tuple(spacing[axis] for axis in axes)
    prepared = tuple(round(n * s / t) for n, s, t in zip(cropped, cropped_spacing, target, strict=True))
    return Placement(shape, spacing, crop, axes, cropped, cropped_spacing, prepared, target)


def oracle_labels(logits, placement, regions=False, **options):
    """nnU-Net's export; its properties are in transposed order except for the spacing."""
    axes = placement.axes
    plans = SimpleNamespace(transpose_forward=list(axes), transpose_backward=[axes.index(n) for n in range(3)])
    configuration = SimpleNamespace(spacing=list(placement.spacing), resampling_fn_probabilities=RESAMPLE)
    labels = {"background": 0, **{f"label{n}": n for n in range(1, len(logits))}}
    order = None
    if regions:  # channel n is labels n … last, painted n
        count = len(logits)
        labels = {"background": 0, **{f"region{n}": list(range(n, count + 1)) for n in range(1, count + 1)}}
        order = list(range(1, count + 1))
    properties = {
        "spacing": placement.original_spacing,
        "shape_after_cropping_and_before_resampling": placement.cropped_shape,
        "shape_before_cropping": tuple(placement.original_shape[axis] for axis in axes),
        "bbox_used_for_cropping": [list(placement.crop[axis]) for axis in axes],
    }
    return export.convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, label_handling.LabelManager(labels, order), properties,
        num_threads_torch=1, **options,
    )


def top_two_margin(logits, placement):
    """Largest minus second largest logit on the image's grid (NaN outside the box), as nnU-Net resamples."""
    target = tuple(placement.original_spacing[axis] for axis in placement.axes)
    ordered = np.sort(RESAMPLE(logits.astype(float), placement.cropped_shape, placement.spacing, target), axis=0)
    margin = np.full(placement.original_shape, np.nan)
    box = tuple(slice(*span) for span in placement.crop)
    margin[box] = (ordered[-1] - ordered[-2]).transpose([placement.axes.index(n) for n in range(3)])
    return margin


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("classes", [2, 5])
def test_labels_equal_nnunets(name, classes):
    placement = placement_of(*PLACEMENTS[name])
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((classes, *placement.shape), dtype=np.float32)
    expected = oracle_labels(logits, placement)
    ours = decode_labels(logits, placement)
    differs = ours != expected
    assert differs.mean() <= 1e-4
    if differs.any():
        assert top_two_margin(logits, placement)[differs].max() < 1e-5


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_and_regions_equal_nnunets(name, regions):
    placement = placement_of(*PLACEMENTS[name])
    logits = np.random.default_rng(1).standard_normal((3, *placement.shape), dtype=np.float32) * 3
    labels, expected = oracle_labels(logits, placement, regions, return_probabilities=True)
    part = Part(logits, placement)
    found = np.concatenate([slab for _, slab in mean_probabilities([part], regions)], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if regions:
        painted = tuple(Region(name=f"region{n}", values=tuple(range(n, 4)), painted=n) for n in range(1, 4))
        names = Labelled(labels={"background": 0, "value_1": 1, "value_2": 2, "value_3": 3}, regions=painted)
        assert (segment([part], names) == labels).mean() >= 0.9999
