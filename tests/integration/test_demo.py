"""The promise of the README's first command."""

import json

import pytest

from autoseg.commands.demo import demo


@pytest.mark.slow
def test_the_demo_segments_its_held_out_cases(tmp_path, capsys):
    """350 steps of training, two minutes on two idle cores; Dice at least 0.9."""
    assert demo(run=tmp_path / "demo", device="cpu", json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["dice"] >= 0.9 and result["cases"] == 6
    assert (tmp_path / "demo" / "overlay.png").stat().st_size > 10_000
