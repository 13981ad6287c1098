"""What all parts of the measurement share: where they work, how long they may take, how a child is asked."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import Limits, measure_command
from performance_data import HIPPOCAMPUS, ORGANS, phantom_name
from performance_figures import Sample, as_sample

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
LARGE, MANY = phantom_name(512, 512, 200, 24), phantom_name(256, 256, 200, 117)
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float16", "bfloat16")}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. Datasets → rounds; shapes are (z, y, x).

    train : rounds, and steps per round of each side; half as many warm up. train_cases : of Hippocampus; of fewer than
        all, the plan's batch is smaller.
    predict_cases : images per round of Hippocampus. whole : datasets that are also predicted, once and without mirrored
        copies, with the network as planned: what that takes in memory. speeds_minutes : of the training that `--speed`
        is judged by.
    volumes : decoded at `volume_labels` labels; label_counts : decoded in `label_shape`.
    """

    plan: Mapping[str, int]
    train: tuple[int, int]
    train_cases: int | None = None
    predict: Mapping[str, int]
    predict_cases: int
    whole: Sequence[str] = ()
    startup: int
    volumes: tuple[tuple[int, int, int], ...]
    volume_labels: int
    label_counts: tuple[int, ...]
    label_shape: tuple[int, int, int]
    scaling: int = 1
    speeds_minutes: float | None = None


QUICK = Sizes(
    plan={HIPPOCAMPUS: 1, phantom_name(96, 96, 64, 24): 1}, train=(1, 2), train_cases=12,
    predict={HIPPOCAMPUS: 1, phantom_name(96, 96, 64, 117): 1}, predict_cases=2, startup=1,
    volumes=((64, 64, 64), (96, 128, 128)), volume_labels=8, label_counts=(2, 24), label_shape=(64, 64, 64),
    speeds_minutes=0.5)
USUAL = Sizes(
    plan={HIPPOCAMPUS: 2, ORGANS: 1, phantom_name(256, 256, 100, 24): 1}, train=(2, 2),
    predict={HIPPOCAMPUS: 2, phantom_name(192, 192, 100, 117): 1, phantom_name(256, 256, 100, 24): 1},
    predict_cases=3, startup=3,
    volumes=((128, 128, 128), (200, 256, 256), (100, 512, 512)), volume_labels=24, label_counts=(2, 24, 117),
    label_shape=(128, 128, 128))
FULL = Sizes(
    plan={HIPPOCAMPUS: 3, ORGANS: 1, LARGE: 1}, train=(3, 4),
    predict={HIPPOCAMPUS: 2, ORGANS: 1, MANY: 1, LARGE: 1}, predict_cases=20, whole=(MANY,), startup=5,
    volumes=((128, 128, 128), (200, 256, 256), (200, 512, 512), (400, 512, 512), (800, 512, 512)), volume_labels=24,
    label_counts=(2, 8, 24, 60, 117), label_shape=(200, 256, 256), speeds_minutes=20)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Of one run of the benchmark. rounds : instead of those of `sizes`. limits : of every child of either side.
    trained : a fold's folder, for the part `speeds`.
    """

    work: Path
    data: Path
    device: str
    sizes: Sizes
    limits: Limits
    rounds: int | None = None
    trained: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def times(self, planned: int) -> int:
        """Rounds: those that were asked for, or planned."""
        return self.rounds or planned

    def record(self) -> dict[str, Any]:
        """For the results."""
        return {"device": self.device, "limits": {"memory_gib": self.limits.memory_gib,
                                                   "seconds": self.limits.seconds}}


def ask(script: str, what: str, task: Mapping[str, Any], setting: Setting, place: Path) -> Sample:
    """One task in a child process: its own figures, and the seconds and memory of the whole process."""
    place.mkdir(parents=True, exist_ok=True)
    answer = place / f"{what}.answer.json"
    answer.unlink(missing_ok=True)
    described = place / f"{what}.task.json"
    described.write_text(json.dumps({**task, "device": setting.device, "to": str(answer)}))
    measured = measure_command([sys.executable, str(HERE / script), what, str(described)], setting.environment,
                               setting.limits)
    return {**as_sample(measured), **json.loads(answer.read_text())}


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))
