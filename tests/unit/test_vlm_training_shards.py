"""The index of shards: the same pairs as reading front to back, only of the splits asked for; damage is named."""

import io
import tarfile

import pytest
from corpus_folder import CorpusFolder, make_image, make_pair

from autoseg.errors import UserError
from vlm.corpus.stored_pairs import read_manifest, read_pairs, shard_path
from vlm.training.shards import HELD_OUT, INDEX_NAME, read_index


@pytest.fixture
def corpus(tmp_path):
    pairs = [make_pair("chest", row, split=("train", "train", "val", "test")[row % 4], labels=("mass",),
                       captions=(f"scan {row}", "a mass")) for row in range(20)]
    pairs += [make_pair("eyes", row, "Fundus", captions=(f"fundus {row}",), form="png") for row in range(4)]
    return CorpusFolder(tmp_path / "corpus", pairs, 3).write()


def webdataset(folder, count, members=("jpg", "txt")):
    folder.mkdir()
    for number in range(0, count, 60):
        with tarfile.open(folder / f"part-{number:06d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for row in range(number, min(number + 60, count)):
                content = {"jpg": make_image(row), "txt": f"caption {row}".encode(), "cls": b"1"}
                for suffix in members:
                    info = tarfile.TarInfo(f"{row:06d}.{suffix}")
                    info.size = len(content[suffix])
                    tar.addfile(info, io.BytesIO(content[suffix]))
    return folder


def test_every_pair_is_found_as_reading_front_to_back_finds_it(corpus):
    index = read_index(corpus)
    assert {(part.source, part.split): len(part) for part in index.parts} == {
        ("chest", "train"): 10, ("chest", "val"): 5, ("eyes", "train"): 4}
    for part in index.parts:
        entries = [entry for entry in read_manifest(corpus).shards if (entry.source, entry.split) == (
            part.source, part.split)]
        stored = [pair for entry in entries for pair in read_pairs(shard_path(corpus, entry.file))]
        for number, expected in enumerate(stored):
            found = part.read(number)
            assert (found.uid, found.source, found.labels) == (
                expected.record.uid, expected.record.source, expected.record.labels)
            assert found.image == expected.image and found.captions == expected.record.captions


def test_test_shards_are_never_opened(corpus):
    for path in (corpus / "shards").glob("*-test-*.tar"):
        path.unlink()
    assert len(read_index(corpus).of("train")) == 2
    with pytest.raises(UserError, match=r"chest-test-000000\.tar does not exist"):
        read_index(corpus, ("test",))


def test_a_kept_index_is_the_same_and_is_made_anew_for_another_corpus(corpus, tmp_path):
    first = read_index(corpus, keep_in=tmp_path / "kept")
    assert (tmp_path / "kept" / INDEX_NAME).exists()
    again = read_index(corpus, keep_in=tmp_path / "kept")
    assert [part.rows.tolist() for part in first.parts] == [part.rows.tolist() for part in again.parts]
    other = CorpusFolder(tmp_path / "other", [make_pair("chest", 77), make_pair("chest", 78)]).write()
    found = read_index(other, keep_in=tmp_path / "kept")
    assert [found.parts[0].read(number).uid for number in range(2)] == ["chest_00000077", "chest_00000078"]
    (tmp_path / "kept" / INDEX_NAME).write_bytes(b"damaged")
    assert len(read_index(corpus, keep_in=tmp_path / "kept").parts) == 3


def test_truncated_shards_are_all_named_with_what_to_do(corpus):
    for name in ("chest-train-000001.tar", "eyes-train-000000.tar"):
        path = corpus / "shards" / name
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"(?s)2 of .*chest-train-000001.*eyes-train-000000.*[Cc]opy the shards again"):
        read_index(corpus)


def test_a_shard_truncated_while_training_is_named(corpus):
    part = read_index(corpus).of("val")[0]
    path = part.shards[0]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"(?s)chest-val-000000\.tar ends inside its pair 0: it is truncated.*[Cc]opy"):
        part.read(0)
    path.unlink()
    with pytest.raises(UserError, match=r"chest-val-000000\.tar cannot be read"):
        part.read(0)


def test_damaged_json_names_the_shard(corpus):
    part = read_index(corpus).of("val")[0]
    path = part.shards[0]
    path.write_bytes(path.read_bytes().replace(b'"modality": "CT"', b'"modality": "XX"'))
    with pytest.raises(UserError, match=r"chest-val-000000\.tar is damaged: modality"):
        part.read(0)


def test_any_folder_of_webdataset_tars_can_be_trained_on(tmp_path):
    index = read_index(webdataset(tmp_path / "web", 150, ("jpg", "txt", "cls")))
    (train,), (val,) = index.of("train"), index.of("val")
    assert (len(train), len(val)) == (150 - 150 // HELD_OUT, 150 // HELD_OUT)
    texts = [part.read(number).captions[0].text for part in (train, val) for number in range(len(part))]
    assert sorted(texts) == sorted(f"caption {row}" for row in range(150))
    assert len({part.read(number).uid for part in (train, val) for number in range(len(part))}) == 150
    assert val.read(0).image == make_image(int(val.read(0).captions[0].text.split()[1]))


def test_a_truncated_webdataset_is_named(tmp_path):
    folder = webdataset(tmp_path / "web", 70)
    path = folder / "part-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 512 * 512 + 700])
    with pytest.raises(UserError, match=r"(?s)1 of 2 shards are damaged.*part-000000\.tar: it is not a whole tar"):
        read_index(folder)


def test_a_corpus_without_pairs_for_training_is_refused(tmp_path):
    corpus = CorpusFolder(tmp_path / "corpus", [make_pair("chest", 1, split="val")]).write()
    with pytest.raises(UserError, match="no pairs for training"):
        read_index(corpus)
    with pytest.raises(UserError, match="no manifest.json"):
        read_index(tmp_path)
