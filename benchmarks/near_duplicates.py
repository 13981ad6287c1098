"""Near duplicates: recall of planted copies and false alarms on real images; seconds and memory at a million hashes.

`taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/near_duplicates.py --data ../shared/data/vlm` measures both;
`--sheet FILE.png` also draws the most alike images of different patients, to be looked at.
results/near_duplicates.json; presets/vlm/duplicates.toml takes its thresholds from there.
"""

import argparse
import csv
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measuring import measure_command, write_results
from PIL import Image, ImageDraw, ImageOps

from autoseg.progress import progress
from vlm.corpus.facts import FACTS, Fate
from vlm.corpus.fingerprints import hamming
from vlm.corpus.images import BadImage, inspect_image
from vlm.corpus.near import near_pairs
from vlm.corpus.pairing import decide

LARGEST = 48
WANTED_RECALL = 0.99
STATED_LOSS = 0.005
MARGIN = 4
"""The threshold is the smallest that finds WANTED_RECALL of the planted copies; but at most a share of STATED_LOSS of
the images may look like an earlier one of another patient, and it stays MARGIN bits below the least distance at which
two images of different patients were seen: with so many bits less, about half as many pairs are that close."""

SAMPLED_PER_MODALITY = 300
MODALITIES = ("X-ray", "CT", "MRI", "Ultrasound", "Pathology", "Fundus")

PATIENTS: dict[str, str] = {
    "CovidChestXray": r"patient (\S+) licence", "Figure1CXR": r"COVID-(\d+)",
    "KermanyCXR": r"((?:NORMAL2-)?IM-\d+|person\d+)",
    "MedPix2": r"(MPX\d+)", "POCOVID": r"patient (\S+)", "ODIR5K": r"patient (\d+)", "LC25000": r"cluster (\S+)",
    "HistopathologyAtlas": r"thumbnail_(\S+?)(?:-?HE\d*)?\.png",
}
"""Patient, case, section or original tile in source_id. BUSI, BrainTumorMRI, IQOTHNCCD, COVIDCT name none: pairs inside
one of them are not counted. Images of different sources are taken for different patients'."""


LOOKED_AT: frozenset[frozenset[str]] = frozenset(map(frozenset, (
    ("16660_2_1", "covid-19-rapidly-progressive-acute-respiratory-distress-syndrome-ards-admission"),
    ("16660_3_1", "covid-19-rapidly-progressive-acute-respiratory-distress-syndrome-ards-day-1"),
    ("16660_4_1", "covid-19-rapidly-progressive-acute-respiratory-distress-syndrome-ards-day-2"),
    ("16660_5_1", "covid-19-rapidly-progressive-acute-respiratory-distress-syndrome-ards-day-3"),
    ("COVID-00033", "COVID-00037"), ("A7E260CE-8A00-4C5F-A7F5-27336527A981", "case_76_1-3"),
    ("Pneu_northumbria_0409_set4_img2", "Pneu_northumbria_0409_set6_img6"),
    ("metaplasia-annotated", "metaplasia"), ("exostosis-2", "exostosis-3"),
    ("lymphocytic-gastritis-all", "lymphocytic-gastritisHE"), ("MPX1135_synpic16706", "MPX1683_synpic16676"),
)))
"""Pairs under different ids of which one saw on the sheet that they show one image: duplicates that the data do not
know of, and no false alarms."""


def jpeg(quality: int) -> Callable[[Image.Image, Path], Path]:
    def plant(image: Image.Image, path: Path) -> Path:
        image.save(path.with_suffix(".jpg"), quality=quality)
        return path.with_suffix(".jpg")
    return plant


def changed(change: Callable[[Image.Image], Image.Image]) -> Callable[[Image.Image, Path], Path]:
    def plant(image: Image.Image, path: Path) -> Path:
        change(image).save(path.with_suffix(".png"), compress_level=1)
        return path.with_suffix(".png")
    return plant


def resized(factor: float) -> Callable[[Image.Image], Image.Image]:
    def resize(image: Image.Image) -> Image.Image:
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return resize


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """Without this share of the width and height at each side."""
    def crop(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share), round(image.height * share)
        return image.crop((x, y, image.width - x, image.height - y))
    return crop


