"""Choices of a person who builds a corpus, and presets of them."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from autoseg.errors import UserError
from autoseg.records import Record, parse_toml
from vlm.corpus.toml_files import read_toml
from vlm.schema import Slug

CaptionBackend = Literal["grammar", "endpoint", "local"]
Share = Annotated[float, Field(ge=0, lt=1)]


class CorpusPreset(Record):
    """presets/vlm/corpora/<name>.toml: which sources make a corpus, in order of preference, and how it is split.

    sources : of two equal images, the one of the earlier source is kept. val_share, test_share : of the patients whose
    split the source does not say; val_share also of those that it says to be in train, unless it names its own
    validation images. long_side : larger images are made smaller (pixels); None keeps every file as it is.
    """

    title: str
    sources: tuple[Slug, ...]
    val_share: Share = 0.02
    test_share: Share = 0.0
    long_side: Annotated[int, Field(ge=32)] | None = None


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything but the sources that shapes a corpus.

    near_duplicates : False keeps images that look alike (equal files are always paired once).
    captions_per_label_set : sentences made from labels.
    """

    seed: int
    val_share: float
    test_share: float
    long_side: int | None = None
    pairs_per_shard: int = 1000
    captions: CaptionBackend = "grammar"
    captions_per_label_set: int = 10
    near_duplicates: bool = True


def preset_names() -> tuple[str, ...]:
    """The presets that come with the package."""
    folder = resources.files("presets") / "vlm" / "corpora"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def read_preset(name: str) -> CorpusPreset:
    """A preset by name, or from a user's TOML file. UserError naming the presets where there is none."""
    if name in preset_names():
        file = resources.files("presets") / "vlm" / "corpora" / f"{name}.toml"
        return parse_toml(CorpusPreset, file.read_text(encoding="utf-8"), Path(f"preset {name}"))
    path = Path(name)
    if path.suffix != ".toml" or not path.is_file():
        raise UserError(f"--preset {name}: neither a preset nor a TOML file. Presets: {', '.join(preset_names())}.")
    return read_toml(CorpusPreset, path, "A preset of a corpus")
