"""Embedders: unit vectors in the order asked for, equal for our folders and for open_clip's reading of them."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import tiny_model

from autoseg.errors import UserError
from autoseg.records import file_sha256
from vlm.model.clip import save_model
from vlm.model.embedding import embedder_of, open_embedder
from vlm.model.libraries import import_open_clip

TEXTS = ["the left kidney " * 9, "liver", "a scan of the heart", "", "right lung"]


def pictures(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (30 + 7 * number, 40, 3), np.uint8)) for number in range(count)]


@pytest.fixture
def ours(tmp_path):
    save_model(tiny_model(tmp_path / "bert", context_length=24), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def foreign(ours, tmp_path):
    """The same model as a stranger's folder: no record of ours."""
    shutil.copytree(ours, tmp_path / "foreign")
    (tmp_path / "foreign" / "model.json").unlink()
    return tmp_path / "foreign"


def test_embeddings_are_unit_vectors_in_the_order_of_what_was_given(ours):
    embedder = open_embedder(ours)
    texts, images = embedder.encode_texts(TEXTS), embedder.encode_images(pictures())
    assert texts.dtype == images.dtype == torch.float32 and texts.shape == (5, 16) == (5, embedder.dimension)
    for rows in (texts, images):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    for place, text in enumerate(TEXTS):
        torch.testing.assert_close(embedder.encode_texts([text])[0], texts[place], atol=1e-6, rtol=1e-5)
    for place, image in enumerate(pictures()):
        torch.testing.assert_close(embedder.encode_images([image])[0], images[place], atol=1e-6, rtol=1e-5)
    assert embedder.encode_texts([]).shape == embedder.encode_images([]).shape == (0, 16)


def test_identity_temperature_and_record_are_the_models(ours):
    embedder = open_embedder(ours)
    assert embedder.identity == file_sha256(ours / "open_clip_model.safetensors") == embedder.record.weights_sha256
    assert embedder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert embedder.count_truncated(TEXTS) == 1 and embedder.count_truncated([]) == 0


def test_a_model_that_was_never_saved_can_be_embedded_with(tmp_path):
    embedder = embedder_of(tiny_model(tmp_path))
    assert embedder.identity == "" and not embedder.network.training
    assert not embedder.encode_texts(["liver"]).requires_grad


def test_a_strangers_folder_gives_the_same_embeddings(ours, foreign):
    one, other = open_embedder(ours), open_embedder(foreign)
    assert other.record is None and other.identity == one.identity and other.name == "foreign"
    assert torch.equal(one.encode_texts(TEXTS), other.encode_texts(TEXTS))
    assert torch.equal(one.encode_images(pictures()), other.encode_images(pictures()))
    assert other.count_truncated(TEXTS) == 1 and other.logit_scale == one.logit_scale


