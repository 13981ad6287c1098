"""Networks of nnU-Net v2 that were imported compute what nnU-Net's compute, at every level."""

from pathlib import Path

import pytest
import torch
from nnunet_folders import configuration, dataset, peer_network, plans, write_results
from torch import Tensor, nn

from autoseg.interop.nnunet import Wanted, import_fold, plan_import
from autoseg.networks.checkpoint import read_model, write_model

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def imported(folder: Path, fold: str = "0"):
    (planned,) = plan_import(Wanted(folder, None, None, "checkpoint_final.pth"), lambda *_: False)
    return import_fold(planned, fold)


def heads_of(peer: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return peer(image)


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_same_outputs_at_every_level(kind: str, name: str, tmp_path: Path) -> None:
    """Also after writing and reading, and where torch.compile and data parallelism prefixed the names."""
    axes = 2 if name == "2d" else 3
    planned = plans({name: configuration(kind, axes, normalization_schemes=["CTNormalization", "NoNormalization"],
                                         use_mask_for_norm=[False, False])}, channels=2)
    torch.manual_seed(0)
    peer = peer_network(planned["configurations"][name]["architecture"], 2, 3)
    wrapped = {f"module._orig_mod.{key}": value for key, value in peer.state_dict().items()}
    folder = write_results(tmp_path, planned, dataset(channels=2), name, {"0": peer})
    again = write_results(tmp_path / "wrapped", planned, dataset(channels=2), name, {"0": peer},
                          network_weights=wrapped)
    image = torch.randn(2, 2, *planned["configurations"][name]["patch_size"])
    for source in (folder, again):
        network, info = imported(source)
        write_model(tmp_path / "model", network, info)
        network, info = read_model(tmp_path / "model")
        network.supervised_levels = len(network.decoder)  # the head of the coarsest level too
        with torch.no_grad():
            found = network.forward_all(image)
        expected = heads_of(peer, image)
        assert len(found) == len(expected) == 2
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert info.architecture == kind and info.mirror_axes == tuple(range(axes))


def test_a_cascade_of_regions_takes_one_channel_per_label(tmp_path: Path) -> None:
    """nnU-Net's own count of heads and channels decides."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    full = configuration("resenc", 3)
    planned = plans({
        "3d_lowres": configuration("resenc", 3, spacing=[5.0, 2.0, 2.5]), "3d_fullres": full,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    })
    declared = dataset(REGIONS | {"ignore": 4}, regions_class_order=[1, 2, 3])
    manager = PlansManager(planned)
    channels = determine_num_input_channels(manager, manager.get_configuration("3d_cascade_fullres"), declared)
    heads = manager.get_label_manager(declared).num_segmentation_heads
    peers = {name: peer_network(full["architecture"], inputs, heads)
             for name, inputs in (("3d_lowres", 1), ("3d_cascade_fullres", channels))}
    for name, peer in peers.items():
        write_results(tmp_path, planned, declared, name, {"0": peer})
    both = plan_import(Wanted(tmp_path, None, None, "checkpoint_final.pth"), lambda *_: False)
    by_name = {one.configuration: import_fold(one, "0") for one in both}
    assert set(by_name) == set(peers)
    for name, (network, info) in by_name.items():
        image = torch.randn(1, info.input_channels, 8, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(network(image), peers[name](image)[0], atol=1e-4, rtol=1e-4)
    info = by_name["3d_cascade_fullres"][1]
    assert info.input_channels == channels == 4 and info.previous_stage.configuration == "3d_lowres"
    assert info.outputs == ("whole", "core", "enhancing") and info.ignore == 4
    assert info.labels == {"background": 0, "value_1": 1, "value_2": 2, "enhancing": 3}
