"""Statistics of a corpus against a count by hand, spilled hashes, examples, verification, figures."""

import hashlib
import json
import tracemalloc
from typing import get_args

import numpy as np
import pytest
from corpus_folder import CorpusFolder, make_image, make_pair
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from autoseg.errors import UserError
from autoseg.records import read_record, write_record
from vlm.corpus.examples import Candidates, Example, Examples, read_images
from vlm.corpus.figures import (
    KIND_COLORS,
    TILE,
    WIDEST,
    _font,
    draw_caption_lengths,
    draw_contact_sheet,
    drawable,
    wrapped,
)
from vlm.corpus.spilled_rows import BUCKETS, SpilledRows, text_hash
from vlm.corpus.statistics import HASH_ROWS, describe_words, measure_corpus
from vlm.corpus.stored_pairs import read_manifest, read_pairs
from vlm.corpus.verification import find_problems
from vlm.schema import CaptionKind

SOURCES = {"chest": "X-ray", "slices": "CT", "more_slices": "CT", "eyes": "Fundus"}
SPLITS = ("train", "val", "test")
KINDS = ("native", "template", "generated")


def draw_pairs(count, seed=0):
    """Pairs of four sources with repeated captions, labels and patients."""
    rng = np.random.default_rng(seed)
    pairs = []
    for row in range(count):
        source = list(SOURCES)[rng.integers(4)]
        captions = rng.integers(1, 5)
        pairs.append(make_pair(
            source, row, SOURCES[source], SPLITS[rng.integers(3)],
            [" ".join(["word"] * rng.integers(1, 9)) + f" {rng.integers(6)}" for _ in range(captions)],
            [KINDS[rng.integers(3)] for _ in range(captions)],
            tuple(np.array(["a", "b", "c"])[rng.random(3) < 0.4].tolist()),
            form=("jpg", "png")[rng.integers(2)], patient=f"{rng.integers(5):016x}" if rng.random() < 0.8 else None))
    return pairs


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(60)


@pytest.fixture(scope="module")
def corpus(pairs, tmp_path_factory):
    dropped = [{"uid": "chest_1", "source": "chest", "row": 1, "file": "x", "fate": fate, "of": of, "distance": 0}
               for fate, of in [("exact", "chest_00000002"), ("near", "eyes_00000003"), ("near", "chest_00000003"),
                                ("leak_image", "rsna/7.png")]]
    rejects = [{"source": "eyes", "row": row, "image": "x.png", "reason": "is damaged"} for row in range(3)]
    return CorpusFolder(tmp_path_factory.mktemp("corpus") / "mini", pairs, 7, dropped, rejects).write()


def measured(corpus, scratch, **options):
    return measure_corpus(corpus, read_manifest(corpus), scratch, **options)


def test_every_number_equals_a_count_by_hand(corpus, pairs, tmp_path):
    statistics, _ = measured(corpus, tmp_path)
    records = [record for record, _, _ in pairs]

    def check(group, mine):
        captions = [caption for record in mine for caption in record.captions]
        lengths = [len(caption.text.split()) for caption in captions]
        assert group.pairs == {split: sum(record.split == split for record in mine) for split in SPLITS}
        assert group.captions == len(captions)
        assert group.distinct_captions == len({caption.text for caption in captions})
        assert group.captions_per_pair == pytest.approx(len(captions) / len(mine), abs=1e-3)
        assert group.kinds == {kind: n for kind in KINDS if (n := sum(one.kind == kind for one in captions))}
        assert group.words.mean == pytest.approx(np.mean(lengths), abs=0.01)
        assert group.words.median == np.percentile(lengths, 50, method="inverted_cdf")
        assert group.words.p95 == np.percentile(lengths, 95, method="inverted_cdf")
        assert group.words.longest == max(lengths)

    check(statistics.total, records)
    for modality, group in statistics.modalities.items():
        check(group, [record for record in records if record.modality == modality])
    assert list(statistics.modalities) == ["X-ray", "CT", "Fundus"], "in the order of the schema"
    assert set(statistics.sources) == set(SOURCES)
    for source, group in statistics.sources.items():
        mine = [record for record in records if record.source == source]
        check(group, mine)
        assert group.patients == len({record.patient for record in mine} - {None})
        assert group.pairs_without_patient == sum(record.patient is None for record in mine)
        assert group.labels == {label: n for label in "abc" if (n := sum(label in one.labels for one in mine))}
        assert group.modalities == {SOURCES[source]: len(mine)}
    for kind, group in statistics.kinds.items():
        texts = [caption.text for record in records for caption in record.captions if caption.kind == kind]
        assert (group.captions, group.distinct_captions) == (len(texts), len(set(texts)))
        assert group.pairs == sum(any(one.kind == kind for one in record.captions) for record in records)
        assert group.first == sum(record.captions[0].kind == kind for record in records)
    assert {int(n): count for n, count in statistics.captions_per_pair.items()} == {
        n: sum(len(record.captions) == n for record in records) for n in range(1, 5)}


