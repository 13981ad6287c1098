"""Result folders of nnU-Net v2 with random weights, written as its trainer writes them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

STATISTICS = {"mean": 90.0, "median": 85.0, "std": 20.0, "min": 1.0, "max": 250.0,
              "percentile_00_5": 20.0, "percentile_99_5": 200.0}  # fmt: skip
RESAMPLING = {
    f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
} | {
    f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
}
TRAINER, PLANS = "nnUNetTrainer", "nnUNetPlans"
LABELS = {"background": 0, "left": 1, "right": 2}


def architecture(kind: str, axes: int, **changes: Any) -> dict[str, Any]:
    """The network's description in today's plans."""
    blocks = {"plain": "n_conv_per_stage", "resenc": "n_blocks_per_stage"}[kind]
    strides = [[1] * axes, [2] * axes, [1, 2, 2][-axes:]]
    arguments = {
        "n_stages": 3, "features_per_stage": [4, 6, 6], "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[1, 3, 3][-axes:], [3] * axes, [3] * axes], "strides": strides, blocks: [1, 2, 2],
        "n_conv_per_stage_decoder": [2, 1], "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + {"plain": "PlainConvUNet", "resenc": "ResidualEncoderUNet"}[kind],
        "arch_kwargs": arguments | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(kind: str, axes: int, **changes: Any) -> dict[str, Any]:
    """One configuration of plans.json."""
    return {
        "data_identifier": "nnUNetPlans", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [8, 16, 16][-axes:], "median_image_size_in_voxels": [12.0, 20.0, 20.0][-axes:],
        "spacing": [2.5, 1.0, 1.25][-axes:], "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], **RESAMPLING, "architecture": architecture(kind, axes),
        "batch_dice": axes == 2, **changes,
    }  # fmt: skip


def plans(configurations: dict[str, Any], channels: int = 1, **changes: Any) -> dict[str, Any]:
    """plans.json."""
    return {
        "dataset_name": "Dataset900_Test", "plans_name": PLANS, "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2], "configurations": configurations,
        "original_median_shape_after_transp": [12, 20, 20], "original_median_spacing_after_transp": [2.5, 1.0, 1.25],
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(number): STATISTICS for number in range(channels)},
        **changes,
    }  # fmt: skip


def dataset(labels: dict[str, Any] | None = None, channels: int = 1, **changes: Any) -> dict[str, Any]:
    """dataset.json."""
    names = {str(number): f"MR{number}" for number in range(channels)}
    return {"channel_names": names, "labels": labels or LABELS, "numTraining": 5, "file_ending": ".nii.gz", **changes}


def peer_network(described: dict[str, Any], inputs: int, outputs: int) -> nn.Module:
    """nnU-Net's network for an architecture's description, with random weights, deep supervision on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    network = get_network_from_plans(
        described["network_class_name"], described["arch_kwargs"], described["_kw_requires_import"], inputs, outputs,
        allow_init=False, deep_supervision=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
    return network.eval()


def checkpoint(
    weights: dict[str, Any], planned: dict[str, Any], declared: dict[str, Any], name: str, fold: str, axes: int
) -> dict[str, Any]:
    """What nnU-Net's trainer saves."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.25)], "val_losses": [],
                    "epoch_start_timestamps": [100.0, 160.0], "epoch_end_timestamps": [150.0, 200.5]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 2,
        "init_args": {"plans": planned, "configuration": name, "fold": fold if fold == "all" else int(fold),
                      "dataset_json": declared, "device": torch.device("cpu")},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": tuple(range(axes)),
    }  # fmt: skip


def write_results(
    root: Path, planned: dict[str, Any], declared: dict[str, Any], name: str,
    weights: dict[str, nn.Module], **changes: Any,
) -> Path:  # fmt: skip
    """A result folder with one checkpoint for every fold in `weights`; `changes` are of the checkpoint."""
    folder = root / f"{TRAINER}__{PLANS}__{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(planned))
    (folder / "dataset.json").write_text(json.dumps(declared))
    for fold, network in weights.items():
        axes = 2 if name == "2d" else 3
        (folder / f"fold_{fold}").mkdir()
        content = checkpoint(network.state_dict(), planned, declared, name, fold, axes) | changes
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder
