"""Plan and preprocess: `autoseg plan` beside `nnUNetv2_plan_and_preprocess`, 3d_fullres, the same network."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from performance_data import NoData, dataset
from performance_figures import OURS, THEIRS, alternate, as_sample
from performance_setting import Setting
from plan_against_nnunet import compare_plans, run_ours, run_theirs

CONFIGURATION = "3d_fullres"


def measure_plan(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row per dataset: seconds, processor seconds and peak memory of both commands; do the plans agree?"""
    for name, rounds in setting.sizes.plan.items():
        try:
            folder = dataset(name, setting.data, setting.work).resolve()
        except NoData as missing:
            yield {"data": name, "skipped": str(missing)}
            continue
        print(f"  {name}", flush=True)
        yield {"data": name, "what": "plan + preprocess", **_against(folder, setting, setting.times(rounds))}


def _against(folder: Path, setting: Setting, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=setting.work) as scratch:
        place = Path(scratch)
        sides = {
            OURS: lambda: as_sample(run_ours(folder, emptied(place, "run"), CONFIGURATION, setting.limits)),
            THEIRS: lambda: as_sample(run_theirs(folder, emptied(place, "pre"), CONFIGURATION, setting.limits)),
        }
        row: dict[str, Any] = dict(alternate(sides, rounds))
        if not any("failed" in sample for side in (OURS, THEIRS) for sample in row[side]):
            compared = compare_plans(place, CONFIGURATION)
            row["plans_differ_in"] = [name for name, one in compared.items() if not one["equal"]]  # type: ignore[index]
    return row


def emptied(place: Path, name: str) -> Path:
    """`place`, without what an earlier round wrote to one of its folders; a store that is there would be kept."""
    shutil.rmtree(place / name, ignore_errors=True)
    return place
