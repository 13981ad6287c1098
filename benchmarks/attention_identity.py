"""The identity test: what a trained hybrid loses when its attention blocks are taken out.

    python benchmarks/attention_identity.py --run RUN --name hybrid [--configuration 3d_fullres] [--fold 0]

The fold's validation cases are predicted as trained; with every attention block replaced by the identity; with one
stage's blocks replaced at a time; and with the attention halves of all blocks switched off (their gated layers stay).
Nothing is trained again. Written: the changes in Dice, points, over the cases, and how large the LayerScale vectors
have become (they start at 0.1). Blocks that do nothing change nothing.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import bootstrap_mean, device_name, write_results
from torch import nn

from autoseg.commands.plan import read_plan
from autoseg.data.dataset import Case, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.splits import read_splits, training_cases
from autoseg.errors import UserError
from autoseg.evaluation.pairing import pair_files
from autoseg.evaluation.scoring import score_files
from autoseg.inference.device import choose_device
from autoseg.inference.prediction import PredictSettings, predict_cases
from autoseg.inference.trained import choose_model
from autoseg.networks.attention import AttentionBlock
from autoseg.networks.checkpoint import read_model
from autoseg.networks.unet import UNet
from autoseg.schema import CheckpointInfo, Scores


@dataclass(frozen=True)
class Trained:
    """A hybrid's network and record, the held-out cases, and how they are predicted."""

    network: UNet
    info: CheckpointInfo
    cases: tuple[Case, ...]
    settings: PredictSettings


def main() -> None:
    arguments = parse_arguments()
    try:
        trained, dataset = load(arguments)
    except UserError as error:
        sys.exit(str(error))
    scores = {}
    for variant, network in variants(trained.network):
        scores[variant] = predict_and_score(trained, network)
    rows = {variant: compare(scores["as trained"], other) for variant, other in scores.items()}
    scales = layer_scales(trained.network)
    print_tables(rows, scales)
    info = trained.info
    device = trained.settings.device
    where = "" if device.type == "cpu" else f"_{device.type}"
    write_results(f"identity_{dataset}_{info.name}_{info.configuration}_fold{info.fold}{where}", {
        "command": "python benchmarks/attention_identity.py --run RUN "
                   f"--name {info.name} --configuration {info.configuration} --fold {info.fold}"
                   + " --tta" * arguments.tta,
        "device": device_name(device), "dataset": dataset, "steps": info.steps,
        "cases": [case.id for case in trained.cases],
        "dice": rows, "layer_scales": scales,
    })


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", default="hybrid")
    parser.add_argument("--configuration")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--tta", action="store_true", help="average over mirrored copies")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> tuple[Trained, str]:
    """The model and the cases that its fold holds out; also the dataset's name."""
    model = choose_model(arguments.run, arguments.name, arguments.configuration)
    network, info = read_model(model.fold_folder(arguments.fold))
    if not isinstance(network, UNet) or not any(attention_in(network)):
        sys.exit(f"{model.folder} is a {info.architecture} without attention blocks; a hybrid was expected.")
    plan = read_plan(arguments.run)
    cases = {case.id: case for case in open_dataset(Path(plan.dataset)).cases}
    splits = read_splits(arguments.run / "splits.json", list(cases))
    _, held_out = training_cases(splits, arguments.fold, list(cases))
    settings = PredictSettings(device=choose_device(arguments.device), tta=arguments.tta, overwrite=True)
    return Trained(network, info, tuple(cases[case] for case in held_out), settings), plan.name


def variants(network: UNet) -> Iterator[tuple[str, UNet]]:
    """The network as trained and its mutilations, each a copy."""
    attending = [stage for stage, positions in enumerate(attention_in(network)) if positions]
    yield "as trained", copy.deepcopy(network)
    yield "all blocks", without_blocks(network, attending)
    if len(attending) > 1:
        for stage in attending:
            yield f"blocks of encoder {stage}", without_blocks(network, [stage])
    yield "attention halves only", without_mixing(network)


