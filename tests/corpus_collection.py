"""A collection of images made in a test, with its card; and what a build has made of one."""

import hashlib
import json

import numpy as np
from corpus_published_layouts import table
from PIL import Image

from autoseg.records import parse_toml
from vlm.corpus import building
from vlm.corpus.captions.backends import GrammarWriter
from vlm.corpus.sourcing import PresentSource
from vlm.corpus.stored_pairs import read_manifest, read_pairs, shard_path
from vlm.schema import SourceCard

CARD = """
name = "{name}"
title = "Test"
modalities = ["X-ray"]
access = "open"
licence = "none"
citation = "none"
obtain = "nowhere"
folder = "{name}"
label_table = "chest_xray"
anatomy = "chest"
[[layouts]]
name = "published"
reader = "table"
index = ["list.csv"]
image_root = "images"
columns = {{ image = "file", label = "label", caption = "caption", patient = "patient", split = "split" }}
"""
COLUMNS = ["file", "label", "caption", "patient", "split"]


def draw(seed):
    """A picture that looks like no other."""
    rng = np.random.default_rng(seed)
    octaves = [np.asarray(Image.fromarray(rng.normal(0, 90 / cells**0.5, (cells, cells)).astype(np.float32)).resize(
        (96, 96), Image.Resampling.BICUBIC)) for cells in (3, 6, 12, 24)]  # as smooth as anatomy, detail at all sizes
    return Image.fromarray(np.clip(128 + sum(octaves), 0, 255).astype(np.uint8))


class Collection:
    """A source on the disk, with its card."""

    def __init__(self, root, name):
        self.name, self.root, self.rows = name, root / "data" / name, []
        (self.root / "images").mkdir(parents=True)
        self.card = root / f"{name}.toml"
        self.card.write_text(CARD.format(name=name))

    def add(self, picture, label="Cardiomegaly", caption="", patient="", split="train", suffix="jpg"):
        """A row, with its image unless that is None."""
        file = f"{len(self.rows):04d}.{suffix}"
        if isinstance(picture, bytes):
            (self.root / "images" / file).write_bytes(picture)
        elif picture is not None:
            picture.save(self.root / "images" / file)
        self.rows.append([file, label, caption, patient, split])
        return file

    def write(self):
        """Write the index; returns the card's path."""
        table(self.root / "list.csv", COLUMNS, *self.rows)
        return self.card


def job_of(*collections, options, data=None, workers=1, writer=None):
    """A job of collections that are written."""
    sources = []
    for one in collections:
        one.write()
        loaded = parse_toml(SourceCard, one.card.read_text(), one.card)
        sources.append(PresentSource(loaded, loaded.layouts[0], one.root))
    return building.BuildJob(sources, options, writer or GrammarWriter(), data, workers)


def contents(corpus):
    """File → hash, of all that a build leaves but its run record."""
    return {path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in corpus.rglob("*") if path.is_file() and path.name != "run.json"}


def pairs_of(corpus):
    manifest = read_manifest(corpus)
    return {pair.record.uid: pair for entry in manifest.shards for pair in read_pairs(shard_path(corpus, entry.file))}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def full(collection, count=30):
    for number in range(count):
        collection.add(draw(number), patient=f"p{number // 2}", caption="A large heart." if number % 3 else "")
    return collection
