"""Text banks keep what they were given, and notice every edit, by name."""

import json
from itertools import combinations

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.records import Interval, TowerRecord
from autoseg.guidance.text_bank import centered, make_bank, mean_direction, read_bank, summarize, write_bank

TOWER = TowerRecord(name="tiny", kind="clip", sha256="0" * 64, corpus="nothing", scores={"r1": 0.25}, licence="CC0",
                    better_than_start=Interval(value=0.1, low=0.05, high=0.2))
NAMES = ("liver", "left_kidney", "right_kidney", "spleen")


def unit(count, dimension=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def bank_of(names=NAMES, precision="float32", vectors=None):
    prompts = {name: (f"The {name}.", f"A CT image that shows the {name}.") for name in names}
    return make_bank(unit(len(names)) if vectors is None else vectors, prompts, TOWER, precision)


def edit(folder, change):
    content = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "bank.json").write_text(json.dumps(content), encoding="utf-8")


def refusal(folder):
    with pytest.raises(UserError) as caught:
        read_bank(folder)
    return str(caught.value)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_bank_comes_back_as_it_was(tmp_path, precision):
    bank = bank_of(precision=precision)
    write_bank(bank, tmp_path / "bank")
    again = read_bank(tmp_path / "bank")
    assert again.record == bank.record and again.names == NAMES
    assert again.vectors.dtype == np.float32 and np.array_equal(again.vectors, bank.vectors)
    assert np.allclose(np.linalg.norm(again.vectors, axis=1), 1, atol=1e-3)
    write_bank(again, tmp_path / "again")
    for file in ("bank.json", "bank.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "bank" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == ["bank.json", "bank.safetensors"]


def test_half_precision_halves_the_vectors_and_moves_them_little():
    exact, half = bank_of(), bank_of(precision="float16")
    assert 0 < np.abs(exact.vectors - half.vectors).max() < 1e-3


@pytest.mark.parametrize(("change", "told"), [
    (lambda content: content["prompts"]["left_kidney"].append("A kidney."), "sentences of 'left_kidney' were edited"),
    (lambda content: content["prompts"].update(liver=["The spleen."], spleen=["The liver."]), "'liver', 'spleen'"),
    (lambda content: (content["names"].reverse()), "edited or replaced"),
    (lambda content: content.update(sha256="f" * 64), "edited or replaced"),
    (lambda content: content.update(dimension=8), "dimension 8"),
    (lambda content: content.update(precision="float16"), "float16"),
    (lambda content: content["names"].append("colon"), "do not hold the same labels: colon"),
    (lambda content: content["names"].__setitem__(0, "spleen"), "stand there twice: spleen"),
    (lambda content: content.update(format="autoseg text bank 9"), "format"),
    (lambda content: content.update(note="mine"), "note"),
    (lambda content: content.pop("tower"), "tower"),
])
def test_an_edited_record_is_refused_by_name(tmp_path, change, told):
    write_bank(bank_of(), tmp_path)
    edit(tmp_path, change)
    assert told in refusal(tmp_path) and "bank.json" in refusal(tmp_path) and "vlm encode-labels" in refusal(tmp_path)


def test_swapping_the_texts_of_left_and_right_is_noticed(tmp_path):
    write_bank(bank_of(), tmp_path)

    def swap(content):
        prompts = content["prompts"]
        prompts["left_kidney"], prompts["right_kidney"] = prompts["right_kidney"], prompts["left_kidney"]
    edit(tmp_path, swap)
    assert "'left_kidney', 'right_kidney'" in refusal(tmp_path)


@given(st.integers(0, 3), st.integers(0, 15))
def test_any_edited_number_of_the_vectors_is_noticed(tmp_path_factory, row, column):
    folder = tmp_path_factory.mktemp("bank")
    bank = bank_of()
    write_bank(bank, folder)
    vectors = bank.vectors.copy()
    vectors[row, column] = np.nextafter(vectors[row, column], np.float32(2))
    (folder / "bank.safetensors").write_bytes(safetensors.numpy.save({"vectors": vectors}))
    assert "bank.safetensors" in refusal(folder) and "edited or replaced" in refusal(folder)


@pytest.mark.parametrize(("tensors", "told"), [
    ({"vectors": unit(4, 8)}, "shape (4, 8)"),
    ({"vectors": unit(3)}, "shape (3, 16)"),
    ({"vectors": unit(4).astype(np.float64)}, "float64"),
    ({"other": unit(4)}, "'vectors' was expected"),
    ({"vectors": unit(4), "more": unit(4)}, "'vectors' was expected"),
    ({"vectors": unit(4)[0]}, "'vectors' was expected"),
    ({}, "holds nothing"),
])
def test_vectors_of_another_bank_are_refused(tmp_path, tensors, told):
    write_bank(bank_of(), tmp_path)
    (tmp_path / "bank.safetensors").write_bytes(safetensors.numpy.save(tensors))
    assert told in refusal(tmp_path)


def test_missing_and_damaged_files_are_refused(tmp_path):
    assert "bank.json does not exist" in refusal(tmp_path / "none")
    write_bank(bank_of(), tmp_path)
    whole = (tmp_path / "bank.safetensors").read_bytes()
    (tmp_path / "bank.safetensors").write_bytes(whole[:-9])
    assert "not a whole safetensors file" in refusal(tmp_path)
    (tmp_path / "bank.safetensors").write_bytes(b"\x80\x04pickle")
    assert "not a whole safetensors file" in refusal(tmp_path)
    (tmp_path / "bank.safetensors").unlink()
    assert "does not exist" in refusal(tmp_path)


def test_a_bank_is_not_made_of_wrong_vectors():
    with pytest.raises(ValueError, match="unit length: spleen"):
        bank_of(vectors=unit(4) * np.array([[1], [1], [1], [2]], np.float32))
    with pytest.raises(ValueError, match="unit length: liver"):
        bank_of(vectors=np.full((4, 16), np.nan, np.float32))
    with pytest.raises(ValueError, match="3 vectors for 4 labels"):
        bank_of(vectors=unit(3))


def test_a_bank_with_a_record_of_another_is_not_written(tmp_path):
    one, other = bank_of(), bank_of(vectors=unit(4, seed=1))
    with pytest.raises(ValueError, match="not that of these vectors"):
        write_bank(type(one)(one.names, other.vectors, one.record), tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- looking up
def test_labels_are_looked_up_by_name_not_by_place():
    bank = bank_of()
    assert np.array_equal(bank.vectors_of(NAMES[::-1]), bank.vectors[::-1])
    assert np.array_equal(bank.vectors_of(["Kidney (R)", "LIVER"]), bank.vectors[[2, 0]])


def test_a_banks_labels_are_found_through_the_lexicon():
    bank, lexicon = bank_of(("liver tumor", "left kidney", "right kidney")), load_lexicon()
    assert np.array_equal(bank.vectors_of(["lk", "tumor"], lexicon, ("liver", "lk")), bank.vectors[[1, 0]])
    with pytest.raises(UserError):
        bank.vectors_of(["lk"])


def test_a_paired_structure_without_its_side_is_the_mean_of_both():
    bank, lexicon = bank_of(("left kidney", "right kidney", "liver")), load_lexicon()
    found = bank.vectors_of(["kidney"], lexicon)[0]
    both = bank.vectors[0] + bank.vectors[1]
    assert np.allclose(found, both / np.linalg.norm(both), atol=1e-6)
    with pytest.raises(UserError, match="'kidney'"):
        bank_of(("left kidney", "liver")).vectors_of(["kidney"], lexicon)
    own = bank_of(("left kidney", "right kidney", "kidney"))
    assert np.array_equal(own.vectors_of(["kidney"], lexicon), own.vectors[2:])


def test_all_absent_labels_are_told_with_the_nearest():
    with pytest.raises(UserError) as caught:
        bank_of().vectors_of(["liver", "splen", "label_9"], load_lexicon())
    told = str(caught.value)
    assert "2 of 3 labels" in told and "'splen' (nearest: spleen)" in told and "'label_9'" in told
    assert "vlm encode-labels" in told


# ---------------------------------------------------------------- similarity and geometry
def test_near_collinear_pairs_are_found_and_listed_by_closeness():
    base = unit(3, 64, seed=3)
    left = base[0] + 0.1 * base[1]
    right = base[0] + 0.25 * base[2]
    vectors = np.stack([base[0], left, right, base[1]])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    summary = summarize(("a", "b", "c", "d"), vectors)
    cosines = {("abcd"[i], "abcd"[j]): float(vectors[i] @ vectors[j]) for i, j in combinations(range(4), 2)}
    near = sorted((pair for pair in cosines if cosines[pair] >= 0.95), key=cosines.get, reverse=True)
    assert [(pair.first, pair.second) for pair in summary.near_collinear] == near and len(near) >= 2
    assert summary.near_collinear_count == len(near)
    assert summary.mean == pytest.approx(np.mean(list(cosines.values())), abs=1e-4)
    assert (summary.min, summary.max) == pytest.approx((min(cosines.values()), max(cosines.values())), abs=1e-4)


def test_very_many_near_collinear_pairs_are_counted_and_not_all_listed():
    vectors = np.tile(unit(1), (30, 1))
    summary = summarize([str(number) for number in range(30)], vectors)
    assert summary.near_collinear_count == 30 * 29 // 2 and len(summary.near_collinear) == 100


def test_one_label_has_no_similarity(tmp_path):
    bank = bank_of(("liver",))
    write_bank(bank, tmp_path)
    assert read_bank(tmp_path).record.similarity.mean is None
    with pytest.raises(UserError, match="cannot be centered"):
        centered(bank.vectors)


@given(st.integers(2, 12), st.integers(0, 99))
def test_centering_removes_what_all_labels_share(count, seed):
    cone = unit(1, 32, seed) * 5 + unit(count, 32, seed + 100)
    cone = (cone / np.linalg.norm(cone, axis=1, keepdims=True)).astype(np.float32)
    free = centered(cone)
    assert np.allclose(np.linalg.norm(free, axis=1), 1, atol=1e-5)
    names = [str(row) for row in range(count)]
    assert summarize(names, free).mean < summarize(names, cone).mean
    if count == 2:
        assert np.allclose(free[0], -free[1], atol=1e-5)


def test_centering_commutes_with_rotation():
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((16, 16)))[0].astype(np.float32)
    vectors = unit(5)
    assert np.allclose(centered(vectors @ rotation), centered(vectors) @ rotation, atol=1e-5)


def test_the_mean_direction_weighs_every_sentence_the_same():
    one, other = unit(2)
    longer = mean_direction(np.stack([one * 100, other * 7]))
    assert np.allclose(longer, mean_direction(np.stack([one, other])), atol=1e-6)
    assert np.linalg.norm(mean_direction(np.stack([one, other]))) == pytest.approx(1, abs=1e-6)
    for wrong in (np.stack([one, -one]), np.zeros((2, 16), np.float32), np.empty((0, 16), np.float32)):
        with pytest.raises(ValueError, match="direction"):
            mean_direction(wrong)
