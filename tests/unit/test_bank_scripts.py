"""The scripts that make the shipped banks and the picture of their cosines."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.text_bank import make_bank, read_bank, write_bank
from vlm.export.banks import control_bank, prompts_of_lexicon

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


def test_a_shipped_bank_holds_the_whole_lexicon_or_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_text_banks, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_text_banks.py", "--only", "lexicon-random", "lexicon-orthonormal"])
    make_text_banks.main()
    shown = capsys.readouterr().out
    for name in ("lexicon-random", "lexicon-orthonormal"):
        bank = read_bank(tmp_path / name)
        assert bank.names == tuple(prompts_of_lexicon(load_lexicon())) and bank.record.precision == "float16"
        assert f"{name}: {len(bank.names)} names" in shown
        assert sum(file.stat().st_size for file in (tmp_path / name).iterdir()) <= 1_000_000
        left, right, both = bank.vectors_of(["LK", "kidney_right", "kidney"], load_lexicon())
        np.testing.assert_allclose(both, (left + right) / np.linalg.norm(left + right), atol=1e-4)
    monkeypatch.setattr(make_text_banks, "LARGEST_BYTES", 10)
    with pytest.raises(SystemExit, match="at most 10 are shipped"):
        make_text_banks.write_small("none", lambda names: control_bank(tuple(names), "random", 8, 0, "float16"))
    assert not (tmp_path / "none").exists()


def test_sentences_and_vectors_of_the_whole_lexicon_fit_one_megabyte(tmp_path):
    """As of a tower of 384 dimensions; the sentences are real, the vectors by chance, which have the same size."""
    prompts = prompts_of_lexicon(load_lexicon())
    chance = control_bank(tuple(prompts), "random", 384, 0)
    write_bank(make_bank(chance.vectors, prompts, chance.record.tower, "float16"), tmp_path / "bank")
    assert sum(file.stat().st_size for file in (tmp_path / "bank").iterdir()) <= make_text_banks.LARGEST_BYTES - 10_000
