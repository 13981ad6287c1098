"""nnU-Net v2's own plans for a dataset, and result folders of networks with random weights that decide something.

The files are written by `nnunet_folders`; here nnU-Net's planner chooses the network, and the last layer is scaled so
that the logits are those of a trained network in size and several classes win somewhere.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from nnunet_folders import write_results
from torch import Tensor, nn

NetworkClass = Literal["PlainConvUNet", "ResidualEncoderUNet"]
PLANNERS = {"PlainConvUNet": "ExperimentPlanner", "ResidualEncoderUNet": "ResEncUNetPlanner"}
SPREAD = 1.0
"""Standard deviation of every logit channel over a window, and how far background lies above the others."""


def plan_with_nnunet(dataset: Path, home: Path, network: NetworkClass = "PlainConvUNet") -> dict[str, Any]:
    """plans.json as nnunetv2's planner makes it for a dataset folder in its raw layout.

    home : an empty folder for nnU-Net's own files; the dataset is linked there. Fingerprinting starts processes: call
    it from a script that guards its main.
    """
    name = "Dataset900_Planned"
    with nnunet_home(home), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
        from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
        from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

        (home / "raw" / name).symlink_to(dataset.resolve())
        extractor = DatasetFingerprintExtractor(name, 1)
        extractor.show_progress_bar = False
        extractor.run()
        planner_name = PLANNERS[network]
        kind = getattr(residual_encoder_unet_planners, planner_name, None)
        planner = (kind or getattr(default_experiment_planner, planner_name))(name)
        planner.plan_experiment()
    return json.loads((home / "preprocessed" / name / f"{planner.plans_identifier}.json").read_text())


def changed(
    plans: Mapping[str, Any], configuration: str, width: int = 1, patch: int = 1, coarser: float = 1.0
) -> dict[str, Any]:
    """The plans with layers `width` times narrower, a patch `patch` times shorter (a multiple of the strides still),
    and pixels `coarser` times as wide within slices, so that images are resampled.
    """
    copied = json.loads(json.dumps(plans))
    planned = copied["configurations"][configuration]
    arguments = planned["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [max(2, n // width) for n in arguments["features_per_stage"]]
    steps = torch.tensor(arguments["strides"]).prod(0).tolist()
    planned["patch_size"] = [max(1, round(n / patch / step)) * step
                             for n, step in zip(planned["patch_size"], steps, strict=True)]
    *slices, rows, columns = planned["spacing"]
    planned["spacing"] = [*slices, rows * coarser, columns * coarser]
    return copied


def random_network(
    plans: Mapping[str, Any], declared: Mapping[str, Any], configuration: str, seed: int, window: Tensor | None = None
) -> nn.Module:
    """nnU-Net's network of these plans, deep supervision on, with random convolutions, norms and biases.

    window : (1, channel, *patch) on which the logits shall have a standard deviation of `SPREAD` per channel; noise
    where it is not given.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(plans)
        planned = manager.get_configuration(configuration)
        labels = manager.get_label_manager(dict(declared))
        channels = determine_num_input_channels(manager, planned, dict(declared))
        network = get_network_from_plans(
            planned.network_arch_class_name, planned.network_arch_init_kwargs,
            planned.network_arch_init_kwargs_req_import, channels, labels.num_segmentation_heads,
            allow_init=False, deep_supervision=True,
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:  # a convolution: outputs as large as its inputs
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_((1 + 0.2 * noise).abs())
        if window is None:
            window = torch.randn((1, channels, *planned.patch_size), generator=generator)
        _scale_heads(network, window, has_background=not labels.has_regions)
    return network.eval()


def write_folds(
    results: Path,
    plans: Mapping[str, Any],
    declared: Mapping[str, Any],
    configuration: str,
    networks: Sequence[nn.Module],
    **changes: Any,
) -> Path:
    """`nnUNetTrainer__nnUNetPlans__<configuration>` in `results`, fold k holding networks[k].

    changes : of the checkpoints, such as inference_allowed_mirroring_axes; by default all axes were mirrored.
    """
    weights = {str(fold): network for fold, network in enumerate(networks)}
    return write_results(results, dict(plans), dict(declared), configuration, weights, **changes)


def _scale_heads(network: nn.Module, window: Tensor, has_background: bool) -> None:
    network.eval()
    heads = network.decoder.seg_layers
    for head, logits in zip(reversed(heads), network(window), strict=False):
        axes = [axis for axis in range(logits.dim()) if axis != 1]
        factor = SPREAD / logits.std(axes).clamp_min(1e-6)
        bias = head.bias * factor - factor * logits.mean(axes)
        head.weight.mul_(factor.view(-1, *[1] * (head.weight.dim() - 1)))
        head.bias.copy_(bias)
        if has_background:
            head.bias[0] += SPREAD
        else:
            head.bias -= SPREAD / 2


@contextmanager
def nnunet_home(home: Path) -> Iterator[None]:
    """nnU-Net's three folders, made inside `home`; it finds them by environment variables."""
    folders = {f"nnUNet_{name}": home / name for name in ("raw", "preprocessed", "results")}
    before = {name: os.environ.get(name) for name in folders}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
