"""A small corpus, a tiny model and a recipe on the disk: for tests of `vlm train`."""

import json

from corpus_folder import CorpusFolder, make_pair
from tiny_clip import tiny_config, tiny_text_folder

PARTS = tuple(f"part{one}{other}" for one in "abcdefgh" for other in "abcdefgh")
RECIPE = """
title = "a test"
[model]
config = "{config}"
[optimization]
learning_rate = {rate}
warmup_share = 0.1
weight_decay = 0.0
steps = {steps}
batch_size = {batch}
precision = "float32"
attention = "plain"
{optimization}
[data]
alpha = {alpha}
[data.augmentation]
crop_scale = [1.0, 1.0]
crop_ratio = [1.0, 1.0]
[loss]
name = "{loss}"
[validation]
every_steps = {every}
"""


def caption(number):
    return f"the image shows a {PARTS[number % 64]}"


def write_corpus(folder, pairs=64, captions_each=1):
    """A corpus of two sources whose val split holds the images and captions of its train split."""
    made = []
    for split, offset in (("train", 0), ("val", 1000), ("test", 2000)):
        for number in range(pairs):
            source = "large" if number % 4 else "small"
            texts = tuple(f"{caption(number)} {word}".strip() for word in ("", "scan", "tumor")[:captions_each])
            made.append(make_pair(source, number + offset, split=split, captions=texts,
                                  data=make_pair("x", number)[1]))
    return CorpusFolder(folder, made, 25).write()


def write_recipe_file(folder, *, steps=10, rate=1e-3, batch=16, optimization="", alpha=1.0, loss="infonce", every=1000,
                      dropout=0.1, **model):
    """The path of a recipe that trains a tiny CLIP, the way of computing named: two probes may find another faster."""
    text = tiny_text_folder(folder / "text", PARTS, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = folder / "model.json"
    config.write_text(json.dumps(tiny_config(text, **model).model_dump(exclude_none=True)))
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(config=config, rate=rate, steps=steps, batch=batch, optimization=optimization,
                                  alpha=alpha, loss=loss, every=every))
    return str(path)
