"""Trainings of a tiny run that several processes (torchrun) or one can do, and how their weights are read.

`python -m torch.distributed.run --nproc-per-node 2 tests/shared_training.py RUN FOLDER` trains each of `JOBS` into
FOLDER/<job>; `train_job` with one process and twice the batch must give the same weights.
"""

import sys
from dataclasses import replace
from pathlib import Path

import safetensors.numpy
import torch

from autoseg.data.splits import read_splits
from autoseg.data.store import open_store, store_folder
from autoseg.planning.planner import store_record
from autoseg.records import read_record
from autoseg.schema import Plan
from autoseg.training import journal
from autoseg.training.processes import ALONE, Processes, joined
from autoseg.training.session import Session, replace_record, train_session
from autoseg.training.settings import TrainSettings

BATCH, PROCESSES = 2, 2
CONFIGURATION = "2d"
JOBS: dict[str, dict[str, object]] = {
    "batch-dice": {"batch_dice": True},
    "sample-dice": {"batch_dice": False},
    "partly-annotated": {"batch_dice": True, "annotated": {"case1": (), "case2": ()}},
    "partly-annotated-sample-dice": {"batch_dice": False, "annotated": {"case1": (), "case2": ()}},
    "views-streamed": {"batch_dice": True, "domain_generalization": "gin", "gin_views": 2, "caching": "streamed"},
}


def train_job(run: Path, folder: Path, job: str, batch: int, processes: Processes = ALONE) -> None:
    """Train one of `JOBS` for three steps with augmentation, each process on batches of `batch` samples."""
    choices = dict(JOBS[job])
    batch_dice, annotated = choices.pop("batch_dice"), choices.pop("annotated", {})
    plan = read_record(Plan, run / "plan.json")
    configuration = plan.configurations[CONFIGURATION]
    network = replace_record(configuration.networks["resenc"], batch_size=batch, batch_dice=batch_dice)
    plan = plan.model_copy(update={"configurations": {
        CONFIGURATION: configuration.model_copy(update={"networks": {"resenc": network}})}})
    store = open_store(store_folder(run, CONFIGURATION, store_record(plan, CONFIGURATION)))
    split = read_splits(run / "splits.json", sorted(store.cases))[0]
    settings = replace(TrainSettings(epochs=1, steps_per_epoch=3, validation_steps=1, precision="float32"), **choices)
    train_session(Session(
        plan=plan, configuration=CONFIGURATION, architecture="resenc", name="test", fold="0", settings=settings,
        optimizer=network.optimizer, seed=5, store=store, train_ids=tuple(split.train), validation_ids=tuple(split.val),
        folder=folder / job, device=torch.device("cpu"), versions={}, annotated=annotated, processes=processes,
    ), False, lambda _: False)


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two model folders."""
    first, second = (safetensors.numpy.load_file(folder / "weights.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float(abs(first[name] - second[name]).max()) for name in first)


def check_agreements(processes: Processes) -> None:
    """What two processes sum and agree on, in each of them."""
    first = processes.is_first
    layer = torch.nn.Linear(2, 1)
    layer.register_parameter("frozen", torch.nn.Parameter(torch.ones(1), requires_grad=False))
    layer.register_parameter("unused", torch.nn.Parameter(torch.ones(1)))
    layer.weight.grad = torch.tensor([[1.0, torch.inf if first else 1.0]])
    layer.bias.grad = None if first else torch.tensor([3.0])
    processes.average_gradients(layer)
    assert layer.weight.grad.tolist() == [[1.0, torch.inf]]
    assert layer.bias.grad is not None and layer.bias.grad.tolist() == [1.5]
    assert layer.frozen.grad is None and layer.unused.grad is None
    assert processes.agree(7.0 if first else 9.0, stop=not first) == (7.0, True)
    assert processes.texts("ä" * (processes.rank + 1)) == ["ä", "ää"]
    assert processes.means([torch.tensor(float(processes.rank))]) == [0.5]


if __name__ == "__main__":
    journal.draw_progress = lambda *_: None  # pictures take longer than these trainings
    with joined(torch.device("cpu")) as together:
        check_agreements(together)
        for job_name in JOBS if len(sys.argv) == 3 else sys.argv[3:]:
            train_job(Path(sys.argv[1]), Path(sys.argv[2]), job_name, BATCH, together)
