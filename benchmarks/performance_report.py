"""docs/performance.md and its pictures, from the results that performance.py wrote. Nothing of the page is by hand.

    python benchmarks/performance_report.py [--results DIR] [--docs DIR] [--size reduced]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from measuring import RESULTS
from performance_goals import goals_table
from performance_plots import draw_ratios, draw_scaling, draw_stages
from performance_tables import tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
PARTS = ("plan", "train", "predict", "startup", "scaling", "speeds")
SIZES = ("full", "reduced", "quick")
DEVICES = {"cpu": "On a CPU", "cuda": "On a GPU"}
AS_IS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
HEAD = """# How fast, beside nnU-Net

This page is made by `python benchmarks/performance_report.py` from `benchmarks/results/performance_*.json`;
`make bench` measures a reduced set in some 20 minutes, `python benchmarks/performance.py --work DIR --full` what stands
here. Both programs run alternately on the same data and the same weights. Figures are medians over the rounds, ranges
in brackets; a ratio is that of a round's two runs, and above 1 where autoseg is better. Seconds are wall-clock seconds
of the whole command, start included. Peak memory is the sum over the process tree (PSS, shared pages once), sampled.
Both sides have the same limit of memory (address space of each process, and memory of all together; on a GPU only the
latter); where one dies of it, that is the result.
"""
TEXTS = {
    "plan": ("Plan and preprocess", "`autoseg plan` beside `nnUNetv2_plan_and_preprocess`, configuration 3d_fullres, "
             "nnunetv2 with a worker per core. Phantoms are two CT-like cases that both have to be resampled."),
    "train": ("Training steps", "`autoseg train` beside nnunetv2's trainer with its augmenter processes on the same "
              "cores; same plan, patch, batch and kinds of augmentation. *Its network alone*: forward, loss, "
              "backward and update of one batch that stays on the device. On a CPU nnunetv2 itself computes in "
              "float32 only; its network alone in bfloat16 is our doing."),
    "predict": ("Prediction", "The same random weights, written as nnU-Net writes them and imported. First the "
                "commands, each with its defaults (nnunetv2: three processes to prepare, three to export). Then the "
                "stages one after another in one process each, and the network alone: as many passes as the windows "
                "take, of a window that is there already (of autoseg without the last layer where it sums features). "
                "Networks are narrowed as stated to keep to minutes; where layers are 1/16 and no copies are mirrored, "
                "resampling and export dominate, as on a fast GPU. A network so narrow has 2 features, and autoseg "
                "sums 2 channels instead of one per class; planned networks have 32, so that this helps from 33 "
                "classes on only, and less: *network as planned* shows what is left of it. Random "
                "weights give ragged masks: less calm than a trained network's, which makes decoding slower for us, "
                "not for nnunetv2. They also make many near ties, which nnunetv2's sum of windows in half precision "
                "turns (`benchmarks/same_weights.py` shows what is left without it)."),
    "startup": ("From start to first mask", "One case of Hippocampus, the plan's whole network, exact with mirrored "
                "copies: `autoseg predict` beside `nnUNetv2_predict_from_modelfolder`."),
    "scaling": ("Scaling of decoding", "Synthetic logits to labels, from a grid 1.5 times as coarse along each axis: "
                "one ellipsoid per label, with logits as far apart as a trained network's; *ragged*: small patches of "
                "all labels side by side, as random weights give. autoseg gets them plane by plane, nnunetv2's export "
                "needs them whole; what is in them makes no difference to it. Making them is not counted."),
    "speeds": ("Faster than exact", "What `predict --speed` costs in Dice, as `autoseg train` measures it at its end "
               "on the fold's validation cases."),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--size", choices=SIZES, default="full")
    arguments = parser.parse_args()
    print(write_page(arguments.results, arguments.docs, arguments.size))


def result_name(part: str, device: str, size: str) -> str:
    """Of the file of results, without .json."""
    return f"performance_{part}" + f"_{device}" * (device != "cpu") + f"_{size}" * (size != "full")


def write_page(results: Path, docs: Path, size: str = "full") -> Path:
    """performance.md and performance_*.png in `docs`; a device without results is left out."""
    blocks = [HEAD]
    for device, title in DEVICES.items():
        if found := read_results(results, device, size):
            blocks += [f"## {title}", *_device(found, device, docs)]
    path = docs / "performance.md"
    path.write_text("\n\n".join(block.strip() for block in blocks) + "\n", encoding="utf-8")
    return path


def read_results(folder: Path, device: str, size: str) -> dict[str, Mapping[str, Any]]:
    """Part → what performance.py wrote about it."""
    paths = {part: folder / f"{result_name(part, device, size)}.json" for part in PARTS}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}


def _device(found: Mapping[str, Mapping[str, Any]], device: str, docs: Path) -> list[str]:
    ending = f"_{device}" * (device != "cpu")
    rows: dict[str, Sequence[Mapping[str, Any]]] = {part: one["rows"] for part, one in found.items()}
    draw_ratios(rows, docs / f"performance_ratios{ending}.png")
    blocks = ["### Goals", goals_table(rows, device), f"![Ratios to nnunetv2](performance_ratios{ending}.png)"]
    for part, one in found.items():
        title, about = TEXTS[part]
        blocks += [f"### {title}", fill(about, 120), fill(measured_on(one), 120, **AS_IS), tables(part, one["rows"])]
        if part == "predict":
            draw_stages(rows[part], docs / f"performance_stages{ending}.png")
            blocks.append(f"![Seconds of every stage](performance_stages{ending}.png)")
        if part == "scaling":
            draw_scaling(rows[part], docs / f"performance_scaling{ending}.png")
            blocks.append(f"![Seconds and memory of decoding](performance_scaling{ending}.png)")
    return blocks


def measured_on(results: Mapping[str, Any]) -> str:
    """The command, the commit and the machine, in one line; and `note`, what disturbed a measurement."""
    machine, limits = results["machine"], results["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    size = "" if results["size"] == "full" else f" ({results['size']} sizes)"
    accelerator = f" {results['accelerator']};" if results.get("accelerator") else ""
    return (f"`{results['command']}`{size}, {machine['date']}, commit {machine['commit'] or 'unknown'}: "
            f"{machine['processor']}, {machine['cores']} cores, {machine.get('memory_gib', '?')} GiB;{accelerator} "
            f"{versions}. Limit of memory: {limits['memory_gib']:g} GiB; {results['minutes']:g} minutes."
            + (f" {results['note']}" if results.get("note") else ""))


if __name__ == "__main__":
    main()
