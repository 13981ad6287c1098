"""Datasets that performance is measured on, by name, made once in a folder for work."""

import json
import re
from pathlib import Path

from phantoms import Spacing, write_phantoms

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "seg"
HIPPOCAMPUS, ORGANS = "Hippocampus_MSD04", "AbdCT_SABS_13organs"
PHANTOM = re.compile(r"phantom_(\d+)x(\d+)x(\d+)_(\d+)labels")
SPACINGS: tuple[Spacing, ...] = ((2.0, 0.70, 0.70), (2.5, 0.90, 0.90))
"""Two cases: the median lies between them, so that both are resampled."""


class NoData(RuntimeError):
    """A dataset that is not on this machine."""


def phantom_name(x: int, y: int, z: int, labels: int) -> str:
    return f"phantom_{x}x{y}x{z}_{labels}labels"


def dataset(name: str, data: Path, work: Path) -> Path:
    """The folder of a dataset; made in `work` unless `data` has it as it is."""
    if found := PHANTOM.fullmatch(name):
        x, y, z, labels = map(int, found.groups())
        return write_phantoms(work / "datasets" / name, (z, y, x), labels, SPACINGS)
    source = data / (name if name == HIPPOCAMPUS else "AbdCT_SABS")
    if not source.is_dir():
        raise NoData(f"{source} is not here")
    return source if name == HIPPOCAMPUS else _thirteen_organs(source, work / "datasets" / name)


def first_cases(source: Path, count: int, target: Path) -> Path:
    """A dataset of links to the first cases of another."""
    if target.exists():
        return target
    declared = json.loads((source / "dataset.json").read_text())
    ending = declared["file_ending"]
    cases = sorted(path.name.removesuffix(ending) for path in (source / "labelsTr").glob(f"*{ending}"))[:count]
    for case in cases:
        for path in (*(source / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"),
                     source / "labelsTr" / f"{case}{ending}"):
            _link(path, target / path.parent.name / path.name)
    (target / "dataset.json").write_text(json.dumps(declared | {"numTraining": len(cases)}))
    return target


def _thirteen_organs(source: Path, target: Path) -> Path:
    if target.exists():
        return target
    declared = json.loads((source / "dataset.json").read_text())
    for path in sorted((source / "imagesTr").iterdir()):
        _link(path, target / "imagesTr" / path.name)
    for path in sorted((source / "labelsTr_13organs").iterdir()):
        _link(path, target / "labelsTr" / path.name)
    kept = {key: declared[key] for key in ("channel_names", "numTraining", "file_ending")}
    (target / "dataset.json").write_text(json.dumps(kept | {"labels": declared["labels_13organs"]}))
    return target


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(path.resolve())
