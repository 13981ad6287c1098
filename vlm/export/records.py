"""tower.json: what belongs to the weights of an exported text tower."""

from typing import Annotated, Literal

from pydantic import Field

from autoseg.records import ForeignRecord, Record
from vlm.model.records import ImportFacts, InitialWeights, Projection, TrainingFacts
from vlm.schema import Hex64

Pooling = Literal["cls", "mean"]


class TextTowerRecord(Record):
    """A text tower without its image tower; everything that encoding a sentence needs stands here or in `text`.

    weights_sha256 : of the tower's weights.safetensors. model_sha256 : of the whole model that it was taken from.
    text_sha256 : of the config and tokenizer in `text`; None in folders of the first version.
    pooling : which vector stands for a text: that of the first token, or the mean over all tokens.
    context_length : tokens. dimension : of an embedding.
    initial, imported, training : as in the model's record: how the weights came to be.
    """

    format: Literal["vlm text tower 1"] = "vlm text tower 1"
    name: str
    weights_sha256: Hex64
    model_sha256: Hex64
    vocabulary_sha256: Hex64
    text_sha256: Hex64 | None = None
    pooling: Pooling
    projection: Projection
    context_length: Annotated[int, Field(ge=8)]
    dimension: Annotated[int, Field(ge=1)]
    initial: InitialWeights | None = None
    imported: ImportFacts | None = None
    training: TrainingFacts | None = None
    licence: str = "not stated"


class PoolingFile(ForeignRecord):
    """1_Pooling/config.json of a sentence-transformers folder."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode: str | None = None


class SentenceFile(ForeignRecord):
    """sentence_bert_config.json of a sentence-transformers folder."""

    max_seq_length: Annotated[int, Field(ge=8)] | None = None
