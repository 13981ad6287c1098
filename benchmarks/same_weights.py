"""The same weights in nnU-Net v2 and, imported, in autoseg: do both compute the same logits and the same masks?

    OMP_NUM_THREADS=1 python benchmarks/same_weights.py --work DIR [--only hippocampus brats-regions] [--cases 2]

nnU-Net's own planner plans each dataset; two folds of networks with random weights are written as its trainer writes
them, brought along by `autoseg import-nnunet`, and predicted on the CPU: by nnU-Net's predictor, by its windows summed
in float32 (its predictor sums in float16), and by `autoseg predict`. To keep to minutes, networks are narrower, some
images cropped and some patches shorter than planned; where `coarser` exceeds 1, pixels are wider than planned, so that
images and logits are resampled. Everything is compared as it comes out: each side prepares its images itself.

The masks of nnU-Net's predictor are also compared with those of its own windows summed in float32: what half precision
alone changes. Ours may differ from its predictor's by that, and no more than `LIMITS["own"]` of the voxels beyond it.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from measuring import write_results
from torch import Tensor
from weights_against_nnunet import (
    HEAVY,
    SETTINGS,
    CaseComparison,
    NnUNet,
    Ours,
    Setting,
    call_autoseg,
    centre_window,
    compare_case,
    window_difference,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from nnunet_results import NetworkClass, changed, plan_with_nnunet, random_network, write_folds  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "seg"
REGIONS = {"background": 0, "whole": [1, 2, 3, 4], "core": [1, 3, 4], "enhancing": [4]}
LIMITS = {"window": 1e-4, "logits": 1e-4, "half": 2e-2, "equal": 0.9999, "own": 1e-4}


@dataclass(frozen=True)
class Study:
    """One dataset and configuration; `width`, `patch`, `coarser` as in `nnunet_results.changed`.

    crop : per axis (x, y, z) the voxels that are kept of each image, if not all.
    """

    folder: str
    configuration: str
    network: NetworkClass
    width: int
    patch: int = 1
    coarser: float = 1.0
    crop: tuple[tuple[int, int], ...] | None = None


STUDIES = {
    "hippocampus": Study("Hippocampus_MSD04", "3d_fullres", "PlainConvUNet", width=2),
    "bssfp-2d": Study("Cardiac_MSCMR_bSSFP", "2d", "PlainConvUNet", width=4, patch=2, coarser=1.1,
                      crop=((32, 224), (32, 224), (2, 8))),
    "bssfp-3d": Study("Cardiac_MSCMR_bSSFP", "3d_fullres", "ResidualEncoderUNet", width=4, patch=2, coarser=1.2,
                      crop=((80, 176), (80, 176), (0, 11))),
    "brats-regions": Study("BraTS2013_2ch", "3d_fullres", "PlainConvUNet", width=4, patch=2, coarser=1.3,
                           crop=((20, 148), (40, 168), (60, 84))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for datasets, networks and masks")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--cases", type=int, default=2)
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data} is not here: name the folder of the real datasets with --data.")
    results = {}
    for name in arguments.only:
        work = arguments.work / name
        if work.exists():
            sys.exit(f"{work} exists already: name another folder with --work, or remove it.")
        results[name] = run_study(STUDIES[name], arguments.data / STUDIES[name].folder, work, arguments.cases)
        print_table(name, results[name])
    used = os.times()
    write_results("same_weights", {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/same_weights.py --work DIR --cases {arguments.cases}",
        "limits": LIMITS, "half_is_compared_where_weights_exceed": HEAVY,
        "processor_seconds": round(used.user + used.system + used.children_user + used.children_system),
        "studies": results, "all_within": all(all(result["within"].values()) for result in results.values()),
    })


# ---------------------------------------------------------------- one study
def run_study(study: Study, source: Path, work: Path, cases: int) -> dict[str, Any]:
    """Plan, make two folds, import, predict, compare."""
    dataset, names = make_dataset(study, source, work / "dataset", cases)
    declared = json.loads((dataset / "dataset.json").read_text())
    planned = plan_with_nnunet(dataset, work / "nnunet", study.network)
    plans = changed(planned, study.configuration, study.width, study.patch, study.coarser)
    images = {name: images_of(dataset, name) for name in names}
    window = first_window(plans, declared, study.configuration, images[names[0]])
    networks = [random_network(plans, declared, study.configuration, seed, window) for seed in (0, 1)]
    folder = write_folds(work / "results", plans, declared, study.configuration, networks)
    call_autoseg("import-nnunet", folder, "--run", work / "run", "--name", "same")
    theirs, ours = NnUNet(folder), Ours(work / "run", "same", study.configuration)
    masks = {setting: work / "masks" / str(number) for number, setting in enumerate(SETTINGS)}
    for setting, output in masks.items():
        ours.predict(dataset / "imagesTr", output, setting)
    compared = [
        one
        for name in names
        for one in compare_case(name, images[name], theirs, ours, masks_of(masks, name))
    ]
    return summarize(study, plans, window_difference(theirs, ours, window), compared)


def masks_of(folders: dict[Setting, Path], case: str) -> dict[Setting, Path]:
    return {setting: folder / f"{case}.nii.gz" for setting, folder in folders.items()}


def first_window(plans: dict[str, Any], declared: dict[str, Any], configuration: str, images: Sequence[Path]) -> Tensor:
    """The middle of an image as nnU-Net prepares it."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    files = [str(path) for path in images]
    image, _, _ = planned.preprocessor_class(verbose=False).run_case(files, None, manager, planned, declared)
    return centre_window(torch.from_numpy(np.ascontiguousarray(image, np.float32)), planned.patch_size)


