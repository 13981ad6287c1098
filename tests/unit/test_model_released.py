"""Released UniMed-CLIP checkpoints: imported strictly, embedded by the published formula, nothing in them is run."""

import json
import math
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_clip import tiny_config, tiny_text_folder

from autoseg.errors import UserError
from vlm.commands.import_unimed import import_unimed
from vlm.model.architectures import read_model_config
from vlm.model.clip import build_network, load_model
from vlm.model.released import import_released, our_name, read_released

TINY = {"width": 32, "layers": 2, "heads": 2, "patch": 16, "image": 32, "text_width": 24, "text_layers": 2,
        "text_heads": 2, "words": 0, "embed": 16}
B16 = {"width": 768, "layers": 12, "heads": 12, "patch": 16, "image": 224, "text_width": 768, "text_layers": 12,
       "text_heads": 12, "words": 30522, "embed": 512}


def released_shapes(size):
    """Names and shapes of the released file, written down from the description of its architecture."""
    width, text, embed = size["width"], size["text_width"], size["embed"]
    grid, middle = (size["image"] // size["patch"]) ** 2, (text + embed) // 2
    shapes = {"logit_scale": (), "visual.class_embedding": (width,), "visual.positional_embedding": (grid + 1, width),
              "visual.proj": (width, embed), "visual.conv1.weight": (width, 3, size["patch"], size["patch"])}
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.weight": (width,), f"visual.{norm}.bias": (width,)}
    for layer in range(size["layers"]):
        block = f"visual.transformer.resblocks.{layer}."
        for name, shape in (("attn.in_proj", (3 * width, width)), ("attn.out_proj", (width, width)),
                            ("mlp.c_fc", (4 * width, width)), ("mlp.c_proj", (width, 4 * width))):
            joint = "_" if name.endswith("in_proj") else "."
            shapes |= {f"{block}{name}{joint}weight": shape, f"{block}{name}{joint}bias": shape[:1]}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    bert = "text_encoder.transformer."
    shapes |= {f"{bert}embeddings.word_embeddings.weight": (size["words"], text),
               f"{bert}embeddings.position_embeddings.weight": (512, text),
               f"{bert}embeddings.token_type_embeddings.weight": (2, text),
               f"{bert}embeddings.LayerNorm.weight": (text,), f"{bert}embeddings.LayerNorm.bias": (text,)}
    for layer in range(size["text_layers"]):
        block, inner = f"{bert}encoder.layer.{layer}.", size.get("text_inner", 4 * text)
        for name, shape in (("attention.self.query", (text, text)), ("attention.self.key", (text, text)),
                            ("attention.self.value", (text, text)), ("attention.output.dense", (text, text)),
                            ("intermediate.dense", (inner, text)), ("output.dense", (text, inner))):
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{block}{norm}.weight": (text,), f"{block}{norm}.bias": (text,)}
    return shapes | {"text_encoder.proj.0.weight": (middle, text), "text_encoder.proj.2.weight": (embed, middle)}


@pytest.fixture
def text(tmp_path):
    return tiny_text_folder(tmp_path / "bert", width=TINY["text_width"], intermediate_size=4 * TINY["text_width"])


@pytest.fixture
def config(text):
    return tiny_config(text, embed_dim=TINY["embed"], quick_gelu=True)


@pytest.fixture
def tensors(text):
    generator = torch.Generator().manual_seed(11)
    size = TINY | {"words": json.loads((text / "config.json").read_text())["vocab_size"]}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in released_shapes(size).items()}


def write_released(tensors, path, **more):
    """As the released code saves: under `state_dict`, with "module." in front, beside numbers of numpy."""
    facts = {"epoch": 10, "name": "b16", "best_acc1": np.float64(61.63), "samples": np.int64(52_820_000)}
    torch.save({**facts, "state_dict": {f"module.{name}": value for name, value in tensors.items()}, **more}, path)
    return path


