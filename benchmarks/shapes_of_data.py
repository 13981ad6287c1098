"""The four verbs on real data of every shape, with the quick preset: one JSON line per finished fold.

    python benchmarks/shapes_of_data.py --data ../shared/data/seg --work /somewhere

Folds whose line stands in benchmarks/results/shapes_of_data.jsonl already are not run again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from measuring import machine

BIN = Path(sys.executable).parent
RESULTS = Path(__file__).parent / "results" / "shapes_of_data.jsonl"
# dataset, configuration, fold, minutes of training. BraTS has three cases: leave-one-out.
RUNS = (
    ("WBC_Dataset1", "2d", "0", 2), ("CXRLung_Montgomery", "2d", "0", 3),
    ("BraTS2013_2ch", "2d", "0", 2), ("BraTS2013_2ch", "2d", "1", 2), ("BraTS2013_2ch", "2d", "2", 2),
    ("Cardiac_MSCMR_bSSFP", "2d", "0", 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data" / "seg")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    finished = {(line["dataset"], line["configuration"], line["fold"], line["minutes"]) for line in done}
    for run in RUNS:
        if run not in finished:
            line = json.dumps(measure(*run, arguments.data, arguments.work))
            sys.stdout.write(f"{line}\n")
            with RESULTS.open("a") as stream:
                stream.write(f"{line}\n")


def measure(name: str, configuration: str, fold: str, minutes: int, data: Path, work: Path) -> dict[str, object]:
    """plan, train, predict (the first fold's cases are those of its own validation) and evaluate."""
    folder, seconds = work / name, {}
    run = ["--run", str(folder / "run")]
    start = time.perf_counter()
    call("plan", str(data / name), *run, "--configurations", configuration)
    seconds["plan"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    model = folder / "run" / "models" / "resenc" / configuration / f"fold_{fold}"
    if not (model / "scores.json").exists():  # else an interrupted run of this script trained it
        call("train", *run, "--configuration", configuration, "--fold", fold, "--preset", "quick", "--max-minutes",
             str(minutes), "--overwrite")
    seconds["train_and_validate"] = round(time.perf_counter() - start, 1)
    masks = folder / f"masks_{fold}"
    start = time.perf_counter()
    call("predict", "-i", str(held_out(data / name, folder, fold)), "-o", str(masks), *run, "--folds", fold,
         "--configuration", configuration, "--overwrite")
    seconds["predict"] = round(time.perf_counter() - start, 1)
    call("evaluate", "-p", str(masks), "-r", str(folder / f"references_{fold}"), "--dataset", str(data / name))
    scores = json.loads((masks / "scores.json").read_text())
    info = json.loads((model / "model.json").read_text())
    dice = [sum(label["dice"] or 0 for label in case["labels"].values()) / len(case["labels"])
            for case in scores["cases"]]
    return {"dataset": name, "configuration": configuration, "fold": fold, "minutes": minutes, "steps": info["steps"],
            "patch": info["network"]["patch_shape"], "batch": info["network"]["batch_size"], "cases": len(dice),
            "mean": scores["mean"], "dice_by_label": {k: v["dice"] for k, v in scores["labels"].items()},
            "dice_range_over_cases": [round(min(dice), 4), round(max(dice), 4)],
            "same_as_validation": json.loads((model / "scores.json").read_text())["mean"] == scores["mean"],
            "seconds": seconds, "machine": machine()}


def held_out(dataset: Path, folder: Path, fold: str) -> Path:
    """A folder of links to the fold's validation images (and one to their labels)."""
    ids = json.loads((folder / "run" / "splits.json").read_text())[int(fold)]["val"]
    for source, target in (("imagesTr", f"images_{fold}"), ("labelsTr", f"references_{fold}")):
        (folder / target).mkdir(exist_ok=True)
        for path in (dataset / source).iterdir():
            if any(path.name.startswith((f"{case}_", f"{case}.")) for case in ids):
                link = folder / target / path.name
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
    return folder / f"images_{fold}"


def call(*arguments: str) -> None:
    done = subprocess.run([str(BIN / "autoseg"), *arguments], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"autoseg {' '.join(arguments)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
