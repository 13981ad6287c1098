"""The local model's writer against tiny models made here: one that learned an answer, one that knows nothing."""

import json
import pickle
import warnings
from pathlib import Path

import pytest

from autoseg.errors import UserError
from vlm.corpus.captions.cache import CachedWriter
from vlm.corpus.captions.local_model import LocalModelWriter, folder_hash, load_model
from vlm.corpus.captions.prompting import opening, prompt_text, with_schema
from vlm.corpus.rows import LabelSet

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PNEUMONIA = LabelSet("X-ray", present=("pneumonia",), anatomy="chest")
TAUGHT = ("Chest X-ray showing pneumonia in the lungs.", "Findings of pneumonia on a radiograph of the chest.")
TEMPLATE = ("{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
            "{% endif %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
"""As some published models have it: it knows no system role."""


def conversation() -> str:
    """The first question, in the form that TEMPLATE gives it, the system's part joined to the user's."""
    system, user = with_schema(opening(PNEUMONIA, None, 2))
    return f"<user>{system['content']}\n\n{user['content']}</s><assistant>"


def make_tokenizer(text):
    """A byte-level BPE tokenizer that was trained on the text: lossless, and short sequences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # As Llama's: a special token is put before every text, unless one asks for none.
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def make_model(tokenizer, positions=1024):
    """A random GPT-2 of two small blocks."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id)
    return transformers.GPT2LMHeadModel(config)


def teach(model, tokenizer, question, answer):
    """Train until every token of the answer is the likeliest after the question and the answer's earlier tokens."""
    asked = tokenizer(question, return_tensors="pt", add_special_tokens=False)["input_ids"]
    answered = tokenizer(answer + "</s>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    tokens = torch.cat([asked, answered], dim=1)
    labels = torch.cat([torch.full_like(asked, -100), answered], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(300):
        output = model(tokens, labels=labels)
        guesses = output.logits[0, asked.shape[1] - 1:-1].argmax(dim=-1)
        if torch.equal(guesses, answered[0]) and output.loss < 0.05:
            return step
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    raise AssertionError("the tiny model did not learn its answer")


def save(folder: Path, model, tokenizer) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with a model that answers the first question about pneumonia, and a chat template."""
    answer = json.dumps({"captions": TAUGHT})
    tokenizer = make_tokenizer(conversation() + answer)
    tokenizer.chat_template = TEMPLATE
    model = make_model(tokenizer)
    teach(model, tokenizer, conversation(), answer)
    model.generation_config.do_sample = True  # the writer must decode greedily nevertheless
    model.generation_config.temperature = 5.0
    return save(tmp_path_factory.mktemp("models") / "taught", model.eval(), tokenizer)


@pytest.fixture(scope="module")
def untaught(tmp_path_factory):
    """A folder with a model that knows nothing, and without a chat template."""
    tokenizer = make_tokenizer(conversation())
    return save(tmp_path_factory.mktemp("models") / "untaught", make_model(tokenizer), tokenizer)


def copied(folder, path, **changes):
    """A copy of a model's folder; a change is a file's new content, None removes it."""
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    for name, content in changes.items():
        (path / name).write_bytes(content) if content is not None else (path / name).unlink()
    return path


def test_a_model_that_learned_the_answer_gives_its_captions(taught):
    writer = LocalModelWriter(taught, device="cpu")
    written = writer.compose(PNEUMONIA, None, 2)
    assert tuple(caption.text for caption in written.captions) == TAUGHT
    assert {(caption.kind, caption.origin) for caption in written.captions} == {
        ("generated", f"local taught {folder_hash(taught)}")}
    assert LocalModelWriter(taught, device="cpu").compose(PNEUMONIA, None, 2) == written


def test_what_the_writer_generates_is_what_transformers_generates(taught):
    """Oracle: the library's own greedy decoding of the conversation, written out by hand."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(taught)
    model = transformers.GPT2LMHeadModel.from_pretrained(taught)
    tokens = tokenizer(conversation(), return_tensors="pt", add_special_tokens=False)["input_ids"]
    length = tokens.shape[1]
    with torch.inference_mode():
        for _ in range(200):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
            if tokens[0, -1] == tokenizer.eos_token_id:
                break
    expected = tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
    assert LocalModelWriter(taught, device="cpu").chat(opening(PNEUMONIA, None, 2)).text == expected


def test_a_model_that_knows_nothing_is_reported(untaught):
    with pytest.raises(UserError) as raised:
        LocalModelWriter(untaught, device="cpu", asks=2, answer_tokens=64).write(PNEUMONIA, None, 2)
    assert all(part in str(raised.value) for part in ("local untaught", "2 times", "pneumonia", "--captions grammar"))


@pytest.mark.parametrize("room", [-100, 0, 40])
def test_a_question_that_leaves_no_room_is_told(tmp_path, untaught, room):
    tokenizer = transformers.AutoTokenizer.from_pretrained(untaught)
    question = prompt_text(with_schema(opening(PNEUMONIA, None, 2))) + "\n\n"
    positions = len(tokenizer(question)["input_ids"]) + room
    folder = save(tmp_path / "short", make_model(tokenizer, positions), tokenizer)
    with pytest.raises(UserError, match=f"the model takes {positions}"):
        LocalModelWriter(folder, device="cpu", asks=1).write(PNEUMONIA, None, 2)


def test_cached_captions_need_no_loaded_model(taught, tmp_path, monkeypatch):
    path = tmp_path / "captions.jsonl"
    written = CachedWriter(LocalModelWriter(taught, device="cpu"), path).write(PNEUMONIA, None, 2)
    monkeypatch.setattr("vlm.corpus.captions.local_model.load_model", None)
    assert CachedWriter(LocalModelWriter(taught, device="cpu"), path).write(PNEUMONIA, None, 2) == written


def test_another_model_in_a_folder_of_the_same_name_has_another_name(taught, tmp_path):
    weights = bytearray((taught / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    other = copied(taught, tmp_path / "taught", **{"model.safetensors": weights})
    assert LocalModelWriter(other).name != LocalModelWriter(taught).name


def test_nothing_is_written_to_the_terminal(taught, capfd):
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    LocalModelWriter(taught, device="cpu").write(PNEUMONIA, None, 2)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == before


def test_a_missing_folder_and_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is no folder"):
        LocalModelWriter(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.json"):
        LocalModelWriter(tmp_path)


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickled_weights_are_never_opened(untaught, tmp_path):
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Bomb(trace))
    pickle.loads(bomb)
    assert trace.exists()  # it works
    trace.unlink()
    folder = copied(untaught, tmp_path / "pickled", **{"model.safetensors": None, "pytorch_model.bin": bomb})
    with pytest.raises(UserError, match="safetensors"):
        LocalModelWriter(folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder, "cpu")
    (folder / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        LocalModelWriter(folder).write(PNEUMONIA, None, 2)
    assert not trace.exists()


def test_good_weights_in_a_pickle_are_not_loaded_either(untaught, tmp_path):
    from safetensors.torch import load_file

    folder = copied(untaught, tmp_path / "pickled", **{"model.safetensors": None, "other.safetensors": b""})
    torch.save(load_file(untaught / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder, "cpu")


def test_code_of_a_model_is_never_run(untaught, tmp_path):
    trace = tmp_path / "trace"
    config = {"model_type": "ours", "auto_map": {"AutoConfig": "code.Ours", "AutoModelForCausalLM": "code.Ours"}}
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Ours: pass\n"
    files = {"config.json": json.dumps(config).encode(), "code.py": code.encode()}
    folder = copied(untaught, tmp_path / "coded", **files)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder, "cpu")
    assert not trace.exists()


@pytest.mark.parametrize("changes", [
    {"config.json": b"{"}, {"config.json": b"{}"}, {"config.json": b"[]"}, {"config.json": b'{"model_type": "none"}'},
    {"model.safetensors": b""}, {"model.safetensors": b"\x00" * 100},
    {"tokenizer.json": b"{"}, {"tokenizer.json": None},
    {"config.json": b'{"model_type": "vit"}'}, {"config.json": b'{"model_type": "gpt2", "n_embd": "wide"}'},
], ids=str)
def test_a_broken_folder_is_refused(untaught, tmp_path, changes):
    folder = copied(untaught, tmp_path / "broken", **changes)
    with pytest.raises(UserError, match="broken cannot be loaded as a causal language model"):
        load_model(folder, "cpu")


def test_missing_weights_are_not_made_up(untaught, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(untaught, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights of the model are missing .*h\.1\.mlp\.c_fc"):
        load_model(folder, "cpu")
