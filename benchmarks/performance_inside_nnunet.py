"""What is timed inside nnunetv2, each in a process of its own: stages of a prediction, training steps, export.

    python performance_inside_nnunet.py stages|train|decode TASK.json

TASK.json says what; its field `to` names the file that receives the figures.
"""

import json
import sys
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from performance_inside_autoseg import Stopwatch, answer, gpu_peak, labels_in, pass_seconds, settle
from synthetic_logits import SyntheticLogits, coarser_shape

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

Task = dict[str, Any]


def stages(task: Task) -> dict[str, Any]:
    """As autoseg's, by its own predictor: seconds of every stage, summed over the cases; the ceiling."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device(task["device"])
    one = nnUNetPredictor(device=device, use_mirroring=task["tta"], allow_tqdm=False,
                          perform_everything_on_device=device.type == "cuda")
    one.initialize_from_trained_model_folder(task["model"], (0,))
    one.network.load_state_dict(one.list_of_parameters[0])
    planned = one.configuration_manager
    preprocessor = planned.preprocessor_class(verbose=False)
    watch, passes = Stopwatch(device), 0
    copies = 2 ** len(one.allowed_mirroring_axes) if task["tta"] else 1
    files = one.plans_manager.image_reader_writer_class()
    files.read_images(next(iter(task["cases"].values())))
    for case, images in task["cases"].items():
        voxels, properties = watch("read", partial(files.read_images, images))
        image, _, properties = watch("preprocess", partial(preprocessor.run_case_npy, voxels, None, properties,
                                                           one.plans_manager, planned, one.dataset_json))
        tensor = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        logits = watch("network", partial(_logits, one, tensor))
        mask = watch("decode", partial(convert_predicted_logits_to_segmentation_with_correct_shape, logits,
                                       one.plans_manager, planned, one.label_manager, properties))
        watch("write", partial(files.write_seg, mask, str(Path(task["output"]) / f"{case}.nii.gz"), properties))
        padded = [max(n, p) for n, p in zip(tensor.shape[1:], planned.patch_size, strict=True)]
        passes += copies * len(one._internal_get_sliding_window_slicers(padded))
    window = torch.randn(1, len(one.dataset_json["channel_names"]), *planned.patch_size, device=device)
    one.network.to(device).eval()
    half = torch.autocast("cuda") if device.type == "cuda" else nullcontext()
    with torch.inference_mode(), half:
        seconds = pass_seconds(lambda: one.network(window), device, task["passes"])
    return {**watch.seconds, "passes": passes, "ceiling": passes * seconds, **gpu_peak(device)}


def _logits(predictor: Any, image: torch.Tensor) -> torch.Tensor:
    """On the host, as its export gets them."""
    return predictor.predict_logits_from_preprocessed_data(image).cpu()


def train(task: Task) -> dict[str, Any]:
    """Its trainer with its own augmenter processes, then its network alone on one batch in each precision."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = Path(task["preprocessed"])
    plans, declared = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    device = torch.device(task["device"])
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", "all", declared, device)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    waits, steps = [], []
    for _ in range(task["warm_up"] + task["steps"]):
        start = time.perf_counter()
        batch = next(trainer.dataloader_train)
        middle = time.perf_counter()
        trainer.train_step(batch)
        settle(device)
        waits.append(middle - start)
        steps.append(time.perf_counter() - start)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()
    total = sum(steps[task["warm_up"]:])
    figures = {"steps_per_second": task["steps"] / total, "data_wait": sum(waits[task["warm_up"]:]) / total}
    figures |= gpu_peak(device)
    batch = {"data": batch["data"].to(device), "target": [one.to(device) for one in batch["target"]]}
    for precision in task["precisions"]:
        own = precision == ("float16" if device.type == "cuda" else "float32")
        with nullcontext() if own else torch.autocast(device.type, getattr(torch, precision)):
            seconds = pass_seconds(lambda: trainer.train_step(batch), device, task["steps"])
        figures[f"ceiling_{precision}"] = 1 / seconds
    return figures


def decode(task: Task) -> dict[str, Any]:
    """Its export of float16 logits, as its predictor gives them, to labels of `task["shape"]` (z, y, x)."""
    from nnunet_folders import configuration, dataset, plans
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    shape, coarser = list(task["shape"]), task["coarser"]
    labels = {"background": 0} | {str(label): label for label in range(1, task["labels"])}
    described = plans({"3d_fullres": configuration("plain", 3, spacing=[coarser] * 3)},
                      transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2])
    manager = PlansManager(described)
    synthetic = SyntheticLogits(task["labels"], coarser_shape(shape, coarser), task["kind"])
    logits = torch.empty(synthetic.shape, dtype=torch.float16)
    for index in range(task["labels"]):
        logits[index] = torch.from_numpy(synthetic.planes(index, 0, synthetic.shape[1]))
    properties = {"spacing": [1.0] * 3, "shape_before_cropping": shape,
                  "shape_after_cropping_and_before_resampling": shape,
                  "bbox_used_for_cropping": [[0, n] for n in shape]}
    planned, label_manager = manager.get_configuration("3d_fullres"), manager.get_label_manager(dataset(labels))
    start = time.perf_counter()
    mask = convert_predicted_logits_to_segmentation_with_correct_shape(logits, manager, planned, label_manager,
                                                                       properties)
    seconds = time.perf_counter() - start
    return {"decode": seconds, "labels_found": labels_in(mask)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answer({"stages": stages, "train": train, "decode": decode})
