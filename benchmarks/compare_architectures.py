"""Architectures beside each other at equal steps and at equal time: Dice on cases that no training saw.

Declared before the first run:

* Primary comparison: `hybrid` against `resenc`, both with the hybrid's optimizer (AdamW, one learning rate for both),
  on Hippocampus (`3d_fullres`) and bSSFP (`2d`), quick preset, two seeds; difference in mean foreground Dice over the
  validation cases, in the column "same time" first and "same steps" second. Held to be no loss where the 95 % interval
  of the difference (paired by case, both seeds averaged, bootstrap over cases) lies above -0.3 Dice points.
  Why not each with its own optimizer: a pilot of 100 steps gave resenc Dice 0 with SGD and 66 with AdamW; the
  comparison would have been one of optimizers.
* "Same steps": every network makes the dataset's number of steps. "Same time": every network trains for as many
  seconds as resenc with AdamW took for its steps with that seed; learning rates reach their end with either.
* Secondary: `resenc` with SGD (its plan's optimizer), `unetr-pp` and `plain` with AdamW, in the same columns.
* Validation cases are drawn once (`validation_cases`), predicted in float32 without mirroring. Optimizers' numbers
  were chosen on other cases, out of the training part (`--pilot`).
* Every training runs alone on one core with one thread: `taskset -c 0 python benchmarks/compare_architectures.py …`.

One JSON line per finished run goes to results/architectures.jsonl; a run that is there is not made again. So the study
continues where it was stopped: `--work DIR [--only primary|secondary] [--datasets NAME]`. `--table` prints what is
there, `--memory` measures what the table's last column shows. On a GPU, the checkout not installed (`PYTHONPATH=.`):
`--device cuda --results architectures_gpu.jsonl --steps 2000 --data DIR`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measuring import bootstrap_mean, device_name, machine, write_results

if TYPE_CHECKING:
    from autoseg.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "seg"
SEEDS = (1, 2)
EPOCH_STEPS = 10
NO_LIMIT_EPOCHS = 100_000


@dataclass(frozen=True)
class Task:
    """A dataset of the study; `steps` of the column "same steps"; as many cases validate."""

    configuration: str
    steps: int
    validation_cases: int


TASKS = {
    "Hippocampus_MSD04": Task("3d_fullres", 200, 40),
    "Cardiac_MSCMR_bSSFP": Task("2d", 200, 6),
}


@dataclass(frozen=True)
class Arm:
    """A network and its optimizer."""

    architecture: str
    optimizer: str

    @property
    def name(self) -> str:
        return f"{self.architecture}+{self.optimizer}"


REFERENCE = Arm("resenc", "adamw")
PRIMARY = (REFERENCE, Arm("hybrid", "adamw"))
SECONDARY = (Arm("resenc", "sgd"), Arm("unetr-pp", "adamw"), Arm("plain", "adamw"))


@dataclass(frozen=True)
class Run:
    """One training: `budget` is "steps" or "time"."""

    dataset: str
    arm: Arm
    budget: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.dataset, self.arm.name, self.budget, self.seed


def declared_runs(arms: Sequence[Arm], datasets: Sequence[str], budgets: Sequence[str]) -> Iterator[Run]:
    """The study's runs in order; the reference's steps come first, since they are the others' time."""
    for seed in SEEDS:
        for dataset in datasets:
            yield Run(dataset, REFERENCE, "steps", seed)
            for arm in arms:
                if arm != REFERENCE:
                    yield from (Run(dataset, arm, budget, seed) for budget in budgets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the datasets")
    parser.add_argument("--only", choices=["primary", "secondary"], default="primary")
    parser.add_argument("--arms", nargs="+", help="of the secondary ones, by name")
    parser.add_argument("--datasets", nargs="+", default=list(TASKS))
    parser.add_argument("--budgets", nargs="+", default=["time", "steps"], choices=["time", "steps"])
    parser.add_argument("--disturbed", action="store_true", help="other programs run on this core: no rate is reported")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--results", default="architectures.jsonl")
    parser.add_argument("--pilot", nargs="*", metavar="ARM:RATE", help="try learning rates on training cases only")
    parser.add_argument("--memory", action="store_true", help="measure a training step's memory at the study's batch")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    path = RESULTS / arguments.results
    if arguments.table:
        print_table(read_lines(path), memory_path(path))
        return
    if arguments.work is None:
        parser.error("give --work DIR, or --table")
    if arguments.pilot:
        pilot(arguments)
        return
    if arguments.memory:
        measure_memory(arguments)
        return
    arms = PRIMARY if arguments.only == "primary" else SECONDARY
    if arguments.arms:
        arms = tuple(arm for arm in arms if arm.name in arguments.arms)
    for run in declared_runs(arms, arguments.datasets, arguments.budgets):
        lines = read_lines(path)
        if run.key in {key_of(line) for line in lines}:
            continue
        seconds = None
        if run.budget == "time":
            reference = Run(run.dataset, REFERENCE, "steps", run.seed)
            seconds = next(line["training_seconds"] for line in lines if key_of(line) == reference.key)
        steps = arguments.steps or TASKS[run.dataset].steps
        line = {**train(run, arguments, steps, seconds), "disturbed": arguments.disturbed}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(run.key, f"Dice {100 * line['dice']:.2f}, {line['steps']} steps in {line['training_seconds']:.0f} s")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key_of(line: dict) -> tuple[str, str, str, int]:
    return line["dataset"], line["arm"], line["budget"], line["seed"]


def split_cases(dataset: str, ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, validation): drawn once with seed 0, the same for every run."""
    order = np.random.default_rng(0).permutation(len(ids))
    count = TASKS[dataset].validation_cases
    held_out = {sorted(ids)[position] for position in order[:count]}
    return tuple(sorted(set(ids) - held_out)), tuple(sorted(held_out))


def plan_network(dataset: str, architecture: str, work: Path, data: Path) -> Path:
    """The run folder of a dataset, with this network in its plan."""
    folder = work / dataset
    plan = folder / "plan.json"
    configuration = TASKS[dataset].configuration
    if plan.exists() and architecture in json.loads(plan.read_text())["configurations"][configuration]["networks"]:
        return folder
    # The rule's patch on every machine: a GPU's own memory would fit each network to itself.
    command = [sys.executable, "-m", "autoseg", "plan", str(data / dataset), "--run", str(folder), "--architecture",
               architecture, "--configurations", configuration, "--no-probe-memory"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def study_settings(run: Run, steps: int, seconds: float | None, rate: float | None) -> "TrainSettings":
    """The quick preset with the budget: `steps`, or `seconds` where given."""
    from autoseg.training.settings import load_preset, override

    settings = override(replace(load_preset("quick"), max_minutes=None), steps_per_epoch=EPOCH_STEPS,
                        epochs=max(1, steps // EPOCH_STEPS), optimizer=run.arm.optimizer, learning_rate=rate)
    settings = replace(settings, validation_steps=0, checkpoint_minutes=1e6)
    return settings if seconds is None else replace(settings, epochs=NO_LIMIT_EPOCHS, max_minutes=seconds / 60)


def train(run: Run, arguments: argparse.Namespace, steps: int, seconds: float | None,
          pilot_rate: float | None = None) -> dict:
    """Train, predict the validation cases, score; the line of the results."""
    import torch

    from autoseg.commands.plan import read_plan
    from autoseg.data.dataset import open_dataset
    from autoseg.data.store import open_store, store_folder
    from autoseg.evaluation.pairing import pair_files
    from autoseg.evaluation.scoring import score_files
    from autoseg.inference.prediction import PredictSettings, predict_cases
    from autoseg.networks.checkpoint import read_model
    from autoseg.planning.optimizers import RECIPES
    from autoseg.planning.planner import store_record
    from autoseg.recording import versions
    from autoseg.training.optimization import resolve_optimizer
    from autoseg.training.session import Session, train_session

    work = arguments.work
    folder = plan_network(run.dataset, run.arm.architecture, work, arguments.data)
    plan, configuration = read_plan(folder), TASKS[run.dataset].configuration
    dataset = open_dataset(Path(plan.dataset))
    cases = {case.id: case for case in dataset.cases}
    training, validation = split_cases(run.dataset, list(cases))
    if pilot_rate is not None:  # never look at the study's validation cases
        count = TASKS[run.dataset].validation_cases // 2
        training, validation = training[count:], training[:count]
    settings = study_settings(run, steps, seconds, pilot_rate)
    planned = plan.configurations[configuration].networks[run.arm.architecture]
    device = torch.device(arguments.device)
    model = work / "models" / "-".join(map(str, (*run.key, pilot_rate or "")))
    session = Session(
        plan=plan, configuration=configuration, architecture=run.arm.architecture, name=run.arm.name, fold="0",
        settings=settings, optimizer=resolve_optimizer(planned.optimizer, RECIPES, settings), seed=run.seed,
        store=open_store(store_folder(folder, configuration, store_record(plan, configuration))),
        train_ids=training, validation_ids=(), folder=model, device=device, versions=versions(),
    )
    start = time.perf_counter()
    info = train_session(session, False, lambda _: False)
    assert info is not None
    held_out = [cases[case] for case in validation]
    _, failures = predict_cases(held_out, [read_model(model)], model / "validation",
                                      PredictSettings(device=device, tta=False, overwrite=True))
    assert not failures
    pairs = pair_files(model / "validation", {case.id: case.label for case in held_out})
    scores = score_files(pairs, plan, workers=1)
    per_case = {case.id: float(np.mean([label.dice for label in case.labels.values()])) for case in scores.cases}
    return {
        "dataset": run.dataset, "arm": run.arm.name, "budget": run.budget, "seed": run.seed,
        "dice": scores.mean.dice, "nsd": scores.mean.nsd, "cases": per_case,
        "labels": {name: label.dice for name, label in scores.labels.items()},
        "steps": info.steps, "training_seconds": info.seconds, "steps_per_second": info.steps / info.seconds,
        "run_seconds": round(time.perf_counter() - start, 1), "patch": planned.patch_shape,
        "batch": info.network.batch_size, "precision": info.training["used_precision"],
        "optimizer": info.network.optimizer.model_dump(mode="json"), "device": device_name(device),
        "threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0)), "machine": machine(),
    }


def pilot(arguments: argparse.Namespace) -> None:
    for trial in arguments.pilot:
        name, rate = trial.split(":")
        arm = next(arm for arm in (*PRIMARY, *SECONDARY) if arm.name == name)
        for dataset in arguments.datasets:
            steps = arguments.steps or TASKS[dataset].steps
            line = train(Run(dataset, arm, "steps", 101), arguments, steps, None, float(rate))
            print(f"pilot {dataset} {name} rate {rate}: Dice {100 * line['dice']:.2f}, "
                  f"{line['steps_per_second']:.2f} steps/s, {line['run_seconds']} s", flush=True)


def measure_memory(arguments: argparse.Namespace) -> None:
    """GiB of a training step at batch 2 in 16 bits, per dataset and architecture, beside the results."""
    import torch

    from autoseg.commands.plan import read_plan
    from autoseg.training.memory_probe import measure_training_memory, precision_to_probe

    device, found = torch.device(arguments.device), {}
    for dataset, task in TASKS.items():
        for architecture in dict.fromkeys(arm.architecture for arm in (*PRIMARY, *SECONDARY)):
            plan = read_plan(plan_network(dataset, architecture, arguments.work, arguments.data))
            planned = plan.configurations[task.configuration].networks[architecture]
            network = planned.model_copy(update={"batch_size": 2})
            gib = measure_training_memory(architecture, network, len(plan.channel_names), len(plan.labels), device,
                                          precision_to_probe(device))
            found[f"{dataset} {architecture}"] = round(gib, 3)
            print(dataset, architecture, f"{gib:.2f} GiB", flush=True)
    path = memory_path(RESULTS / arguments.results)
    write_results(path.stem, {"batch": 2, "device": device_name(device), "gib": found})


def memory_path(results: Path) -> Path:
    """Where the memory stands that belongs to these results; a GPU's beside a processor's."""
    return RESULTS / f"{results.stem}_memory.json"


def print_table(lines: list[dict], memory_path: Path) -> None:
    """Per dataset and budget: Dice per seed, difference from the reference with its interval, steps per second."""
    reference = {(line["dataset"], line["seed"]): line for line in lines
                 if line["arm"] == REFERENCE.name and line["budget"] == "steps"}
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for line in lines:
        groups.setdefault((line["dataset"], line["budget"], line["arm"]), []).append(line)
    memory = json.loads(memory_path.read_text())["gib"] if memory_path.exists() else {}
    headings = ("dataset", "column", "network", "Dice, seed 1 / 2", "difference from resenc+adamw [95 %]", "steps",
                "steps/s", "GiB")
    print(f"| {' | '.join(headings)} |")
    print("|---|---|---|---|---|---|---|---|")
    for (dataset, budget, arm), members in sorted(groups.items()):
        pairs = [(line, reference[dataset, line["seed"]]) for line in members if (dataset, line["seed"]) in reference]
        gib = memory.get(f"{dataset} {members[0]['arm'].rpartition('+')[0]}")
        columns = [dataset, f"same {budget}", arm, " / ".join(f"{100 * line['dice']:.2f}" for line in members),
                   "–" if arm == REFERENCE.name else interval_text(pairs),
                   " / ".join(str(line["steps"]) for line in members),
                   rate_text(members), "–" if gib is None else f"{gib:.2f}"]
        print(f"| {' | '.join(columns)} |")


def rate_text(lines: list[dict]) -> str:
    """Mean steps per second of the runs that had their core alone."""
    rates = [line["steps_per_second"] for line in lines if not line["disturbed"]]
    return f"{np.mean(rates):.2f}" if rates else "–"


def interval_text(pairs: list[tuple[dict, dict]]) -> str:
    mean, low, high = paired_interval(pairs)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def paired_interval(pairs: list[tuple[dict, dict]]) -> tuple[float, float, float]:
    """Mean difference in Dice points and its 95 % interval: per case the mean over seeds, bootstrap over cases."""
    ids = sorted(pairs[0][0]["cases"])
    differences = np.array([[100 * (one["cases"][case] - other["cases"][case]) for case in ids]
                            for one, other in pairs]).mean(axis=0)
    return bootstrap_mean(differences)


if __name__ == "__main__":
    main()
