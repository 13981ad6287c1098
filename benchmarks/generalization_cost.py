"""What each switch of the study in generalization.py costs: steps per second against plain training, same batch."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from generalization import AUGMENTATION, DIRECTIONS, Arm, Run, make_session
from generalization_data import BATCH, Domain, open_domain, split_cases
from measuring import device_name, write_results

ROUNDS = 3
STEPS = 30
"""Per round; the first epoch of 10 warms up and is not counted."""
DIRECTION = "bssfp-lge"
GOALS = {"gin": 1.15, "text": 1.05, "slaug": 2.2}


def switches() -> dict[str, Arm]:
    """Name → arm; every one on rank normalization with A1's augmentation and the full batch in each pass."""
    plain = replace(next(arm for arm in AUGMENTATION if arm.name == "A1"), normalization="rank")
    text = {"text_guided": True}
    return {
        "plain": plain,
        "gin": replace(plain, settings={"domain_generalization": "gin"}),
        "slaug": replace(plain, settings={"domain_generalization": "slaug"}),
        "ccsdg": replace(plain, settings={"domain_generalization": "ccsdg"}),
        "text": replace(plain, settings=text),
        "heads": replace(plain, settings={**text, "text_route": "heads"}),
        "gram": replace(plain, settings={**text, "text_route": "gram"}),
    }


def measure_cost(arguments: argparse.Namespace) -> None:
    """Alternating rounds of short trainings; the median ratio over rounds, beside the results."""
    import torch

    arguments.steps = STEPS
    source = open_domain(DIRECTIONS[DIRECTION][0], arguments.data, arguments.work)
    training, _ = split_cases(list(source.cases))
    arms, rates = switches(), {name: list[float]() for name in switches()}
    for turn in range(ROUNDS):
        for name, arm in arms.items():
            model = arguments.work / "cost" / f"{name}{turn}"
            rates[name].append(steps_per_second(Run(DIRECTION, arm, turn), arguments, source, training, model))
            print(turn, name, f"{rates[name][-1]:.2f} steps/s", flush=True)
    ratios = {name: ratio(rates["plain"], found) for name, found in rates.items()}
    for name, cost in ratios.items():
        print(f"{name}: {cost:.2f}× plain" + (f" (goal {GOALS[name]:.2f}×)" if name in GOALS else ""))
    stem = Path(arguments.results).stem.replace("generalization", "generalization_cost")
    write_results(stem, {"batch": BATCH, "rounds": ROUNDS, "steps": STEPS, "steps_per_second": rates,
                         "ratios": ratios, "goals": GOALS, "device": device_name(torch.device(arguments.device)),
                         "threads": torch.get_num_threads()})


def steps_per_second(run: Run, arguments: argparse.Namespace, source: Domain, training: Sequence[str],
                     model: Path) -> float:
    """Of the epochs after the first, by the training's own journal: its preparation is not a step's cost."""
    from autoseg.training.journal import read_metrics
    from autoseg.training.session import train_session

    train_session(make_session(run, arguments, source, training, model), False, lambda _: False)
    return float(np.median([line.steps_per_second for line in read_metrics(model / "metrics.jsonl")[1:]]))


def ratio(plain: list[float], found: list[float]) -> float:
    """How many times as long a step takes: the median over rounds, each against its own round's plain training."""
    return float(np.median([before / after for before, after in zip(plain, found, strict=True)]))
