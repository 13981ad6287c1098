"""The scripts that make the shipped banks and the picture of their cosines."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.guidance.text_bank import read_bank, write_bank
from vlm.export.banks import control_bank

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import make_text_banks  # noqa: E402
from bank_figure import ORGANS, cosines_of, draw, figures  # noqa: E402


@pytest.fixture
def banks():
    return {kind: control_bank(ORGANS, kind, 32, 1) for kind in ("random", "orthonormal")}


def test_centering_moves_the_mean_cosine_to_that_of_a_simplex(banks):
    before, after = cosines_of(banks["orthonormal"])
    off = ~np.eye(len(ORGANS), dtype=bool)
    np.testing.assert_allclose(before, np.eye(len(ORGANS)), atol=1e-5)
    np.testing.assert_allclose(after[off], -1 / (len(ORGANS) - 1), atol=1e-5)
    told = figures(banks)["orthonormal"]
    assert told["centered"]["mean"] == pytest.approx(-1 / 12, abs=1e-3) and told["as encoded"]["mean"] == 0


def test_the_picture_has_a_column_for_each_bank(banks, tmp_path):
    draw(banks, tmp_path / "two.png")
    draw({"one": banks["random"]}, tmp_path / "one.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width > 1.4 * one.width and two.height == one.height


def test_the_largest_set_of_names_that_fits_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_text_banks, "FOLDER", tmp_path)
    made = []

    def make(prompts):
        made.append(len(prompts))
        return control_bank(tuple(prompts), "random", 8, 0, "float16")

    make_text_banks.write_fitting("whole", make)
    assert len(made) == 1 and len(read_bank(tmp_path / "whole").names) == made[0]
    scratch = tmp_path / "scratch"
    write_bank(control_bank(read_bank(tmp_path / "whole").names, "random", 8, 0, "float16"), scratch)
    size = sum(file.stat().st_size for file in scratch.iterdir())
    monkeypatch.setattr(make_text_banks, "LARGEST_BYTES", size - 1)
    make_text_banks.write_fitting("smaller", make)
    smaller = read_bank(tmp_path / "smaller")
    assert len(smaller.names) == made[-1] < made[0]
    assert "kidney" not in smaller.names and {"left kidney", "right kidney", "liver"} <= set(smaller.names)
    monkeypatch.setattr(make_text_banks, "LARGEST_BYTES", 10)
    with pytest.raises(SystemExit, match="even the smallest set"):
        make_text_banks.write_fitting("none", make)
    assert not (tmp_path / "none").exists()
