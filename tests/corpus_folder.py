"""Writes a small corpus folder as `vlm build-corpus` lays it out, without building one: for tests of what reads it."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from autoseg.records import write_json, write_record
from vlm.corpus.leaks import LeakReport, SetReport
from vlm.schema import Caption, CorpusManifest, PairRecord, ShardEntry, SourceCount


def make_image(number, form="jpg", size=(40, 30)):
    """Bytes of a picture that no other number gives."""
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, {"jpg": "JPEG", "png": "PNG"}[form])
    return stream.getvalue()


def make_pair(source, row, modality="CT", split="train", captions=("a scan",), kinds=None, labels=(), **more):
    """(PairRecord, image bytes, "jpg" or "png"); kinds : of the captions, all "native" by default."""
    form = more.pop("form", "jpg")
    data = more.pop("data", None) or make_image(row, form, more.pop("size", (40, 30)))
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    kinds = kinds or ["native"] * len(captions)
    record = PairRecord(
        uid=f"{source}_{row:08d}", source=source, modality=modality, split=split, labels=labels, file=f"{row}.{form}",
        captions=tuple(Caption(text=text, kind=kind, origin=f"column {kind}")
                       for text, kind in zip(captions, kinds, strict=True)),
        sha256=hashlib.sha256(data).hexdigest(), phash="0" * 64, width=width, height=height, reencoded=False, **more)
    return record, data, form


@dataclass
class CorpusFolder:
    """pairs : of `make_pair`. dropped : lines of duplicates.jsonl; rejects : of rejects.jsonl."""

    path: Path
    pairs: list
    pairs_per_shard: int = 3
    dropped: list = field(default_factory=list)
    rejects: list = field(default_factory=list)
    leaks: LeakReport = field(default_factory=lambda: LeakReport(
        sets={"rsna": SetReport(checked="hashes of 12 images", images=12, unreadable=0,
                                found={"chest": {"image": 2}}, dropped=2)},
        overlaps=(), unresolved={"siim": ("chest",)}, dropped=2))

    def write(self):
        """Write all files; returns the folder."""
        shards, labels = [], {}
        for record, _, _ in self.pairs:
            labels.setdefault(record.source, set()).update(record.labels)
        labels = {source: tuple(sorted(names)) for source, names in labels.items()}
        (self.path / "shards").mkdir(parents=True)
        for source, split in sorted({(record.source, record.split) for record, _, _ in self.pairs}):
            mine = [pair for pair in self.pairs if (pair[0].source, pair[0].split) == (source, split)]
            for number, start in enumerate(range(0, len(mine), self.pairs_per_shard)):
                part = mine[start : start + self.pairs_per_shard]
                name = f"{source}-{split}-{number:06d}.tar"
                shards.append(self._write_shard(name, source, split, part, labels[source]))
        write_json({shard.file: shard.pairs for shard in shards}, self.path / "sizes.json")
        (self.path / "rejects.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in self.rejects))
        (self.path / "duplicates.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in self.dropped))
        write_record(self.leaks, self.path / "leaks.json")
        write_record(self._manifest(shards, labels), self.path / "manifest.json")
        return self.path

    def _write_shard(self, name, source, split, pairs, labels):
        path = self.path / "shards" / name
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for unnumbered, data, form in pairs:
                numbers = tuple(labels.index(label) for label in unnumbered.labels)
                record = unnumbered.model_copy(update={"label_ids": numbers})
                members = {form: data, "txt": record.captions[0].text.encode(),
                           "json": json.dumps(record.model_dump(mode="json")).encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{record.uid}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        data = path.read_bytes()
        return ShardEntry(file=name, source=source, split=split, sha256=hashlib.sha256(data).hexdigest(),
                          size=len(data), pairs=len(pairs))

    def _manifest(self, shards, labels):
        counts = {}
        for record, _, _ in self.pairs:
            splits = counts.setdefault(record.modality, {})
            splits[record.split] = splits.get(record.split, 0) + 1
        sources = {}
        for source in labels:
            pairs = sum(record.source == source for record, _, _ in self.pairs)
            rejected = sum(line["source"] == source for line in self.rejects)
            fates = [line["fate"] for line in self.dropped if line["source"] == source]
            leaks = sum(fate.startswith("leak") for fate in fates)
            sources[source] = SourceCount(
                rows=pairs + rejected + len(fates), pairs=pairs, rejected=rejected, duplicates=len(fates) - leaks,
                leaks=leaks, layout="published", labels=labels[source])
        return CorpusManifest(version="0.1.0", recipe="0123abcd", seed=7, options={}, sources=sources, counts=counts,
                              shards=tuple(shards))
