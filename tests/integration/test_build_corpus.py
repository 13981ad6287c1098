"""`vlm build-corpus`: what is kept, what is dropped and said, the same bytes always, and what it says to bad input."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from corpus_endpoint import captions, error, serving
from corpus_published_layouts import CASES, cards, layout_of, table
from PIL import Image, ImageOps

from autoseg.errors import UserError
from vlm.commands.build_corpus import build_corpus
from vlm.corpus import building, lists, shards
from vlm.corpus.captions.backends import GrammarWriter
from vlm.corpus.options import BuildOptions, preset_names, read_preset
from vlm.corpus.registry import load_cards
from vlm.corpus.sourcing import PresentSource
from vlm.corpus.stored_pairs import read_manifest, read_pairs, shard_path
from vlm.corpus.toml_files import parse_toml
from vlm.corpus.verification import find_problems
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


@pytest.fixture
def collection(tmp_path):
    return Collection(tmp_path, "hearts")


@pytest.fixture
def options():
    return BuildOptions(seed=0, val_share=0.2, test_share=0.0, pairs_per_shard=4)


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
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def full(collection, count=30):
    for number in range(count):
        collection.add(draw(number), patient=f"p{number // 2}", caption="A large heart." if number % 3 else "")
    return collection


def test_two_workers_and_one_give_the_same_bytes_and_the_corpus_is_whole(collection, options, tmp_path):
    full(collection)
    one, two = tmp_path / "one", tmp_path / "two"
    manifest, was_there = building.build_corpus(job_of(collection, options=options), one)
    building.build_corpus(job_of(collection, options=options, workers=2), two)
    assert contents(one) == contents(two) and not was_there
    assert not (one / ".build").exists()
    assert find_problems(one, manifest, tmp_path) == []
    assert sum(entry.pairs for entry in manifest.shards) == 30 == len(pairs_of(one))


def test_no_patient_is_in_two_splits_and_some_are_in_val(collection, options, tmp_path):
    building.build_corpus(job_of(full(collection, 60), options=options), tmp_path / "out")
    of_patient = {}
    for pair in pairs_of(tmp_path / "out").values():
        of_patient.setdefault(pair.record.patient, set()).add(pair.record.split)
    assert len(of_patient) == 30 and all(len(splits) == 1 for splits in of_patient.values())
    assert {"val", "train"} == set().union(*of_patient.values())


def test_captions_of_the_source_come_first_and_ten_sentences_follow(collection, options, tmp_path):
    building.build_corpus(job_of(full(collection), options=options), tmp_path / "out")
    pairs = pairs_of(tmp_path / "out")
    told, untold = pairs["hearts_00000001"].record, pairs["hearts_00000000"].record
    assert told.captions[0].text == "A large heart." and told.captions[0].kind == "native"
    assert len(told.captions) == 11 and len(untold.captions) == 10
    assert {caption.kind for caption in untold.captions} == {"template"}
    assert pairs["hearts_00000001"].text == "A large heart."


def test_planted_copies_are_dropped_and_the_test_image_stays(collection, options, tmp_path):
    kept = draw(1)
    collection.add(kept, split="test")
    planted = [kept.resize((72, 72)), ImageOps.mirror(kept), kept.resize((120, 120))]
    for picture in planted:
        collection.add(picture, split="train")
    exact = collection.add(None, split="train")
    (collection.root / "images" / exact).write_bytes((collection.root / "images" / "0000.jpg").read_bytes())
    collection.add(draw(2))
    building.build_corpus(job_of(collection, options=options), tmp_path / "out")
    assert sorted(pairs_of(tmp_path / "out")) == ["hearts_00000000", "hearts_00000005"]
    dropped = lines_of(tmp_path / "out" / "duplicates.jsonl")
    assert [line["fate"] for line in dropped] == ["near", "near", "near", "exact"]
    assert {line["of"] for line in dropped} == {"hearts_00000000"}
    assert [line["file"] for line in dropped] == ["0001.jpg", "0002.jpg", "0003.jpg", "0004.jpg"]


def test_bad_rows_are_counted_and_named_and_stop_nothing(collection, options, tmp_path):
    collection.add(draw(1))
    collection.add(None)
    collection.add(b"this is text")
    collection.add(Image.new("L", (1, 1)))
    collection.add(draw(2), label="", caption="")
    collection.rows.append(["../../outside.jpg", "Edema", "", "", "train"])
    collection.add(Image.new("L", (64, 64), 7))
    buffer = (collection.root / "images" / "0000.jpg").read_bytes()
    collection.add(buffer[: len(buffer) // 2])
    manifest, _ = building.build_corpus(job_of(collection, options=options), tmp_path / "out")
    assert list(pairs_of(tmp_path / "out")) == ["hearts_00000000"]
    rejects = {line["row"]: line["reason"] for line in lines_of(tmp_path / "out" / "rejects.jsonl")}
    assert set(rejects) == {1, 2, 3, 4, 5, 6, 7}
    assert "does not exist" in rejects[1] and "no image" in rejects[2] and "1 × 1" in rejects[3]
    count = manifest.sources["hearts"]
    assert (count.rows, count.pairs, count.rejected) == (8, 1, 7)


def test_pictures_of_odd_modes_are_stored_as_pictures(collection, options, tmp_path):
    base = draw(3).convert("RGB")
    collection.add(base.convert("P"), suffix="png")
    collection.add(draw(4).convert("RGBA"), suffix="png")
    collection.add(draw(5).convert("CMYK"))
    building.build_corpus(job_of(collection, options=options), tmp_path / "out")
    for pair in pairs_of(tmp_path / "out").values():
        with Image.open(io.BytesIO(pair.image)) as image:
            assert image.mode in ("L", "RGB") and pair.record.reencoded


def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(collection, options, tmp_path, monkeypatch):
    job = job_of(full(collection), options=options)
    building.build_corpus(job, tmp_path / "whole")
    for stop_after in (0, 2, 5):
        write, done = shards.write_shard, []

        def failing(one, write=write, done=done, stop_after=stop_after):
            if len(done) == stop_after:
                raise KeyboardInterrupt
            done.append(one)
            return write(one)

        monkeypatch.setattr(building, "write_shard", failing)
        with pytest.raises(KeyboardInterrupt):
            building.build_corpus(job, tmp_path / "parts")
        (tmp_path / "parts" / "shards" / ".hearts-train-000000-deadbeef.tar").write_bytes(b"half")
        monkeypatch.setattr(building, "write_shard", write)
    building.build_corpus(job, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_killed_build_goes_on_and_gives_the_same_bytes(collection, tmp_path):
    full(collection, 200).write()
    line = [sys.executable, "-m", "vlm.cli", "build-corpus", "--data", str(tmp_path / "data"), "--card",
            str(collection.card), "--sources", "hearts", "--pairs-per-shard", "5"]
    subprocess.run([*line, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*line, "-o", str(tmp_path / "parts")], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    records = tmp_path / "parts" / ".build" / "shards"
    while process.poll() is None and len(list(records.glob("*.json"))) < 3:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*line, "-o", str(tmp_path / "parts")], check=True, capture_output=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_file_that_changes_between_the_passes_is_rejected_and_named(collection, options, tmp_path, monkeypatch):
    job = job_of(full(collection, 6), options=options)
    decide = building.decide_all

    def changing(*arguments):
        draw(99).save(collection.root / "images" / "0002.jpg")
        (collection.root / "images" / "0004.jpg").unlink()
        return decide(*arguments)

    monkeypatch.setattr(building, "decide_all", changing)
    manifest, _ = building.build_corpus(job, tmp_path / "out")
    reasons = {line["image"]: line["reason"] for line in lines_of(tmp_path / "out" / "rejects.jsonl")}
    assert "changed" in reasons["0002.jpg"] and "does not exist" in reasons["0004.jpg"]
    assert manifest.sources["hearts"].pairs == 4 == sum(entry.pairs for entry in manifest.shards)
    assert find_problems(tmp_path / "out", manifest, tmp_path) == []


def test_images_of_an_evaluation_set_and_their_patients_are_kept_out(collection, options, tmp_path):
    folder = tmp_path / "evaluation" / "osteo"
    folder.mkdir(parents=True)
    draw(1).save(folder / "copy.jpg")
    card = {"osteo": building.load_evaluation_cards()["lc25000_lung"].model_copy(
        update={"name": "osteo", "folder": "osteo", "modality": "X-ray", "id_lists": (), "overlaps": (),
                "listing": building.load_evaluation_cards()["lc25000_lung"].listing.model_copy(
                    update={"glob": ("*.jpg",), "index": None, "image_root": "."})})}
    evaluation = building.hash_evaluation_sets(card, tmp_path / "evaluation", 1)
    assert [known.name for known in evaluation] == ["osteo"] and len(evaluation[0].files) == 1
    collection.add(draw(1).resize((80, 80)))
    collection.add(draw(2))
    job = job_of(collection, options=options, data=tmp_path / "evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "load_evaluation_cards", lambda: card)
        building.build_corpus(job, tmp_path / "out")
    assert list(pairs_of(tmp_path / "out")) == ["hearts_00000001"]
    assert json.loads((tmp_path / "out" / "leaks.json").read_text())["dropped"] == 1
    (line,) = lines_of(tmp_path / "out" / "duplicates.jsonl")
    assert (line["fate"], line["evaluation"], line["of"]) == ("leak_image", "osteo", "copy.jpg")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the tars open
def test_webdataset_reads_the_shards_as_they_are(collection, options, tmp_path):
    building.build_corpus(job_of(full(collection, 8), options=options), tmp_path / "out")
    tars = sorted(str(path) for path in (tmp_path / "out" / "shards").glob("*.tar"))
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(tars), webdataset.tarfile_to_samples(), webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg;png", text="txt", facts="json"))
    samples = list(pipeline)
    expected = pairs_of(tmp_path / "out")
    assert {sample["__key__"] for sample in samples} == set(expected)
    for sample in samples:
        assert sample["image"].mode == "RGB" and sample["text"] == expected[sample["__key__"]].text
        assert sample["facts"]["captions"][0]["text"] == sample["text"]


@pytest.mark.parametrize(("source", "layout", "make", "count"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_every_published_layout_becomes_pairs(source, layout, make, count, options, tmp_path):
    make(tmp_path / "data")
    card = cards()[source]
    present = PresentSource(card, layout_of(card, layout), tmp_path / "data")
    job = building.BuildJob((present,), options, GrammarWriter(), None, 1)
    manifest, _ = building.build_corpus(job, tmp_path / "out")
    told = manifest.sources[source]
    assert told.pairs + told.duplicates == count, (tmp_path / "out" / "rejects.jsonl").read_text()
    assert told.rows == told.pairs + told.rejected + told.duplicates + told.leaks + told.left_out
    assert find_problems(tmp_path / "out", manifest, tmp_path) == []


def test_captions_of_an_endpoint_are_cached_when_it_goes_down(collection, tmp_path, capsys):
    sentences = ("The chest X-ray shows cardiomegaly.", "Cardiomegaly is visible on this chest radiograph.")
    full(collection, 6).rows[0][1] = "Edema"
    collection.write()
    given = {"data": tmp_path / "data", "output": tmp_path / "out", "card": (collection.card,), "sources": "hearts",
             "captions": "endpoint", "caption_model": "m", "captions_per_label_set": 2, "workers": 1}
    with (serving(captions(*sentences), *[error(400, "no")] * 9) as server,
          pytest.raises(UserError, match="1 label sets are done")):
        build_corpus(endpoint=server.url, **given)
    cache = tmp_path / "out" / "captions_cache.jsonl"
    assert len(lines_of(cache)) == 1
    edema = ("Pulmonary edema is seen on the chest X-ray.", "This chest radiograph demonstrates pulmonary edema.")
    with serving(captions(*edema)) as server:
        assert build_corpus(endpoint=server.url, **given) == 0
    kinds = {caption.kind for pair in pairs_of(tmp_path / "out").values() for caption in pair.record.captions}
    assert kinds == {"native", "generated"}
    assert cache.exists(), "for the next build"


def test_a_finished_corpus_is_left_alone_and_another_is_not_mixed_in(collection, tmp_path, capsys):
    full(collection, 6).write()
    given = {"data": tmp_path / "data", "output": tmp_path / "out", "card": (collection.card,), "sources": "hearts",
             "workers": 1}
    build_corpus(**given)
    before = contents(tmp_path / "out")
    assert build_corpus(**given) == 0 and "nothing had to be done" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    with pytest.raises(UserError, match="made of something else"):
        build_corpus(seed=5, **given)
    collection.add(draw(77))
    collection.write()
    with pytest.raises(UserError, match="made of something else"):
        build_corpus(**given)


def test_a_build_that_was_begun_with_other_options_says_which(collection, options, tmp_path, monkeypatch):
    job = job_of(full(collection, 6), options=options)
    monkeypatch.setattr(building, "gather_facts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        building.build_corpus(job, tmp_path / "out")
    other = job_of(collection, options=BuildOptions(seed=1, val_share=0.2, test_share=0.0))
    with pytest.raises(UserError, match=r"begun with other options\."):
        building.build_corpus(other, tmp_path / "out")


def test_a_full_disk_is_one_message_and_the_build_goes_on_later(collection, options, tmp_path, monkeypatch):
    job = job_of(full(collection, 6), options=options)
    real = shards._add

    def refusing(tar, name, content):
        if name.startswith("hearts_00000003"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tar, name, content)

    monkeypatch.setattr(shards, "_add", refusing)
    with pytest.raises(UserError, match="the disk is full"):
        building.build_corpus(job, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "shards").glob(".*")] == []
    monkeypatch.setattr(shards, "_add", real)
    building.build_corpus(job, tmp_path / "out")
    assert len(pairs_of(tmp_path / "out")) == 6


def test_sources_that_are_not_there_are_all_named_unless_told_to_take_the_others(collection, tmp_path, capsys):
    full(collection, 4).write()
    given = {"data": tmp_path / "data", "card": (collection.card,), "workers": 1, "sources": "hearts,chexpert,quilt"}
    with pytest.raises(UserError) as refusal:
        build_corpus(output=tmp_path / "out", **given)
    assert "chexpert (request)" in str(refusal.value) or "chexpert" in str(refusal.value)
    assert "quilt" in str(refusal.value) and "--available" in str(refusal.value)
    assert not (tmp_path / "out").exists(), "nothing is made by a command that is refused"
    assert build_corpus(output=tmp_path / "out", available=True, **given) == 0
    assert "left out: chexpert, quilt" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), [
    ({"sources": "nothing_like_it"}, "no source is called nothing_like_it"),
    ({"sources": "hearts,hearts"}, "named twice"),
    ({"sources": " , "}, "names no source"),
    ({"preset": "huge"}, "neither a preset nor a TOML file"),
    ({"data": Path("not/there")}, "is no folder"),
    ({"evaluation_data": Path("not/there")}, "is no folder"),
    ({"captions": "endpoint"}, "--endpoint is missing"),
])
def test_a_wrong_command_line_is_one_message(change, message, collection, tmp_path):
    full(collection, 4).write()
    given = {"data": tmp_path / "data", "output": tmp_path / "out", "card": (collection.card,), "sources": "hearts",
             "workers": 1}
    with pytest.raises(UserError, match=message):
        build_corpus(**given | change)


def test_a_folder_with_other_files_is_not_written_into(collection, tmp_path):
    full(collection, 4).write()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        build_corpus(data=tmp_path / "data", output=tmp_path / "out", card=(collection.card,), sources="hearts",
                     workers=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_missing_column_says_which_exist_before_any_work(collection, tmp_path):
    full(collection, 4).write()
    table(collection.root / "list.csv", ["file", "finding"], ["0000.jpg", "Edema"])
    with pytest.raises(UserError, match="no column") as refusal:
        build_corpus(data=tmp_path / "data", output=tmp_path / "out", card=(collection.card,), sources="hearts")
    assert "finding" in str(refusal.value) and not (tmp_path / "out").exists()


def test_where_nothing_can_be_used_the_reasons_are_told_and_mending_them_is_enough(collection, tmp_path):
    collection.add(None)
    collection.write()
    given = {"data": tmp_path / "data", "output": tmp_path / "out", "card": (collection.card,), "sources": "hearts",
             "workers": 1}
    with pytest.raises(UserError, match=r"hearts, row 0, 0000.jpg: the file does not exist"):
        build_corpus(**given)
    draw(1).save(collection.root / "images" / "0000.jpg")
    assert build_corpus(**given) == 0 and len(pairs_of(tmp_path / "out")) == 1


def test_two_builds_do_not_work_in_one_folder(collection, options, tmp_path):
    job = job_of(full(collection, 4), options=options)
    place = building._Place(tmp_path / "out")
    with building._at_work(place, {"a": 1}), pytest.raises(UserError, match="another `vlm build-corpus` is at work"):
        building.build_corpus(job, tmp_path / "out")


def test_presets_name_sources_that_have_cards():
    known = load_cards()
    assert set(preset_names()) == {"mini", "unimed"}
    for name in preset_names():
        assert set(read_preset(name).sources) <= set(known)
    parts = {known[name].part for name in read_preset("unimed").sources}
    assert len(parts) == 13 and None not in parts
    of_unimed = {name for name, card in known.items() if card.part is not None}
    assert set(read_preset("unimed").sources) == of_unimed


def test_lists_are_not_written_before_all_shards_are(collection, options, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        building.build_corpus(job_of(full(collection, 4), options=options), tmp_path / "out")
    with pytest.raises(UserError, match="not finished"):
        read_manifest(tmp_path / "out")
