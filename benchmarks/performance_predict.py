"""Prediction with the same weights: both commands as a user gives them, then each stage and the network alone.

Commands: `autoseg predict` and `nnUNetv2_predict_from_modelfolder`, with nnU-Net's own numbers of processes. Stages:
one after another in one process each; a command overlaps them. Ceiling: as many passes of one resident window as the
windows take. Weights are random, so that masks are ragged: the hardest case for a decoder that counts on calm regions.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from measuring import measure_command
from performance_data import HIPPOCAMPUS, ORGANS, NoData, dataset
from performance_figures import OURS, THEIRS, Sample, alternate, as_sample
from performance_models import CONFIGURATION, FOLDS, Model, make_model
from performance_setting import BIN, Setting, ask

STAGES = ("read", "preprocess", "network", "decode", "write")


@dataclass(frozen=True)
class Network:
    """How a dataset's network is made to end in minutes; `tta`: mirrored copies, as both programs have by default.

    five_folds : `balanced` is also compared with the mean of five folds, what nnU-Net gives by default.
    """

    width: int
    coarser: float = 1.0
    tta: bool = True
    passes: int = 5
    five_folds: bool = False


NETWORKS = {HIPPOCAMPUS: Network(1, five_folds=True), ORGANS: Network(8)}
PHANTOM = Network(16, coarser=1.5, tta=False)
"""Where resampling and export shall dominate: a network of two features, without mirrored copies."""
WHOLE = Network(1, coarser=1.5, tta=False)
"""As planned, for the memory: a narrow network has so few features that their sums take next to none."""


def measure_predict(setting: Setting) -> Iterator[dict[str, Any]]:
    """Per dataset: a row for the commands, one for the stages, one for bfloat16, one for `--speed balanced`."""
    for name, rounds in setting.sizes.predict.items():
        try:
            source = dataset(name, setting.data, setting.work)
        except NoData as missing:
            yield {"data": name, "skipped": str(missing)}
            continue
        network = NETWORKS.get(name, PHANTOM)
        model = make_model(source, setting.sizes.predict_cases if name == HIPPOCAMPUS else 1,
                           setting.work / "models" / name, network.width, network.coarser)
        print(f"  {name}: features {model.facts['features']}, {'with' if network.tta else 'without'} mirrored copies",
              flush=True)
        common = {"data": name, "cases": len(model.cases), "tta": network.tta, **model.facts}
        for row in _rows(model, network, setting, setting.times(rounds)):
            yield {**common, **row}
    for name in setting.sizes.whole:
        yield {"data": name, "what": "predict (network as planned)", **_whole(name, setting)}


def _whole(name: str, setting: Setting) -> dict[str, Any]:
    place = setting.work / "models" / f"{name}_whole"
    model = make_model(dataset(name, setting.data, setting.work), 1, place, WHOLE.width, WHOLE.coarser)
    print(f"  {name}: features {model.facts['features']}, without mirrored copies", flush=True)
    found = both_commands(model, setting, WHOLE.tta, 1)
    return {"cases": len(model.cases), "tta": WHOLE.tta, **model.facts, **found, "equal_voxels": _equal(model, setting)}


def _rows(model: Model, network: Network, setting: Setting, rounds: int) -> Iterator[dict[str, Any]]:
    whole = both_commands(model, setting, network.tta, rounds)
    equal = _equal(model, setting)
    parts = alternate({OURS: lambda: _stages(OURS, model, setting, network, None),
                       THEIRS: lambda: _stages(THEIRS, model, setting, network, None)}, rounds)
    for command, alone in zip(whole[OURS], parts[OURS], strict=False):
        command["ceiling"] = alone.get("ceiling")
    yield {"what": "predict", **whole, "equal_voxels": equal}
    yield {"what": "stages", **parts}
    if network.tta:
        half = alternate({OURS: lambda: _stages(OURS, model, setting, network, "bfloat16")}, rounds)
        yield {"what": "stages in bfloat16", **half, THEIRS: parts[THEIRS]}
    if "balanced" not in subprocess.run([str(BIN / "autoseg"), "predict", "--help"], capture_output=True, text=True,
                                        check=True).stdout:
        yield {"what": "predict --speed balanced", "skipped": "this version of autoseg has no --speed balanced"}
        return
    balanced = alternate({OURS: lambda: predict_ours(model, setting, network.tta, "balanced")}, rounds)
    yield {"what": "predict --speed balanced", **balanced, THEIRS: whole[THEIRS]}
    if network.five_folds:
        yield {"what": "predict --speed balanced, against five folds", **alternate(
            {OURS: lambda: predict_ours(model, setting, network.tta, "balanced", None),
             THEIRS: lambda: predict_theirs(model, setting, network.tta, range(FOLDS))}, 1)}


def both_commands(model: Model, setting: Setting, tta: bool, rounds: int) -> dict[str, list[Sample]]:
    """Exact prediction by one fold with both programs, in turn."""
    return alternate({OURS: lambda: predict_ours(model, setting, tta),
                      THEIRS: lambda: predict_theirs(model, setting, tta)}, rounds)


def predict_ours(
    model: Model, setting: Setting, tta: bool, speed: str = "exact", fold: int | None = 0
) -> Sample:
    """The command; `without_start`: its own seconds, from reading the weights on. fold : None: what `speed` takes."""
    output = _emptied(setting.work / "masks" / OURS)
    options = [*([] if tta else ["--no-tta"]), *([] if fold is None else ["--folds", str(fold)])]
    measured = as_sample(measure_command(
        [str(BIN / "autoseg"), "predict", "--run", str(model.run), "--name", model.name, "--configuration",
         CONFIGURATION, "--speed", speed, *options, "--device", setting.device, "-i", str(model.images), "-o",
         str(output)], setting.environment, setting.limits))
    return {**measured, "without_start": json.loads((output / "run.json").read_text())["results"]["seconds"]}


def predict_theirs(model: Model, setting: Setting, tta: bool, folds: Sequence[int] = (0,)) -> Sample:
    """The command."""
    output = _emptied(setting.work / "masks" / THEIRS)
    return as_sample(measure_command(
        [str(BIN / "nnUNetv2_predict_from_modelfolder"), "-i", str(model.images), "-o", str(output), "-m",
         str(model.nnunet), "-f", *map(str, folds), *([] if tta else ["--disable_tta"]), "-device", setting.device],
        setting.environment, setting.limits))


def _stages(side: str, model: Model, setting: Setting, network: Network, precision: str | None) -> Sample:
    script, where = {OURS: ("performance_inside_autoseg.py", model.fold),
                     THEIRS: ("performance_inside_nnunet.py", model.nnunet)}[side]
    task = {"model": str(where), "cases": model.cases, "tta": network.tta, "precision": precision,
            "passes": network.passes, "output": str(_emptied(setting.work / "masks" / f"{side}_stages"))}
    sample = ask(script, "stages", task, setting, setting.work / "tasks" / side)
    return {**sample, "total": sum(sample[stage] for stage in STAGES)}


def _equal(model: Model, setting: Setting) -> float | None:
    """The share of voxels that the last masks of both have in common; None where one of them has none."""
    equal = total = 0
    for case in model.cases:
        paths = [setting.work / "masks" / side / f"{case}.nii.gz" for side in (OURS, THEIRS)]
        if not all(path.exists() for path in paths):
            return None
        one, other = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in paths)
        equal += int(np.count_nonzero(one == other))
        total += one.size
    return equal / total


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