def test_what_the_build_recorded_is_counted(corpus, tmp_path):
    build = measured(corpus, tmp_path)[0].build
    assert build.fates == {"chest": {"near": 2, "exact": 1, "leak_image": 1}}
    assert build.twins == {"chest": {"chest": 2, "eyes": 1}}
    assert build.reasons == {"eyes": {"is damaged": 3}}
    assert build.leaks is not None and build.leaks.dropped == 2
    assert build.missing == ()
    assert build.sources["chest"].duplicates == 3


def test_the_way_pairs_lie_in_shards_changes_nothing_but_their_number(corpus, pairs, tmp_path):
    other = CorpusFolder(tmp_path / "other", pairs[::-1], 2).write()
    first, second = measured(corpus, tmp_path)[0], measured(other, tmp_path)[0]
    fields = {"shards", "size_bytes", "build"}
    assert first.shards != second.shards
    assert first.model_dump(exclude=fields) == second.model_dump(exclude=fields)


def test_two_workers_count_as_one(corpus, tmp_path):
    assert measured(corpus, tmp_path, workers=2) == measured(corpus, tmp_path)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=200), st.integers(1, 50))
def test_spilled_rows_come_back_with_equal_hashes_together(tmp_path_factory, rows, limit):
    rows = [(text_hash(str(text)), group) for text, group in rows]
    folder = tmp_path_factory.getbasetemp()
    with SpilledRows(HASH_ROWS, folder, limit) as spilled:
        for start in range(0, len(rows), 7):
            spilled.add(np.array(rows[start : start + 7], HASH_ROWS))
        for _ in range(2):  # they may be asked for twice
            buckets = list(spilled.buckets())
            assert sorted(row for bucket in buckets for row in bucket.tolist()) == sorted(rows)
            held = [set(bucket["hash"].tolist()) for bucket in buckets]
            assert sum(map(len, held)) == len({text for text, _ in rows})
            assert len(buckets) in (1, BUCKETS)


def test_distinct_captions_are_the_same_when_hashes_are_spilled(corpus, tmp_path, monkeypatch):
    in_memory = measured(corpus, tmp_path)
    monkeypatch.setattr(SpilledRows.__init__, "__defaults__", (5,))
    assert measured(corpus, tmp_path) == in_memory
    assert list(tmp_path.iterdir()) == [], "spilled files have no name"


def test_a_shard_is_streamed_one_pair_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    data = make_image(0, "png", (500, 500)) + rng.bytes(500_000)
    pairs = [make_pair("chest", row, data=data, form="png") for row in range(60)]
    corpus = CorpusFolder(tmp_path / "corpus", pairs, 60).write()
    (shard,) = (corpus / "shards").iterdir()
    sum(1 for _ in read_pairs(shard))  # what imports and caches take
    tracemalloc.start()
    assert sum(1 for _ in read_pairs(shard)) == 60
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shard.stat().st_size > 30e6 and peak < 8e6


def test_words_of_one_caption():
    assert describe_words({4: 1}).model_dump() == {"mean": 4.0, "median": 4, "p95": 4, "longest": 4}


def make_example(row, labels="", source="chest"):
    uid = f"{source}_{row}"
    return Example(text_hash(uid), uid, source, "CT", "train", labels, "a scan", "x.tar", 0, 1)


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from("abcdefg")), unique_by=lambda one: one[0], min_size=1),
       st.integers(1, 5), st.integers(1, 4))
def test_candidates_do_not_depend_on_order_or_shards(rows, count, shards):
    examples = [make_example(row, label) for row, label in rows]
    whole, merged = Candidates(count), Candidates(count)
    for example in examples:
        whole.add(example)
    for shard in range(shards):
        part = Candidates(count)
        for example in examples[::-1][shard::shards]:
            part.add(example)
        merged.merge(part)
    assert merged.in_order() == whole.in_order()
    assert len({one.labels for one in whole.in_order()[:count]}) == min(count, len({label for _, label in rows}))


