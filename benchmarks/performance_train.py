"""Training steps: the same plan, patch, batch and augmentation in both; beside the network alone on a resident batch.

autoseg: `autoseg train --fold all`, in each precision; its network alone: the same command with one batch for all
steps. nnunetv2: its trainer with its augmenter processes (one per core), in its own precision; its network alone: its
`train_step` on one batch, in each precision.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import measure_command
from performance_data import HIPPOCAMPUS, NoData, dataset, first_cases
from performance_figures import OURS, THEIRS, Sample, alternate, as_sample
from performance_setting import BIN, PRECISIONS, Setting, ask, cores
from plan_against_nnunet import compare_plans, run_ours, run_theirs

ON_GPU = 20
"""Times as many steps: they are short there, and losses are fetched only now and then."""


def measure_train(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row per precision: steps per second and the share of waiting for data; the ceilings."""
    try:
        folder = dataset(HIPPOCAMPUS, setting.data, setting.work).resolve()
        if setting.sizes.train_cases is not None:
            folder = first_cases(folder, setting.sizes.train_cases, setting.work / "datasets" / "training")
    except NoData as missing:
        yield {"data": HIPPOCAMPUS, "skipped": str(missing)}
        return
    place = _planned(folder, setting)
    rounds, steps = setting.sizes.train
    steps *= ON_GPU if setting.device == "cuda" else 1
    precisions = PRECISIONS[setting.device]
    print(f"  {HIPPOCAMPUS} 3d_fullres", flush=True)
    sides = {f"{OURS} {one}": lambda one=one: _ours(place, setting, one, steps) for one in precisions}
    sides[THEIRS] = lambda: _theirs(place, setting, steps)
    sides |= {f"{OURS} {one} alone": lambda one=one: _ours(place, setting, one, steps, alone=True)
              for one in precisions}
    found = alternate(sides, setting.times(rounds))  # type: ignore[arg-type]
    plan = json.loads((place / "run" / "plan.json").read_text())["configurations"]["3d_fullres"]["networks"]["plain"]
    differ = [name for name, one in compare_plans(place, "3d_fullres").items() if not one["equal"]]  # type: ignore[index]
    for one in precisions:
        yield {"data": f"{HIPPOCAMPUS} 3d_fullres", "what": "training steps", "precision": one,
               OURS: found[f"{OURS} {one}"], THEIRS: found[THEIRS], f"{OURS} alone": found[f"{OURS} {one} alone"],
               f"{THEIRS} alone": [{"steps_per_second": sample[f"ceiling_{one}"]} for sample in found[THEIRS]
                                   if "failed" not in sample],
               "patch_shape": plan["patch_shape"], "batch_size": plan["batch_size"], "plans_differ_in": differ,
               "steps": steps}


def _planned(folder: Path, setting: Setting) -> Path:
    """Where both sides have planned and preprocessed."""
    place = setting.work / f"train_{setting.sizes.train_cases or 'all'}"
    if not (place / "run" / "plan.json").exists():
        run_ours(folder, place, "3d_fullres")
    if not (place / "pre" / "Dataset004_Peer" / "nnUNetPlans.json").exists():
        run_theirs(folder, place, "3d_fullres")
    return place


def _ours(place: Path, setting: Setting, precision: str, steps: int, alone: bool = False) -> Sample:
    """One epoch warms up, two are counted, by the training's own metrics."""
    preset = place / f"{precision}.toml"
    preset.write_text(f'precision = "{precision}"\nvalidation_steps = 0\nmirror = "nnunet"\n')
    each = max(1, -(-steps // 2))
    arguments = ["--run", str(place / "run"), "--configuration", "3d_fullres", "--architecture", "plain", "--fold",
                 "all", "--name", "speed", "--overwrite", "--init", "scratch", "--preset", str(preset), "--epochs", "3",
                 "--steps-per-epoch", str(each), "--device", setting.device]
    if alone:
        sample = ask("performance_inside_autoseg.py", "train", {"arguments": arguments}, setting, place / "tasks")
    else:
        sample = as_sample(measure_command([str(BIN / "autoseg"), "train", *arguments], setting.environment,
                                           setting.limits))
    lines = (place / "run" / "models" / "speed" / "3d_fullres" / "fold_all" / "metrics.jsonl").read_text().splitlines()
    counted = [json.loads(line) for line in lines][1:]
    seconds = [each / line["steps_per_second"] for line in counted]
    wait = sum(line["data_wait"] * taken for line, taken in zip(counted, seconds, strict=True)) / sum(seconds)
    return {**sample, "steps_per_second": each * len(counted) / sum(seconds), "data_wait": wait}


def _theirs(place: Path, setting: Setting, steps: int) -> Sample:
    folders = {f"nnUNet_{name}": str(place / folder)
               for name, folder in (("raw", "raw"), ("preprocessed", "pre"), ("results", "results"))}
    environment = {**setting.environment, **folders, "nnUNet_n_proc_DA": str(cores())}
    task = {"preprocessed": str(place / "pre" / "Dataset004_Peer"), "warm_up": max(2, steps // 2), "steps": steps,
            "precisions": PRECISIONS[setting.device]}
    within = Setting(**{**vars(setting), "environment": environment})
    return ask("performance_inside_nnunet.py", "train", task, within, place / "tasks_nnunet")
