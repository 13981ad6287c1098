"""Images and texts to unit vectors, for any CLIP in a folder: ours, or one that stock open_clip loads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.records import content_hash, read_record
from vlm.model.clip import CONFIG_NAME, RECORD_NAME, TEXT_NAME, ClipModel, load_model
from vlm.model.images import ImageTransform, image_transform
from vlm.model.libraries import import_open_clip
from vlm.model.records import ForeignOpenClipFile, ModelRecord
from vlm.model.tensor_files import load_exactly, read_tensors, weights_file, weights_sha256
from vlm.model.text_folder import find_text_folder
from vlm.model.tokenizer import Tokenizer

Item = TypeVar("Item")
Tokenize = Callable[[Sequence[str]], Int64[Tensor, "text token"]]

OPEN_CLIP_CONTEXT = 77
"""Tokens, where a model's config names no context_length."""
IMAGES_PER_BATCH, TEXTS_PER_BATCH = 64, 256
"""On a CPU larger batches are not faster; on a GPU reading and resizing the pictures takes longer than embedding."""


@dataclass(frozen=True)
class Embedder:
    """A CLIP ready to embed.

    identity : SHA-256 of its weights. architecture : digits of its config's content: the same weights in another
    architecture (another activation) give other embeddings. name : of the model. record : None for a model that we did
    not write.
    dimension : of an embedding. logit_scale : factor of a cosine in a logit (the temperature's inverse).
    transform : picture → tensor. tokenize : texts → token numbers. count_truncated : texts that `tokenize` cuts.
    """

    identity: str
    architecture: str
    name: str
    record: ModelRecord | None
    dimension: int
    logit_scale: float
    device: torch.device
    network: nn.Module
    transform: ImageTransform
    tokenize: Tokenize
    count_truncated: Callable[[Sequence[str]], int]

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "image dimension"]:
        """Unit vectors in float32 on the CPU."""
        rows = [self.embed_pixels(torch.stack([self.transform(image) for image in batch]))
                for batch in _batches(images, IMAGES_PER_BATCH)]
        return torch.cat(rows) if rows else torch.empty(0, self.dimension)

    @torch.inference_mode()
    def embed_pixels(self, pixels: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image dimension"]:
        """As `encode_images`, for pictures that went through `transform` already."""
        network: Any = self.network
        features: Tensor = F.normalize(network.encode_image(pixels.to(self.device)).float(), dim=-1).cpu()
        return features

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "text dimension"]:
        """Unit vectors in float32 on the CPU; what is longer than the context is cut (`count_truncated`)."""
        network: Any = self.network
        # Texts of like length together: padding is then short. The order of the results is that of the texts.
        order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
        result = torch.empty(len(texts), self.dimension)
        for batch in _batches(order, TEXTS_PER_BATCH):
            ids = self.tokenize([texts[position] for position in batch])
            result[list(batch)] = F.normalize(network.encode_text(ids.to(self.device)).float(), dim=-1).cpu()
        return result


def open_embedder(path: Path, device: str | torch.device = "cpu") -> Embedder:
    """The model of a folder: one of ours, or any that stock open_clip loads as "local-dir:PATH".

    Raises
    ------
    UserError : the folder holds no such model, or its tensors do not fit its architecture.
    """
    if (path / RECORD_NAME).is_file():
        return embedder_of(load_model(path, device), device)
    if (path / CONFIG_NAME).is_file():
        return _open_foreign(path, torch.device(device))
    raise UserError(f"{path} holds no model: neither {RECORD_NAME} (of vlm train) nor {CONFIG_NAME} (of open_clip) is "
                    "there.\nGive the folder of a model.")


def embedder_of(model: ClipModel, device: str | torch.device = "cpu") -> Embedder:
    """An embedder of a model in memory, which is switched to inference; `identity` is "" for one never saved."""
    network: Any = model.network.to(device).eval()
    tokenize, count_truncated = _with_tokenizer(model.tokenizer)
    return Embedder(
        identity=model.record.weights_sha256 or "", architecture=content_hash(model.config.model_dump(mode="json")),
        name=model.record.name, record=model.record, dimension=model.config.embed_dim,
        logit_scale=network.logit_scale.exp().item(), device=torch.device(device), network=network,
        transform=image_transform(model.record), tokenize=tokenize, count_truncated=count_truncated)