def test_the_sheet_shows_every_source_and_its_labels(corpus, tmp_path):
    _, chosen = measured(corpus, tmp_path, examples_per_modality=6)
    assert list(chosen) == ["X-ray", "CT", "Fundus"]
    assert {example.source for example in chosen["CT"]} == {"slices", "more_slices"}
    assert all(len(examples) == 6 == len({example.uid for example in examples}) for examples in chosen.values())
    assert len({example.labels for example in chosen["X-ray"]}) >= 4


def test_the_images_of_examples_are_those_of_their_pairs(corpus, pairs, tmp_path):
    _, chosen = measured(corpus, tmp_path)
    stored = {record.uid: data for record, data, _ in pairs}
    assert read_images(corpus, chosen) == {
        one.uid: stored[one.uid] for examples in chosen.values() for one in examples}


def test_a_whole_corpus_has_no_problems(corpus, tmp_path):
    assert find_problems(corpus, read_manifest(corpus), tmp_path) == []
    assert find_problems(corpus, read_manifest(corpus), tmp_path, workers=2) == []


def problems_of(corpus, tmp_path):
    return "\n".join(find_problems(corpus, read_manifest(corpus), tmp_path))


def pairs_of_one_shard(**changes):
    """Three pairs, the last of which is changed in its record."""
    *others, (record, data, form) = [make_pair("chest", row, labels=("a",)) for row in range(3)]
    return [*others, (record.model_copy(update=changes), data, form)]


@pytest.mark.parametrize(("changes", "expected"), [
    ({"uid": "chest_00000000"}, "come twice"), ({"width": 41}, "40 × 30 pixels; its json says 41 × 30"),
    ({"source": "other"}, "source is 'other'; 'chest' was expected"), ({"phash": "xyz"}, "json: phash"),
])
def test_a_wrong_record_is_found(tmp_path, changes, expected):
    folder = CorpusFolder(tmp_path / "corpus", pairs_of_one_shard())
    folder.write()
    # As if the build had been wrong: checksums fit.
    entry = read_manifest(folder.path).shards[0]
    wrong = folder._write_shard(entry.file, "chest", "train", pairs_of_one_shard(**changes), ("a",))
    manifest = read_manifest(folder.path)
    write_record(manifest.model_copy(update={"shards": (wrong,)}), folder.path / "manifest.json")
    assert expected in problems_of(folder.path, tmp_path)