def brighter(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(lambda value: min(int(value * factor), 255))


PLANTED: dict[str, Callable[[Image.Image, Path], Path]] = {
    **{f"JPEG quality {quality}": jpeg(quality) for quality in (30, 50, 75, 95)},
    **{f"resized × {factor}": changed(resized(factor)) for factor in (0.5, 0.75, 1.5, 2.0)},
    "mirrored": changed(ImageOps.mirror),
    "mirrored, × 0.75, JPEG quality 50": lambda image, path: jpeg(50)(resized(0.75)(ImageOps.mirror(image)), path),
    "× 0.5, JPEG quality 30": lambda image, path: jpeg(30)(resized(0.5)(image), path),
    "brightness × 1.2": changed(brighter(1.2)), "brightness × 0.7": changed(brighter(0.7)),
    "cropped by 1 %": changed(cropped(0.01)), "cropped by 3 %": changed(cropped(0.03)),
}
ASKED = tuple(PLANTED)[:11]
"""Re-encoded, resized, mirrored: what must be found. Brighter and cropped copies are shown for comparison."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/vlm"))
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--load", nargs=2, help="internal: what and how many")
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
        return
    images = read_images(arguments.data)
    accuracy = {modality: measure_modality(images, modality, arguments.sheet) for modality in MODALITIES}
    for modality, row in accuracy.items():
        print(modality, row)
    write_results("near_duplicates", {"wanted_recall": WANTED_RECALL, "stated_loss": STATED_LOSS, "margin_bits": MARGIN,
                                       "accuracy": accuracy, "load": measure_load()})


def read_images(root: Path) -> np.ndarray:
    """Every image of the mini-corpus with its hashes; `patient` is "" where the source does not say."""
    rows = []
    for folder in sorted(path for path in root.iterdir() if (path / "annotations.csv").is_file()):
        with (folder / "annotations.csv").open(encoding="utf-8") as stream:
            rows += [(folder, row) for row in csv.DictReader(stream)]
    kind = np.dtype([("path", object), ("source", object), ("patient", object), ("modality", object),
                     ("phash", "<u8", 4), ("mirrored", "<u8", 4)])
    images = np.zeros(len(rows), kind)
    good = np.ones(len(rows), bool)
    with progress("hash", len(rows), "images") as bar:
        for image, (folder, row) in zip(images, rows, strict=True):
            bar.advance()
            image["path"], image["source"], image["modality"] = folder / row["file"], folder.name, row["modality"]
            match = re.search(PATIENTS.get(folder.name, r"(?!)()"), row["source_id"])
            image["patient"] = match.group(1) if match else ""
            try:
                found = inspect_image(image["path"], None, None)
            except BadImage as error:
                print(f"{image['path']}: {error}")
                good[len(rows) - 1] = False
                continue
            image["phash"], image["mirrored"] = found.phash, found.mirrored
    return images[good & (images["phash"].any(axis=1))]


def measure_modality(images: np.ndarray, modality: str, sheet: Path | None) -> dict[str, object]:
    """Recall by kind of copy and share of images lost to another patient's, by threshold; the threshold."""
    chosen = images[images["modality"] == modality]
    recall = measure_recall(chosen, modality)
    nearest, pairs, compared = false_alarms(chosen)
    judged = nearest < np.iinfo(np.int16).max
    share = [float((nearest[judged] <= threshold).mean()) for threshold in range(LARGEST + 1)]
    everything = np.concatenate([recall[kind] for kind in ASKED])
    finds = int(np.ceil(np.quantile(everything, WANTED_RECALL, method="inverted_cdf")))
    spares = max((bits for bits in range(LARGEST + 1) if share[bits] <= STATED_LOSS), default=0)
    threshold = max(min(finds, spares, int(nearest.min()) - MARGIN), 0)
    if sheet is not None:
        draw_sheet(chosen, pairs, sheet.with_name(f"{sheet.stem}_{modality}.png"))
    shown = (0, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48)
    return {
        "images": len(chosen), "judged": int(judged.sum()), "pairs_compared": compared,
        "sources_without_patients": sorted({image["source"] for image in chosen if not image["patient"]}),
        "threshold": threshold, "smallest_that_finds": finds, "largest_that_spares": spares,
        "least_bits_between_patients": int(nearest.min()), "recall": round(float((everything <= threshold).mean()), 4),
        "lost_to_another_patient": round(share[threshold], 4),
        "recall_by_kind": {kind: round(float((found <= threshold).mean()), 4) for kind, found in recall.items()},
        "recall_by_threshold": {bits: round(float((everything <= bits).mean()), 4) for bits in shown},
        "lost_by_threshold": {bits: round(share[bits], 4) for bits in shown},
        "bits_99_percent_of_copies": {kind: int(np.percentile(found, 99)) for kind, found in recall.items()},
        "false_pairs_by_threshold": {bits: sum(pair[0] <= bits and not looked_at(chosen, pair) for pair in pairs)
                                     for bits in shown},
        "most_alike_of_different_patients": [
            {"bits": pair[0], "files": ["/".join(chosen["path"][k].parts[-3:]) for k in pair[1:]],
             "is_one_image": looked_at(chosen, pair)} for pair in pairs[:12]],
    }


def measure_recall(chosen: np.ndarray, modality: str) -> dict[str, np.ndarray]:
    """Kind of copy → distance of each copy from its original (the smaller of plain and mirrored)."""
    rng = np.random.default_rng(0)
    sample = chosen[np.sort(rng.permutation(len(chosen))[:SAMPLED_PER_MODALITY])]
    found = {kind: np.zeros(len(sample), np.int16) for kind in PLANTED}
    with tempfile.TemporaryDirectory() as folder, progress(f"plant {modality}", len(sample), "images") as bar:
        for k, original in enumerate(sample):
            bar.advance()
            with Image.open(original["path"]) as opened:
                image = opened if opened.mode in ("L", "RGB") else opened.convert("RGB")
                image.load()
            for kind, plant in PLANTED.items():
                copy = inspect_image(plant(image, Path(folder) / "copy"), None, None)
                found[kind][k] = min(hamming(original["phash"], hashes) for hashes in (copy.phash, copy.mirrored))
    return found


def false_alarms(chosen: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]], int]:
    """(smallest distance of each image from an earlier one of another patient, pairs that are at most LARGEST bits
    apart, most alike first, number of pairs that were compared)."""
    nearest = np.full(len(chosen), np.iinfo(np.int16).max)
    pairs, compared = [], 0
    for later in range(1, len(chosen)):
        image, earlier = chosen[later], chosen[:later]
        other = (earlier["source"] != image["source"]) | (
            (earlier["patient"] != image["patient"]) & (earlier["patient"] != "") & (image["patient"] != ""))
        compared += int(other.sum())
        bits = np.minimum(hamming(earlier["phash"], image["phash"]), hamming(earlier["phash"], image["mirrored"]))
        close = np.flatnonzero(other & (bits <= LARGEST))
        pairs += [(int(bits[k]), int(k), later) for k in close]
        same = [k for k in close if looked_at(chosen, (0, int(k), later))]
        other[same] = False
        if other.any():
            nearest[later] = bits[other].min()
    return nearest, sorted(pairs), compared


