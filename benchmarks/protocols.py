"""Published protocols run as autoseg commands: their split, spacing, patch, network, optimizer and organs.

`presets/protocols/<name>.toml` states a protocol and where each of its facts comes from. A run plans the dataset,
writes the protocol's grid and network into the plan and its split into fold 0, and then trains two arms as a user
would: from scratch, and with weights from `autoseg pretrain-init`. Neither arm selects anything on the test cases.
As published, the arm from scratch gets no training in return for the other's first phase.

    python benchmarks/protocols.py --protocol btcv-unetr --data DIR --work DIR [--steps N]

One JSON line per finished run goes to results/protocols.jsonl; a run that is there is not made again. Cases of the
split that DIR lacks are named in it; a dataset whose ids are all unknown gets a plain split, and the line says so.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from measuring import machine
from protocol_data import MatchedSplit, match_labels, match_split, open_published
from protocol_files import Normalization, Protocol, Unknown, load_protocol, protocol_names

from autoseg.data.dataset import Dataset
from autoseg.data.parallel import default_workers
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.splits import write_splits
from autoseg.data.store import store_folder
from autoseg.errors import UserError
from autoseg.initialization.transfer import init_folder, is_finished
from autoseg.networks.soundness import refuse_unsound
from autoseg.planning.architectures import build_topology, pool_patch
from autoseg.planning.memory import demand_of, find_reference
from autoseg.planning.patch import SMALLEST_BATCH, Budget
from autoseg.planning.planner import store_record
from autoseg.planning.topology import Pooling
from autoseg.records import read_record, write_record
from autoseg.schema import (
    ChannelNormalization,
    ConfigurationPlan,
    IntensityStatistics,
    NetworkPlan,
    OptimizerPlan,
    Plan,
    Scores,
)

RESULTS = Path(__file__).parent / "results" / "protocols.jsonl"
CONFIGURATION: Literal["3d_fullres"] = "3d_fullres"
ARMS = {"scratch": "scratch", "lwi": "auto"}
"""`autoseg train --init`; `lwi` is preceded by `autoseg pretrain-init` under the same name, which `auto` finds."""
MOST_OF_IMAGES = 0.75
"""A batch of the first phase takes at most this share of the training images: pretrain-init holds some of them back."""
SEED = 1
DEFAULT_MEMORY_GIB = 8.0
"""Of `autoseg plan`; the protocol's patch stands, whatever it takes."""


# ---------------------------------------------------------------- the plan
def published_plan(plan: Plan, protocol: Protocol, shrink: int = 1) -> Plan:
    """The plan with the protocol's spacing, window and network in `3d_fullres`.

    `shrink` divides the patch (for tests); the strides are then those that the planner gives so small a patch.
    Raises UserError where the network cannot be built.
    """
    planned = plan.configurations[CONFIGURATION]
    spacing = planned.spacing if protocol.spacing_mm == "planned" else along(plan.axes, protocol.spacing_mm)
    factors = zip(planned.median_shape, planned.spacing, spacing, strict=True)
    configuration = planned.model_copy(update={
        "spacing": tuple(spacing),
        "median_shape": tuple(float(round(size * old / new)) for size, old, new in factors),
        "normalization": tuple(_normalization(channel, protocol.normalization) for channel in planned.normalization),
        "architecture": protocol.architecture,
        "architecture_reasons": (f"Architecture {protocol.architecture}: of the protocol {protocol.name}.",),
        "networks": {protocol.architecture: _network(plan, planned, protocol, tuple(spacing), shrink)},
        "next_stage": None,
    })
    return plan.model_copy(update={"configurations": {CONFIGURATION: configuration}})


def along(axes: Sequence[int], values: Sequence) -> tuple:
    """Values along z, y, x in plan order."""
    return tuple(values[axis] for axis in axes)


def _normalization(planned: ChannelNormalization, published: Normalization) -> ChannelNormalization:
    """CT: clip, subtract the mean, divide by the standard deviation; a window's are its low end and its width."""
    if published.low is None or published.high is None:
        return ChannelNormalization(scheme="ct", within_nonzero=False, statistics=planned.statistics)
    low, high = published.low, published.high
    statistics = IntensityStatistics(mean=low, median=low, std=high - low, min=low, max=high,
                                     percentile_00_5=low, percentile_99_5=high)
    return ChannelNormalization(scheme="ct", within_nonzero=False, statistics=statistics)