def test_a_wrong_image_is_found(tmp_path):
    good = make_image(1)
    names = {"png": good, "jpg": good[: len(good) // 2] + bytes(200)}
    pairs = [make_pair("chest", row) for row in range(2)]
    pairs = [(record, data, form) for (record, _, _), (form, data) in zip(pairs, names.items(), strict=True)]
    corpus = CorpusFolder(tmp_path / "corpus", pairs).write()
    found = problems_of(corpus, tmp_path)
    assert "chest_00000000: its image is called png and is JPEG" in found
    assert "chest_00000001: its image" in found or "decoded" in found


@pytest.mark.parametrize("position", range(3))
def test_every_changed_byte_of_a_shard_is_found(tmp_path, position):
    corpus = CorpusFolder(tmp_path / "corpus", pairs_of_one_shard()).write()
    (shard,) = (corpus / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[(len(data) - 1) * position // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert "SHA-256" in problems_of(corpus, tmp_path)


def test_shards_and_lists_that_are_missing_or_too_many_are_found(corpus, tmp_path):
    folder = CorpusFolder(tmp_path / "corpus", [make_pair("chest", row) for row in range(9)]).write()
    first, second, third = sorted((folder / "shards").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:1024])
    third.with_name("stranger.tar").write_bytes(third.read_bytes())
    (folder / "sizes.json").write_text(json.dumps({third.name: 3}))
    found = problems_of(folder, tmp_path)
    assert f"{first}: it cannot be read (No such file or directory)" in found
    assert f"{second}: it is not a whole tar" in found or f"{second}: it ends inside" in found
    assert "stranger.tar is not in the manifest" in found
    assert "sizes.json does not name the manifest's shards" in found
    with pytest.raises(UserError, match="2 of 3 shards are missing or damaged"):
        measured(folder, tmp_path)


def test_a_shard_that_ends_between_two_pairs_is_damaged(tmp_path):
    folder = CorpusFolder(tmp_path / "corpus", [make_pair("chest", row) for row in range(3)])
    folder.write()
    entry = folder._write_shard("chest-train-000000.tar", "chest", "train", folder.pairs[:2], ())
    manifest = read_manifest(folder.path)
    shard = manifest.shards[0].model_copy(update={"size": entry.size})
    write_record(manifest.model_copy(update={"shards": (shard,)}), folder.path / "manifest.json")
    with pytest.raises(UserError, match="holds 2 pairs; 3 were written"):
        measured(folder.path, tmp_path)


def test_many_problems_of_a_shard_are_summed_up(tmp_path):
    wrong = [(record.model_copy(update={"width": 1}), data, form)
             for record, data, form in (make_pair("chest", row) for row in range(40))]
    corpus = CorpusFolder(tmp_path / "corpus", wrong, 40).write()
    found = find_problems(corpus, read_manifest(corpus), tmp_path)
    assert len(found) == 21 and "20 more problems" in found[-1]


def test_a_list_with_a_broken_line_is_named(corpus, tmp_path):
    folder = CorpusFolder(tmp_path / "corpus", [make_pair("chest", 0)]).write()
    (folder / "duplicates.jsonl").write_text('{"source": "chest", "fate": "near"}\n{"sour')
    with pytest.raises(UserError, match=r"duplicates.jsonl, line 2"):
        measured(folder, tmp_path)


def test_reasons_without_end_are_bounded(tmp_path):
    rejects = [{"source": "chest", "row": row, "image": "x", "reason": f"has {row} pixels"} for row in range(1000)]
    folder = CorpusFolder(tmp_path / "corpus", [make_pair("chest", 0)], rejects=rejects).write()
    reasons = measured(folder, tmp_path)[0].build.reasons["chest"]
    assert len(reasons) == 201 and sum(reasons.values()) == 1000


def test_statistics_survive_their_file(corpus, tmp_path):
    statistics, _ = measured(corpus, tmp_path)
    write_record(statistics, tmp_path / "stats.json")
    assert read_record(type(statistics), tmp_path / "stats.json") == statistics


@given(st.text(max_size=200), st.integers(1, 4))
def test_wrapped_lines_fit_and_lose_nothing_unless_they_say_so(text, most_lines):
    font = _font(17, bold=False)
    shown = drawable(text)
    lines = wrapped(shown, 120, font, most_lines)
    assert len(lines) <= most_lines
    assert all(font.getlength(line) <= 120 for line in lines)
    if not lines or not lines[-1].endswith(" …"):
        assert "".join(lines).replace(" ", "") == shown.replace(" ", "")


def test_letters_that_the_font_lacks_become_boxes():
    assert drawable("Größe\n5 µm, Δ≥2, легкое") == "Größe 5 µm, Δ≥2, легкое"
    assert drawable("肺炎 x") == "□□ x"


def test_the_contact_sheet_is_the_same_twice_and_not_too_wide(tmp_path):
    examples = Examples(40)
    caption = f"肺炎 Größe {'long ' * 90}"
    pairs = [make_pair("chest", row, captions=(caption,), size=(20 + row, 90)) for row in range(30)]
    corpus = CorpusFolder(tmp_path / "corpus", pairs).write()
    for shard in sorted((corpus / "shards").iterdir()):
        for pair in read_pairs(shard):
            examples.add(pair, shard.name)
    chosen = examples.chosen()
    digests = set()
    for name in ("one.png", "two.png"):
        draw_contact_sheet(chosen, read_images(corpus, chosen), "Corpus", tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    with Image.open(tmp_path / "one.png") as image:
        width, height = image.size
    assert len(digests) == 1
    assert TILE < width <= WIDEST and height > 4 * TILE, "30 tiles need four rows of at most nine"


def test_every_kind_of_caption_has_a_color():
    assert set(KIND_COLORS) == set(get_args(CaptionKind))


def test_caption_lengths_are_drawn_for_one_and_for_many_modalities(tmp_path):
    kinds = {"native": {"0": 1, "3": 5, "2000": 1}, "report": {"60": 2}}
    for name, modalities in {"one.png": ("CT",), "many.png": ("CT", "MRI", "Fundus")}.items():
        draw_caption_lengths(dict.fromkeys(modalities, kinds), tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200 and len(image.convert("RGB").getcolors(10**6)) > 10
