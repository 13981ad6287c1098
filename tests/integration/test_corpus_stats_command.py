"""`vlm corpus-stats`: what it prints and writes, and what it says to folders that are no corpus."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from corpus_folder import CorpusFolder, make_pair
from cyclopts import App
from PIL import Image

from autoseg.errors import UserError
from vlm.commands.corpus_stats import corpus_stats

FILES = {"stats.json", "contact_sheet.png", "caption_lengths.png", "index.html", "run.json"}


@pytest.fixture
def corpus(tmp_path):
    pairs = [make_pair("chest", row, "X-ray", ("train", "test")[row % 2], ("Pleural <effusion> & 肺炎", "effusion"),
                       ("native", "template"), ("effusion",)) for row in range(8)]
    pairs += [make_pair("eyes", row, "Fundus", captions=("a fundus",), form="png") for row in range(3)]
    dropped = [{"uid": "eyes_9", "source": "eyes", "row": 9, "file": "x", "fate": "near", "of": "chest_00000001",
                "distance": 3}]
    return CorpusFolder(tmp_path / "mini", pairs, 3, dropped).write()


def files_and_times(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_tables_are_shown_and_five_files_written(corpus, capsys):
    before = files_and_times(corpus)
    assert corpus_stats(corpus) == 0
    text = capsys.readouterr().out
    assert "11 pairs of 2 sources in 5 shards" in text and "19 captions, 3 distinct" in text
    assert re.search(r"X-ray +4 +0 +4 +8 +16 +2 +2\.0", text)
    assert re.search(r"all +7 +0 +4 +11 +19 +3", text)
    assert re.search(r"eyes +1 +1 +chest 1", text), "the near duplicate of another source's image"
    assert re.search(r"rsna +12 +2", text)
    assert "index.html" in text
    assert {path.name for path in (corpus / "stats").iterdir()} == FILES
    assert files_and_times(corpus).items() >= before.items(), "the corpus itself is untouched"
    record = json.loads((corpus / "stats" / "run.json").read_text())
    assert record["command"] == "corpus-stats" and record["exit_status"] == 0 and record["results"]["pairs"] == 11


def test_json_is_one_object_with_the_numbers_of_the_file(corpus, tmp_path, capsys):
    corpus_stats(corpus, output=tmp_path / "elsewhere", json=True)
    shown = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "elsewhere" / "stats.json").read_text())
    assert shown.pop("written") == str(tmp_path / "elsewhere") and shown.pop("verified") is False
    assert shown == written
    assert not (corpus / "stats").exists()


class Page(HTMLParser):
    """Collects the images' sources, and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_is_well_formed(corpus, tmp_path):
    corpus_stats(corpus, output=tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == [] and len(page.images) == 2
    for source, name in zip(page.images, ("contact_sheet.png", "caption_lengths.png"), strict=True):
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / "out" / name).read_bytes()
    assert all(link.startswith("data:") or "/" not in link for link in page.links)
    assert "Pleural &lt;effusion&gt; &amp; 肺炎" in text and "<effusion>" not in text
    assert str(tmp_path) not in text, "no path of this machine"


def test_the_same_corpus_gives_the_same_files_twice(corpus, tmp_path):
    for name in ("one", "two"):
        corpus_stats(corpus, output=tmp_path / name)
    for name in FILES - {"run.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_verify_passes_a_good_corpus_and_lists_what_is_wrong(corpus, capsys):
    assert corpus_stats(corpus, verify=True) == 0
    assert "Verified" in capsys.readouterr().out
    shards = sorted((corpus / "shards").iterdir())
    data = bytearray(shards[0].read_bytes())
    data[700] ^= 255
    shards[0].write_bytes(bytes(data))
    shards[1].unlink()
    with pytest.raises(UserError) as caught:
        corpus_stats(corpus, verify=True)
    assert shards[0].name in str(caught.value) and "SHA-256" in str(caught.value)
    assert f"{shards[1]}: it cannot be read" in str(caught.value)
    record = json.loads((corpus / "stats" / "run.json").read_text())
    assert record["exit_status"] == 2


def test_a_corpus_without_its_lists_is_counted_and_says_so(corpus, capsys):
    for name in ("rejects.jsonl", "duplicates.jsonl", "leaks.json"):
        (corpus / name).unlink()
    corpus_stats(corpus)
    assert "not counted: rejects.jsonl, duplicates.jsonl, leaks.json" in capsys.readouterr().out


def test_images_per_modality_are_chosen(corpus, capsys):
    corpus_stats(corpus, images_per_modality=2, json=True)
    assert {name: len(uids) for name, uids in json.loads(capsys.readouterr().out)["examples"].items()} == {
        "X-ray": 2, "Fundus": 2}
    with Image.open(corpus / "stats" / "contact_sheet.png") as image:
        assert image.width < 1000


def emptied(corpus):
    return CorpusFolder(corpus.parent / "empty", []).write()


def unfinished(corpus):
    (corpus / "manifest.json").unlink()
    (corpus / ".build").mkdir()
    return corpus


def without_manifest(corpus):
    (corpus / "manifest.json").unlink()
    return corpus


def with_a_cut_shard(corpus):
    shard = min((corpus / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-512])
    return corpus


def with_a_text_for_a_shard(corpus):
    shard = min((corpus / "shards").iterdir())
    shard.write_bytes(b"x" * shard.stat().st_size)
    return corpus


def with_an_unknown_key(corpus):
    content = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps(content | {"color": "blue"}))
    return corpus


@pytest.mark.parametrize(("spoil", "expected"), [
    (lambda corpus: corpus / "absent", r"absent does not exist.*\n.*vlm build-corpus"),
    (lambda corpus: corpus / "manifest.json", r"manifest.json is a file"),
    (unfinished, r"not finished: it has a \.build folder.*\n.*same `vlm build-corpus` again"),
    (without_manifest, r"has no manifest.json.*\n.*vlm build-corpus"),
    (emptied, "holds no pair"),
    (with_a_cut_shard, r"1 of 5 shards are missing or damaged:\n.*bytes; \d+ were written"),
    (with_a_text_for_a_shard, r"\.tar is damaged: it is not a whole tar"),
    (with_an_unknown_key, "color"),
])
def test_what_is_no_corpus_is_refused_with_the_next_step(corpus, spoil, expected):
    folder = spoil(corpus)
    with pytest.raises(UserError, match=expected):
        corpus_stats(folder)
    assert not folder.is_dir() or not (folder / "stats" / "index.html").exists()


def test_the_options_are_read_from_a_command_line(corpus, tmp_path, capsys):
    app = App(name="vlm")
    app.command(corpus_stats, name="corpus-stats")
    line = ["corpus-stats", str(corpus), "--json", "--verify", "-o", str(tmp_path / "out"), "--workers", "1"]
    assert app(line, result_action="return_value") == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True


def test_a_corpus_that_may_not_be_written_to_is_told_where_to_write(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        corpus_stats(corpus, output=tmp_path / "file" / "stats")
    shutil.rmtree(corpus)
