"""A CLIP of an image and a text tower: assembled by open_clip, started, saved and loaded, always strictly."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoseg.errors import UserError, all_of
from autoseg.records import file_sha256, read_record, write_json, write_record
from vlm.model.libraries import import_open_clip
from vlm.model.records import (
    ClipConfig,
    InitialWeights,
    ModelRecord,
    OpenClipFile,
    PreprocessConfig,
    TowerStart,
)
from vlm.model.tensor_files import load_exactly, read_tensors, weights_sha256, write_tensors
from vlm.model.text_folder import (
    TOKENIZER_FILES,
    copy_text_files,
    find_text_folder,
    load_text_weights,
    text_sha256,
)
from vlm.model.tokenizer import Tokenizer
from vlm.model.vision_weights import load_vision_weights

WEIGHTS_NAME, CONFIG_NAME, RECORD_NAME, TEXT_NAME = (
    "open_clip_model.safetensors", "open_clip_config.json", "model.json", "text")
USUAL_LOGIT_SCALE = math.log(1 / 0.07)
"""open_clip's, and CLIP's own."""


@dataclass(frozen=True)
class ClipModel:
    """A network (open_clip.CustomTextCLIP), what it was built from, how its weights came to be, and its tokenizer."""

    network: nn.Module
    config: ClipConfig
    record: ModelRecord
    tokenizer: Tokenizer


# ---------------------------------------------------------------- new models
def new_model(
    config: ClipConfig,
    *,
    vision: str | None = None,
    text: str | None = None,
    seed: int,
    preprocess: PreprocessConfig | None = None,
    keep_temperature: bool = False,
) -> tuple[ClipModel, InitialWeights]:
    """A model whose towers start from given weights, or by chance.

    Parameters
    ----------
    vision : file or folder with a CLIP of the same vision tower (MetaCLIP): its `visual.*` tensors are taken, the
        position embedding resized to the image. None: by chance.
    text : folder, hub id or "package:NAME" of a text model: config, tokenizer and weights are taken from it. None:
        config and tokenizer from `config.text_cfg`, weights by chance.
    seed : of all that starts by chance; the same whichever towers are loaded.
    preprocess : how pictures become input.
    keep_temperature : take the logit_scale of the `vision` checkpoint too, as UniMed-CLIP's training does.

    Raises
    ------
    UserError : something is not there, or weights do not fit (every tensor that differs is listed).
    """
    text_cfg = config.text_cfg
    folder = find_text_folder(text or text_cfg.hf_model_name, with_weights=text is not None)
    tokenizer = Tokenizer(folder if text else find_text_folder(text_cfg.hf_tokenizer_name), text_cfg.context_length)
    network: Any = build_network(config, folder, seed)
    refuse_other_words(network.text.config, tokenizer)
    vision_start, scale = TowerStart(source="random"), None
    if vision is not None:
        vision_start, scale = load_vision_weights(network.visual, Path(vision))
    text_start = TowerStart(source="random")
    if text is not None:
        start = load_text_weights(network.text.transformer, folder, Path(text).name if Path(text).is_dir() else text)
        projection = tuple(name for name in network.text.state_dict() if name.startswith("proj."))
        text_start = start.model_copy(update={"new": projection})
    if keep_temperature:
        if scale is None:
            raise UserError(f"the temperature of {vision} was asked for, but no logit_scale is in it.\n"
                            "Give a CLIP's checkpoint for the vision tower, or do not ask for its temperature.")
        with torch.no_grad():
            network.logit_scale.fill_(scale)
    initial = InitialWeights(vision=vision_start, text=text_start, logit_scale=network.logit_scale.item(), seed=seed)
    record = ModelRecord(
        name="untrained", vocabulary_sha256=tokenizer.vocabulary_sha256(), image_size=config.vision_cfg.image_size,
        preprocess=preprocess or PreprocessConfig(), context_length=config.text_cfg.context_length,
        dimension=config.embed_dim, initial=initial)
    return ClipModel(network, config, record, tokenizer), initial


def build_network(config: ClipConfig, text_folder: Path, seed: int = 0) -> nn.Module:
    """open_clip's network of an architecture, all weights by chance; only config.json is read of the text folder."""
    open_clip = import_open_clip()
    cfg = config.model_dump(exclude_none=True)
    cfg["text_cfg"] |= {"hf_model_name": str(text_folder), "hf_tokenizer_name": str(text_folder),
                        "hf_model_pretrained": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = open_clip.CustomTextCLIP(**cfg)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise UserError(f"{text_folder}: open_clip cannot build a text tower from its config.json: {what}\n"
                            "Give a BERT-type text model of the transformers library.") from None
    return network


def refuse_other_words(config: Any, tokenizer: Tokenizer) -> None:
    """UserError unless a text tower's config and its tokenizer agree on padding and on the number of words."""
    remedy = "Give the tokenizer that belongs to the text tower."
    if config.pad_token_id != tokenizer.pad_id:
        raise UserError(f"{tokenizer.folder}: the tokenizer pads with {tokenizer.pad_id}, the text tower's config.json "
                        f"says {config.pad_token_id}: padding would be read as words.\n{remedy}")
    if tokenizer.size > config.vocab_size:
        raise UserError(f"{tokenizer.folder}: the tokenizer has {tokenizer.size} words, the text tower "
                        f"{config.vocab_size}.\n{remedy}")


# ---------------------------------------------------------------- model folders
def save_model(model: ClipModel, folder: Path) -> ModelRecord:
    """Write a model folder, the record last; returns the record with the weights' hash.

    Stock open_clip loads it as "local-dir:." from within the folder: it takes the text tower's path as it stands.
    """
    copy_text_files(model.tokenizer.folder, folder / TEXT_NAME)
    # open_clip looks for a local model's tokenizer beside its weights, wherever the config says it is.
    copy_text_files(folder / TEXT_NAME, folder, TOKENIZER_FILES)
    sha256 = write_tensors(model.network.state_dict(), folder / WEIGHTS_NAME)
    named = {"hf_model_name": TEXT_NAME, "hf_tokenizer_name": TEXT_NAME}
    config = model.config.model_copy(update={"text_cfg": model.config.text_cfg.model_copy(update=named)})
    content = OpenClipFile(model_cfg=config, preprocess_cfg=model.record.preprocess)
    # open_clip knows no null: a field that is not given has its default.
    write_json(content.model_dump(mode="json", exclude_none=True), folder / CONFIG_NAME)
    record = model.record.model_copy(update={
        "weights_sha256": sha256, "config_sha256": file_sha256(folder / CONFIG_NAME),
        "text_sha256": text_sha256(folder / TEXT_NAME)})
    write_record(record, folder / RECORD_NAME)
    return record


def load_model(folder: Path, device: str | torch.device = "cpu") -> ClipModel:
    """The model of a folder that `save_model` wrote, for inference.

    Raises
    ------
    UserError : a file is missing or damaged, weights, words or architecture are not those of the record, or tensors do
        not fit.
    """
    record, config = read_model_files(folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise UserError(f"{path} does not exist; the model's weights were expected there.\nCopy the complete folder.")
    refuse_other_hash(path, weights_sha256(path), record.weights_sha256)
    tokenizer = Tokenizer(folder / TEXT_NAME, config.text_cfg.context_length)
    refuse_other_hash(folder / TEXT_NAME, tokenizer.vocabulary_sha256(), record.vocabulary_sha256)
    network: Any = build_network(config, folder / TEXT_NAME)
    refuse_other_words(network.text.config, tokenizer)
    load_exactly(network, read_tensors(path), str(path), "Copy the model folder again as it was written.")
    return ClipModel(network.to(device).eval(), config, record, tokenizer)


def read_model_files(folder: Path) -> tuple[ModelRecord, ClipConfig]:
    """The record and the architecture of a model folder of ours; UserError where one of its files was edited."""
    record = read_record(ModelRecord, folder / RECORD_NAME, "Give a model folder that vlm wrote (vlm train).")
    path = folder / CONFIG_NAME
    file = read_record(OpenClipFile, path, "Copy the complete model folder again.")
    if record.config_sha256 is not None:
        refuse_other_hash(path, file_sha256(path), record.config_sha256)
    if record.text_sha256 is not None:
        refuse_other_hash(folder / TEXT_NAME, text_sha256(folder / TEXT_NAME), record.text_sha256)
    config = file.model_cfg
    told = {"image_size": config.vision_cfg.image_size, "context_length": config.text_cfg.context_length,
            "dimension": config.embed_dim, "preprocess": file.preprocess_cfg}
    if other := [f"{name}: {getattr(record, name)} and {value}" for name, value in told.items()
                 if getattr(record, name) != value]:
        raise all_of(other, f"{folder}: {RECORD_NAME} and {CONFIG_NAME} say different things:",
                     "Copy the complete folder again, or make it anew.")
    return record, config


def refuse_other_hash(path: Path, found: str, written: str | None, record: str = RECORD_NAME) -> None:
    """UserError unless what lies at `path` has the hash that a record was written with."""
    if found != written:
        raise UserError(f"{path} (SHA-256 {found[:12]}…) is not what {record} was written for "
                        f"({(written or 'none')[:12]}…).\nCopy the complete folder again, or make it anew.")
