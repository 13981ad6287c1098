"""Tiny networks with random weights as trained models of a run folder, and images for them."""

from pathlib import Path

import nibabel
import numpy as np
import torch

from autoseg.networks.builder import build_network
from autoseg.networks.checkpoint import write_model
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import (
    ChannelNormalization,
    CheckpointInfo,
    IntensityStatistics,
    NetworkPlan,
    StoreRecord,
    Topology,
)

LABELS = {"background": 0, "organ": 4, "lesion": 200}
STATISTICS = IntensityStatistics(mean=0, median=0, std=1, min=0, max=1, percentile_00_5=0, percentile_99_5=1)


def model_info(fold="0", channels=1, is_2d=False, ending=".nii.gz", **changes) -> CheckpointInfo:
    """The record of a tiny network, 3-D with an axis permutation, or 2-D."""
    dimensions = 2 if is_2d else 3
    topology = Topology(
        strides=((1,) * dimensions, (2,) * dimensions), kernel_sizes=((3,) * dimensions,) * 2, features=(4, 8),
        encoder_blocks=(1, 1), decoder_blocks=(1,),
    )
    network = NetworkPlan(
        patch_shape=(16,) * dimensions, batch_size=2, topology=topology, batch_dice=False, optimizer=RECIPES["sgd"],
        memory_gib=1, reasons=(),
    )
    how = ChannelNormalization(scheme="zscore", within_nonzero=False, statistics=STATISTICS)
    store = StoreRecord(
        axes=(0, 1, 2) if is_2d else (2, 0, 1), spacing=(None, 1, 1) if is_2d else (1.5, 1, 1.2),
        normalization=(how,) * channels, labels=LABELS,
    )
    facts = dict(
        name="plain", configuration="2d" if is_2d else "3d_fullres", fold=fold, architecture="plain",
        network=network, is_2d=is_2d, file_ending=ending, channel_names=tuple(f"c{n}" for n in range(channels)),
        labels=LABELS, store=store, mirror_axes=tuple(range(dimensions)), training={}, steps=0, seconds=0,
        plan_hash="", weights_sha256="", versions={},
    )
    return CheckpointInfo(**{**facts, **changes})


def write_fold(run: Path, info: CheckpointInfo, folder: str | None = None, seed: int = 0) -> None:
    """A fold with random weights, so large that every label is predicted somewhere."""
    torch.manual_seed(seed + (int(info.fold) if info.fold.isdigit() else 99))
    network = build_network(info.architecture, info.network, info.input_channels, len(info.outputs))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    write_model(run / "models" / info.name / info.configuration / (folder or f"fold_{info.fold}"), network, info)


def write_nifti(path: Path, shape=(20, 17, 14), seed=0) -> np.ndarray:
    """A random image with an oblique affine; returns the affine."""
    affine = np.diag([1.1, 0.9, 2.0, 1]) @ np.array(
        [[0.98, -0.2, 0, 5], [0.2, 0.98, 0, -3], [0, 0, -1, 7], [0, 0, 0, 1]]
    )
    voxels = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return nibabel.load(path).affine
