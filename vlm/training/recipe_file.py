"""Writing a recipe as TOML, so that a model's folder says by itself how it was trained."""

import json
from collections.abc import Mapping
from pathlib import Path

from autoseg.records import replacing
from vlm.training.settings import Recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe; `read_recipe` gives it back."""
    with replacing(path) as temporary:
        temporary.write_text("\n".join(toml_lines(recipe.model_dump(mode="json", exclude_none=True))) + "\n",
                             encoding="utf-8")


def toml_lines(content: Mapping[str, object], section: str = "") -> list[str]:
    """A table of strings, numbers, booleans, lists of these, and such tables."""
    lines = [f"{_key(name)} = {_value(value)}" for name, value in content.items() if not isinstance(value, dict)]
    if section and lines:
        lines = ["", f"[{section}]", *lines]
    for name, value in content.items():
        if isinstance(value, dict):
            lines += toml_lines(value, f"{section}.{_key(name)}" if section else _key(name))
    return lines


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _value(value: object) -> str:
    # JSON's strings, numbers and lists are TOML's, with plain characters.
    return json.dumps(value)
