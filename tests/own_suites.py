"""A suite of a user's own, and a model that tells its two shapes apart by color."""

import json

import numpy as np
from evaluation_layouts import FakeEmbedder

from vlm.corpus.evaluation_sets import ImageListing
from vlm.evaluation.suite_files import read_suite
from vlm.evaluation.suite_records import Suite, SuiteSet


def own_plan(**changes):
    """A completed set of a user's own: shapes told apart by color."""
    return SuiteSet(**{"name": "shapes", "modality": "CT", "classes": ("round", "square"), "folder": "shapes",
                       "listing": ImageListing(glob=("*/*.png",)),
                       "prompts": {"round": ("a round shape",), "square": ("a square shape",)}, **changes})


def completed(tmp_path, *sets):
    """(suite, plans) as from a user's file."""
    suite = Suite(name="own", sets=sets)
    content = json.loads(suite.model_dump_json(exclude_none=True, exclude_defaults=True))
    path = tmp_path / "own.toml"
    path.write_text("\n".join(_toml(content)), encoding="utf-8")
    return read_suite(str(path))


def _toml(content):
    yield f'name = "{content["name"]}"'
    for one in content["sets"]:
        yield "[[sets]]"
        for key, value in one.items():
            yield f"{key} = {_inline(value)}"


def _inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_inline(cell)}" for key, cell in value.items()) + " }"
    return json.dumps(value)


SHAPES = FakeEmbedder({0: np.array([1.0, 0.0]), 1: np.array([0.0, 1.0]), 2: np.array([0.6, 0.8])},
                      {"a round shape": np.array([1.0, 0.0]), "a square shape": np.array([0.0, 1.0])})
