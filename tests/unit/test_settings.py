"""Presets are checked, choices override them, and the schedule reaches its end when the budget does."""

from dataclasses import replace

import pytest

from autoseg.errors import UserError
from autoseg.training.loop import is_finished, schedule_progress
from autoseg.training.settings import TrainSettings, load_preset, override, preset_names


def test_the_default_preset_is_the_default_recipe():
    assert load_preset("default") == TrainSettings()


def test_every_preset_that_comes_along_can_be_read():
    assert {"default", "quick"} <= set(preset_names())
    for name in preset_names():
        load_preset(name)


def test_only_given_choices_override():
    settings = override(TrainSettings(), epochs=3, max_minutes=None)
    assert settings == replace(TrainSettings(), epochs=3)


@pytest.mark.parametrize("text", ["epochs = 'ten'", "epochz = 3", "epochs = 0", "mirror = 'left'", "epochs = [",
                                  "max_minutes = -1", "learning_rate = 0"])
def test_a_preset_file_with_a_mistake_is_refused(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_preset(str(path))


def test_a_preset_that_does_not_exist_names_those_that_do():
    with pytest.raises(UserError, match="quick"):
        load_preset("fast")


def test_without_a_time_limit_the_rate_changes_with_the_epoch():
    settings = TrainSettings(epochs=4, steps_per_epoch=10)
    assert [schedule_progress(step, 1e9, settings) for step in (0, 9, 10, 39)] == [0, 0, 0.25, 0.75]
    assert not is_finished(39, 1e9, settings) and is_finished(40, 0.0, settings)


def test_with_a_time_limit_the_nearer_end_counts():
    settings = TrainSettings(epochs=10, steps_per_epoch=10, max_minutes=1.0)
    assert schedule_progress(50, 6.0, settings) == 0.5
    assert schedule_progress(10, 45.0, settings) == 0.75
    assert schedule_progress(0, 120.0, settings) == 1
    assert is_finished(1, 60.0, settings) and is_finished(100, 1.0, settings) and not is_finished(99, 59.0, settings)
