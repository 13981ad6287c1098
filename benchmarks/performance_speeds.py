"""What `predict --speed` costs in Dice: of a network that autoseg trained on Hippocampus, by its own measurement.

The seconds beside nnU-Net stand in the part `predict`, as they do not depend on weights. With `--trained FOLDER`, a
fold's folder with speeds.json, nothing is trained.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import measure_command
from performance_data import HIPPOCAMPUS, NoData, dataset
from performance_setting import BIN, Setting
from plan_against_nnunet import run_ours


def measure_speeds(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row per level."""
    about = {"data": f"{HIPPOCAMPUS} fold 0", "what": "speeds"}
    minutes = setting.sizes.speeds_minutes
    if setting.trained is None and minutes is None:
        yield {**about, "skipped": "it needs a trained network; --full trains one, --trained FOLDER names one"}
        return
    try:
        folder = setting.trained or _train(dataset(HIPPOCAMPUS, setting.data, setting.work).resolve(), setting)
    except NoData as missing:
        yield {**about, "skipped": str(missing)}
        return
    report = json.loads((folder / "speeds.json").read_text())
    for level, cost in report["levels"].items():
        yield {**about, "level": level, "cases": len(report["cases"]), "exact_dice": report["exact_dice"],
               "exact_seconds": report["exact_seconds"], "trained": setting.trained is not None,
               "minutes_of_training": None if setting.trained else minutes,
               "autoseg": [{name: value for name, value in cost.items() if name != "labels"}]}


def _train(source: Path, setting: Setting) -> Path:
    place = setting.work / "speeds"
    if not (place / "run" / "plan.json").exists():
        run_ours(source, place, "3d_fullres")
    measure_command([str(BIN / "autoseg"), "train", "--run", str(place / "run"), "--configuration", "3d_fullres",
                     "--architecture", "plain", "--name", "speeds", "--overwrite", "--preset", "quick",
                     "--max-minutes", str(setting.sizes.speeds_minutes), "--device", setting.device])
    return place / "run" / "models" / "speeds" / "3d_fullres" / "fold_0"
