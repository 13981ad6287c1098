"""`vlm build-corpus`: what is kept, what is dropped and said, and the same bytes always."""

import io
import json
import os
from dataclasses import replace

import pytest
import webdataset
from corpus_collection import Collection, contents, draw, full, job_of, lines_of, pairs_of
from corpus_published_layouts import CASES, cards, layout_of
from PIL import Image, ImageOps

from vlm.corpus import building
from vlm.corpus.captions.backends import GrammarWriter
from vlm.corpus.options import BuildOptions, preset_names, read_preset
from vlm.corpus.registry import load_cards
from vlm.corpus.sourcing import PresentSource
from vlm.corpus.verification import find_problems


@pytest.fixture
def collection(tmp_path):
    return Collection(tmp_path, "hearts")


@pytest.fixture
def options():
    return BuildOptions(seed=0, val_share=0.2, test_share=0.0, pairs_per_shard=4)


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


def test_a_layout_that_is_all_training_loses_nothing_to_validation(collection, options, tmp_path):
    (one,) = job_of(full(collection, 60), options=options).sources
    columns = {role: name for role, name in one.layout.columns.items() if role != "split"}
    split_of = {}
    for split in ("train", None):
        present = replace(one, layout=one.layout.model_copy(update={"split": split, "columns": columns}))
        job = building.BuildJob((present,), options, GrammarWriter(), None, 1)
        building.build_corpus(job, tmp_path / f"{split}")
        split_of[split] = {pair.record.split for pair in pairs_of(tmp_path / f"{split}").values()}
    assert split_of == {"train": {"train"}, None: {"train", "val"}}


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


@pytest.mark.parametrize("size", [1, 4])
def test_rows_of_one_image_become_one_pair_with_all_their_captions_and_labels(collection, options, tmp_path, size):
    for number in range(3):
        collection.add(draw(number), caption=f"Caption {number}.")
    for number, label in ((1, "Edema"), (0, "Cardiomegaly"), (1, "Pneumonia"), (1, "Edema")):
        collection.rows.append([f"000{number}.jpg", label, f"{label} of {number}.", "", "train"])
    twin = collection.add(None, label="Pneumothorax", caption="Another name.")
    (collection.root / "images" / twin).write_bytes((collection.root / "images" / "0002.jpg").read_bytes())
    job = job_of(collection, options=replace(options, pairs_per_shard=size, val_share=0.0))
    manifest, _ = building.build_corpus(job, tmp_path / "out")
    pairs = [pair.record for pair in pairs_of(tmp_path / "out").values()]
    own = [[caption.text for caption in pair.captions if caption.kind == "native"] for pair in pairs]
    assert own == [["Caption 0.", "Cardiomegaly of 0."], ["Caption 1.", "Edema of 1.", "Pneumonia of 1."],
                   ["Caption 2.", "Another name."]]
    assert [pair.labels for pair in pairs] == [("Cardiomegaly",), ("Cardiomegaly", "Edema", "Pneumonia"),
                                               ("Cardiomegaly",)], "a file of another name keeps its labels to itself"
    assert all("pneumonia" in text.text.lower() or "infiltrate" in text.text.lower()
               for text in pairs[1].captions[3:]), "sentences are made of all labels"
    assert manifest.sources["hearts"].duplicates == 5
    assert find_problems(tmp_path / "out", manifest, tmp_path) == []


def test_names_and_captions_that_are_no_unicode_stop_nothing(collection, options, tmp_path):
    images = collection.root / "images" / "Edema"
    images.mkdir()
    draw(1).save(images / "whole.jpg")
    draw(2).save(images / "tmp.jpg")
    os.rename(images / "tmp.jpg", os.fsencode(str(images)) + b"/caf\xe9.jpg")
    (images / "circle.jpg").symlink_to("circle.jpg")
    (collection.root / "list.jsonl").write_text(
        json.dumps({"file": "Edema/whole.jpg", "caption": "cut \ud83d"}) + "\n"
        + json.dumps({"file": "Edema/whole.jpg", "caption": {"text": "an object"}}) + "\n"
        + json.dumps({"file": "not\u2028there\ud83d.jpg", "caption": "x y"}) + "\n")
    body = {"folders": {"reader": "image_folders", "index": (), "columns": {}},
            "lines": {"index": ("list.jsonl",), "columns": {"image": "file", "caption": "caption"}}}
    rejects, pairs = {}, {}
    for name, change in body.items():
        (one,) = job_of(collection, options=options).sources
        present = replace(one, layout=one.layout.model_copy(update=change))
        building.build_corpus(building.BuildJob((present,), options, GrammarWriter(), None, 1), tmp_path / name)
        rejects[name] = [(line["image"], line["reason"]) for line in lines_of(tmp_path / name / "rejects.jsonl")]
        pairs[name] = [pair.record for pair in pairs_of(tmp_path / name).values()]
    assert [pair.file for pair in pairs["folders"]] == ["Edema/whole.jpg"]
    assert [image for image, _ in rejects["folders"]] == ["Edema/caf?.jpg", "Edema/circle.jpg"]
    assert "not UTF-8" in rejects["folders"][0][1] and "link" in rejects["folders"][1][1]
    assert [pair.captions[0].text for pair in pairs["lines"]] == ["cut \ufffd"]
    assert [reason for _, reason in rejects["lines"]] == ["a text was expected, not {'text': 'an object'}",
                                                          "the file does not exist"]


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


def test_presets_name_sources_that_have_cards():
    known = load_cards()
    assert set(preset_names()) == {"mini", "unimed"}
    for name in preset_names():
        assert set(read_preset(name).sources) <= set(known)
    parts = {known[name].part for name in read_preset("unimed").sources}
    assert len(parts) == 13 and None not in parts
    of_unimed = {name for name, card in known.items() if card.part is not None}
    assert of_unimed - set(read_preset("unimed").sources) == {"unimed_retina_part1"}, "its parts made into one"