def _network(plan: Plan, planned: ConfigurationPlan, protocol: Protocol, spacing: tuple[float, ...],
             shrink: int) -> NetworkPlan:
    architecture, classes = protocol.architecture, len(plan.labels)
    pooling = _pooling(protocol, plan.axes, spacing, shrink)
    topology = build_topology(architecture, pooling)
    batch = protocol.batch if isinstance(protocol.batch, int) else SMALLEST_BATCH
    demand = demand_of(architecture, topology, pooling.patch_shape, classes)
    budget = Budget(architecture, find_reference(architecture, None), DEFAULT_MEMORY_GIB, classes, False)
    batch_dice = protocol.training.batch_dice
    network = NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=batch, topology=topology,
        batch_dice=planned.networks[planned.architecture].batch_dice if batch_dice == "planned" else batch_dice,
        optimizer=OptimizerPlan(**protocol.training.optimizer.model_dump()),
        memory_gib=round(budget.estimated_gib(len(spacing), demand, batch), 3),
        reasons=(f"Patch, strides, batch and optimizer are those of the protocol {protocol.name}"
                 + (f", the patch divided by {shrink}." if shrink > 1 else "."),),
    )
    refuse_unsound(architecture, network, "The protocol's", "Correct the protocol's file.")
    return network


def _pooling(protocol: Protocol, axes: Sequence[int], spacing: tuple[float, ...], shrink: int) -> Pooling:
    shape = tuple(size // shrink for size in along(axes, protocol.patch))
    if shrink > 1:
        return pool_patch(protocol.architecture, spacing, shape)
    strides = tuple(along(axes, stride) for stride in protocol.network.strides)
    divisors = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
    return Pooling(strides, ((3, 3, 3),) * len(strides), shape, divisors, spacing, (1, 1, 1))


# ---------------------------------------------------------------- a run
@dataclass(frozen=True)
class Lengths:
    """Steps of both phases; `per_epoch` of the supervised one."""

    pretraining: int
    training: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.training / self.per_epoch)


def lengths(protocol: Protocol, steps: int | None) -> Lengths:
    """As published, or with the supervised phase `steps` long and the first in proportion."""
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: at least 1 was expected.")
    training = protocol.training.steps if steps is None else steps
    published = protocol.pretraining.steps
    share = protocol.pretraining.steps_per_training_step
    pretraining = published if steps is None and isinstance(published, int) else max(1, round(share * training))
    return Lengths(pretraining, training, min(training, protocol.training.steps_per_epoch))