def looked_at(chosen: np.ndarray, pair: tuple[int, int, int]) -> bool:
    return {chosen["path"][position].stem for position in pair[1:]} in LOOKED_AT


def draw_sheet(chosen: np.ndarray, pairs: list[tuple[int, int, int]], file: Path) -> None:
    """The twelve most alike pairs of different patients, one below the other's side."""
    sheet = Image.new("RGB", (6 * 330, 2 * 190), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (bits, *both) in enumerate(pairs[:12]):
        x, y = k % 6 * 330, k // 6 * 190
        for side, position in enumerate(both):
            with Image.open(chosen["path"][position]) as image:
                sheet.paste(ImageOps.fit(image.convert("RGB"), (155, 155)), (x + side * 160, y + 15))
        pen.text((x, y), f"{bits} bits {chosen['patient'][both[0]]} | {chosen['patient'][both[1]]}", fill="black")
    sheet.save(file)


def measure_load() -> dict[str, object]:
    """Seconds and peak memory of children that search, or decide about, a million images, all held in memory.

    bytes_per_image : of which the facts themselves take 124; `decide` need not hold them (a memory map).
    """
    python = sys.executable
    idle = measure_command([python, __file__, "--load", "make", "1000"])
    rows: dict[str, object] = {"images": 1_000_000, "without images": vars(idle)}
    for what in ("search15", "search24", "decide"):
        measured = measure_command([python, __file__, "--load", what, "1000000"])
        extra = (measured.peak_mib - idle.peak_mib) * 2**20 / 1e6
        rows[what] = {**vars(measured), "bytes_per_image": round(extra)}
        print(what, rows[what])
    return rows


def load(what: str, count: str) -> None:
    """Half of the hashes stand alone, a quarter are in groups of ten near copies, a quarter in ten groups in which each
    is within a few bits of 25,000 others (near-black images)."""
    start = time.process_time()
    facts = make_facts(int(count))
    print("made", time.process_time() - start)
    start = time.process_time()
    if what.startswith("search"):
        hashes = facts["phash"][: len(facts) * 3 // 4]  # without the large groups, all of whose pairs it would list
        print("pairs", sum(len(pairs.queries) for pairs in near_pairs(hashes, int(what.removeprefix("search")))))
    elif what == "decide":
        thresholds = dict.fromkeys(MODALITIES, 12)
        fate = decide(facts, thresholds).fate
        print({name.name: int((fate == name).sum()) for name in Fate})
    print("seconds", time.process_time() - start)


def make_facts(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    facts = np.zeros(count, FACTS)
    facts["sha256"] = rng.integers(0, 2**64, (count, 4), np.uint64)
    facts["phash"] = rng.integers(0, 2**64, (count, 4), np.uint64)
    half, quarter = count // 2, count // 4
    small = rng.integers(0, 2**64, (max(quarter // 10, 1), 4), np.uint64)
    facts["phash"][half : half + quarter] = small[rng.integers(0, len(small), quarter)]
    facts["phash"][half + quarter :] = small[rng.integers(0, 10, count - half - quarter)]
    for _ in range(3):  # up to three flipped bits
        where = rng.integers(0, 256, half + count % 2)
        facts["phash"][half + np.arange(len(where)), where // 64] ^= np.uint64(1) << (where % 64).astype(np.uint64)
    facts["mirrored"] = rng.permutation(facts["phash"])
    facts["modality"] = rng.integers(0, 6, count)
    facts["split"] = rng.choice(3, count, p=(0.9, 0.05, 0.05))
    return facts


if __name__ == "__main__":
    main()
