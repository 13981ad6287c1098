"""Steps per second of pretraining beside those of supervised training: the same network, patches and batch, in turn.

`taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/pretraining_rate.py --run RUN [--configuration 2d] [--rounds 12]`,
where RUN is planned and preprocessed. Quick preset, with its own batch (2); `--divide-features 2` narrows the network.
One line per run, architecture and device in results/pretraining_rate.json. On a CPU seconds are processor seconds. On a
GPU, the checkout not installed: `PYTHONPATH=. python benchmarks/pretraining_rate.py --device cuda --run RUN`.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS, device_name, machine, write_results

from autoseg.commands.plan import default_configuration, read_plan
from autoseg.data.dataset import open_dataset
from autoseg.data.store import open_store, store_folder
from autoseg.initialization.images import gather_images, image_sources
from autoseg.initialization.pretext import plan_pretext
from autoseg.initialization.pretraining import (
    InitSession,
    Pretraining,
    PretrainState,
    image_patches,
    pretrain_step,
    to_pretext,
)
from autoseg.initialization.schedule import pretraining_optimizer
from autoseg.networks.builder import build_network
from autoseg.planning.planner import store_record
from autoseg.schema import Plan
from autoseg.training.draws import DrawSettings
from autoseg.training.loop import TrainingJob, train_step
from autoseg.training.objective import Aim, Objective, Step
from autoseg.training.optimization import make_optimizer
from autoseg.training.probe import to_device_layout
from autoseg.training.settings import load_preset
from autoseg.training.streaming import open_patches
from autoseg.training.targets import make_targets

STEPS = 4
CASES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--configuration")
    parser.add_argument("--architecture")
    parser.add_argument("--method", default="lwi")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--divide-features", type=int, default=1)
    arguments = parser.parse_args()
    plan = read_plan(arguments.run)
    configuration = arguments.configuration or default_configuration(plan)
    architecture = arguments.architecture or plan.configurations[configuration].architecture
    plan = narrowed(plan, configuration, architecture, arguments.divide_features)
    rates = measure(arguments, plan, configuration, architecture)
    path = RESULTS / "pretraining_rate.json"
    before = rows_of(json.loads(path.read_text())) if path.exists() else {}
    row = row_name((plan.name, configuration, architecture, arguments.method), arguments.divide_features,
                   rates["device"])
    print(row, rates)
    write_results("pretraining_rate", {"rows": {**before, row: rates}})


def row_name(parts: Sequence[str], divisor: int, device: str) -> str:
    """Of a row of the results; that of a card stands beside the processor's, and does not take its place."""
    narrow = [f"features / {divisor}"] if divisor > 1 else []
    return " ".join([*parts, *narrow, *([] if device == "cpu" else [f"on {device}"])])


def rows_of(results: Mapping) -> dict[str, dict]:
    """The rows of a file of results, each with the machine that made it: the file's, unless it has its own."""
    return {name: {"machine": results["machine"], **row} for name, row in results["rows"].items()}


def narrowed(plan: Plan, configuration: str, architecture: str, divisor: int) -> Plan:
    """The plan with this network's features divided."""
    changed = plan.model_dump()
    topology = changed["configurations"][configuration]["networks"][architecture]["topology"]
    topology["features"] = [features // divisor for features in topology["features"]]
    return Plan.model_validate(changed)


def clock(device: torch.device) -> float:
    """Processor seconds on a CPU (one thread, whatever else the machine does), seconds on a GPU once it is idle."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(arguments: argparse.Namespace, plan: Plan, configuration: str, architecture: str) -> dict:
    device, settings = torch.device(arguments.device), load_preset("quick")
    record = store_record(plan, configuration)
    store = open_store(store_folder(arguments.run, configuration, record))
    cases = open_dataset(Path(plan.dataset)).cases[:CASES]
    images = gather_images(image_sources(cases, store), [], [], 0, 1)
    network = plan.configurations[configuration].networks[architecture]
    session = InitSession(
        plan=plan, configuration=configuration, architecture=architecture, name="rate", fold="all",
        method=arguments.method, pretext=plan_pretext(architecture, network, arguments.method), settings=settings,
        optimizer=pretraining_optimizer(architecture, settings), steps=10**6, max_minutes=None, seed=0, store=record,
        images=images, extra_folder=None, folder=Path("unused"), device=device, versions={},
    )
    precision = "bfloat16"
    with ExitStack() as stack:
        pretext = to_pretext(session)
        draws = DrawSettings(seed=0, foreground_fraction=0.0, mirror_axes=(), keep_detail=True)
        running = Pretraining(
            session, pretext, make_optimizer(pretext, session.optimizer), torch.amp.GradScaler("cpu", enabled=False),
            stack.enter_context(image_patches(session, images.training, draws)), precision,
            torch.tensor(images.means, device=device), torch.tensor(images.deviations, device=device))
        supervised = to_device_layout(
            build_network(architecture, session.network_plan, len(plan.channel_names), len(plan.outputs)), device)
        patches = stack.enter_context(open_patches(store, [case.id for case in cases], session.network_plan,
                                                   DrawSettings(seed=0), device, 2**33, 1))
        objective = Objective(supervised, None, Aim(make_targets(plan, {}, device), network.batch_dice), 0)
        objective.precision = precision
        job = TrainingJob(
            supervised, supervised, objective, make_optimizer(supervised, session.optimizer), session.optimizer,
            torch.amp.GradScaler("cpu", enabled=False), patches, None, settings,
            tuple(plan.labels)[1:], device, precision, 0)
        seconds = {"pretraining": [], "training": []}
        state = PretrainState()
        for number in range(arguments.rounds + 1):
            for name, taken in seconds.items():
                start = clock(device)
                for offset in range(STEPS):
                    step = number * STEPS + offset
                    if name == "pretraining":
                        state.step = step
                        pretrain_step(running, state)
                    else:
                        batch = patches.batch(step)
                        train_step(job, Step(step, 0.0), batch, 1e-3)
                taken.append((clock(device) - start) / STEPS)
    rates = {name: round(1 / float(np.median(times[1:])), 3) for name, times in seconds.items()}
    return {**rates, "ratio": round(rates["pretraining"] / rates["training"], 3), "rounds": arguments.rounds,
            "batch": session.network_plan.batch_size, "patch": session.network_plan.patch_shape,
            "threads": torch.get_num_threads(), "precision": precision, "device": device_name(device),
            "machine": machine()}


if __name__ == "__main__":
    main()
