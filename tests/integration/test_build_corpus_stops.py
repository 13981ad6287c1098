"""`vlm build-corpus` that is stopped, killed, run again, or given what it cannot use."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus_collection import Collection, contents, draw, full, job_of, lines_of, pairs_of
from corpus_endpoint import captions, error, serving
from corpus_published_layouts import cards, layout_of, openi_published, table

from autoseg.errors import UserError
from vlm.commands.build_corpus import build_corpus
from vlm.corpus import building, lists, shards
from vlm.corpus.options import BuildOptions
from vlm.corpus.sourcing import PresentSource, survey_sources
from vlm.corpus.stored_pairs import read_manifest
from vlm.corpus.verification import find_problems


@pytest.fixture
def collection(tmp_path):
    return Collection(tmp_path, "hearts")


@pytest.fixture
def options():
    return BuildOptions(seed=0, val_share=0.2, test_share=0.0, pairs_per_shard=4)


def test_texts_that_are_no_index_files_are_part_of_the_recipe(options, tmp_path):
    card = cards()["openi"]
    source = PresentSource(card, layout_of(card, "published"), tmp_path)
    openi_published(tmp_path)
    before = survey_sources([source])["openi"].fingerprint
    report = tmp_path / "ecgen-radiology" / "2.xml"
    report.write_text(report.read_text().replace("lungs", "bones"))
    assert survey_sources([source])["openi"].fingerprint != before


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


def test_a_shard_that_was_lost_before_the_end_is_written_again(collection, options, tmp_path, monkeypatch):
    job = job_of(full(collection), options=options)
    building.build_corpus(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_lists", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            building.build_corpus(job, tmp_path / "parts")
    first, second, *_ = sorted((tmp_path / "parts" / "shards").glob("*.tar"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
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


def test_lists_are_not_written_before_all_shards_are(collection, options, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        building.build_corpus(job_of(full(collection, 4), options=options), tmp_path / "out")
    with pytest.raises(UserError, match="not finished"):
        read_manifest(tmp_path / "out")
