"""plans.json and dataset.json of nnU-Net v2, read as nnU-Net reads them; what is not ours is refused."""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_folders import STATISTICS, architecture, configuration, dataset, peer_network, plans

from autoseg.errors import UserError
from autoseg.interop.nnunet_labels import read_labels
from autoseg.interop.nnunet_plans import Described, describe
from autoseg.interop.nnunet_weights import fill_network
from autoseg.schema import DatasetManifest

FOLDER = Path("results")


def described(
    configurations: dict[str, Any], name: str = "3d_fullres", declared: Any = None, **changes: Any
) -> Described:
    return describe(plans(configurations, **changes), declared or dataset(), name, FOLDER)


def old_form(today: dict[str, Any]) -> dict[str, Any]:
    """A configuration as nnU-Net v2 wrote it in 2023."""
    old = deepcopy(today)
    network = old.pop("architecture")
    arguments = network["arch_kwargs"]
    return old | {
        "UNet_class_name": network["network_class_name"].rsplit(".", 1)[-1], "UNet_base_num_features": 4,
        "n_conv_per_stage_encoder": arguments.get("n_conv_per_stage", arguments.get("n_blocks_per_stage")),
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"], "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": arguments["strides"], "conv_kernel_sizes": arguments["kernel_sizes"],
        "unet_max_num_features": 6,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "resenc"])
@pytest.mark.parametrize("axes", [2, 3])
def test_the_old_form_means_the_same(kind: str, axes: int) -> None:
    name = {2: "2d", 3: "3d_fullres"}[axes]
    today = configuration(kind, axes)
    assert described({name: old_form(today)}, name) == described({name: today}, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        theirs = PlansManager(plans({name: old_form(today)})).get_configuration(name).network_arch_init_kwargs
    assert described({name: {**today, "architecture": architecture(kind, axes, **theirs)}}, name) == described(
        {name: today}, name
    )


def test_every_fact_is_copied() -> None:
    found = described({"3d_fullres": configuration("plain", 3)})
    assert found.store.axes == (1, 0, 2) and found.store.spacing == (2.5, 1.0, 1.25)
    assert found.network.patch_shape == (8, 16, 16) and found.network.batch_size == 2
    assert found.network.topology.features == (4, 6, 6)
    assert found.network.topology.strides == ((1, 1, 1), (2, 2, 2), (1, 2, 2))
    assert found.network.topology.kernel_sizes == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.network.topology.encoder_blocks == (1, 2, 2) and found.network.topology.decoder_blocks == (2, 1)
    assert found.store.normalization[0].statistics.model_dump() == STATISTICS
    flat = described({"2d": configuration("plain", 2)}, "2d")
    assert flat.store.spacing == (None, 1.0, 1.25) and flat.is_2d and not found.is_2d


@pytest.mark.parametrize(("scheme", "ours"), [
    ("CTNormalization", "ct"), ("ZScoreNormalization", "zscore"), ("RescaleTo01Normalization", "rescale_to_0_1"),
    ("RGBTo01Normalization", "rgb_to_0_1"), ("NoNormalization", "nonorm"),
])  # fmt: skip
@pytest.mark.parametrize("within", [False, True])
def test_normalization(scheme: str, ours: str, within: bool) -> None:
    how = configuration("plain", 3, normalization_schemes=[scheme], use_mask_for_norm=[within])
    (found,) = described({"3d_fullres": how}).store.normalization
    assert (found.scheme, found.within_nonzero) == (ours, within)


def test_a_configuration_of_the_users_is_that_which_it_inherits_from() -> None:
    made = {"3d_fullres": configuration("resenc", 3), "mine": {"inherits_from": "3d_fullres", "batch_size": 7}}
    found = described(made, "mine")
    assert found.configuration == "3d_fullres" and found.network.batch_size == 7
    with pytest.raises(UserError, match="neither is nor inherits"):
        described({"mine": configuration("resenc", 3)}, "mine")
    with pytest.raises(UserError, match="'other'"):
        described({"3d_fullres": {"inherits_from": "other"}})
    with pytest.raises(UserError, match="expected once"):
        described({"3d_fullres": {"inherits_from": "3d_fullres"}})


def changed_network(**changes: Any) -> dict[str, Any]:
    return {"architecture": architecture("resenc", 3, **changes)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"architecture": {"network_class_name": "a.b.Primus", "arch_kwargs": {}}}, "the network is a.b.Primus"),
    ({"architecture": {"network_class_name": "mine.PlainConvUNet", "arch_kwargs": {}}}, "mine.PlainConvUNet"),
    ({"architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": {}}}, "lacks n_stages"),
    (changed_network(norm_op="torch.nn.BatchNorm3d"), "norm_op is 'torch.nn.BatchNorm3d'"),
    (changed_network(norm_op_kwargs={"eps": 1e-3, "affine": True}), "norm_op_kwargs"),
    (changed_network(norm_op_kwargs=None), "norm_op_kwargs"),
    (changed_network(nonlin="torch.nn.ReLU"), "nonlin is"),
    (changed_network(nonlin_kwargs={"negative_slope": 0.2}), "nonlin_kwargs"),
    (changed_network(conv_bias=False), "conv_bias is False"),
    (changed_network(squeeze_excitation=True), "squeeze_excitation is True"),
    (changed_network(stem_channels=9), "stem_channels is 9"),
    (changed_network(features_per_stage="many"), "not whole numbers"),
    ({"preprocessor_name": "Mine"}, "prepared by Mine"),
    ({"resampling_fn_data": "resample_torch_fornnunet"}, "resampling_fn_data is resample_torch_fornnunet"),
    ({"resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 3}}, "resampling_fn_probabilities"),
    ({"normalization_schemes": ["Mine"]}, "normalized by Mine"),
    ({"normalization_schemes": []}, "0 entries"),
    ({"spacing": [1.0, 2.0]}, "spacing 2"),
    ({"spacing": [1.0, 2.0, 0.0]}, "positive mm"),
])  # fmt: skip
def test_what_is_not_ours_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        described({"3d_fullres": configuration("resenc", 3, **changes)})


