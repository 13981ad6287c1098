"""Evaluation sets: their cards, their hashes and id lists, and the report of what leaked."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.errors import UserError
from vlm.corpus.evaluation_sets import IdList, ImageListing, SourceOverlap
from vlm.corpus.images import inspect_image
from vlm.corpus.leaks import (
    EvaluationCard,
    EvaluationSet,
    hash_evaluation_set,
    leak_report,
    listed_by,
    load_evaluation_cards,
)
from vlm.corpus.pairing import FACTS, Fate, decide, name_hash
from vlm.corpus.registry import load_cards
from vlm.schema import Layout, Overlap, SourceCard


def picture(seed: int) -> Image.Image:
    """A smooth random image of 96 × 80 pixels, unlike any of another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 12), np.uint8)
    return Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)


def saved(folder: Path, name: str, seed: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


def card_of(**changes) -> EvaluationCard:
    return EvaluationCard(**{
        "name": "a_set", "title": "A set", "modality": "X-ray", "classes": ("yes", "no"), "metric": "accuracy",
        "folder": "a_set", "listing": ImageListing(glob=("*/*.png",)), **changes})


def source_of(name: str, *overlaps: Overlap) -> SourceCard:
    return SourceCard(name=name, title=name, modalities=("X-ray",), access="open", licence="", citation="", obtain="",
                      folder=name, layouts=(Layout(name="published", reader="table"),), overlaps=overlaps)


def facts_of(*paths: Path) -> np.ndarray:
    facts = np.zeros(len(paths), FACTS)
    for fact, path in zip(facts, paths, strict=True):
        image = inspect_image(path, None, None)
        fact["sha256"] = np.frombuffer(bytes.fromhex(image.sha256), ">u8")
        fact["phash"], fact["mirrored"] = image.phash, image.mirrored
    return facts


def test_the_published_evaluation_has_its_21_sets_and_metrics() -> None:
    cards = load_evaluation_cards()
    used = [card for card in cards.values() if not card.skipped]
    assert len(used) == 21
    assert {card.name for card in used if card.metric == "auc"} == {
        "thyroid_us", "breast_us", "acl_mri", "meniscal_mri", "refuge_retina"}
    counts = {modality: sum(card.modality == modality for card in used)
              for modality in ("X-ray", "CT", "MRI", "Ultrasound", "Fundus", "Pathology")}
    assert list(counts.values()) == [2, 3, 2, 2, 4, 8], "the published averages weigh the modalities so"
    for card in cards.values():
        assert len(set(card.classes)) == len(card.classes)
        assert set(card.listing.label_values.values()) <= set(card.classes)
        assert (card.listing.index is None) != (not card.listing.glob)


def test_overlaps_of_evaluation_cards_name_sources_that_exist() -> None:
    sources, cards = load_cards(), load_evaluation_cards()
    named = {overlap.source for card in cards.values() for overlap in card.overlaps}
    named |= {known.source for card in cards.values() for known in card.id_lists}
    assert named <= set(sources)
    assert {overlap.evaluation for source in sources.values() for overlap in source.overlaps} <= set(cards)


def test_images_are_hashed_and_unreadable_ones_counted(tmp_path) -> None:
    files = [saved(tmp_path, f"{name}/{seed}.png", seed) for name, seed in (("no", 2), ("yes", 0), ("yes", 1))]
    (tmp_path / "yes" / "broken.png").write_bytes(b"no image")
    known = hash_evaluation_set(card_of(), tmp_path)
    assert known.files == ("no/2.png", "yes/0.png", "yes/1.png")
    assert known.unreadable == 1
    expected = facts_of(*files)
    assert (known.sha256 == expected["sha256"]).all()
    assert (known.phash == expected["phash"]).all()


def test_workers_change_nothing(tmp_path) -> None:
    for seed in range(5):
        saved(tmp_path, f"yes/{seed}.png", seed)
    alone, together = (hash_evaluation_set(card_of(), tmp_path, workers) for workers in (1, 2))
    assert alone.files == together.files
    assert (alone.phash == together.phash).all()


def test_an_index_names_the_images_of_its_split(tmp_path) -> None:
    for seed in (0, 1):
        saved(tmp_path, f"scans/{seed}.png", seed)
    (tmp_path / "index.csv").write_text('id,"note",split\n0,"two\nlines",test\n1,x,train\n')
    listing = ImageListing(
        index="index.csv", image="id", image_suffix=".png", image_root="scans", where={"split": "test"})
    assert hash_evaluation_set(card_of(listing=listing), tmp_path).files == ("scans/0.png",)


@pytest.mark.parametrize(("content", "message"), [
    ("id,split\n../../x,test\n", "outside"), ("id,split\n/x,test\n", "outside"),
    ("name,split\nx,test\n", "no column id\\.\nIts columns: name, split"), ("", "no column id, split"),
    ('id,split\n"x,test\ny,test\n', "quotation mark opens there and does not close"),
    (b"id,split\n\xff,test\n", "UTF-8"),
])
def test_an_index_that_cannot_be_used_is_refused(tmp_path, content, message) -> None:
    (tmp_path / "index.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    card = card_of(listing=ImageListing(index="index.csv", image="id", where={"split": "test"}))
    with pytest.raises(UserError, match=message):
        hash_evaluation_set(card, tmp_path)


def test_id_lists_of_three_kinds_are_read(tmp_path) -> None:
    (tmp_path / "patients.csv").write_text("path,x\ntrain/patient00012/view1.jpg,1\ntrain/patient00013/v.jpg,1\n,\n")
    (tmp_path / "map.json").write_text(json.dumps([{"img_id": "00000001_000.png", "other": 3}]))
    (tmp_path / "names.txt").write_text("a.jpg\n\nb.jpg\n")
    lists = (
        IdList(source="chexpert", ids="patient", file="patients.csv", column="path", pattern=r"(patient\d+)"),
        IdList(source="nih", ids="image", file="map.json", column="img_id"),
        IdList(source="nih", ids="image", file="names.txt"),
        IdList(source="nih", ids="image", file="absent.txt"),
    )
    known = hash_evaluation_set(card_of(id_lists=lists), tmp_path)
    assert set(known.patients.tolist()) == {name_hash("chexpert", f"patient000{number}") for number in (12, 13)}
    assert known.images == {"nih": frozenset({"00000001_000.png", "a.jpg", "b.jpg"})}
    assert [file for _, file in known.lists] == ["patients.csv", "map.json", "names.txt"]
    empty = EvaluationSet("other", "X-ray")
    assert listed_by((empty, known), "nih", "images_001/00000001_000.png") == 1
    assert listed_by((empty, known), "nih", "00000002_000.png") == -1
    assert listed_by((empty, known), "chexpert", "a.jpg") == -1


@pytest.mark.parametrize("content", ['{"a": 1}', '[{"a": "x"}]', "[1", "[3]"])
def test_a_list_of_another_shape_is_refused(tmp_path, content) -> None:
    (tmp_path / "ids.json").write_text(content)
    card = card_of(id_lists=(IdList(source="nih", ids="image", file="ids.json", column="img_id"),))
    with pytest.raises(UserError, match=r"ids\.json"):
        hash_evaluation_set(card, tmp_path)


def test_planted_copies_of_a_set_are_reported_by_source(tmp_path) -> None:
    original = saved(tmp_path / "a_set", "yes/0.png", 0)
    copy = saved(tmp_path / "first", "copy.png", 0)
    picture(0).resize((72, 60)).save(tmp_path / "first" / "small.jpg", quality=60)
    picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "first" / "mirrored.png")
    strangers = [saved(tmp_path / "second", f"{seed}.png", seed) for seed in (5, 6)]
    assert original.read_bytes() == copy.read_bytes()
    facts = facts_of(copy, tmp_path / "first" / "small.jpg", tmp_path / "first" / "mirrored.png", *strangers)
    facts["source"], facts["patient"] = [0, 0, 0, 1, 1], [1, 0, 0, 0, 1]
    cards = {"a_set": card_of(overlaps=(SourceOverlap(source="first", said="same images"),)),
             "absent": card_of(name="absent", overlaps=(SourceOverlap(source="elsewhere", said="not built from"),))}
    evaluation = (hash_evaluation_set(cards["a_set"], tmp_path / "a_set"),)
    decisions = decide(facts, {"X-ray": 12}, evaluation)
    assert decisions.fate.tolist() == [Fate.LEAK_IMAGE] * 3 + [Fate.KEPT, Fate.LEAK_PATIENT]
    sources = (source_of("first"), source_of("second", Overlap(evaluation="absent", said="feared")))
    report = leak_report(cards, evaluation, decisions, facts["source"], sources)
    assert report.sets["a_set"].found == {"first": {"image": 3}, "second": {"patient": 1}}
    assert report.sets["a_set"].checked == "hashes of 1 images"
    assert report.sets["absent"].checked == "not on this disk"
    assert report.dropped == report.sets["a_set"].dropped == 4
    assert [(item.evaluation, item.source, item.checked_by) for item in report.overlaps] == [
        ("a_set", "first", "hashes"), ("absent", "second", "nothing")]
    assert report.unresolved == {"absent": ("second",)}


def test_an_id_list_says_nothing_of_a_source_whose_images_are_only_numbered(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("a.jpg\n")
    card = card_of(id_lists=(IdList(source="first", ids="image", file="names.txt"),),
                   overlaps=(SourceOverlap(source="first", said="same images"),))
    evaluation = (hash_evaluation_set(card, tmp_path),)
    facts = np.zeros(1, FACTS)
    decisions = decide(facts, {}, evaluation)
    found = [leak_report({"a_set": card}, evaluation, decisions, facts["source"], (source_of("first"),), nameless)
             for nameless in ((), ("first",))]
    assert [report.overlaps[0].checked_by for report in found] == ["ids", "nothing"]
    assert [report.unresolved for report in found] == [{}, {"a_set": ("first",)}]


@pytest.mark.parametrize("pattern", [None, r"patient(\d+)"])
def test_a_list_without_ids_is_no_check(tmp_path, pattern) -> None:
    (tmp_path / "ids.csv").write_text("path\n\n" if pattern is None else "path\nsubject1\n")
    card = card_of(id_lists=(IdList(source="first", ids="patient", file="ids.csv", column="path", pattern=pattern),))
    with pytest.raises(UserError, match=r"ids\.csv holds no id"):
        hash_evaluation_set(card, tmp_path)
