"""`autoseg plan` beside `nnUNetv2_plan_and_preprocess`, alternately, on the same dataset: seconds, memory, plans.

    python benchmarks/plan_against_nnunet.py --dataset ../shared/data/seg/Hippocampus_MSD04 --rounds 3
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from measuring import UNLIMITED, Limits, Measurement, measure_command, write_results

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "seg" / "Hippocampus_MSD04"
BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--configuration", default="3d_fullres")
    arguments = parser.parse_args()
    if not arguments.dataset.is_dir():
        sys.exit(f"{arguments.dataset} is not here: name a dataset in nnU-Net's raw layout with --dataset.")
    ours, theirs, equal = [], [], {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            ours.append(run_ours(arguments.dataset.resolve(), Path(scratch), arguments.configuration))
            theirs.append(run_theirs(arguments.dataset.resolve(), Path(scratch), arguments.configuration))
            equal = compare_plans(Path(scratch), arguments.configuration)
    summary = summarize(ours, theirs)
    for line in (summary, equal):
        sys.stdout.write(json.dumps(line, indent=1) + "\n")
    write_results(f"plan_{arguments.dataset.name}", {
        "command": f"python benchmarks/plan_against_nnunet.py --rounds {arguments.rounds}",
        "dataset": arguments.dataset.name, "configuration": arguments.configuration,
        "autoseg": [vars(m) for m in ours], "nnunetv2": [vars(m) for m in theirs],
        "summary": summary, "plan_equal_to_nnunet": equal,
    })


def run_ours(dataset: Path, scratch: Path, configuration: str, limits: Limits = UNLIMITED) -> Measurement:
    """Without training two steps to measure memory, which nnU-Net does not do and a GPU would otherwise begin with."""
    return measure_command([str(BIN / "autoseg"), "plan", str(dataset), "--run", str(scratch / "run"),
                            "--architecture", "plain", "--no-probe-memory", "--configurations", configuration],
                           None, limits)


def run_theirs(dataset: Path, scratch: Path, configuration: str, limits: Limits = UNLIMITED) -> Measurement:
    """With a worker per core, as ours: its own 8 and 4 would only take more memory."""
    raw = scratch / "raw" / "Dataset004_Peer"
    if not raw.exists():
        shutil.copytree(dataset, raw)
    folders = {name: str(scratch / folder) for name, folder in
               (("nnUNet_raw", "raw"), ("nnUNet_preprocessed", "pre"), ("nnUNet_results", "results"))}
    workers = str(len(os.sched_getaffinity(0)))
    return measure_command([str(BIN / "nnUNetv2_plan_and_preprocess"), "-d", "4", "-c", configuration,
                            "-np", workers, "-npfp", workers], folders, limits)


def compare_plans(scratch: Path, configuration: str) -> dict[str, object]:
    """Each decision of ours beside nnU-Net's own JSON."""
    ours = json.loads((scratch / "run" / "plan.json").read_text())["configurations"][configuration]
    network = ours["networks"]["plain"]
    theirs = json.loads((scratch / "pre" / "Dataset004_Peer" / "nnUNetPlans.json").read_text())
    peer = theirs["configurations"][configuration]
    topology = peer["architecture"]["arch_kwargs"]
    pairs = {
        "spacing": (ours["spacing"], peer["spacing"]),
        "patch_shape": (network["patch_shape"], peer["patch_size"]),
        "batch_size": (network["batch_size"], peer["batch_size"]),
        "strides": (network["topology"]["strides"], topology["strides"]),
        "kernel_sizes": (network["topology"]["kernel_sizes"], topology["kernel_sizes"]),
        "features": (network["topology"]["features"], topology["features_per_stage"]),
        "batch_dice": (network["batch_dice"], peer["batch_dice"]),
    }
    return {name: {"equal": mine == peers, "ours": mine, "nnunetv2": peers} for name, (mine, peers) in pairs.items()}


def summarize(ours: list[Measurement], theirs: list[Measurement]) -> dict[str, object]:
    result: dict[str, object] = {}
    for figure in ("seconds", "processor_seconds", "peak_mib"):
        mine, peers = [getattr(m, figure) for m in ours], [getattr(m, figure) for m in theirs]
        ratios = [b / a for a, b in zip(mine, peers, strict=True)]
        result[figure] = {"autoseg_median": statistics.median(mine), "nnunetv2_median": statistics.median(peers),
                          "ratio_median": round(statistics.median(ratios), 2),
                          "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)]}
    return result


if __name__ == "__main__":
    main()
