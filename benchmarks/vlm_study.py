"""What the parts of `vlm train --recipe mini` give, on the open mini-corpus.

    python benchmarks/vlm_study.py --corpus CORPUS --data DIR --work DIR [--minutes 30] [--steps 300] [--seeds 0]
    python benchmarks/vlm_study.py --table

CORPUS: of `vlm build-corpus --preset mini`. DIR of --data: the sources' folders (or CORPUS itself), whose test splits
are measured by zero-shot classification. One JSON line per finished run goes to results/vlm_study.jsonl; what is there
is not made again, and a training that was stopped goes on where it ended, so the study can be continued at any time.

Declared before the first run (2026-11; also in docs/vlm.md):

* Primary comparison: `mini`, trained for --minutes (30), against its own starting weights (MiniLM as released, a vision
  tower by chance) by R@5 on the val split, the mean of both directions, each pair with one of its captions drawn once.
  95 % interval of the paired difference from 2000 resamples of pairs; that over patients, which `model.json` has, is
  printed beside it. Better means: the interval is above zero.
* Secondary comparisons, all after the same number of steps (--steps) with the same seed, schedule and batches:
  `mini` against `infonce` (the loss knows no labels), against `first-caption` (one caption per pair instead of ten per
  label set), against `by-size` (sources in proportion to their size instead of to its square root). Measures: both
  validation losses, retrieval, and zero-shot balanced accuracy per modality on the test splits. Retrieval is given with
  drawn captions and with first ones, since `first-caption` was trained on just these.
* `random` (both towers by chance) and `minilm` (the starting weights) are measured untrained.
* No run is selected: the weights after the last step are measured, and test splits are opened only here, afterwards.

On a GPU: --recipe mini-gpu --device cuda --results vlm_study_gpu.jsonl.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, machine

from autoseg.progress import start_logging
from vlm.corpus.stats_tables import Table, format_table
from vlm.evaluation.suite_files import read_suite
from vlm.evaluation.suites import EvaluationOptions, evaluate_suite
from vlm.model.clip import save_model
from vlm.model.embedding import open_embedder
from vlm.model.retrieval import bootstrap_interval
from vlm.training.assembly import build_parts
from vlm.training.run import train_session
from vlm.training.session import Session, read_started
from vlm.training.settings import CaptionChoice, LossChoice, Recipe, read_recipe
from vlm.training.shards import read_index
from vlm.training.validation import MAIN_RECALL, read_validation_set, validate

SEEDS = (0,)
MINUTES, STEPS = 30.0, 300
UNTRAINED, TRAINED = ("random", "minilm"), ("mini", "infonce", "first-caption", "by-size")
SUITE = "mini"


@dataclass(frozen=True)
class Run:
    """One line of the results. minutes, steps : how long it is trained; neither: it is not."""

    arm: str
    seed: int
    minutes: float | None = None
    steps: int | None = None

    @property
    def key(self) -> tuple[str, int, float | None, int | None]:
        return self.arm, self.seed, self.minutes, self.steps

    @property
    def folder(self) -> str:
        length = f"{self.minutes:g}min" if self.minutes is not None else f"{self.steps or 0}steps"
        return f"{self.arm}-{self.seed}-{length}"


def declared_runs(seeds: Sequence[int], minutes: float, steps: int) -> Iterator[Run]:
    """All runs, the primary comparison's first."""
    for seed in seeds:
        yield from (Run(arm, seed) for arm in UNTRAINED)
        yield Run("mini", seed, minutes=minutes)
    for seed in seeds:
        yield from (Run(arm, seed, steps=steps) for arm in TRAINED)


def recipe_of(run: Run, base: Recipe) -> Recipe:
    """The recipe of an arm: one thing changed."""
    changes: dict[str, object] = {}
    if run.arm == "infonce":
        changes["loss"] = LossChoice(name="infonce")
    if run.arm == "first-caption":
        changes["data"] = base.data.model_copy(update={"captions": CaptionChoice(policy="first")})
    if run.arm == "by-size":
        changes["data"] = base.data.model_copy(update={"alpha": 1.0})
    if run.arm == "random":
        changes["initial"] = base.initial.model_copy(update={"vision": "random", "text": "random"})
    if run.steps is not None:
        changes["optimization"] = base.optimization.model_copy(update={"steps": run.steps})
    return base.model_copy(update=changes)


