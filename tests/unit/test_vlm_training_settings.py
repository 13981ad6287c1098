"""Recipes: the published ones say what was published; unknown keys and impossible combinations are refused."""

import pytest

from autoseg.errors import UserError
from vlm.model.architectures import read_model_config
from vlm.training.recipe_file import write_recipe
from vlm.training.settings import read_recipe, recipe_names

RECIPE = """
title = "a test"
[model]
config = "mini"
[optimization]
learning_rate = 1e-3
warmup_share = 0.1
batch_size = 8
[data]
alpha = 0.5
[loss]
name = "infonce"
[validation]
times = 2
"""


def written(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("name", "rate"), [("unimed-b16", 5e-4), ("unimed-l14", 4e-4)])
def test_published_recipes_hold_the_published_hyperparameters(name, rate):
    recipe = read_recipe(name)
    one = recipe.optimization
    assert (one.learning_rate, one.rates) == (rate, None)
    assert (one.betas, one.epsilon, one.weight_decay) == ((0.9, 0.98), 1e-6, 0.2)
    assert (one.warmup_steps, one.epochs, one.steps, one.batch_size) == (2000, 10, None, 2048)
    assert (one.precision, one.gradient_clip, one.ema_decay, one.frozen) == ("float16", None, None, ())
    assert (recipe.data.alpha, recipe.data.padding, recipe.loss.name) == (1.0, "full", "infonce")
    augmentation = recipe.data.augmentation
    assert (augmentation.crop_scale, augmentation.crop_ratio) == ((0.9, 1.0), (3 / 4, 4 / 3))
    assert augmentation.rotation_degrees == augmentation.brightness == augmentation.contrast == 0


def test_better_changes_what_it_says_and_not_the_model_or_length():
    better, published = read_recipe("better"), read_recipe("unimed-b16")
    one = better.optimization
    assert (one.rates.vision, one.rates.text, one.rates.new) == (1e-4, 5e-5, 5e-4)
    assert (one.precision, one.gradient_clip, better.loss.name, better.data.alpha) == (
        "bfloat16", 1.0, "multi_positive", 0.5)
    assert one.ema_decay is not None and better.data.padding == "longest"
    assert better.model == published.model
    assert (one.batch_size, one.epochs) == (published.optimization.batch_size, published.optimization.epochs)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_a_model_that_there_is_and_is_its_own_copy_on_disk(name, tmp_path):
    recipe = read_recipe(name)
    read_model_config(recipe.model.config)
    write_recipe(recipe, tmp_path / "copy.toml")
    again = read_recipe(str(tmp_path / "copy.toml"))
    assert again == recipe and again.hash == recipe.hash


def test_the_hash_knows_every_choice_but_the_title(tmp_path):
    one = read_recipe(written(tmp_path, RECIPE))
    assert one.hash == read_recipe(written(tmp_path, RECIPE.replace("a test", "another"))).hash
    assert one.hash != read_recipe(written(tmp_path, RECIPE.replace("alpha = 0.5", "alpha = 0.6"))).hash


def test_all_unknown_keys_are_named_in_one_message(tmp_path):
    text = RECIPE.replace("[data]", "[data]\nflip = true").replace("[loss]", "[loss]\ntemperature = 1")
    with pytest.raises(UserError, match=r"(?s)own\.toml.*data\.flip.*loss\.temperature"):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize(("before", "after", "said"), [
    ("learning_rate = 1e-3", "", "either learning_rate or the section rates"),
    ("learning_rate = 1e-3", "learning_rate = 1e-3\nrates = {vision = 1e-4, text = 1e-5, new = 1e-3}", "either learn"),
    ("warmup_share = 0.1", "warmup_share = 0.1\nwarmup_steps = 5", "either warmup_steps or warmup_share"),
    ("warmup_share = 0.1", "warmup_steps = 50\nsteps = 50", "warm-up of 50 steps leaves none of the 50"),
    ("batch_size = 8", "batch_size = 1", "greater than or equal to 2"),
    ("learning_rate = 1e-3", "learning_rate = 1e-3\nbetas = [0.9, 1.0]", "betas"),
    ("alpha = 0.5", "", "either alpha or the section weights"),
    ("alpha = 0.5", "alpha = 1.5", "less than or equal to 1"),
    ("alpha = 0.5", "alpha = 0.5\ncaptions = {policy = 'mixture'}", "needs report_p"),
    ("alpha = 0.5", "alpha = 0.5\ncaptions = {policy = 'first', report_p = 0.5}", "no policy is mixture"),
    ("alpha = 0.5", "alpha = 0.5\naugmentation = {crop_scale = [0.9, 0.5]}", "crop_scale"),
    ('name = "infonce"', 'name = "triplet"', "loss.name"),
    ("[data]", "[initial]\nkeep_temperature = true\n[data]", "keep_temperature needs vision weights"),
    ("times = 2", "times = 2\nevery_steps = 3", "either every_steps or times"),
])
def test_impossible_choices_are_refused_with_what_was_expected(tmp_path, before, after, said):
    with pytest.raises(UserError, match=said):
        read_recipe(written(tmp_path, RECIPE.replace(before, after)))


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="Known: better, mini, mini-gpu, unimed-b16, unimed-l14"):
        read_recipe("best")
    with pytest.raises(UserError, match="does not exist"):
        read_recipe(str(tmp_path / "gone.toml"))
    with pytest.raises(UserError, match="not valid TOML"):
        read_recipe(written(tmp_path, "title ="))