def summarize(
    study: Study, plans: dict[str, Any], window: float, compared: Sequence[CaseComparison]
) -> dict[str, Any]:
    """The worst of each figure, whether all are within `LIMITS`, and each case."""
    planned = plans["configurations"][study.configuration]
    worst = {
        "window": window,
        **{name: max(getattr(one, name) for one in compared)
           for name in ("prepared", "logits", "half", "half_anywhere", "own_half_anywhere", "spread",
                        "largest")},
        "same_input": max(one.same_input for one in compared if one.same_input is not None),
        **{f"equal_{name}": min(getattr(one, name).equal for one in compared)
           for name in ("mask", "mask_of_half", "own_mask_of_half")},
        "unexplained": sum(one.mask.unexplained + one.mask_of_half.unexplained for one in compared),
    }
    within = {name: worst[name] <= LIMITS[name] for name in ("window", "logits", "half")}
    within |= {
        "equal_mask": worst["equal_mask"] >= LIMITS["equal"],
        "equal_mask_of_half": all(
            one.mask_of_half.equal >= min(LIMITS["equal"], one.own_mask_of_half.equal - LIMITS["own"])
            for one in compared
        ),
        "explained": worst["unexplained"] == 0,
    }
    return {
        **asdict(study), "patch_shape": planned["patch_size"], "spacing": planned["spacing"],
        "features": planned["architecture"]["arch_kwargs"]["features_per_stage"], "within": within,
        "worst": worst, "cases": [one.record() for one in compared],
    }  # fmt: skip


# ---------------------------------------------------------------- datasets
def make_dataset(study: Study, source: Path, target: Path, cases: int) -> tuple[Path, list[str]]:
    """A dataset folder with the first cases of `source`, linked or cropped, and their names; BraTS with regions."""
    declared = json.loads((source / "dataset.json").read_text())
    ending = declared["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (source / "labelsTr").glob(f"*{ending}"))[:cases]
    regions = source.name == "BraTS2013_2ch"
    for name in names:
        for path in (*images_of(source, name), source / "labelsTr" / f"{name}{ending}"):
            place(path, target / path.parent.name / path.name, study.crop)
    if regions:
        declared |= {"labels": REGIONS, "regions_class_order": [2, 1, 4]}
    (target / "dataset.json").write_text(json.dumps(declared | {"numTraining": len(names)}))
    return target, names


def images_of(dataset: Path, case: str) -> list[Path]:
    """One file per channel."""
    return sorted((dataset / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz"))


def place(path: Path, target: Path, crop: tuple[tuple[int, int], ...] | None) -> None:
    """A file of the dataset at its place in the copy: a link, or a part of the image."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if crop is None:
        target.symlink_to(path.resolve())
    else:
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path))[tuple(slice(*span) for span in crop)], str(target))


# ---------------------------------------------------------------- table
def print_table(name: str, result: dict[str, Any]) -> None:
    worst = result["worst"]
    failed = [limit for limit, is_kept in result["within"].items() if not is_kept]
    print(f"\n{name}: {result['network']} {result['configuration']}, patch {result['patch_shape']}, features "
          f"{result['features']}; {'beyond the limits: ' + ', '.join(failed) if failed else 'all within the limits'}")
    print(f"  window {worst['window']:.1e}; logits: standard deviation up to {worst['spread']:.1f}, largest "
          f"{worst['largest']:.1f}")
    print(f"  {'case':20} {'setting':17} {'windows':>7} {'prepared':>8} {'same in':>8} {'logits':>8} {'half':>8} "
          f"{'anywhere':>8} {'mask':>9} {'of half':>9} {'half alone':>10} {'unexpl.':>7}  labels")
    for one in result["cases"]:
        sides = one["mask"], one["mask_of_half"], one["own_mask_of_half"]
        equal = [f"{100 * (1 - side['different'] / side['voxels']):.4f}%" for side in sides]
        total = sum(one["labels"].values())
        shares = " ".join(f"{value}:{100 * count / total:.0f}%" for value, count in one["labels"].items())
        keys = ("prepared", "same_input", "logits", "half", "half_anywhere")
        figures = " ".join(8 * " " if one[key] is None else f"{one[key]:8.1e}" for key in keys)
        print(f"  {one['case'][:20]:20} {one['setting']:17} {one['windows']:7} {figures} {equal[0]:>9} {equal[1]:>9} "
              f"{equal[2]:>10} {sum(side['unexplained'] for side in sides[:2]):7}  {shares}", flush=True)


if __name__ == "__main__":
    main()