def make(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train or build a run's model, measure it, and give the line of the results."""
    folder = arguments.work / run.folder
    session = Session(
        recipe=recipe_of(run, read_recipe(arguments.recipe)), recipe_name=arguments.recipe,
        corpus=read_index(arguments.corpus), folder=folder, seed=run.seed, device=torch.device(arguments.device),
        max_minutes=run.minutes)
    if run.arm in UNTRAINED:
        shutil.rmtree(folder, ignore_errors=True)
        save_model(build_parts(session, None).final_model(), folder)
    elif not (folder / "model.json").exists():
        train_session(session, read_started(folder) is not None, lambda step: False)
    return {"arm": run.arm, "seed": run.seed, "minutes": run.minutes, "steps": run.steps, **measure(folder, arguments),
            "recipe": session.recipe.hash, "corpus": session.corpus.recipe, "device": arguments.device,
            "machine": machine()}


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about a model in a folder: val split with drawn and with first captions, test splits by zero-shot."""
    embedder = open_embedder(folder, arguments.device)
    parts = read_index(arguments.corpus).of("val")
    line: dict[str, Any] = {}
    for policy in ("uniform", "first"):
        data = read_validation_set(parts, arguments.pairs, policy)
        found = validate(embedder, data)
        line[f"validation_{policy}"] = {name: round(value, 5) for name, value in found.figures().items()}
        if policy == "uniform":
            line["chance"] = {"r5": round(found.ranks.mean_chance(MAIN_RECALL), 5)}
            # 0, 1 or 2 directions in which the pair's own is among the first five.
            line["hits_r5"] = "".join(str(round(2 * hit)) for hit in found.ranks.mean_hits(MAIN_RECALL))
            line["patients"] = data.patients.tolist()
    record = embedder.record
    if record is not None and record.training is not None:
        facts = record.training
        line |= {"trained_steps": facts.steps, "samples": facts.samples, "epochs": round(facts.epochs, 2),
                 "training_seconds": facts.seconds, "precision": facts.precision,
                 "better_than_start": facts.better_than_start.model_dump() if facts.better_than_start else None}
    suite, plans = read_suite(SUITE)
    report = evaluate_suite(embedder, suite, plans, arguments.data, EvaluationOptions(with_probes=False),
                            arguments.corpus)
    line["zero_shot"] = {modality: _figures(group.balanced_accuracy) for modality, group in report.modalities.items()}
    line["sets"] = {one.name: _figures(one.scores["balanced_accuracy"]) for one in report.sets}
    return line


def _figures(score: Any) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in (score.value, score.low, score.high)]


# ---------------------------------------------------------------- tables
def read_lines(path: Path) -> list[dict[str, Any]]:
    """Finished runs; none where the file does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_tables(lines: Sequence[dict[str, Any]]) -> None:
    """The primary comparison per seed, the secondary ones against `mini` of the same seed and steps, all measures."""
    rows = []
    by_key = {(line["arm"], line["seed"], line["minutes"], line["steps"]): line for line in lines}
    for line in lines:
        start = by_key.get(("minilm", line["seed"], None, None))
        if line["arm"] == "mini" and line["minutes"] is not None and start is not None:
            rows.append(("primary", "mini − its start", line["seed"], line["trained_steps"], *_difference(line, start)))
        other = by_key.get(("mini", line["seed"], None, line["steps"]))
        if line["arm"] in TRAINED[1:] and other is not None:
            rows.append(("secondary", f"mini − {line['arm']}", line["seed"], line["steps"], *_difference(other, line)))
    header = ("comparison", "of", "seed", "steps", "difference", "from", "to", "from (patients)", "to (patients)")
    print(format_table(Table("R@5 on the val split, paired", header, tuple(map(_texts, rows)))))
    modalities = sorted({name for line in lines for name in line["zero_shot"]})
    shown = [(line["arm"], line["seed"], line.get("trained_steps", 0), line["validation_uniform"]["multi_positive"],
              line["validation_uniform"]["infonce"], line["validation_uniform"]["r5"], line["validation_first"]["r5"],
              *(line["zero_shot"][name][0] for name in modalities)) for line in lines]
    print(format_table(Table("All runs", ("arm", "seed", "steps", "loss", "InfoNCE", "R@5", "R@5 first", *modalities),
                             tuple(map(_texts, shown)))))


def _difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """The paired difference in R@5; its interval over pairs, and over patients, which is wider where they have many."""
    first, second = (np.array([int(hit) / 2 for hit in line["hits_r5"]]) for line in (one, other))
    change = first - second
    return float(change.mean()), *bootstrap_interval(change), *bootstrap_interval(change, np.array(one["patients"]))


def _texts(row: Sequence[object]) -> tuple[str, ...]:
    return tuple(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="of vlm build-corpus --preset mini")
    parser.add_argument("--data", type=Path, help="the sources' folders, or the corpus")
    parser.add_argument("--work", type=Path, help="models; kept between calls")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=[*UNTRAINED, *TRAINED], help="only these")
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=1000, help="of the val split")
    parser.add_argument("--results", default="vlm_study.jsonl", help="a file in benchmarks/results")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    path = RESULTS / arguments.results
    if not arguments.table:
        if None in (arguments.corpus, arguments.data, arguments.work):
            parser.error("give --corpus, --data and --work, or --table")
        start_logging()
        for run in declared_runs(arguments.seeds, arguments.minutes, arguments.steps):
            done = {(line["arm"], line["seed"], line["minutes"], line["steps"]) for line in read_lines(path)}
            if run.key in done or (arguments.arms and run.arm not in arguments.arms):
                continue
            sys.stderr.write(f"== {run.folder}\n")
            line = make(run, arguments)
            with path.open("a") as stream:
                stream.write(f"{json.dumps(line)}\n")
    print_tables(read_lines(path))


if __name__ == "__main__":
    main()
