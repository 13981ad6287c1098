"""Text banks from labels: vectors are mean directions of sentences, controls know nothing, odd labels are named."""

import json

import numpy as np
import pytest
from tiny_clip import tiny_model

from autoseg.errors import UserError
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.prompts import sentences
from autoseg.guidance.text_bank import centered, read_bank
from autoseg.records import read_json, write_json
from vlm.commands.encode_labels import encode_labels
from vlm.export.banks import control_bank, encode_bank, orthonormal, prompts_of_dataset, random_directions
from vlm.export.exporting import export_text
from vlm.export.towers import open_tower
from vlm.model.clip import save_model

BTCV = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
        "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland")


@pytest.fixture
def tower(tmp_path):
    save_model(tiny_model(tmp_path / "bert", context_length=24), tmp_path / "model")
    export_text(tmp_path / "model", tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def dataset(tmp_path):
    write_json({"channel_names": {"0": "CT"}, "name": "Abdomen", "file_ending": ".nii.gz", "numTraining": 0,
                "labels": {"background": 0, "Liver": 1, "kidney_L": 2, "rt. kidney": 3, "ignore": 4}},
               tmp_path / "data" / "dataset.json")
    return tmp_path / "data"


# ---------------------------------------------------------------- vectors
def test_a_labels_vector_is_the_mean_direction_of_its_sentences(tower):
    encoder = open_tower(str(tower))
    prompts = {"liver": ("the liver", "a large organ"), "heart": ("the heart",)}
    bank = encode_bank(prompts, encoder).bank
    each, _ = encoder.encode(["the liver", "a large organ", "the heart"])
    mean = each[:2].astype(np.float64).mean(0)
    np.testing.assert_allclose(bank.vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(bank.vectors[1], each[2], atol=1e-6)
    assert bank.names == ("liver", "heart") and bank.record.prompts == prompts


def test_the_order_and_number_of_other_labels_changes_no_vector(tower):
    encoder = open_tower(str(tower))
    prompts = {name: (f"the {name}", "a scan " * length) for length, name in enumerate(BTCV, 1)}
    bank = encode_bank(prompts, encoder).bank
    turned = encode_bank(dict(reversed(prompts.items())), encoder).bank
    np.testing.assert_allclose(turned.vectors[::-1], bank.vectors, atol=1e-5)


def test_half_precision_keeps_directions(tower):
    encoder = open_tower(str(tower))
    prompts = {name: (f"the {name}",) for name in BTCV}
    full, half = (encode_bank(prompts, encoder, precision).bank for precision in ("float32", "float16"))
    lengths = np.linalg.norm(half.vectors, axis=1)
    assert ((full.vectors * half.vectors).sum(1) / lengths).min() > 1 - 1e-6
    assert half.record.precision == "float16" and full.record.precision == "float32"


def test_sentences_that_are_cut_are_named(tower):
    long = "the left kidney " * 20
    encoded = encode_bank({"kidney": ("short", long), "liver": ("the liver",)}, open_tower(str(tower)))
    assert encoded.truncated == (long,)


@pytest.mark.parametrize("factor", [0.0, np.nan])
def test_a_tower_that_gives_no_directions_is_a_users_error(tmp_path, factor):
    model = tiny_model(tmp_path / "bert")
    model.network.text.proj[2].weight.data *= factor
    save_model(model, tmp_path / "model")
    export_text(tmp_path / "model", tmp_path / "tower")
    with pytest.raises(UserError, match="the tower untrained gives vectors without a direction"):
        encode_bank({"liver": ("the liver",)}, open_tower(str(tmp_path / "tower")))


def test_labels_without_words_are_refused_together(tower):
    with pytest.raises(UserError, match="2 labels have no words") as caught:
        encode_bank({"a": (), "b": ("fine",), "c": (" ",)}, open_tower(str(tower)))
    assert "'a'" in str(caught.value) and "'c'" in str(caught.value)


# ---------------------------------------------------------------- controls
def test_random_vectors_depend_on_the_name_and_the_seed_alone():
    vectors = random_directions(BTCV, 64, 3)
    assert np.array_equal(random_directions(BTCV[::-1], 64, 3)[::-1], vectors)
    assert not np.allclose(random_directions(BTCV, 64, 4), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    many = random_directions([str(number) for number in range(300)], 64, 0)
    cosines = (many @ many.T)[np.triu_indices(300, 1)]
    assert abs(cosines.mean()) < 0.005 and cosines.std() == pytest.approx(1 / 8, rel=0.05), "no direction is preferred"


def test_orthonormal_vectors_are_at_right_angles_and_there_are_only_so_many():
    vectors = orthonormal(13, 13, 5)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(13), atol=1e-6)
    assert np.array_equal(orthonormal(13, 13, 5), vectors) and not np.allclose(orthonormal(13, 13, 6), vectors)
    with pytest.raises(UserError, match="14 labels cannot be at right angles in 13 dimensions"):
        orthonormal(14, 13, 5)


@pytest.mark.parametrize("kind", ["random", "orthonormal"])
def test_no_label_is_no_bank(kind):
    with pytest.raises(UserError, match="no label was given"):
        control_bank((), kind, 32, 7)


def test_controls_say_that_no_text_gave_them():
    bank = control_bank(BTCV, "orthonormal", 32, 7)
    assert (bank.record.tower.kind, bank.record.tower.seed, bank.record.tower.sha256) == ("orthonormal", 7, None)
    assert set(bank.record.prompts.values()) == {()}
    assert bank.record.similarity.max == pytest.approx(0, abs=1e-4)


# ---------------------------------------------------------------- sentences
def test_a_datasets_labels_get_the_sentences_of_their_entries_whatever_its_device(dataset):
    """A segmenter that is trained on CT with them meets MR later: no sentence may be true of CT images only."""
    lexicon = load_lexicon()
    prompts = prompts_of_dataset(dataset, lexicon)
    assert list(prompts) == ["Liver", "kidney_L", "rt. kidney"], "background and ignored voxels have no words"
    assert prompts["kidney_L"] == sentences(lexicon.find("left kidney")) != prompts["rt. kidney"]
    told = " ".join(prompts["Liver"])
    assert "A CT image" in told and "An MR image" in told and "contrast" not in told
    changed = read_json(dataset / "dataset.json") | {"channel_names": {"0": "T2"}}
    write_json(changed, dataset / "dataset.json")
    assert prompts_of_dataset(dataset, lexicon) == prompts, "the words do not depend on the scanner"
    assert prompts_of_dataset(dataset, lexicon, "MR")["Liver"] == sentences(lexicon.find("liver"), "MR")


def test_channel_names_help_to_understand_a_label(dataset):
    labels = {"background": 0, "hemorrhage": 1}
    write_json(read_json(dataset / "dataset.json") | {"labels": labels, "channel_names": {"0": "fundus"}},
               dataset / "dataset.json")
    lexicon = load_lexicon()
    assert prompts_of_dataset(dataset, lexicon)["hemorrhage"] == sentences(lexicon.find("retinal hemorrhages"))


def test_the_older_form_of_dataset_json_is_read(tmp_path):
    write_json({"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "spleen"}}, tmp_path / "dataset.json")
    lexicon = load_lexicon()
    assert prompts_of_dataset(tmp_path, lexicon) == {"spleen": sentences(lexicon.find("spleen"))}


# ---------------------------------------------------------------- the command
def test_the_command_writes_a_bank_that_autoseg_reads(tmp_path, tower, dataset, capsys):
    assert encode_labels(dataset, tower=str(tower), output=tmp_path / "bank", device="cpu") == 0
    bank = read_bank(tmp_path / "bank")
    assert bank.names == ("Liver", "kidney_L", "rt. kidney") and bank.vectors.shape == (3, 16)
    assert bank.record.tower.sha256 == read_json(tower / "tower.json")["weights_sha256"]
    shown = capsys.readouterr().out
    assert "3 labels" in shown and "Cosine between different labels: mean" in shown
    assert "Warning: longer than the tower's context and cut" in shown, "24 tokens are little"
    record = read_json(tmp_path / "bank" / "run.json")
    assert record["results"]["sha256"] == bank.record.sha256 and record["results"]["truncated"] > 0


def test_labels_that_can_hardly_be_told_apart_are_warned_of(tmp_path, tower, capsys):
    write_json({"a": ["the liver"], "b": ["The  liver"], "c": ["a heart"]}, tmp_path / "prompts.json")
    encode_labels(prompts=tmp_path / "prompts.json", tower=str(tower), output=tmp_path / "bank", device="cpu")
    shown = capsys.readouterr().out
    assert "Warning" in shown and "a and b: 1.000" in shown


def test_controls_are_encoded_from_the_same_labels(tmp_path, dataset, capsys):
    for kind in ("random", "orthonormal"):
        encode_labels(dataset, tower=kind, output=tmp_path / kind, dimension=48, seed=2, json=True)
        shown = json.loads(capsys.readouterr().out)
        assert shown["tower"]["kind"] == kind and shown["tower"]["seed"] == 2 and shown["dimension"] == 48
        assert read_bank(tmp_path / kind).names == ("Liver", "kidney_L", "rt. kidney")
    encode_labels(dataset, tower="random", output=tmp_path / "again", dimension=48, seed=2)
    assert np.array_equal(read_bank(tmp_path / "again").vectors, read_bank(tmp_path / "random").vectors)


def test_a_label_that_the_lexicon_does_not_know_says_what_is_near_and_how_to_add_it(tmp_path, tower, dataset):
    write_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "livver": 1, "spleen": 2, "flurb": 3},
                "file_ending": ".nii.gz", "numTraining": 0}, dataset / "dataset.json")
    with pytest.raises(UserError) as caught:
        encode_labels(dataset, tower=str(tower), output=tmp_path / "bank", device="cpu")
    text = str(caught.value)
    assert "'livver'" in text and "'flurb'" in text and "'liver'" in text and "location =" in text
    assert not (tmp_path / "bank").exists()


def test_a_structure_of_ones_own_can_be_added(tmp_path, tower, dataset):
    (tmp_path / "own.toml").write_text(
        '[structures."flurb"]\nregion = "abdomen"\nlocation = "behind the stomach"\nshape = "a round organ"\n')
    write_json({"channel_names": {"0": "CT"}, "labels": {"background": 0, "flurb": 1}, "file_ending": ".nii.gz",
                "numTraining": 0}, dataset / "dataset.json")
    encode_labels(dataset, tower=str(tower), own_lexicon=tmp_path / "own.toml", output=tmp_path / "bank", device="cpu")
    bank = read_bank(tmp_path / "bank")
    assert any("behind the stomach" in text.lower() for text in bank.record.prompts["flurb"])
    assert bank.record.similarity.mean is None


@pytest.mark.parametrize("given", [{}, {"dataset": "d", "prompts": "p.json"}, {"dataset": "d", "lexicon": True}])
def test_exactly_one_thing_to_encode_is_expected(tmp_path, given):
    with pytest.raises(UserError, match="one thing to encode was expected"):
        encode_labels(tower="random", output=tmp_path / "bank", **given)
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(("text", "said"), [("{", "is not valid JSON"), ('{"a": 3}', "does not hold what was expected"),
                                            ("{}", "no label")])
def test_files_of_sentences_that_are_not_right_are_said(tmp_path, tower, text, said):
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(UserError, match=said):
        encode_labels(prompts=tmp_path / "prompts.json", tower=str(tower), output=tmp_path / "bank", device="cpu")


def test_sentences_of_ones_own_stand_in_for_the_lexicons(tmp_path):
    write_json({"RK": ["The right kidney."], "flurb": ["A flurb."], "lung": ["Both lungs."]}, tmp_path / "prompts.json")
    encode_labels(lexicon=True, prompts=tmp_path / "prompts.json", tower="random", output=tmp_path / "bank",
                  dimension=32)
    names = read_bank(tmp_path / "bank").names
    assert names[:3] == ("RK", "flurb", "lung") and {"left kidney", "spleen"} < set(names)
    assert not {"right kidney", "left lung", "right lung"} & set(names), "a label's meaning is no wrong answer"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("prompts", "said"), [
    ({"liver": []}, "'liver': no sentence"), ({"left_kidney": ["The kidney on the right."]}, "says right"),
    ({"liver": ["An organ."], "spleen": ["An organ."]}, "a sentence of 'liver' too"),
])
def test_sentences_that_do_not_fit_their_label_are_refused(tmp_path, prompts, said):
    write_json(prompts, tmp_path / "prompts.json")
    with pytest.raises(UserError, match=said):
        encode_labels(prompts=tmp_path / "prompts.json", tower="random", output=tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_the_whole_lexicon_can_be_encoded_by_a_control(tmp_path):
    encode_labels(lexicon=True, tower="random", output=tmp_path / "bank", dimension=32, precision="float16")
    bank = read_bank(tmp_path / "bank")
    entries = load_lexicon().entries
    assert bank.names == tuple(name for name, entry in entries.items() if entry.halves is None)
    left, right, both, _ = bank.vectors_of(["Left_Kidney", "RK", "kidney", "IVC"], load_lexicon())
    np.testing.assert_allclose(both, (left + right) / np.linalg.norm(left + right), atol=1e-5)


def test_centering_takes_the_common_direction_out(tower):
    """What the figure of cosine matrices shows: untrained text vectors lie in a cone, centered ones do not."""
    bank = encode_bank({name: (f"a ct image of the {name}",) for name in BTCV}, open_tower(str(tower))).bank
    before = bank.vectors @ bank.vectors.T
    after = centered(bank.vectors) @ centered(bank.vectors).T
    off = ~np.eye(len(BTCV), dtype=bool)
    assert before[off].mean() > 0.5
    assert after[off].mean() == pytest.approx(-1 / (len(BTCV) - 1), abs=0.05)