def test_biomedclips_layout_is_read(foreign):
    """A pickle of tensors, the tokenizer beside it, the text tower named by a hub id, its config put into `text`."""
    expected = open_embedder(foreign).encode_texts(TEXTS)
    torch.save(load_file(foreign / "open_clip_model.safetensors"), foreign / "open_clip_pytorch_model.bin")
    (foreign / "open_clip_model.safetensors").unlink()
    for file in (foreign / "text").iterdir():
        if file.name != "config.json":
            file.unlink()
    content = json.loads((foreign / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/some-bert"
    content["preprocess_cfg"]["something_new"] = 3
    (foreign / "open_clip_config.json").write_text(json.dumps(content))
    assert torch.equal(open_embedder(foreign).encode_texts(TEXTS), expected)


def test_biomedclips_vision_tower_of_timm_is_read(foreign):
    """Its config's keys, with timm's smallest vision transformer."""
    content = json.loads((foreign / "open_clip_config.json").read_text())
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
              "image_size": 160}
    content["model_cfg"] = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": content["model_cfg"]["text_cfg"]}
    (foreign / "open_clip_config.json").write_text(json.dumps(content))
    text = {**content["model_cfg"]["text_cfg"], "hf_model_name": str(foreign / "text"), "hf_model_pretrained": False}
    network = import_open_clip().CustomTextCLIP(16, vision, text).eval()
    older = {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}
    (foreign / "open_clip_model.safetensors").unlink()
    torch.save({**network.state_dict(), **older}, foreign / "open_clip_pytorch_model.bin")
    embedder = open_embedder(foreign)
    pixels = torch.stack([embedder.transform(picture) for picture in pictures()])
    with torch.inference_mode():
        expected = network.encode_image(pixels, normalize=True)
    torch.testing.assert_close(embedder.encode_images(pictures()), expected)


def test_a_text_tower_that_is_not_here_says_where_to_put_it(foreign, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    content = json.loads((foreign / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/some-bert"
    (foreign / "open_clip_config.json").write_text(json.dumps(content))
    shutil.rmtree(foreign / "text")
    with pytest.raises(UserError, match=r"Put somebody/some-bert's config\.json into .*text"):
        open_embedder(foreign)


def test_a_plain_clip_of_open_clip_is_read(tmp_path):
    """Without a text tower of transformers: open_clip's own tokenizer, padded to its context."""
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1,
                                              "head_width": 16},
              "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    open_clip = import_open_clip()
    network = open_clip.CLIP(**config).eval()
    torch.save(network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    embedder = open_embedder(tmp_path)
    texts = ["the liver", "kidney " * 30]
    with torch.inference_mode():
        expected = network.encode_text(open_clip.tokenize(texts, context_length=20), normalize=True)
    torch.testing.assert_close(embedder.encode_texts(texts), expected)
    assert embedder.count_truncated(texts) == 1


def test_weights_that_do_not_fit_name_the_tensors(foreign):
    tensors = load_file(foreign / "open_clip_model.safetensors")
    del tensors["visual.proj"]
    (foreign / "open_clip_model.safetensors").unlink()
    torch.save(tensors, foreign / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"visual\.proj"):
        open_embedder(foreign)


def test_positions_of_another_image_size_are_refused_and_not_resized_unasked(foreign):
    """open_clip's own loading resizes them, so that a wrong image_size gives worse embeddings without a word."""
    content = json.loads((foreign / "open_clip_config.json").read_text())
    content["model_cfg"]["vision_cfg"]["image_size"] = 64
    (foreign / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"visual\.positional_embedding: shape \(5, 32\), expected \(17, 32\)"):
        open_embedder(foreign)


def test_a_strangers_weights_in_shards_with_a_buffer_of_older_versions_are_read(ours, foreign):
    tensors = load_file(foreign / "open_clip_model.safetensors")
    (foreign / "open_clip_model.safetensors").unlink()
    tensors["text.transformer.embeddings.position_ids"] = torch.arange(512)[None]
    names = sorted(tensors)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, foreign / part)
    (foreign / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {name: part for part, held in parts.items() for name in held}}))
    found = open_embedder(foreign)
    assert torch.equal(found.encode_texts(TEXTS), open_embedder(ours).encode_texts(TEXTS))
    (foreign / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"names files that are not there: b\.safetensors"):
        open_embedder(foreign)


def test_another_architecture_around_the_same_weights_is_told(foreign):
    before = open_embedder(foreign)
    content = json.loads((foreign / "open_clip_config.json").read_text())
    content["model_cfg"]["quick_gelu"] = True
    (foreign / "open_clip_config.json").write_text(json.dumps(content))
    after = open_embedder(foreign)
    assert before.identity == after.identity and before.architecture != after.architecture
    assert not torch.allclose(before.encode_images(pictures()), after.encode_images(pictures()))


class Payload:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_strangers_pickle_is_not_run(foreign, tmp_path):
    (foreign / "open_clip_model.safetensors").unlink()
    torch.save({"visual.proj": Payload(tmp_path / "planted")}, foreign / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError):
        open_embedder(foreign)
    assert not (tmp_path / "planted").exists()


def test_a_folder_that_holds_no_model_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        open_embedder(tmp_path)
