"""The text tower of a model folder → a folder of its own, which needs neither open_clip nor a network."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from autoseg.errors import UserError
from autoseg.records import parse_record, read_record, write_record
from vlm.export.records import Pooling, TextTowerRecord
from vlm.export.towers import TOWER_RECORD, TOWER_WEIGHTS, build_tower
from vlm.model.clip import (
    CONFIG_NAME,
    RECORD_NAME,
    TEXT_NAME,
    WEIGHTS_NAME,
    read_model_files,
    refuse_other_hash,
)
from vlm.model.records import ForeignOpenClipFile, ModelRecord, Pooler, TextConfig
from vlm.model.tensor_files import load_exactly, read_tensors, weights_file, weights_sha256, write_tensors
from vlm.model.text_folder import CONFIG_NAME as TEXT_CONFIG
from vlm.model.text_folder import TOKENIZER_FILES, copy_text_files, text_sha256
from vlm.model.tokenizer import Tokenizer

POOLINGS: dict[Pooler, Pooling] = {"cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean"}
TEXT_PREFIX = "text."
KEPT = ("name", "initial", "imported", "training", "licence")
"""Of the model's record: how the weights came to be."""


@dataclass(frozen=True)
class _Source:
    """What a model folder says about its text tower. weights : the model's file. record : None where not of ours."""

    config: TextConfig
    dimension: int
    text_folder: Path
    tokenizer_folder: Path
    weights: Path
    record: ModelRecord | None


def export_text(model: Path, output: Path) -> TextTowerRecord:
    """Write the text tower of a model folder; returns its record.

    Parameters
    ----------
    model : a folder of ours, or one of open_clip with a text tower of transformers (its config and tokenizer in the
        folder or in its subfolder `text`).

    Raises
    ------
    UserError : the folder is no such model, its weights are not those of its record, or tensors do not fit.
    """
    source = _read_source(model)
    if not source.weights.is_file():
        raise UserError(f"{source.weights} does not exist; the model's weights were expected there.\n"
                        "Copy the complete folder.")
    sha256 = weights_sha256(source.weights)
    if source.record is not None:
        refuse_other_hash(source.weights, sha256, source.record.weights_sha256)
    tokenizer = Tokenizer(source.tokenizer_folder, source.config.context_length)
    tensors = _text_tensors(source.weights)
    pooling, projection = POOLINGS[source.config.hf_pooler_type], source.config.hf_proj_type
    network = build_tower(source.text_folder, pooling, projection, source.dimension)
    load_exactly(network, tensors, str(source.weights), "Give the text folder that belongs to these weights.")
    copy_text_files(source.text_folder, output / TEXT_NAME, (TEXT_CONFIG,))
    copy_text_files(source.tokenizer_folder, output / TEXT_NAME, TOKENIZER_FILES)
    told = {} if source.record is None else source.record.model_dump(include=set(KEPT))
    record = TextTowerRecord(**{"name": model.resolve().name} | told, pooling=pooling, projection=projection,
                             weights_sha256=write_tensors(tensors, output / TOWER_WEIGHTS), model_sha256=sha256,
                             vocabulary_sha256=tokenizer.vocabulary_sha256(),
                             text_sha256=text_sha256(output / TEXT_NAME), dimension=source.dimension,
                             context_length=source.config.context_length)
    write_record(record, output / TOWER_RECORD)
    return record


def _read_source(folder: Path) -> _Source:
    if (folder / RECORD_NAME).is_file():
        record, ours = read_model_files(folder)
        text = folder / TEXT_NAME
        return _Source(ours.text_cfg, ours.embed_dim, text, text, folder / WEIGHTS_NAME, record)
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{folder} holds no model: neither {RECORD_NAME} (of vlm train) nor {CONFIG_NAME} (of "
                        "open_clip) is there.\nGive the folder of a model.")
    model_cfg = read_record(ForeignOpenClipFile, folder / CONFIG_NAME).model_cfg
    text_cfg = model_cfg.get("text_cfg")
    named = text_cfg if isinstance(text_cfg, dict) else {}
    if not named.get("hf_model_name"):
        raise UserError(f"{folder / CONFIG_NAME}: its text tower is not one of the transformers library; only such "
                        "towers can be exported.")
    given = {key: value for key, value in named.items() if key in TextConfig.model_fields}
    config = parse_record(TextConfig, {"hf_tokenizer_name": given["hf_model_name"], "hf_proj_type": "mlp", **given},
                          folder / CONFIG_NAME)
    here = [place for place in (folder / TEXT_NAME, folder) if (place / TEXT_CONFIG).is_file()]
    if not here:
        raise UserError(f"{folder}: the config of its text tower {config.hf_model_name} is not here.\n"
                        f"Put its config.json and tokenizer files into {folder / TEXT_NAME}.")
    dimension = model_cfg.get("embed_dim")
    if not isinstance(dimension, int) or dimension < 1:
        raise UserError(f"{folder / CONFIG_NAME}: embed_dim is {dimension!r}; the number of an embedding's dimensions "
                        "was expected.\nCopy the model's folder again.")
    return _Source(config, dimension, here[0], folder, weights_file(folder), None)


def _text_tensors(path: Path) -> dict[str, Tensor]:
    tensors = {name.removeprefix(TEXT_PREFIX): value for name, value in read_tensors(path).items()
               if name.startswith(TEXT_PREFIX) and not name.endswith("position_ids")}
    if not tensors:
        raise UserError(f"{path} holds no text tower: no tensor is called {TEXT_PREFIX}….")
    return tensors