def run_protocol(  # noqa: PLR0913 (a command's options)
    name: str, data: Path, work: Path, steps: int | None = None, device: str = "auto", results: Path = RESULTS,
    *, shrink: int = 1, arms: Sequence[str] = tuple(ARMS),
) -> dict:
    """Both arms of a protocol on the dataset in `data`; the line of `results`, which is appended unless it is there.

    `steps` of supervised training, rounded up to whole epochs; by default as published. `work` keeps run folders, so
    that an interrupted run goes on. Raises UserError for data that do not fit the protocol, RuntimeError where a
    command of autoseg fails.
    """
    protocol = load_protocol(name)
    start, planned_lengths = time.perf_counter(), lengths(protocol, steps)
    folder = f"{name}-{data.resolve().name}-{planned_lengths.training}" + (f"-shrink{shrink}" if shrink > 1 else "")
    run = work / folder
    key = {"protocol": name, "dataset": data.resolve().name, "steps": planned_lengths.training, "shrink": shrink,
           "arms": sorted(arms), "seed": SEED}
    if done := next((line for line in _read_lines(results) if _key(line) == key), None):
        return done
    dataset, labels_from = open_published(data, protocol, run / "dataset")
    organs = match_labels(dataset.labels, protocol)
    matched = match_split([case.id for case in dataset.cases], protocol.splits)
    print(f"{protocol.title}: {matched.sentence}.", flush=True)
    configuration = prepare_run(run, dataset, protocol, matched, shrink)
    finished = {arm: run_arm(run, protocol, arm, planned_lengths, device) for arm in sorted(arms, reverse=True)}
    network = configuration.networks[protocol.architecture]
    line = {
        **key, "title": protocol.title, "device": device, "pretraining_steps": planned_lengths.pretraining,
        "split": {"published": matched.published, "certain": protocol.splits.certain, "said": matched.sentence,
                  "train": matched.split.train, "test": matched.split.val, "missing": matched.missing,
                  "left_out": matched.left_out},
        "labels_from": labels_from, "spacing_mm": configuration.spacing, "patch": network.patch_shape,
        "batch": network.batch_size, "strides": network.topology.strides,
        "arms": {arm: {**report(scores, organs, protocol), **facts} for arm, (scores, facts) in finished.items()},
        "published": [entry.model_dump() for entry in protocol.published],
        "different": protocol.remarks.different, "run_seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return json.loads(json.dumps(line))


def prepare_run(run: Path, dataset: Dataset, protocol: Protocol, matched: MatchedSplit, shrink: int
                ) -> ConfigurationPlan:
    """Plan into `run`, put the protocol and its split into the plan, preprocess."""
    if not (run / "plan.json").exists():
        autoseg("plan", str(dataset.root), "--run", str(run), "--architecture", protocol.architecture,
                "--configurations", CONFIGURATION, "--no-preprocess", "--no-probe-memory")
    plan = published_plan(read_record(Plan, run / "plan.json"), protocol, shrink)
    if Path(plan.dataset) != dataset.root.resolve():
        raise UserError(f"{run} is a run of {plan.dataset}, not of {dataset.root}.\nGive another --work.")
    write_record(plan, run / "plan.json")
    write_splits([matched.split], run / "splits.json")
    record = store_record(plan, CONFIGURATION)
    preprocess_dataset(dataset, record, store_folder(run, CONFIGURATION, record), default_workers())
    return plan.configurations[CONFIGURATION]


def run_arm(run: Path, protocol: Protocol, arm: str, length: Lengths, device: str) -> tuple[Scores, dict]:
    """Train and test one arm, unless it is finished; its scores, and what training and first weights took."""
    model = f"{protocol.architecture}+{arm}"
    first = init_folder(run, model, CONFIGURATION, "0")
    images = len(json.loads((run / "splits.json").read_text())[0]["train"])
    common = ("--run", str(run), "--configuration", CONFIGURATION, "--architecture", protocol.architecture, "--fold",
              "0", "--name", model, "--seed", str(SEED), "--device", device, "--json")
    folder = run / "models" / model / CONFIGURATION / "fold_0"
    if not (folder / "scores.json").exists():
        if arm != "scratch" and not is_finished(first):
            preset = _write_preset(run / "pretraining.toml", protocol, length, images)
            autoseg("pretrain-init", *common, "--method", arm, "--steps", str(length.pretraining), "--learning-rate",
                    str(protocol.pretraining.learning_rate), "--preset", str(preset), _go_on(first))
        mirror = ("--mirror", "auto" if protocol.mirrored_predictions else "none")
        preset = _write_preset(run / "training.toml", protocol, length)
        autoseg("train", *common, "--preset", str(preset), *mirror, "--init", ARMS[arm], _go_on(folder))
    trained = json.loads((folder / "model.json").read_text())
    facts: dict = {"steps": trained["steps"], "training_seconds": trained["seconds"]}
    if arm != "scratch":
        record = json.loads((first / "init.json").read_text())
        facts["first_weights"] = {key: record[key] for key in ("steps", "ended_by", "seconds", "pretext", "measures")}
    return read_record(Scores, folder / "scores.json"), facts


def _go_on(folder: Path) -> str:
    """The option that continues what was interrupted, or that begins."""
    return "--resume" if (folder / "resume").is_dir() else "--overwrite"


def _write_preset(path: Path, protocol: Protocol, length: Lengths, images: int | None = None) -> Path:
    """The supervised phase as a training preset; the optimizer's numbers are in the plan. `images`: to pretrain on."""
    most = "" if images is None else f"max_batch_size = {max(1, int(MOST_OF_IMAGES * images))}\n"
    path.write_text(f"epochs = {length.epochs}\nsteps_per_epoch = {length.per_epoch}\nvalidation_steps = 0\n"
                    f"foreground_fraction = {protocol.training.foreground_fraction}\n{most}", encoding="utf-8")
    return path


def autoseg(*arguments: str) -> None:
    """Run a command of autoseg; RuntimeError with its last words when it fails, also for a single case."""
    done = subprocess.run([sys.executable, "-m", "autoseg", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"autoseg {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


# ---------------------------------------------------------------- scores
def report(scores: Scores, organs: Mapping[str, str], protocol: Protocol) -> dict:
    """Per subset: Dice (0 … 1) and HD95 (mm), and both as the published code counts absent organs.

    Ours leave out what is undefined: a mean over cases per organ, then over organs. `counted_as_published` is None
    where that counting is unknown; HD95 stays in mm there, too.
    """
    counting = protocol.metrics.published_counting
    return {subset: {
        "dice": _mean([scores.labels[organs[organ]].dice for organ in members]),
        "hd95_mm": _mean([scores.labels[organs[organ]].hd95 for organ in members]),
        "counted_as_published": {"dice": _counted(scores, organs, members, "dice", counting.dice_both_absent),
                                 "hd95_mm": _counted(scores, organs, members, "hd95", counting.hd95_undefined)},
    } for subset, members in protocol.metrics.subsets.items()}


def _counted(scores: Scores, organs: Mapping[str, str], members: Sequence[str], metric: str,
             substitute: float | Unknown) -> float | None:
    if substitute == "unknown":
        return None
    values = [getattr(case.labels[organs[organ]], metric) for case in scores.cases for organ in members]
    return _mean([substitute if value is None else value for value in values])


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _key(line: Mapping) -> dict:
    names = ("protocol", "dataset", "steps", "shrink", "seed")
    return {**{name: line[name] for name in names}, "arms": sorted(line["arms"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", required=True, choices=protocol_names())
    parser.add_argument("--data", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--work", type=Path, required=True, help="keeps run folders")
    parser.add_argument("--steps", type=int, help="of supervised training; by default as published")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    line = run_protocol(given.protocol, given.data, given.work, given.steps, given.device, given.results,
                        arms=given.arms)
    print(json.dumps({"split": line["split"]["said"], "arms": line["arms"]}, indent=1))


if __name__ == "__main__":
    main()
