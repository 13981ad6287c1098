"""Do first weights learned from images without labels help? The arms of LWI beside each other (issue 4, "The study").

Declared before the first run:

* Primary comparison: `lwi` against `scratch-long` with 10 labelled cases of Hippocampus, three seeds: the difference of
  the mean foreground Dice over the validation cases, paired by case and seed. Its 95 % interval is a hierarchical
  bootstrap of 10,000 draws: seeds, then cases (the same cases for every seed of a draw, since the same 40 validate all
  seeds; with three seeds such an interval is rather too narrow). A Wilcoxon signed-rank test over cases, with seeds
  averaged, is a check. Only an interval whose lower end is above 0 counts as a benefit. Everything else is secondary.
* The network: `3d_fullres`, `resenc` as planned with half its features ("a small plan"), quick preset, batch 2;
  `--architecture hybrid` is a secondary pass.
* The recipe: every arm trains with AdamW, the same learning rate (RATE) and a warm-up over 5 % of its steps. So
  `scratch` has the fine-tuning's recipe, and no difference between arms comes from it. RATE and PRETRAIN_RATE were
  chosen with `--pilot`, whose labelled, pretraining and validation cases are all of the pool, drawn with a seed (101)
  that the study does not use.
* The lengths: STEPS of supervised training, PRETRAIN_STEPS of pretraining. The product's default is a fifth as many
  steps of pretraining as supervised ones; here there are as many, since both are short. Rates reach their end with the
  last step.
* The cases: 40 validate, drawn once as in compare_architectures.py, and are used for no choice. The other 160 are the
  pool. Each seed permutes the pool; 5, 10, 40 (25 %) and 160 (100 %) labelled cases are the first ones: nested. The
  seed also draws the weights, the patches and their augmentation, which are the same for all arms of that seed.
* The arms. `scratch`: STEPS from drawn weights. `scratch-long`: as many more steps as take the seconds of lwi's
  pretraining at scratch's measured steps per second, both of the same seed, rounded up to whole epochs of 20 steps:
  equal total compute. (Seconds on a CPU are processor seconds, which other programs hardly change.) `lwi`: masked
  reconstruction and slab order, then STEPS. `mim`, `order`: one of the two tasks. `scrambled`: lwi's tasks on the same
  images with scrambled phases (each image keeps its mean and its amplitude spectrum, and loses its anatomy), then
  STEPS: what pretraining gives that is not anatomy. These see the images of the whole pool, no labels. `lwi-own`: sees
  the labelled cases' images only. Each pretraining holds back a tenth of its images (at most 8) for its own measures,
  as `autoseg pretrain-init` does. One pretraining per arm and seed serves all numbers of labelled cases.
* The score: the final weights predict the validation cases without mirroring. Pseudo-Dice of 8 random patches of
  validation cases every 20 steps draws the curve, is the same for every arm, and selects nothing; its time counts
  neither as training nor towards scratch-long.
* The order of runs: STAGES, each for all seeds.
* Every run has one core and one thread: `taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/initialization.py …`.

One JSON line per finished pretraining or training goes to results/initialization.jsonl; what is there is not made again
(a pretraining's weights that are gone from --work are remade), so the study continues where it was stopped: `--work DIR
[--only primary] [--minutes M]`. `--table` prints, `--plot FILE` draws what is there. On a GPU: `--device cuda --steps
2000 --pretrain-steps 2000 --results initialization_gpu.jsonl --work DIR --data DIR`. `--protocol NAME --data DIR --work
DIR` runs a published protocol instead (protocols.py).
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from compare_architectures import DATA, RESULTS, read_lines
from initialization_report import draw_plot, print_tables
from initialization_runs import EPOCH_STEPS, Materials, Pretraining, Recipe, Run, open_materials, pretrain, train

SEEDS = (1, 2, 3)
PILOT_SEED = 101
STEPS, PRETRAIN_STEPS = 200, 200
RATE, PRETRAIN_RATE = 3e-3, 3e-3
PILOT_RATES = (1e-3, 3e-3)
PILOT_VALIDATION_CASES = 20
PRIMARY_CASES = 10
STAGES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("scratch", "lwi", "scratch-long"), PRIMARY_CASES),
    (("scratch", "lwi", "scratch-long"), 5),
    (("mim", "scrambled", "order"), 10),
    (("mim",), 5),
    (("scratch-long", "lwi"), 40),
    (("scratch-long", "lwi"), 160),
    (("lwi-own",), 10),
)
"""(arms, labelled cases), in the order of the runs; the first stage is the primary comparison."""


def declared_runs(seeds: Sequence[int] = SEEDS, only_primary: bool = False) -> Iterator[Run]:
    """The study's trainings in order; scratch-long comes after the lwi and the scratch that say how long it is."""
    for arms, cases in STAGES[:1] if only_primary else STAGES:
        for seed in seeds:
            yield from (Run(arm, cases, seed) for arm in arms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="run folder, weights and predictions; kept between calls")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the datasets; a protocol's dataset")
    parser.add_argument("--only", choices=["primary"], help="stop after the primary comparison's runs")
    parser.add_argument("--minutes", type=float, help="start no run after so many minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--architecture", choices=["resenc", "hybrid"], default="resenc")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help=f"supervised ones; by default {STEPS}, of a protocol as published")
    parser.add_argument("--pretrain-steps", type=int, default=PRETRAIN_STEPS)
    parser.add_argument("--results", help="a file in benchmarks/results; initialization.jsonl, protocols.jsonl")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--pilot", type=float, nargs="*", metavar="RATE", help="try rates on cases of the pool")
    parser.add_argument("--pretrain-rates", type=float, nargs="+", default=[PRETRAIN_RATE], help="of the pilot's lwi")
    parser.add_argument("--protocol", metavar="NAME")
    arguments = parser.parse_args()
    path = RESULTS / (arguments.results or "initialization.jsonl")
    if arguments.table or arguments.plot:
        report(arguments, path)
        return
    if arguments.work is None:
        parser.error("give --work DIR, or --table, or --plot FILE")
    if arguments.protocol:
        run_protocol(arguments)
        return
    recipe = Recipe(arguments.steps or STEPS, arguments.pretrain_steps, RATE, PRETRAIN_RATE)
    materials = open_materials(arguments.architecture, arguments.work, arguments.data, arguments.device)
    if arguments.pilot is not None:
        pilot(materials, recipe, arguments.pilot or PILOT_RATES, arguments.pretrain_rates)
        return
    if other := other_recipes(read_lines(path), materials.architecture, recipe):
        parser.error(f"{path} holds runs of another recipe ({other[0]}; now {recipe}): give another --results FILE")
    study(materials, recipe, path, declared_runs(arguments.seeds, arguments.only == "primary"), arguments.minutes)


