"""`vlm evaluate` as a whole: its files, its numbers, any open_clip model, and what it says to what it cannot use."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_folder import CorpusFolder, make_pair
from cyclopts import App
from evaluation_layouts import picture, random_items, table, write_set
from sklearn.metrics import balanced_accuracy_score
from tiny_clip import tiny_model

from autoseg.errors import UserError
from vlm.commands.evaluate import evaluate
from vlm.evaluation.image_sets import read_image_set
from vlm.evaluation.suite_files import read_suite
from vlm.model.clip import save_model
from vlm.model.embedding import open_embedder
from vlm.model.libraries import import_open_clip

MINI = Path(__file__).resolve().parents[3] / "shared" / "data" / "vlm"
FILES = {"report.json", "report.md", "index.html", "run.json", "features", "scores.png", "confusion.png",
         "sentences.png", "probes.png", "retrieval.png"}
SUITE = """
name = "colors"
title = "Pictures of <one> color"

[[sets]]
name = "shades"
title = "Dark & light"
modality = "CT"
classes = ["dark", "light"]
folder = "shades"
captions = "text"
train = { split = "train" }
group = { column = "patient" }
listing = { index = "index.csv", image = "file", label = "shade", where = { split = "test" } }

[sets.prompts]
dark = ["a ct scan of the left kidney", "a dark ct image"]
light = ["a normal ct of the liver", "a ct image with no tumor"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, a suite file and its data."""
    root = tmp_path_factory.mktemp("evaluate")
    save_model(tiny_model(root / "bert"), root / "model")
    (root / "suite.toml").write_text(SUITE, encoding="utf-8")
    rows = []
    for number in range(24):
        picture(root / "data/shades" / f"{number}.png", number * 10)
        rows.append([f"{number}.png", ("dark", "light")[number >= 12], ("train", "test")[number % 2],
                     f"a scan, the {number // 4}. of its kind", number // 3])
    table(root / "data/shades/index.csv", ["file", "shade", "split", "text", "patient"], rows)
    return root


def run(place, output, **changes):
    return evaluate(**{"model": place / "model", "output": output, "suite": str(place / "suite.toml"),
                       "data": place / "data", "resamples": 100, "device": "cpu", **changes})


def test_tables_are_shown_and_all_files_written(place, tmp_path, capsys):
    assert run(place, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "untrained on 1 sets of the suite colors (12 images) and 1 for retrieval" in text
    assert re.search(r"shades +CT +12 +8 +2 ", text) and "16 × 16 pixels" in text and "image → caption" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    record = json.loads((tmp_path / "out/run.json").read_text())
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert record["command"] == "evaluate" and record["exit_status"] == 0 and record["device"] == "cpu"
    assert record["results"] == {"shades": report["sets"][0]["scores"]["balanced_accuracy"]["value"]}
    assert record["inputs"]["weights"] == report["identity"] and len(report["identity"]) == 64


def test_the_numbers_are_those_of_the_model(place, tmp_path):
    run(place, tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    embedder = open_embedder(place / "model")
    images = read_image_set(read_suite(str(place / "suite.toml"))[1][0], place / "data")
    from vlm.evaluation.features import open_picture

    vectors = embedder.encode_images([open_picture(file) for file in images.files]).numpy()[images.tested]
    prompts = report["sets"][0]["prompts"]
    classes = np.stack([embedder.encode_texts(prompts[name]).numpy().mean(0) for name in ("dark", "light")])
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    expected = balanced_accuracy_score(images.targets[images.tested], (vectors @ classes.T).argmax(1))
    assert report["sets"][0]["scores"]["balanced_accuracy"]["value"] == pytest.approx(expected)
    assert report["sets"][0]["groups"] == 8 and report["retrieval"][0]["captions"] == 6


def test_json_is_the_report_and_a_second_run_is_the_same(place, tmp_path, capsys):
    run(place, tmp_path / "one", json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("written") == str(tmp_path / "one")
    assert shown == json.loads((tmp_path / "one/report.json").read_text())
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one/features").iterdir()}
    run(place, tmp_path / "one", json=True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one/features").iterdir()} == kept
    run(place, tmp_path / "two", json=True, cache=tmp_path / "one/features")
    assert not (tmp_path / "two/features").exists()
    for name in FILES - {"run.json", "features"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


class Page(HTMLParser):
    """Collects the images' sources, and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.images = [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_is_well_formed(place, tmp_path):
    run(place, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == [] and len(page.images) == 5
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,"))[:4] == b"\x89PNG"
    assert "Pictures of &lt;one&gt; color" in text and "<one>" not in text and "Dark &amp; light" in text
    assert str(tmp_path) not in text and str(place) not in text, "no path of this machine"
    markdown = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert str(place) not in markdown and "![scores](scores.png)" in markdown
    for line in markdown.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_published_figures_and_absent_sets_stand_in_the_report(place, tmp_path, capsys):
    for name, classes in (("rsna_pneumonia", 2), ("bach", 4)):
        write_set(name, tmp_path / "sets", random_items(classes, 1))
    with pytest.raises(UserError, match="19 of 21 sets"):
        run(place, tmp_path / "out", suite="unimed21", data=tmp_path / "sets")
    assert json.loads((tmp_path / "out/run.json").read_text())["exit_status"] == 2
    run(place, tmp_path / "out", suite="unimed21", data=tmp_path / "sets", available=True)
    text = capsys.readouterr().out
    assert "paper: UniMed-CLIP B/16" in text and "71.7" in text and "No average over the suite" in text
    markdown = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "Not on this disk and not measured: chexpert_5x200, ct_axial" in markdown
    assert "paper: BiomedCLIP" in markdown and "not measured here" in markdown


def test_leaks_and_another_corpus_than_the_models_are_told(place, tmp_path, capsys):
    corpus = CorpusFolder(tmp_path / "corpus", [make_pair("a", 0, captions=("A dark CT image",))]).write()
    run(place, tmp_path / "out", corpus=corpus, json=True)
    leak = json.loads(capsys.readouterr().out)["sets"][0]["leak"]
    assert leak["status"] == "not checked" and leak["prompts_in_corpus"] == ["a dark ct image"]
    with pytest.raises(UserError, match="vlm build-corpus"):
        run(place, tmp_path / "out", corpus=tmp_path / "nowhere")


def test_zero_shot_only_fits_no_probe(place, tmp_path, capsys):
    run(place, tmp_path / "out", zero_shot_only=True, json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["sets"][0]["probe"] == [] and report["sets"][0]["thumbnails"] is None
    assert not (tmp_path / "out/probes.png").exists()


def test_any_model_that_open_clip_loads_goes_the_same_way(place, tmp_path, capsys):
    """A plain CLIP of open_clip, with its own text tower and tokenizer."""
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16,
                                              "head_width": 16},
              "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    network = import_open_clip().CLIP(**config)
    folder = tmp_path / "stranger"
    folder.mkdir()
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    run(place, tmp_path / "out", model=folder, json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "stranger" and report["trained_on"] == "not stated"
    assert set(report["sets"][0]["scores"]) == {"accuracy", "balanced_accuracy", "auc"}


def test_the_options_are_read_from_a_command_line(place, tmp_path, capsys):
    app = App(name="vlm")
    app.command(evaluate, name="evaluate")
    line = ["evaluate", "--model", str(place / "model"), "-o", str(tmp_path / "out"), "--suite",
            str(place / "suite.toml"), "--data", str(place / "data"), "--sets", "shades", "--json", "--device", "cpu",
            "--resamples", "100", "--zero-shot-only", "--available"]
    assert app(line, result_action="return_value") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["sets"]] == ["shades"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": Path("nowhere")}, "nowhere holds no model"), ({"suite": "maxi"}, "Suites: mini, unimed21"),
    ({"sets": "shade"}, r"did you mean shades\?"), ({"data": Path("nowhere")}, "nowhere does not exist"),
])
def test_what_cannot_be_used_is_refused_with_the_next_step(place, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(place, tmp_path / "out", **changes)
    assert not (tmp_path / "out/report.json").exists()


def test_a_report_folder_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(place, tmp_path / "file/out")


COUNTS = {
    "kermany_cxr": ((53, 51, 54), 472), "covid_ct": ((86, 98), 552), "iq_oth_nccd": ((73, 20, 68), 376),
    "brain_tumor_mri": ((60, 60, 60, 42), 588), "busi": ((81, 64, 40), 427), "pocovid": ((62, 64, 47), 467),
    "lc25000": ((32,) * 5, 365), "odir5k": ((38, 45, 32, 33, 33, 23, 33), 727),
    "medpix2_modality": ((100, 100), 1850), "medpix2_region": ((32, 76, 11, 40, 41), 1850),
}


@pytest.mark.skipif(not MINI.is_dir(), reason="the mini-corpus's data are not on this machine")
def test_the_mini_suite_reads_the_test_splits_as_their_notes_count_them():
    for plan in read_suite("mini")[1]:
        images = read_image_set(plan, MINI)
        if plan.classes:
            found = np.bincount(images.targets[images.tested], minlength=len(plan.classes))
            trained = images.is_train & (images.targets >= 0)
            assert (tuple(found.tolist()), int(trained.sum())) == COUNTS[plan.name], plan.name
        if plan.captions is not None:
            assert sum(map(bool, images.captions)) > 80
        if plan.group is not None:
            tested = set(images.groups[~images.is_train].tolist())
            assert len(tested) < int((~images.is_train).sum())
            # COVIDCT's groups are figures, of which some show several patients; its split is by patient.
            both = tested & set(images.groups[images.is_train].tolist())
            assert len(both) == (12 if plan.name == "covid_ct" else 0), f"{plan.name}: patients on both sides"
