"""The caption cache: nothing asked twice, nothing lost in a kill, nothing broken taken for a caption."""

import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from corpus_endpoint import captions, free_url, said, serving
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from vlm.corpus.captions import cache
from vlm.corpus.captions.asking import RejectedText, Written
from vlm.corpus.captions.cache import CachedWriter, CacheLine, append_line, cache_key, read_lines
from vlm.corpus.captions.endpoint import EndpointWriter
from vlm.corpus.captions.posting import Patience
from vlm.corpus.rows import LabelSet
from vlm.schema import Caption

FINDINGS = ("pneumonia", "edema", "atelectasis", "fracture")
LABEL_SETS = [LabelSet("X-ray", present=(finding,), anatomy="chest") for finding in FINDINGS]


class CountingWriter:
    """Writes at once and remembers for what."""

    def __init__(self, name="local toy", words="Chest X-ray"):
        self.name, self.words = name, words
        self.asked = []

    def prompt(self, labels, table, count):
        return f"{count} captions of {labels}"

    def compose(self, labels, table, count):
        self.asked.append((labels, count))
        (finding,) = labels.present
        places = ("the lungs", "a child", "an adult")[:count]
        texts = [f"{self.words} showing {finding} in {place}." for place in places]
        return Written(tuple(Caption(text=text, kind="generated", origin=self.name) for text in texts),
                       (RejectedText(text="A dog.", reason="names no modality"),))


def test_what_is_cached_is_not_asked_for_again(tmp_path):
    path = tmp_path / "deep" / "captions.jsonl"
    first = CountingWriter()
    written = [CachedWriter(first, path).write(labels, None, 2) for labels in LABEL_SETS]
    second = CountingWriter()
    again = CachedWriter(second, path)
    assert [again.write(labels, None, 2) for labels in LABEL_SETS] == written
    assert len(first.asked) == 4 and second.asked == [] and len(again) == 4
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["labels"]["present"] for line in lines] == [[finding] for finding in FINDINGS]
    assert lines[0]["rejected"] == [{"text": "A dog.", "reason": "names no modality"}]


def test_all_that_shapes_captions_is_in_the_key(tmp_path):
    base = ("a prompt", "local toy", LABEL_SETS[0], 2)
    others = [("another", *base[1:]), (base[0], "local top", *base[2:]), (*base[:2], LABEL_SETS[1], 2), (*base[:3], 3),
              (*base[:2], LabelSet("X-ray", uncertain=("pneumonia",), anatomy="chest"), 2)]
    assert len({cache_key(*case) for case in (base, *others)}) == 6
    path = tmp_path / "captions.jsonl"
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[0], None, 2)
    for writer, count in ((CountingWriter("local other"), 2), (CountingWriter(), 3)):
        CachedWriter(writer, path).write(LABEL_SETS[0], None, count)
        assert len(writer.asked) == 1


@pytest.mark.parametrize("cut", [1, 2, 50, 300])
def test_a_line_without_its_end_is_written_anew(tmp_path, cut):
    path = tmp_path / "captions.jsonl"
    whole = CachedWriter(CountingWriter(), path)
    for labels in LABEL_SETS:
        whole.write(labels, None, 2)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    writer = CountingWriter()
    resumed = CachedWriter(writer, path)
    for labels in LABEL_SETS:
        resumed.write(labels, None, 2)
    assert [labels for labels, _ in writer.asked] == LABEL_SETS[-1:]
    assert path.read_bytes() == content


@given(torn=st.binary(max_size=200).filter(lambda torn: b"\n" not in torn))
def test_whatever_a_kill_leaves_behind_the_last_line_is_cut_off(tmp_path_factory, torn):
    path = tmp_path_factory.mktemp("cache") / "captions.jsonl"
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[0], None, 2)
    content = path.read_bytes()
    path.write_bytes(content + torn)
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[1], None, 2)
    assert path.read_bytes().startswith(content)
    assert [line.labels for line in read_lines(path)] == LABEL_SETS[:2]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path):
    path = tmp_path / "captions.jsonl"
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[0], None, 2)
    content = path.read_bytes()
    path.write_bytes(content + b"x" * 200_000)
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[1], None, 2)
    assert path.read_bytes().startswith(content) and len(list(read_lines(path))) == 2


