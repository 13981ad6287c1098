"""One network with random weights in both programs: planned and written as nnU-Net does, imported into autoseg."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import measure_command
from performance_data import first_cases
from performance_setting import BIN

CONFIGURATION = "3d_fullres"
FOLDS = 5  # all with the same weights: seconds do not depend on them


@dataclass(frozen=True)
class Model:
    """The same network twice, and the images it is shown."""

    dataset: Path
    nnunet: Path
    run: Path
    name: str
    cases: Mapping[str, list[str]]
    facts: Mapping[str, Any]

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return self.dataset / "imagesTr"

    @property
    def fold(self) -> Path:
        """Of ours, with its weights."""
        return self.run / "models" / self.name / CONFIGURATION / "fold_0"


def make_model(source: Path, case_count: int, place: Path, width: int = 1, coarser: float = 1.0) -> Model:
    """Plan for the whole of `source`; layers `width` times narrower, pixels `coarser` times as wide as planned.

    Made once in `place`; predicted are the first `case_count` cases.
    """
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from nnunet_results import changed, plan_with_nnunet, random_network, write_folds

    shown = first_cases(source, case_count, place / f"first_{case_count}")
    declared = json.loads((source / "dataset.json").read_text())
    results = place / "results" / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    if not (place / "run" / "models" / "same" / CONFIGURATION / f"fold_{FOLDS - 1}").exists():
        plans = changed(plan_with_nnunet(source, place / "nnunet"), CONFIGURATION, width, coarser=coarser)
        network = random_network(plans, declared, CONFIGURATION, seed=0)
        write_folds(place / "results", plans, declared, CONFIGURATION, [network] * FOLDS)
        measure_command([str(BIN / "autoseg"), "import-nnunet", str(results), "--run", str(place / "run"), "--name",
                         "same"])
    planned = json.loads((results / "plans.json").read_text())["configurations"][CONFIGURATION]
    facts = {"patch_shape": planned["patch_size"], "spacing": planned["spacing"], "narrower": width,
             "coarser": coarser, "features": planned["architecture"]["arch_kwargs"]["features_per_stage"]}
    cases: dict[str, list[str]] = {}
    for path in sorted((shown / "imagesTr").iterdir()):
        cases.setdefault(path.name.rpartition("_")[0], []).append(str(path))
    return Model(shown, results, place / "run", "same", cases, facts)
