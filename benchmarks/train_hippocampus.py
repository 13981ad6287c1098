"""Fold 0 of MSD Hippocampus: mean foreground Dice on validation, steps per second, seconds per epoch.

CPU:  python benchmarks/train_hippocampus.py --work DIR --preset quick --max-minutes 30
GPU:  python benchmarks/train_hippocampus.py --work DIR --preset default --epochs 100 --device cuda
`--collect RUN` writes the results of a training that has been run by hand.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from measuring import write_results

BIN = Path(sys.executable).parent
DATASET = Path(__file__).resolve().parents[2] / "shared" / "data" / "seg" / "Hippocampus_MSD04"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=DATASET)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--collect", type=Path, metavar="RUN")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs")
    parser.add_argument("--max-minutes")
    arguments = parser.parse_args()
    if not (arguments.work or arguments.collect):
        parser.error("give --work DIR to train, or --collect RUN")
    run = arguments.collect or arguments.work / "run"
    if not arguments.collect:
        train(arguments, run)
    for folder in sorted(run.glob("models/*/*/fold_0")):
        record = collect(folder, json.loads((run / "run.json").read_text()))
        kind = "gpu" if "cuda" in str(record["device"]) else "cpu"
        write_results(f"train_hippocampus_{kind}_{_length(record)}", record)


def _length(record: dict[str, object]) -> str:
    minutes = record["preset_minutes"]
    return f"{minutes:g}min" if minutes else f"{record['epochs']}epochs"


def train(arguments: argparse.Namespace, run: Path) -> None:
    limits = [text for name in ("epochs", "max_minutes") if (value := getattr(arguments, name))
              for text in (f"--{name.replace('_', '-')}", value)]
    for command in (["plan", str(arguments.dataset)],
                    ["train", "--preset", arguments.preset, "--device", arguments.device, *limits]):
        subprocess.run([str(BIN / "autoseg"), *command, "--run", str(run)], check=True, stdout=subprocess.DEVNULL)


def collect(folder: Path, run: dict[str, object]) -> dict[str, object]:
    """The figures of one model folder, and the command that made it."""
    info = json.loads((folder / "model.json").read_text())
    scores = json.loads((folder / "scores.json").read_text())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    per_case = [statistics.mean(label["dice"] for label in case["labels"].values()) for case in scores["cases"]]
    between = [later["seconds"] - earlier["seconds"] for earlier, later in zip(epochs, epochs[1:], strict=False)]
    return {  # no path of this machine goes into the results
        "command": " ".join("RUN" if "/" in str(word) else str(word) for word in ["autoseg", *run["arguments"]]),
        "device": info["training"]["device"],
        "precision": info["training"]["used_precision"], "architecture": info["architecture"],
        "patch": info["network"]["patch_shape"], "batch": info["network"]["batch_size"], "steps": info["steps"],
        "epochs": len(epochs), "steps_per_epoch": info["training"]["steps_per_epoch"],
        "preset_minutes": info["training"]["max_minutes"], "training_seconds": info["seconds"],
        "command_seconds": run["seconds"], "seconds_per_epoch_median": statistics.median(between) if between else None,
        "steps_per_second_median": statistics.median(line["steps_per_second"] for line in epochs),
        "data_wait_median": statistics.median(line["data_wait"] for line in epochs),
        "mean": scores["mean"], "labels": scores["labels"], "cases": len(per_case),
        "dice_over_cases": {"min": min(per_case), "median": statistics.median(per_case), "max": max(per_case),
                            "std": statistics.stdev(per_case)},
    }


if __name__ == "__main__":
    main()