def report(arguments: argparse.Namespace, path: Path) -> None:
    """Print the tables and draw the picture, as asked."""
    lines = [line for line in read_lines(path) if line["architecture"] == arguments.architecture]
    if arguments.table:
        print_tables(lines, PRIMARY_CASES)
    if arguments.plot:
        draw_plot(lines, PRIMARY_CASES, arguments.plot)


def run_protocol(arguments: argparse.Namespace) -> None:
    """Hand a published protocol on to protocols.py."""
    import protocols

    results = RESULTS / (arguments.results or "protocols.jsonl")
    line = protocols.run_protocol(arguments.protocol, arguments.data, arguments.work, arguments.steps,
                                  arguments.device, results)
    print(json.dumps(line, indent=1))


def study(materials: Materials, recipe: Recipe, path: Path, runs: Iterator[Run], minutes: float | None) -> None:
    """Make the runs that have no line yet, each pretraining before the first training that begins with it."""
    start = time.perf_counter()
    for run in runs:
        lines = [line for line in read_lines(path) if line["architecture"] == materials.architecture]
        if find(lines, run) is not None:
            continue
        if minutes is not None and time.perf_counter() - start > 60 * minutes:
            print("the minutes are up")
            return
        wanted = run.pretraining
        pretrained = find(lines, wanted or Pretraining("lwi", None, run.seed))
        if wanted is not None and (pretrained is None or not materials.weights_of(wanted, recipe).exists()):
            made = pretrain(wanted, recipe, materials, materials.pool)
            if pretrained is not None and made["weights_sha256"] != pretrained["weights_sha256"]:
                raise SystemExit(f"{wanted.key}: remade weights are not those of its line (another version?)")
            if pretrained is None:
                append(path, made)
                pretrained = made
        scratch = find(lines, Run("scratch", PRIMARY_CASES, run.seed))
        steps = recipe.steps if run.arm != "scratch-long" else long_steps(recipe.steps, pretrained, scratch)
        line = train(run, replace(recipe, steps=steps), materials, materials.pool, materials.validation)
        seconds = pretrained["seconds"] if wanted is not None and pretrained is not None else 0.0
        append(path, {**line, "pretraining_seconds": seconds, "recipe": recipe.record()})


