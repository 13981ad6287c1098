"""Presets are checked, choices override them, and the schedule reaches its end when the budget does."""

import json
from dataclasses import replace

import pytest

from autoseg.errors import UserError
from autoseg.training.loop import is_finished, schedule_progress
from autoseg.training.settings import (
    OptimizerSettings,
    TrainSettings,
    load_preset,
    override,
    preset_names,
    settings_from_flat,
)


def preset(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_preset(str(path))


def test_the_default_preset_is_the_default_recipe():
    assert load_preset("default") == TrainSettings()


def test_every_preset_that_comes_along_can_be_read():
    assert {"default", "quick"} <= set(preset_names())
    for name in preset_names():
        load_preset(name)


def test_only_given_choices_override():
    settings = override(TrainSettings(), epochs=3, max_minutes=None)
    assert settings == replace(TrainSettings(), epochs=3)


def test_sections_hold_the_numbers_of_an_optimizer(tmp_path):
    read = preset(tmp_path, "optimizer = 'adamw'\n[sgd]\nmomentum = 0\n[adamw]\nlearning_rate = 1\nwarmup_share = 0.1")
    assert read == TrainSettings(optimizer="adamw", sgd=OptimizerSettings(momentum=0.0),
                                 adamw=OptimizerSettings(learning_rate=1.0, warmup_share=0.1))
    assert type(read.adamw.learning_rate) is float and read.sgd.given() == {"momentum": 0.0}


@pytest.mark.parametrize(("text", "words"), [
    ("epochs = 'ten'", ["epochs", "int"]), ("epochz = 3", ["epochz", "unknown"]), ("epochs = 0", ["epochs", "1"]),
    ("mirror = 'left'", ["mirror", "nnunet"]), ("epochs = [", ["TOML"]), ("max_minutes = -1", ["max_minutes"]),
    ("rate_power = -1", ["rate_power"]), ("optimizer = 'lion'", ["lion", "adamw"]),
    ("learning_rate = 0.1", ["learning_rate", "[sgd]"]), ("momentum = 0.9", ["momentum", "[adamw]"]),
    ("sgd = 3", ["sgd", "section"]), ("[sdg]\nmomentum = 0.9", ["sdg", "unknown"]),
    ("[sgd]\nmomentumm = 0.9", ["sgd.momentumm", "unknown", "momentum"]),
    ("[adamw]\nlearning_rate = 'high'", ["adamw.learning_rate", "high", "float"]),
    ("[sgd]\nlearning_rate = 0", ["sgd.learning_rate"]), ("[sgd]\nlearning_rate = nan", ["sgd.learning_rate"]),
    ("[sgd]\nlearning_rate = inf", ["sgd.learning_rate"]), ("[sgd]\nmomentum = 1", ["sgd.momentum"]),
    ("[sgd]\nweight_decay = -1", ["sgd.weight_decay"]), ("[adamw]\ngradient_clip = 0", ["adamw.gradient_clip"]),
    ("[adamw]\nwarmup_share = 1", ["adamw.warmup_share", "less than 1"]),
])
def test_a_preset_file_with_a_mistake_is_refused(tmp_path, text, words):
    with pytest.raises(UserError) as refused:
        preset(tmp_path, text)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_of_the_command_line_that_makes_no_sense_is_refused(rate):
    with pytest.raises(UserError, match="learning_rate"):
        override(TrainSettings(), learning_rate=rate)


def test_a_preset_that_does_not_exist_names_those_that_do():
    with pytest.raises(UserError, match="quick"):
        load_preset("fast")


@pytest.mark.parametrize("settings", [
    TrainSettings(), load_preset("quick"),
    TrainSettings(optimizer="adamw", learning_rate=0.1 + 0.2, max_minutes=1.0, max_batch_size=3, augment=False,
                  adamw=OptimizerSettings(momentum=0.8, gradient_clip=2.0)),
])
def test_flat_settings_come_back_from_json(settings):
    flat = settings.flat()
    assert all(not isinstance(value, dict) for value in flat.values())
    assert flat["sgd.momentum"] == settings.sgd.momentum
    assert settings_from_flat(json.loads(json.dumps(flat)), "a state") == settings


@pytest.mark.parametrize("wrong", [{"momentum": 0.9}, {"sgd.speed": 1.0}, {"epochs": "many"}, {"sgd": 1.0}])
def test_flat_settings_of_another_version_are_refused(wrong):
    with pytest.raises(UserError, match="a state holds settings of another version"):
        settings_from_flat({**TrainSettings().flat(), **wrong}, "a state")


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


def test_within_the_warm_up_progress_is_that_at_the_end_of_the_step():
    settings = TrainSettings(epochs=4, steps_per_epoch=10)
    progress = [schedule_progress(step, 0.0, settings, 0.15) for step in range(40)]
    assert progress[:6] == [(step + 1) / 40 for step in range(6)]
    # The warm-up ends within the first epoch: its rate is kept until nnU-Net's rule has come as far.
    assert progress[6:10] == [0.15] * 4
    assert progress[10:] == [schedule_progress(step, 0.0, settings) for step in range(10, 40)]


@pytest.mark.parametrize("share", [1e-9, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("limits", [{}, {"max_minutes": 2.0}])
def test_warming_up_never_goes_back_and_never_stands_at_zero(share, limits):
    settings = TrainSettings(epochs=5, steps_per_epoch=7, **limits)
    progress = [schedule_progress(step, 3.0 * step, settings, share) for step in range(35)]
    assert progress == sorted(progress) and 0 < progress[0] <= progress[-1] <= 1


def test_with_a_time_limit_the_clock_warms_up_as_well():
    settings = TrainSettings(epochs=1000, steps_per_epoch=50, max_minutes=1.0)
    assert schedule_progress(0, 0.0, settings, 0.1) == 1 / 50000
    assert schedule_progress(1, 3.0, settings, 0.1) == 0.05
    assert schedule_progress(9, 30.0, settings, 0.1) == 0.5