@pytest.mark.parametrize(("changes", "message"), [
    ({"image_reader_writer": "NibabelIOWithReorient"}, "read by NibabelIOWithReorient"),
    ({"transpose_forward": [0, 1, 1]}, "transpose_forward"),
    ({"foreground_intensity_properties_per_channel": {"0": {**STATISTICS, "std": float("nan")}}}, "std of channel 0"),
    ({"foreground_intensity_properties_per_channel": {}}, "mean, median"),
])  # fmt: skip
def test_plans_that_are_not_ours_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        described({"3d_fullres": configuration("plain", 3)}, **changes)


def test_all_problems_come_together() -> None:
    declared = dataset({"background": 0, "a": [1, 2]}, file_ending=".mgz")
    with pytest.raises(UserError) as raised:
        described({"3d_fullres": configuration("plain", 3, preprocessor_name="Mine")}, declared=declared)
    message = str(raised.value)
    assert all(part in message for part in ("regions_class_order is missing", ".mgz", "prepared by Mine"))


# ---------------------------------------------------------------- labels
LABELS = {
    "plain": ({"background": 0, "b": 2, "a": 1}, None),
    "lists of one": ({"background": [0], "a": [1]}, None),
    "ignore": ({"background": 0, "a": 1, "ignore": 2}, None),
    "regions": ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, [1, 2, 3]),
    "regions, number, gap, ignore": ({"whole": [2, 5], "background": 0, "core": 5, "ignore": 6}, [2, 5]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_nnunets(name: str) -> None:
    declared, order = LABELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.label_handling.label_handling import LabelManager
    if name == "lists of one":  # nnU-Net refuses a background in a list
        manager = LabelManager({"background": 0, "a": [1]}, order)
    else:
        manager = LabelManager(declared, order)
    found, problems = read_labels(DatasetManifest(labels=declared, regions_class_order=order))
    assert not problems and found is not None
    assert list(found.labels.values()) == manager.all_labels and found.ignore == manager.ignore_label
    assert len(found.outputs) == manager.num_segmentation_heads
    if manager.has_regions:
        assert [region.values if len(region.values) > 1 else region.values[0] for region in found.regions] == [
            one[0] if isinstance(one, tuple) and len(one) == 1 else one for one in manager.all_regions
        ]
        assert [region.painted for region in found.regions] == order
    else:
        assert not found.regions


@pytest.mark.parametrize(("declared", "order", "message"), [
    ({"background": 0, "a": [1, 2]}, None, "regions_class_order is missing"),
    ({"background": 0, "a": [1, 2], "b": 2}, [1], "has 1 values; one for each of the 2 regions"),
    ({"a": 1}, None, "'background' with value 0"),
    ({"background": 0, "a": 1, "ignore": 1}, None, "the ignore label is 1; the one after the highest, 2"),
    ({"background": 0, "a": 2}, None, "the values are 0, 2"),
    ({"background": 0, "a": 1, "b": 1}, None, "for 3 names"),
    ({"background": 0, "a": []}, None, "empty list"),
    ({"background": 0, "a": "x"}, None, "'x'"),
])  # fmt: skip
def test_labels_that_contradict_themselves_are_refused(declared: Any, order: Any, message: str) -> None:
    found, problems = read_labels(DatasetManifest(labels=declared, regions_class_order=order))
    assert found is None and any(message in problem for problem in problems)


# ---------------------------------------------------------------- weights
def test_every_tensor_is_accounted_for() -> None:
    planned = {"3d_fullres": configuration("resenc", 3)}
    peer = peer_network(planned["3d_fullres"]["architecture"], 1, 3)
    weights = {name: value.clone() for name, value in peer.state_dict().items()}
    fill_network(weights, described(planned), "x.pth")

    del weights["decoder.transpconvs.0.bias"]
    weights["extra"] = torch.zeros(1)
    weights["decoder.seg_layers.1.weight"] = torch.zeros(4, 4, 1, 1, 1)
    weights["decoder.encoder.stem.convs.0.conv.weight"] += 1
    weights["decoder.stages.0.convs.0.norm.bias"][0] = torch.nan
    weights["decoder.stages.0.convs.0.all_modules.1.bias"][0] = torch.nan
    weights["decoder.seg_layers.0.bias"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UserError) as raised:
        fill_network(weights, described(planned), "x.pth")
    message = str(raised.value)
    for part in ("decoder.0.upsampling.bias: missing", "extra: not a weight", "decoder.1.head.weight: shape",
                 "decoder.encoder.stem.convs.0.conv.weight: differs", "decoder.0.blocks.0.norm.bias: holds NaN",
                 "decoder.seg_layers.0.bias: torch.int64"):
        assert part in message, part