# ---------------------------------------------------------------- the published formula
def layer_norm(x, tensors, name, eps):
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def linear(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def attention(query, key, value, heads, mask=None):
    batch, tokens, width = query.shape
    query, key, value = (x.reshape(batch, tokens, heads, -1).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(2, 3) / math.sqrt(width // heads)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width)


def image_formula(tensors, images):
    """ViT: patches and class token, positions, ln_pre, blocks with QuickGELU, ln_post of the class token, proj."""
    patch = TINY["patch"]
    kernel = tensors["visual.conv1.weight"].reshape(TINY["width"], -1)
    patches = images.unfold(2, patch, patch).unfold(3, patch, patch)  # batch, channel, row, column, y, x
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(images), -1, 3 * patch * patch)
    first = tensors["visual.class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([first, patches @ kernel.T], 1) + tensors["visual.positional_embedding"]
    x = layer_norm(x, tensors, "visual.ln_pre", 1e-5)
    for layer in range(TINY["layers"]):
        block = f"visual.transformer.resblocks.{layer}."
        inside = layer_norm(x, tensors, f"{block}ln_1", 1e-5)
        joined = inside @ tensors[f"{block}attn.in_proj_weight"].T + tensors[f"{block}attn.in_proj_bias"]
        x = x + linear(attention(*joined.chunk(3, -1), TINY["heads"]), tensors, f"{block}attn.out_proj")
        inside = linear(layer_norm(x, tensors, f"{block}ln_2", 1e-5), tensors, f"{block}mlp.c_fc")
        x = x + linear(inside * torch.sigmoid(1.702 * inside), tensors, f"{block}mlp.c_proj")
    return layer_norm(x[:, 0], tensors, "visual.ln_post", 1e-5) @ tensors["visual.proj"]


def text_formula(tensors, ids):
    """BERT, the vector of [CLS], then Linear, GELU, Linear without biases."""
    bert, mask = "text_encoder.transformer.", ids != 0
    x = (tensors[f"{bert}embeddings.word_embeddings.weight"][ids]
         + tensors[f"{bert}embeddings.position_embeddings.weight"][: ids.shape[1]]
         + tensors[f"{bert}embeddings.token_type_embeddings.weight"][0])
    x = layer_norm(x, tensors, f"{bert}embeddings.LayerNorm", 1e-12)
    for layer in range(TINY["text_layers"]):
        block = f"{bert}encoder.layer.{layer}."
        parts = [linear(x, tensors, f"{block}attention.self.{part}") for part in ("query", "key", "value")]
        inside = linear(attention(*parts, TINY["text_heads"], mask), tensors, f"{block}attention.output.dense")
        x = layer_norm(x + inside, tensors, f"{block}attention.output.LayerNorm", 1e-12)
        inside = F.gelu(linear(x, tensors, f"{block}intermediate.dense"))
        x = layer_norm(x + linear(inside, tensors, f"{block}output.dense"), tensors, f"{block}output.LayerNorm", 1e-12)
    hidden = F.gelu(x[:, 0] @ tensors["text_encoder.proj.0.weight"].T)
    return hidden @ tensors["text_encoder.proj.2.weight"].T


def test_a_released_checkpoint_embeds_by_the_published_formula(tmp_path, text, config, tensors):
    path = write_released(tensors, tmp_path / "unimed.pt")
    model = import_released(path, config, str(text))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = model.tokenizer.encode(["the left kidney", "a ct scan of the liver, normal"]).ids
    with torch.inference_mode():
        torch.testing.assert_close(model.network.encode_image(images), image_formula(tensors, images), atol=2e-5,
                                   rtol=1e-4)
        torch.testing.assert_close(model.network.encode_text(ids), text_formula(tensors, ids), atol=2e-5, rtol=1e-4)
    facts = model.record.imported
    assert facts.facts == {"epoch": 10, "name": "b16", "best_acc1": 61.63, "samples": 52_820_000}
    assert facts.tensors == len(tensors) and "NC" in model.record.licence


def test_the_full_size_layout_is_that_of_the_architecture(tmp_path):
    bert = tiny_text_folder(tmp_path / "bert", width=768, layers=12, num_attention_heads=12, intermediate_size=3072,
                            vocab_size=30522)
    with torch.device("meta"):
        network = build_network(read_model_config("unimed-b16"), bert)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert expected == {our_name(name): shape for name, shape in released_shapes(B16).items()}


def test_a_buffer_of_older_versions_is_left_out_and_reported(tmp_path, text, config, tensors):
    older = tensors | {"text_encoder.transformer.embeddings.position_ids": torch.arange(512)[None]}
    record = import_released(write_released(older, tmp_path / "x.pt"), config, str(text)).record
    assert record.imported.left_out == ("text (1)",) and record.imported.tensors == len(tensors)


def test_a_number_that_is_none_is_kept_as_a_word(tmp_path, text, config, tensors):
    path = write_released(tensors, tmp_path / "x.pt", loss=float("nan"), best=np.float32("inf"))
    facts = import_released(path, config, str(text)).record.imported.facts
    assert (facts["loss"], facts["best"]) == ("nan", "inf")


def test_a_bare_state_dict_is_read_too(tmp_path, text, config, tensors):
    torch.save(tensors, tmp_path / "bare.pt")
    assert import_released(tmp_path / "bare.pt", config, str(text)).record.imported.facts == {}


def test_numbers_written_by_numpy_1_are_read(tmp_path, tensors):
    path = write_released(tensors, tmp_path / "new.pt")
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar" in content
                content = content.replace(b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar")
            target.writestr(name, content)
    assert read_released(old)[1] == read_released(path)[1]


# ---------------------------------------------------------------- what does not fit
def test_every_tensor_that_does_not_fit_is_listed_with_what_the_file_is(tmp_path, text, config, tensors):
    del tensors["text_encoder.proj.2.weight"]
    tensors["visual.proj"] = tensors["visual.proj"][:, :7]
    tensors["text_decoder.weight"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        import_released(write_released(tensors, tmp_path / "x.pt"), config, str(text))
    for line in ("text.proj.2.weight: missing", "visual.proj: shape (32, 7), expected (32, 16)",
                 "text_decoder.weight: the model has no such tensor", "vision tower: width 32, patches of 16 pixels"):
        assert line in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_files_that_are_no_checkpoint_are_said(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as tensors") as refusal:
        read_released(tmp_path / "x.pt")
    assert "weights_only" not in str(refusal.value), "torch's own advice would run what is in the file"


def test_a_checkpoint_without_tensors_is_said(tmp_path):
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="epoch is no tensor"):
        read_released(tmp_path / "x.pt")
    with pytest.raises(UserError, match="is no file"):
        read_released(tmp_path / "absent.pt")


# ---------------------------------------------------------------- nothing is run
class Payload:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_planted_payload_is_refused_and_not_run(tmp_path, text, tensors):
    path = write_released(tensors, tmp_path / "evil.pt", optimizer=Payload(tmp_path / "planted"))
    with pytest.raises(UserError, match=r"was not unpickled: posix\.mkdir|nt\.mkdir"):
        read_released(path)
    assert not (tmp_path / "planted").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "planted").exists(), "the payload works where nobody takes care"


def test_arrays_of_objects_are_not_unpickled_either(tmp_path, tensors):
    path = write_released(tensors, tmp_path / "x.pt", more=np.array([Payload(tmp_path / "planted")], object))
    with pytest.raises(UserError, match="was not unpickled"):
        read_released(path)
    assert not (tmp_path / "planted").exists()


def test_the_allowed_names_are_allowed_only_while_a_checkpoint_is_read(tmp_path, tensors):
    before = set(map(str, torch.serialization.get_safe_globals()))
    read_released(write_released(tensors, tmp_path / "x.pt"))
    assert set(map(str, torch.serialization.get_safe_globals())) == before


# ---------------------------------------------------------------- the command
def write_config(config, path):
    path.write_text(json.dumps({"model_cfg": config.model_dump(exclude_none=True)}))
    return path


def test_the_command_writes_a_model_that_loads_anywhere(tmp_path, text, config, tensors, capsys):
    path = write_released(tensors, tmp_path / "unimed.pt")
    out = tmp_path / "model"
    assert import_unimed(path, output=out, text=str(text), config=str(write_config(config, tmp_path / "c.json"))) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{len(tensors)} tensors of unimed\.pt, all of them fit", shown) and "NC" in shown
    shutil.rmtree(text)
    ids = torch.tensor([[2, 9, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(load_model(out).network.encode_text(ids), text_formula(tensors, ids), atol=2e-5,
                                   rtol=1e-4)
    with pytest.raises(UserError, match="holds a model already"):
        import_unimed(path, output=out, text=str(text), config=str(tmp_path / "c.json"))


def test_a_malicious_file_is_a_users_error_and_nothing_is_written(tmp_path, text, config, tensors):
    path = write_released(tensors, tmp_path / "evil.pt", optimizer=Payload(tmp_path / "planted"))
    c = str(write_config(config, tmp_path / "c.json"))
    with pytest.raises(UserError, match="can run any code"):  # the command line ends with status 2 on a UserError
        import_unimed(path, output=tmp_path / "model", text=str(text), config=c)
    assert not (tmp_path / "planted").exists() and not (tmp_path / "model").exists()
