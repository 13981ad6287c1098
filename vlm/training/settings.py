"""A recipe: every choice that shapes a training, in one TOML file; unknown keys and impossible combinations refused."""

import math
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoseg.errors import UserError
from autoseg.records import Record, content_hash, parse_toml

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CaptionPolicyName = Literal["uniform", "first", "mixture"]
LossName = Literal["infonce", "siglip", "multi_positive"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
AttentionChoice = Literal["auto", "fused", "plain"]

GIVEN = "given"
"""Said of a tower's first weights: they are not ours to name, and have to be given on the command line."""


class ModelChoice(Record):
    """config : a name in presets/vlm/models or a JSON file. checkpoint_activations : compute them twice, keep few."""

    config: str
    checkpoint_activations: bool = False


class InitialChoice(Record):
    """First weights of each tower: "random", "given", a file, a folder, a hub id, or "package:NAME".

    vision_note : what "given" asks for, in words. keep_temperature : begin with the temperature of the vision weights.
    """

    vision: str = "random"
    text: str = "random"
    vision_note: str = ""
    keep_temperature: bool = False

    @model_validator(mode="after")
    def _is_possible(self) -> "InitialChoice":
        if self.keep_temperature and self.vision == "random":
            raise ValueError("keep_temperature needs vision weights to take it from")
        return self


class Rates(Record):
    """Largest learning rates: of loaded tensors of either tower, and of everything that starts by chance."""

    vision: Positive
    text: Positive
    new: Positive


class Optimization(Record):
    """AdamW with a warm-up and a cosine to zero.

    learning_rate : of all tensors; or `rates` per tower. weight_decay : not of norms, biases and the logit scale.
    warmup_steps : or `warmup_share` of the schedule. epochs : or `steps` in all. batch_size : pairs of one update, over
    all processes. chunk_size : pairs of one forward pass; a larger batch is computed in chunks, with the same
    gradients. gradient_clip : largest norm of all gradients together; None: no clipping. ema_decay : of the
    average of weights that becomes the model; None: the last weights do. frozen : tensors whose names begin like
    this keep their first values. precision, attention : `auto` measures on a CPU what is fastest, so that two runs of
    one seed may differ in rounding; name them where they must not.
    """

    learning_rate: Positive | None = None
    rates: Rates | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Positive = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    epochs: Count = 10
    steps: Count | None = None
    batch_size: Annotated[int, Field(ge=2)]
    chunk_size: Count | None = None
    gradient_clip: Positive | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    frozen: tuple[str, ...] = ()
    precision: PrecisionChoice = "auto"
    attention: AttentionChoice = "auto"
    checkpoint_minutes: Positive = 5.0

    @model_validator(mode="after")
    def _is_possible(self) -> "Optimization":
        if (self.learning_rate is None) == (self.rates is None):
            raise ValueError("either learning_rate or the section rates (vision, text, new) was expected")
        if (self.warmup_steps is None) == (self.warmup_share is None):
            raise ValueError("either warmup_steps or warmup_share was expected")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; two numbers from 0 to below 1 were expected")
        return self


class CaptionChoice(Record):
    """Which of a pair's captions is read in a visit.

    uniform : each equally often. first : always the first. mixture : with probability `report_p` the radiologist's
    report where the pair has one, else one of its other captions. sources : source → policy, where it differs.
    """

    policy: CaptionPolicyName = "uniform"
    report_p: Share | None = None
    sources: dict[str, CaptionPolicyName] = {}

    @model_validator(mode="after")
    def _is_possible(self) -> "CaptionChoice":
        mixes = "mixture" in (self.policy, *self.sources.values())
        if mixes and self.report_p is None:
            raise ValueError("policy mixture needs report_p, the probability of a pair's report")
        if not mixes and self.report_p is not None:
            raise ValueError("report_p is given, but no policy is mixture")
        return self


class Augmentation(Record):
    """What is done to an image at random. There is no flip: captions say left and right.

    crop_scale : area of the crop, as a share of the image. crop_ratio : width / height of the crop. rotation_degrees :
    to either side. brightness, contrast : 0.1 is a factor from 0.9 to 1.1.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation_degrees: Annotated[float, Field(ge=0, le=45)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _is_possible(self) -> "Augmentation":
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; [smallest, largest] within 0 to 1 was expected")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise ValueError(f"crop_ratio is {list(self.crop_ratio)}; [smallest, largest] above 0 was expected")
        return self


class DataChoice(Record):
    """How pairs are drawn and read.

    alpha : a source of n pairs is drawn in proportion to n^alpha; 1: by size, 0: all sources equally. weights :
    source → weight, instead of alpha. padding : of texts, to the longest of a group or to the whole context; the
    embeddings are the same. share_captions : a caption that several images of a batch have is computed once.
    shuffle_window : pairs of a source among which the order is free; larger sources are read in blocks.
    """

    alpha: Share | None = None
    weights: dict[str, Positive] | None = None
    padding: Literal["longest", "full"] = "longest"
    share_captions: bool = True
    shuffle_window: Annotated[int, Field(ge=1)] = 50_000
    captions: CaptionChoice = CaptionChoice()
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _is_possible(self) -> "DataChoice":
        if (self.alpha is None) == (self.weights is None):
            raise ValueError("either alpha or the section weights (source = weight) was expected")
        return self


class LossChoice(Record):
    """infonce: each caption belongs to its image alone. siglip: a sigmoid for every image and caption. multi_positive:
    pairs of equal captions, or of one source with equal labels, belong to each other.
    """

    name: LossName


class ValidationChoice(Record):
    """every_steps : between two validations; or `times` in all, evenly. pairs : at most so many of the val split."""

    every_steps: Count | None = None
    times: Count | None = None
    pairs: Annotated[int, Field(ge=2)] = 2000

    @model_validator(mode="after")
    def _is_possible(self) -> "ValidationChoice":
        if (self.every_steps is None) == (self.times is None):
            raise ValueError("either every_steps or times was expected")
        return self


class Recipe(Record):
    """presets/vlm/recipes/<name>.toml, or a user's own file."""

    title: str
    model: ModelChoice
    initial: InitialChoice = InitialChoice()
    optimization: Optimization
    data: DataChoice
    loss: LossChoice
    validation: ValidationChoice

    @property
    def hash(self) -> str:
        """Eight digits of all choices; the title is none."""
        return content_hash(self.model_dump(mode="json", exclude={"title"}))

    @model_validator(mode="after")
    def _is_possible(self) -> "Recipe":
        steps, warmup = self.optimization.steps, self.optimization.warmup_steps
        if steps is not None and warmup is not None and warmup >= steps:
            raise ValueError(f"the warm-up of {warmup} steps leaves none of the {steps} steps")
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by name or from a TOML file; one UserError with every key that is unknown, missing or impossible."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return parse_toml(Recipe, path.read_text(encoding="utf-8"), path)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; a recipe was expected.\nGive a TOML file or one of: "
                            f"{', '.join(recipe_names())}.") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text; a recipe in TOML (UTF-8) was expected.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if name not in recipe_names():
        raise UserError(f"--recipe {name}: there is no such recipe. Known: {', '.join(recipe_names())}; "
                        "or give the path of a .toml file.")
    text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    return parse_toml(Recipe, text, Path(f"presets/vlm/recipes/{name}.toml"))


def _folder() -> resources.abc.Traversable:
    return resources.files("presets") / "vlm" / "recipes"