def _open_foreign(path: Path, device: torch.device) -> Embedder:
    """A model of open_clip's own form. Its weights are read without unpickling code, and all of them must fit."""
    open_clip = import_open_clip()
    file = read_record(ForeignOpenClipFile, path / CONFIG_NAME)
    weights = weights_file(path)
    changes = _text_changes(path, file)
    try:
        network, _, transform = open_clip.create_model_and_transforms(
            f"local-dir:{path}", load_weights=False, pretrained_text=False, **changes)
        _load_foreign(network, weights)
        tokenize, count_truncated = _foreign_tokenizer(path, file)
        dimension, scale = int(str(file.model_cfg["embed_dim"])), network.logit_scale.exp().item()
    except UserError:
        raise
    except Exception as error:  # open_clip, transformers, timm and torch have no error class in common
        raise UserError(f"{path}: open_clip cannot load this model: {type(error).__name__}: {str(error)[:1000]}\n"
                        "Give a complete folder: open_clip_config.json, weights and tokenizer files.") from None

    def apply(image: Image.Image) -> Float[Tensor, "3 y x"]:
        tensor: Tensor = transform(image.convert("RGB"))
        return tensor

    return Embedder(
        identity=weights_sha256(weights), architecture=content_hash(file.model_cfg), name=path.resolve().name,
        record=None, dimension=dimension, logit_scale=scale, device=device, network=network.to(device).eval(),
        transform=apply, tokenize=tokenize, count_truncated=count_truncated)


def _load_foreign(network: Any, weights: Path) -> None:
    """As open_clip.load_checkpoint, but position embeddings of another size are refused where it resizes them."""
    from open_clip.factory import convert_state_dict, convert_to_custom_text_state_dict

    tensors: dict[str, Tensor] = convert_state_dict(network, read_tensors(weights))
    if "positional_embedding" in tensors and not hasattr(network, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    expected = network.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and name in expected and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(expected[name].shape)
    kept = {name: value for name, value in tensors.items()
            if name in expected or not name.endswith("embeddings.position_ids")}
    load_exactly(network, kept, str(weights), "Give the weights that belong to open_clip_config.json.")


def _text_changes(path: Path, file: ForeignOpenClipFile) -> dict[str, Any]:
    """The text tower's place for open_clip: its config in this folder where it is there, else where the file says."""
    text_cfg = file.model_cfg.get("text_cfg")
    if not isinstance(text_cfg, dict) or not text_cfg.get("hf_model_name"):
        return {}
    named = str(text_cfg["hf_model_name"])
    here = [folder for folder in (path / TEXT_NAME, path) if (folder / "config.json").is_file()]
    try:
        folder = here[0] if here else find_text_folder(named)
    except UserError as error:
        raise UserError(f"{path}: the config of its text tower {named} is not here. {error}\n"
                        f"Put {named}'s config.json into {path / TEXT_NAME}.") from None
    return {"text_cfg": {**text_cfg, "hf_model_name": str(folder), "hf_model_pretrained": False}}


def _foreign_tokenizer(path: Path, file: ForeignOpenClipFile) -> tuple[Tokenize, Callable[[Sequence[str]], int]]:
    """Ours for text towers of transformers, which mask padding; else open_clip's, padded to the context."""
    text_cfg = file.model_cfg.get("text_cfg")
    cfg: dict[str, Any] = text_cfg if isinstance(text_cfg, dict) else {}
    if cfg.get("hf_model_name") and cfg.get("hf_tokenizer_name") and not (
            cfg.get("tokenizer_mode") or cfg.get("tokenizer_kwargs")):
        return _with_tokenizer(Tokenizer(path, int(cfg.get("context_length", OPEN_CLIP_CONTEXT))))
    tokenizer = import_open_clip().get_tokenizer(f"local-dir:{path}")
    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0

    def tokenize(texts: Sequence[str]) -> Int64[Tensor, "text token"]:
        ids: Tensor = tokenizer(list(texts)).long()
        return ids

    def count_truncated(texts: Sequence[str]) -> int:
        # With one more place, only texts that do not fit the context reach the last one.
        longer = tokenizer(list(texts), context_length=tokenizer.context_length + 1)
        return int((longer[:, -1] != padding).sum())

    return tokenize, count_truncated


def _with_tokenizer(tokenizer: Tokenizer) -> tuple[Tokenize, Callable[[Sequence[str]], int]]:
    def tokenize(texts: Sequence[str]) -> Int64[Tensor, "text token"]:
        return tokenizer.encode(texts).ids

    def count_truncated(texts: Sequence[str]) -> int:
        return tokenizer.encode(texts).truncated if texts else 0

    return tokenize, count_truncated


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