def long_steps(steps: int, pretrained: dict | None, scratch: dict | None) -> int:
    """Steps of scratch-long: `steps`, and as many as the pretraining's seconds hold, in whole epochs (rounded up)."""
    if pretrained is None or scratch is None:
        raise SystemExit("scratch-long comes after its seed's lwi and scratch at 10 cases, which tell its length")
    total = steps + pretrained["seconds"] * scratch["steps_per_second"]
    return EPOCH_STEPS * math.ceil(total / EPOCH_STEPS)


def find(lines: Sequence[dict], wanted: Run | Pretraining) -> dict | None:
    """The line of a run, where it is finished."""
    fields = ("kind", "arm", "cases", "seed")
    return next((line for line in lines if tuple(line[field] for field in fields) == wanted.key), None)


def other_recipes(lines: Sequence[dict], architecture: str, recipe: Recipe) -> list[dict]:
    """Recipes other than this one, of lines that it would stand beside."""
    return [line["recipe"] for line in lines
            if line["architecture"] == architecture and line["recipe"] != recipe.record()]


def append(path: Path, line: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    score = f", Dice {100 * line['dice']:.2f}" if "dice" in line else ""
    print(f"{line['kind']} {line['arm']}, cases: {line['cases'] or 'the pool'}, seed {line['seed']}{score}, "
          f"{line['steps']} steps in {line['seconds']:.0f} s", flush=True)


def pilot(materials: Materials, recipe: Recipe, rates: Sequence[float], pretrain_rates: Sequence[float]) -> None:
    """Dice of scratch and lwi at 10 cases for several rates; nothing is written, no validation case is looked at."""
    order = Run("scratch", PRIMARY_CASES, PILOT_SEED).permuted(materials.pool)
    pool, validation = order[:-PILOT_VALIDATION_CASES], order[-PILOT_VALIDATION_CASES:]
    trials = [("scratch", PRETRAIN_RATE), *(("lwi", rate) for rate in pretrain_rates)]
    for arm, pretrain_rate in trials:
        run = Run(arm, PRIMARY_CASES, PILOT_SEED)
        if run.pretraining is not None:
            line = pretrain(run.pretraining, replace(recipe, pretrain_rate=pretrain_rate), materials, pool)
            print(f"pilot pretraining, rate {pretrain_rate}: masked error {line['masked_error']:.3f} (inpainting "
                  f"{line['inpainting_error']:.3f}), order in place {line['order_accuracy']:.1%} (guessing "
                  f"{line['order_chance']:.1%}), {line['steps_per_second']:.2f} steps/s", flush=True)
        for rate in rates:
            chosen = replace(recipe, rate=rate, pretrain_rate=pretrain_rate)
            line = train(run, chosen, materials, pool, validation)
            after = "" if run.pretraining is None else f" after pretraining at {pretrain_rate}"
            print(f"pilot {arm}, rate {rate}{after}: Dice {100 * line['dice']:.2f}, "
                  f"{line['steps_per_second']:.2f} steps/s, {line['run_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
