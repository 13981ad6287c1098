"""Architectures by name (presets/vlm/models) or from a JSON file of open_clip's form."""

import json
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from autoseg.errors import UserError
from autoseg.records import parse_record, read_json
from vlm.model.records import ClipConfig


def model_names() -> tuple[str, ...]:
    """The architectures that come with the package."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _presets().iterdir()
                        if file.name.endswith(".json")))


def read_model_config(name_or_path: str | Path) -> ClipConfig:
    """An architecture by its name, or from a JSON file: open_clip's `model_cfg`, alone or in an open_clip_config.json.

    Raises
    ------
    UserError : there is no such name or file, or a key is missing, unknown or ill-typed. The pooler has to be named:
        open_clip's default for BERT is another one than CLIPs were published with.
    """
    if isinstance(name_or_path, str) and not name_or_path.endswith(".json") and "/" not in name_or_path:
        if name_or_path not in model_names():
            near = get_close_matches(name_or_path.lower(), model_names(), n=2, cutoff=0.4)
            meant = f"Did you mean {' or '.join(near)}? " if near else ""
            raise UserError(f"no architecture is called {name_or_path}.\n{meant}There are {', '.join(model_names())}; "
                            "or give a JSON file of open_clip's form.")
        file = _presets() / f"{name_or_path}.json"
        return parse_record(ClipConfig, json.loads(file.read_text(encoding="utf-8")), Path(file.name))
    path = Path(name_or_path)
    content = read_json(path, "Name an architecture or a JSON file of open_clip's form.")
    if isinstance(content, dict) and "model_cfg" in content:
        content = content["model_cfg"]
    return parse_record(ClipConfig, content, path, "The keys are open_clip's; see presets/vlm/models.")


def _presets() -> Traversable:
    return resources.files("presets") / "vlm" / "models"