def attention_in(network: UNet) -> list[list[int]]:
    """Per encoder stage the positions of its attention blocks."""
    return [
        [position for position, block in enumerate(stage) if isinstance(block, AttentionBlock)]
        for stage in network.encoder.stages
    ]


def without_blocks(network: UNet, stages: Sequence[int]) -> UNet:
    """A copy in which the attention blocks of these stages return their input."""
    changed = copy.deepcopy(network)
    for stage in stages:
        for position in attention_in(network)[stage]:
            changed.encoder.stages[stage][position] = nn.Identity()
    return changed


def without_mixing(network: UNet) -> UNet:
    """A copy in which attention adds nothing; the gated layers work on."""
    changed = copy.deepcopy(network)
    for module in changed.modules():
        if isinstance(module, AttentionBlock):
            nn.init.zeros_(module.scale_attention)
    return changed


def predict_and_score(trained: Trained, network: UNet) -> Scores:
    with tempfile.TemporaryDirectory() as folder:
        _, failures = predict_cases(trained.cases, [(network, trained.info)], Path(folder), trained.settings)
        if failures:
            sys.exit("\n".join(f"{failure.id}: {failure.reason}" for failure in failures))
        pairs = pair_files(Path(folder), {case.id: case.label for case in trained.cases if case.label})
        return score_files(pairs, trained.info, workers=default_workers())


def compare(before: Scores, after: Scores) -> dict[str, object]:
    """Dice in points (0 to 100): means, and the change per case averaged, with its 95 % interval over cases."""
    changes = 100 * (case_means(after) - case_means(before))
    changes = changes[np.isfinite(changes)]
    change, low, high = bootstrap_mean(changes)
    labels = {
        name: None if old.dice is None or (new := after.labels[name].dice) is None else points(new - old.dice)
        for name, old in before.labels.items()
    }
    mean = after.mean.dice
    return {"mean": None if mean is None else points(mean), "change": round(change, 2),
            "interval": [round(low, 2), round(high, 2)], "change_by_label": labels}


def points(dice: float) -> float:
    return round(100 * dice, 2)


def case_means(scores: Scores) -> np.ndarray:
    """Mean Dice over each case's labels; NaN where none is defined."""
    means = []
    for case in scores.cases:
        found = [label.dice for label in case.labels.values() if label.dice is not None]
        means.append(sum(found) / len(found) if found else np.nan)
    return np.array(means)


def layer_scales(network: UNet) -> list[dict[str, object]]:
    """Mean and largest magnitude of both LayerScale vectors of every block."""
    rows: list[dict[str, object]] = []
    for stage, positions in enumerate(attention_in(network)):
        for position in positions:
            block = network.encoder.stages[stage][position]
            vectors = {"attention": block.scale_attention, "gated": block.scale_mlp}
            rows.append({"stage": stage, "block": position} | {
                f"{kind}_{statistic}": round(float(reduce(vector.detach().abs())), 4)
                for kind, vector in vectors.items()
                for statistic, reduce in (("mean", torch.mean), ("largest", torch.max))
            })
    return rows


def print_tables(rows: dict[str, dict[str, object]], scales: list[dict[str, object]]) -> None:
    print(f"{'taken out':<24}{'Dice':>8}{'change':>9}   95 % interval      by label")
    for variant, row in rows.items():
        low, high = row["interval"]  # type: ignore[misc]
        labels = ", ".join(f"{name} {change:+.2f}" for name, change in row["change_by_label"].items()  # type: ignore[attr-defined]
                           if change is not None)
        print(f"{variant:<24}{row['mean']:>8}{row['change']:>+9.2f}   {low:+.2f} … {high:+.2f}   {labels}")
    print("\nLayerScale (0.1 at the start), mean and largest magnitude")
    for row in scales:
        print(f"  encoder {row['stage']}, block {row['block']}:  attention {row['attention_mean']:.3f}, "
              f"{row['attention_largest']:.3f};  gated layer {row['gated_mean']:.3f}, {row['gated_largest']:.3f}")


if __name__ == "__main__":
    main()
