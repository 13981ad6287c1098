"""`vlm build-corpus` on generated pairs: rate per core, peak memory at several sizes, hours for 5.3 million pairs.

    python benchmarks/corpus_throughput.py --work DIR [--pairs 10000 100000] [--workers 2] [--side 384]

DIR needs 6 GB for 100,000 pairs. Images are gray JPEGs with detail at all scales, each with a caption and a label in a
CSV; results/corpus_throughput.json. Rates are given per processor second too, which a busy machine does not change.
"""

import argparse
import csv
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from measuring import measure_command, write_results
from PIL import Image

from autoseg.progress import progress

UNIMED_PAIRS = 5_282_000
CORES = 16
CARD = """
name = "generated"
title = "Generated pairs"
modalities = ["X-ray"]
access = "open"
licence = "none"
citation = "none"
obtain = "python benchmarks/corpus_throughput.py"
folder = "generated"
label_table = "chest_xray"
anatomy = "chest"
[[layouts]]
name = "generated"
reader = "table"
index = ["list.csv"]
image_root = "images"
columns = { image = "file", label = "label", caption = "caption", patient = "patient" }
"""
LABELS = ("Cardiomegaly", "Edema", "Pleural Effusion", "Atelectasis", "Pneumonia", "No Finding")
PER_FOLDER = 1000


def draw(folder: Path, side: int, number: int) -> None:
    """A picture whose coarse and fine structure no other one has."""
    rng = np.random.default_rng(number)
    octaves = sum(
        np.asarray(Image.fromarray(rng.normal(0, 90 / cells**0.5, (cells, cells)).astype(np.float32)).resize(
            (side, side), Image.Resampling.BILINEAR))
        for cells in (3, 6, 12, 24, 48, 96))
    path = folder / image_name(number)
    Image.fromarray(np.clip(128 + octaves, 0, 255).astype(np.uint8)).save(path, quality=85)


def image_name(number: int) -> str:
    return f"{number // PER_FOLDER:04d}/{number:07d}.jpg"


def generate(folder: Path, count: int, side: int, workers: int) -> None:
    """Images that are not there yet."""
    images = folder / "images"
    missing = [number for number in range(count) if not (images / image_name(number)).exists()]
    for parent in {(images / image_name(number)).parent for number in missing}:
        parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool, progress("generate", len(missing), "images") as bar:
        for _ in pool.map(partial(draw, images, side), missing, chunksize=100):
            bar.advance()


def write_index(folder: Path, count: int) -> None:
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "caption", "patient"])
        for number in range(count):
            writer.writerow([image_name(number), LABELS[number % len(LABELS)],
                             f"Chest radiograph number {number} of a generated series.", number // 3])


def measure(work: Path, count: int, workers: int) -> dict[str, float]:
    """One build from nothing."""
    source, corpus = work / "data" / "generated", work / "corpus"
    write_index(source, count)
    shutil.rmtree(corpus, ignore_errors=True)
    card = work / "generated.toml"
    card.write_text(CARD)
    taken = measure_command([
        sys.executable, "-m", "vlm.cli", "build-corpus", "--data", str(work / "data"), "--card", str(card),
        "--sources", "generated", "--workers", str(workers), "-o", str(corpus)])
    size = sum(path.stat().st_size for path in (corpus / "shards").glob("*.tar"))
    shutil.rmtree(corpus)
    return {"pairs": count, "workers": workers, "seconds": taken.seconds, "processor_seconds": taken.processor_seconds,
            "pairs_per_second": round(count / taken.seconds, 1),
            "pairs_per_processor_second": round(count / taken.processor_seconds, 1), "peak_mib": taken.peak_mib,
            "shard_bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--side", type=int, default=384)
    arguments = parser.parse_args()
    generate(arguments.work / "data" / "generated", max(arguments.pairs), arguments.side, arguments.workers)
    rows = [measure(arguments.work, count, arguments.workers) for count in sorted(arguments.pairs)]
    growth = [round((after["peak_mib"] - before["peak_mib"]) * 2**20 / (after["pairs"] - before["pairs"]))
              for before, after in pairwise(rows)]
    hours = UNIMED_PAIRS / (rows[-1]["pairs_per_processor_second"] * CORES * 3600)
    write_results("corpus_throughput", {
        "image_side": arguments.side, "rows": rows, "peak_bytes_per_further_pair": growth,
        "projected": {"pairs": UNIMED_PAIRS, "cores": CORES, "hours": round(hours, 2),
                      "by": "pairs per processor second of the largest build, times cores; without the search for "
                            "near duplicates of millions, which runs on one core (results/near_duplicates.json)"}})


if __name__ == "__main__":
    main()