@pytest.mark.parametrize("broken", [b"\n", b"{}\n", b"no json\n", b"\xff\xfe\n", b"[]\n", b'{"key": "0"}\n', b"\x00\n"])
def test_a_broken_line_is_refused_with_its_number(tmp_path, broken):
    path = tmp_path / "captions.jsonl"
    for labels in LABEL_SETS[:2]:
        CachedWriter(CountingWriter(), path).write(labels, None, 2)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + broken + second)
    with pytest.raises(UserError, match=r"captions\.jsonl, line 2, is not a line of a caption cache"):
        CachedWriter(CountingWriter(), path)
    assert path.read_bytes() == first + broken + second


def test_cached_captions_that_no_longer_pass_are_written_anew(tmp_path):
    path = tmp_path / "captions.jsonl"
    labels = LABEL_SETS[0]
    key = cache_key(CountingWriter().prompt(labels, None, 2), "local toy", labels, 2)
    caption = Caption(text="A dog on a lawn in the park.", kind="generated", origin="local toy")
    append_line(CacheLine(key=key, writer="local toy", labels=labels, count=2, captions=(caption, caption)), path)
    writer = CountingWriter()
    good = CachedWriter(writer, path).write(labels, None, 2)
    assert len(writer.asked) == 1
    assert CachedWriter(writer, path).write(labels, None, 2) == good and len(writer.asked) == 1


@pytest.mark.parametrize("change", [{"count": 3}, {"labels": LABEL_SETS[1]}])
def test_a_line_that_does_not_fit_its_key_is_not_used(tmp_path, change):
    path = tmp_path / "captions.jsonl"
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[0], None, 2)
    (line,) = read_lines(path)
    path.write_text(line.model_copy(update=change).model_dump_json() + "\n")
    writer = CountingWriter()
    CachedWriter(writer, path).write(LABEL_SETS[0], None, 2)
    assert len(writer.asked) == 1


def _append_many(path, name):
    writer = CachedWriter(CountingWriter(name), path)
    for labels in LABEL_SETS * 5:
        writer.write(labels, None, 2)


def test_two_processes_may_share_a_cache(tmp_path):
    path = tmp_path / "captions.jsonl"
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    processes = [context.Process(target=_append_many, args=(path, f"local {number}")) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(line.writer for line in read_lines(path)) == ["local 0"] * 4 + ["local 1"] * 4


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX systems")
def test_a_writer_waits_for_another_one(tmp_path):
    import fcntl

    path = tmp_path / "captions.jsonl"
    thread = threading.Thread(target=CachedWriter(CountingWriter(), path).write, args=(LABEL_SETS[0], None, 2))
    with path.open("wb", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half a li")
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert path.read_bytes() == b"half a li"
        other.write(b"ne\n")
    thread.join(10)
    assert path.read_bytes().startswith(b"half a line\n{")


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "captions.jsonl"
    CachedWriter(CountingWriter(), path).write(LABEL_SETS[0], None, 2)
    content = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        CachedWriter(CountingWriter(), path).write(LABEL_SETS[1], None, 2)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_the_cache_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        CachedWriter(CountingWriter(), tmp_path)


def good_answer(labels):
    (finding,) = labels.present
    return captions(f"Chest X-ray showing {finding} in the lungs.", f"A radiograph of the chest with {finding}.")


def test_an_endpoint_that_dies_leaves_its_captions_in_the_cache(tmp_path):
    path: Path = tmp_path / "captions.jsonl"
    hasty = Patience(timeout_seconds=5.0, tries=1)
    with serving(*map(good_answer, LABEL_SETS[:2]), said("no")) as server:
        writer = CachedWriter(EndpointWriter(server.url, "m", patience=hasty), path)
        done = [writer.write(labels, None, 2) for labels in LABEL_SETS[:2]]
        with pytest.raises(UserError, match=r"2 label sets are done; their captions are in .*captions\.jsonl"):
            writer.write(LABEL_SETS[2], None, 2)
    down = CachedWriter(EndpointWriter(free_url(), "m", patience=hasty), path)
    assert [down.write(labels, None, 2) for labels in LABEL_SETS[:2]] == done
    with pytest.raises(UserError, match="(?s)gave no answer.*2 label sets are done"):
        down.write(LABEL_SETS[2], None, 2)
    with serving(*map(good_answer, LABEL_SETS[2:])) as server:
        back = CachedWriter(EndpointWriter(server.url, "m", patience=hasty), path)
        assert all(len(back.write(labels, None, 2)) == 2 for labels in LABEL_SETS)
        assert len(server.asked) == 2
