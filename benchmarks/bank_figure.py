"""Cosines between the 13 organs of BTCV in several text banks, as they are and after centering → docs/banks.png.

`python benchmarks/bank_figure.py trained=BANK untrained=BANK random=BANK -o docs/banks.png`: title and folder for each
column. Also prints the figures, and appends them to results/banks.jsonl with --record.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from measuring import RESULTS, machine

from autoseg.errors import UserError
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.text_bank import TextBank, centered, read_bank
from autoseg.records import replacing

ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
          "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland")
"""In the order of the data set's labels 1 to 13."""
STATES = ("as encoded", "centered")


def cosines_of(bank: TextBank) -> tuple[Float[np.ndarray, "organ organ"], Float[np.ndarray, "organ organ"]]:
    """Cosines between the organs' vectors, as encoded and after the organs' common direction is taken out."""
    vectors = bank.vectors_of(ORGANS, load_lexicon())
    return vectors @ vectors.T, centered(vectors) @ centered(vectors).T


def off_diagonal(matrix: Float[np.ndarray, "organ organ"]) -> Float[np.ndarray, " pair"]:
    """Each pair of different organs once."""
    pairs: np.ndarray = matrix[np.triu_indices(len(matrix), k=1)]
    return pairs


def figures(banks: Mapping[str, TextBank]) -> dict[str, dict[str, object]]:
    """Mean, extremes, spread and the closest pair of every bank's cosines."""
    result: dict[str, dict[str, object]] = {}
    for title, bank in banks.items():
        told: dict[str, object] = {"tower": bank.record.tower.name, "kind": bank.record.tower.kind,
                                   "dimension": bank.record.dimension, "sha256": bank.record.sha256}
        for state, matrix in zip(STATES, cosines_of(bank), strict=True):
            pairs = off_diagonal(matrix)
            first, second = (axis[pairs.argmax()] for axis in np.triu_indices(len(matrix), k=1))
            told[state] = {"mean": round(float(pairs.mean()), 3), "min": round(float(pairs.min()), 3),
                           "max": round(float(pairs.max()), 3), "std": round(float(pairs.std()), 3),
                           "closest": [ORGANS[first], ORGANS[second]]}
        result[title] = told
    return result


def draw(banks: Mapping[str, TextBank], path: Path) -> None:
    """One column for each bank, above as encoded and below centered; every cell says its cosine."""
    from matplotlib.figure import Figure

    count = len(banks)
    figure = Figure(figsize=(3.6 * count + 2.2, 8.2), layout="constrained")
    grid = figure.subplots(2, count, squeeze=False, sharex=True, sharey=True)
    for column, (title, bank) in enumerate(banks.items()):
        for row, (state, matrix) in enumerate(zip(STATES, cosines_of(bank), strict=True)):
            axes = grid[row, column]
            shown = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
            pairs = off_diagonal(matrix)
            axes.set_title(f"{title}, {state}\nmean {pairs.mean():.2f}, from {pairs.min():.2f} to {pairs.max():.2f}",
                           fontsize=10)
            axes.set_xticks(range(len(ORGANS)), ORGANS, rotation=90, fontsize=8)
            axes.set_yticks(range(len(ORGANS)), ORGANS, fontsize=8)
            for y, x in np.ndindex(matrix.shape):
                # A minus and a leading zero would not fit a cell.
                text = f"{matrix[y, x]:.1f}".replace("0.", ".").replace("-.0", ".0")
                axes.text(x, y, text, ha="center", va="center", fontsize=5.5,
                          color="white" if abs(matrix[y, x]) > 0.6 else "black")
    figure.colorbar(shown, ax=grid, label="cosine", shrink=0.6)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main() -> None:
    """Read the banks, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", nargs="+", metavar="TITLE=FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/banks.png"))
    parser.add_argument("--record", action="store_true", help="append the figures to results/banks.jsonl")
    arguments = parser.parse_args()
    named = [text.partition("=") for text in arguments.banks]
    try:
        banks = {title: read_bank(Path(folder)) for title, _, folder in named}
    except UserError as error:
        parser.error(str(error))
    draw(banks, arguments.output)
    line = {"organs": len(ORGANS), "banks": figures(banks)}
    sys.stdout.write(f"{json.dumps(line, indent=1)}\n{arguments.output} written\n")
    if arguments.record:
        with (RESULTS / "banks.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"machine": machine(), **line}) + "\n")


if __name__ == "__main__":
    main()
