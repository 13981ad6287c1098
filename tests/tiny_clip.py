"""Tiny CLIPs made on the fly: a BERT with a small WordPiece vocabulary and a vision transformer of two layers."""

import json
import string
from pathlib import Path

import torch

from vlm.model.clip import new_model
from vlm.model.records import ClipConfig, TextConfig, VisionConfig

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "image", "shows", "a", "left", "right", "liver", "kidney", "spleen", "heart", "lung", "scan", "tumor",
         "of", "no", "with", "is", "and", "ct", "normal", "chest", "##s", "##al")


def tiny_text_folder(folder, words=(), *, layers=2, width=32, weights=False, letters=True, **config):
    """Write config.json and vocab.txt of a tiny BERT; every word is known, if only by its letters.

    weights : also random weights, as `save_pretrained` writes them. letters : False leaves most words unknown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = [*string.ascii_lowercase, *string.digits, *string.punctuation] if letters else []
    vocabulary = dict.fromkeys([*SPECIALS, *alphabet, *(f"##{one}" for one in alphabet), *WORDS, *words])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8")
    content = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(vocabulary),
               "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
               "intermediate_size": 2 * width, "max_position_embeddings": 512, "type_vocab_size": 2,
               "pad_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
               "attention_probs_dropout_prob": 0.1} | config
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer",
                                                              "do_lower_case": True}))
    if weights:
        from safetensors.torch import save_file
        from transformers import AutoConfig, AutoModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_config(text_folder, *, image_size=32, embed_dim=16, context_length=32, pooler="cls_last_hidden_state_pooler",
                vision=None, **more):
    """The architecture of a tiny CLIP; `vision` overrides fields of its vision_cfg."""
    fields = {"image_size": image_size, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    return ClipConfig(
        embed_dim=embed_dim, vision_cfg=VisionConfig(**fields | (vision or {})),
        text_cfg=TextConfig(hf_model_name=str(text_folder), hf_tokenizer_name=str(text_folder), hf_pooler_type=pooler,
                            hf_proj_type="mlp", context_length=context_length), **more)


def tiny_model(folder, *, seed=0, words=(), **config):
    """A tiny ClipModel with random weights; its text folder is written to `folder`."""
    text = tiny_text_folder(folder, words)
    model, _ = new_model(tiny_config(text, **config), seed=seed)
    return model
