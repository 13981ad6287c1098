"""Records refuse what they do not know, writes are atomic, and every failure is one clear message."""

import errno
import os
from pathlib import Path

import pytest

from autoseg.errors import UserError, all_of
from autoseg.records import content_hash, parse_toml, read_json, read_record, replacing, write_record
from autoseg.schema import Split


def test_a_record_comes_back_as_it_was_written(tmp_path):
    split = Split(train=("a", "b"), val=("c",))
    write_record(split, tmp_path / "deep" / "split.json")
    assert read_record(Split, tmp_path / "deep" / "split.json") == split


def test_unknown_and_missing_keys_are_named_together(tmp_path):
    (tmp_path / "split.json").write_text('{"train": ["a"], "fold": 3}')
    with pytest.raises(UserError) as caught:
        read_record(Split, tmp_path / "split.json", "Run it again.")
    message = str(caught.value)
    assert "split.json" in message and "val" in message and "fold" in message and message.endswith("Run it again.")


@pytest.mark.parametrize("text", ["train = [", "fold = 3"])
@pytest.mark.parametrize(("hint", "end"), [("", "Correct the file."), ("See the page.", "See the page.")])
def test_toml_that_is_not_right_names_the_file_and_what_to_do(text, hint, end):
    assert parse_toml(Split, 'train = ["a"]\nval = []', Path("s.toml")) == Split(train=("a",), val=())
    with pytest.raises(UserError) as caught:
        parse_toml(Split, text, Path("s.toml"), hint)
    assert str(caught.value).startswith("s.toml") and str(caught.value).endswith(end)


@pytest.mark.parametrize(("content", "expected"), [(b"{", "not valid JSON"), (b"\xff\xfe", "not text")])
def test_a_file_that_is_no_json_is_a_user_error(tmp_path, content, expected):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_json(tmp_path / "x.json")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("code", "word"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_a_full_disk_and_a_locked_folder_are_user_errors(tmp_path, monkeypatch, code, word):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=word):
        write_record(Split(train=(), val=()), tmp_path / "split.json")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_cleanup_does_not_hide_the_failure(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "plan.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written: Read-only"):
        write_record(Split(train=(), val=()), tmp_path / "split.json")


def test_the_hash_depends_on_content_not_on_order():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})


def test_many_problems_are_counted_not_flooded():
    text = str(all_of([f"case {i}" for i in range(30)], "30 problems", "Mend them.", shown=20))
    assert "case 19" in text and "case 20" not in text and "10 more" in text and text.endswith("Mend them.")
