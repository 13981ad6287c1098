"""`vlm train`: learns, continues bit for bit, stops on what is wrong, leaves a folder that says how it came about."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from corpus_folder import CorpusFolder, make_pair
from safetensors.torch import load_file
from vlm_training_job import caption, write_corpus, write_recipe_file

from autoseg.errors import UserError
from vlm.commands.train import train
from vlm.model.clip import load_model
from vlm.model.embedding import open_embedder
from vlm.training.journal import read_metrics
from vlm.training.processes import Processes
from vlm.training.run import train_session
from vlm.training.session import Session
from vlm.training.settings import read_recipe
from vlm.training.shards import read_index
from vlm.training.validation import read_validation_set, validate

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "small")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Of such small models a second thread computes nothing faster, and waits on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def session_of(recipe, corpus, folder, **more):
    return Session(recipe=read_recipe(recipe), recipe_name="test", corpus=read_index(corpus), folder=folder, seed=3,
                   device=torch.device("cpu"), **more)


def never(step):
    return False


def equal_files(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_64_pairs_by_heart_and_says_that_it_beats_its_start(corpus, tmp_path, capsys):
    recipe = write_recipe_file(tmp_path, steps=120, rate=6e-3, batch=64, every=60, loss="multi_positive", dropout=0.0,
                               init_logit_scale=3.7)
    assert train(corpus=corpus, output=tmp_path / "model", recipe=recipe, device="cpu", json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    lines = read_metrics(tmp_path / "model" / "metrics.jsonl")
    assert [line.step for line in lines if line.validation] == [0, 60, 120]
    assert [line.step for line in lines if line.loss is not None] == list(range(10, 121, 10))
    last = [line for line in lines if line.loss is not None][-1]
    assert last.loss < 0.1 and last.truncated == 0 and last.images_per_second > 0
    facts = load_model(tmp_path / "model").record.training
    for direction in ("image_to_text", "text_to_image"):
        score = facts.scores[f"{direction}_r1"]
        assert score.value == 1 and printed[f"{direction}_r1"] == 1
        assert score.chance == pytest.approx(1 / 64) and facts.start_scores[f"{direction}_r1"].value < 0.3
    assert facts.better_than_start.low > 0 and printed["gain_r5_low"] == facts.better_than_start.low
    assert (facts.steps, facts.samples, facts.epochs) == (120, 120 * 64, 120)
    assert (facts.corpus, facts.corpus_recipe, facts.recipe_hash) == ("small", "0123abcd", read_recipe(recipe).hash)
    assert read_recipe(str(tmp_path / "model" / "recipe.toml")) == read_recipe(recipe)
    assert {"progress.png", "run.json", "text", "resume"} <= {path.name for path in (tmp_path / "model").iterdir()}
    # What is on the disk is what was measured.
    found = validate(open_embedder(tmp_path / "model"), read_validation_set(read_index(corpus).of("val"), 2000))
    assert found.ranks.hits("image_to_text", 1).mean() == 1
    assert found.losses["multi_positive"] == pytest.approx(facts.scores["multi_positive"].value, abs=0.02)


@pytest.mark.parametrize("optimization", ["", "ema_decay = 0.9\nchunk_size = 5\ngradient_clip = 0.5"])
def test_five_steps_and_five_more_are_ten_bit_for_bit(corpus, tmp_path, optimization):
    recipe = write_recipe_file(tmp_path, optimization=optimization, every=3, batch=12, alpha=0.5)
    whole, parts = (session_of(recipe, corpus, tmp_path / name) for name in ("whole", "parts"))
    assert train_session(whole, False, never) is not None
    # Steps 5 and 10 are in the middle of an epoch of 5 steps and at its end; 7 is neither.
    assert train_session(parts, False, lambda step: step == 5) is None
    assert train_session(parts, True, lambda step: step == 7) is None
    assert not (tmp_path / "parts" / WEIGHTS).exists()
    assert train_session(parts, True, never) is not None
    assert equal_files(tmp_path / "whole" / WEIGHTS, tmp_path / "parts" / WEIGHTS)
    one, other = (load_model(tmp_path / name).record.training for name in ("whole", "parts"))
    assert one.scores == other.scores and one.start_scores == other.start_scores
    assert one.better_than_start == other.better_than_start
    steps = [(line.step, line.validation) for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")
             if line.validation]
    assert steps == [(line.step, line.validation) for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")
                     if line.validation]


def test_another_seed_gives_other_weights(corpus, tmp_path):
    recipe = write_recipe_file(tmp_path, steps=2)
    for seed in (1, 2):
        train(corpus=corpus, output=tmp_path / str(seed), recipe=recipe, device="cpu", seed=seed)
    assert not equal_files(tmp_path / "1" / WEIGHTS, tmp_path / "2" / WEIGHTS)


@pytest.mark.parametrize("loss", ["infonce", "siglip", "multi_positive"])
def test_every_loss_falls(corpus, tmp_path, loss):
    recipe = write_recipe_file(tmp_path, steps=40, rate=6e-3, batch=32, loss=loss, dropout=0.0, init_logit_scale=3.7)
    record = train_session(session_of(recipe, corpus, tmp_path / "model"), False, never)
    start, end = record.training.start_scores, record.training.scores
    assert end[loss].value < 0.9 * start[loss].value


def test_a_time_limit_ends_the_schedule(corpus, tmp_path):
    recipe = write_recipe_file(tmp_path, steps=100_000)
    record = train_session(session_of(recipe, corpus, tmp_path / "model", max_minutes=0.02), False, never)
    assert 0 < record.training.steps < 1000 and 1.2 <= record.training.seconds < 10
    rates = [line.learning_rate for line in read_metrics(tmp_path / "model" / "metrics.jsonl") if line.loss is not None]
    assert rates[-1] < 0.3 * max(rates)


def test_a_loss_that_is_no_number_stops_with_the_pairs_and_keeps_the_last_state(corpus, tmp_path):
    recipe = write_recipe_file(tmp_path, steps=50, rate=1e30, batch=32)
    session = session_of(recipe, corpus, tmp_path / "model")
    with pytest.raises(UserError, match=r"(?s)The loss is nan in step \d+.*(large|small)_0000.*Lower the learning"):
        train_session(session, False, never)
    assert not (tmp_path / "model" / "model.json").exists()


def test_weights_that_are_no_numbers_are_never_saved(corpus, tmp_path):
    # The only step's loss is that of the finite weights before it.
    recipe = write_recipe_file(tmp_path, steps=1, rate=1e300)
    with pytest.raises(UserError, match=r"(?s)no finite numbers after step 1; they were not saved.*Lower the learning"):
        train_session(session_of(recipe, corpus, tmp_path / "model"), False, never)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"metrics.jsonl", "progress.png"}


def test_captions_longer_than_the_context_are_counted_for_the_user(tmp_path, capsys):
    corpus = CorpusFolder(tmp_path / "corpus", [
        make_pair("chest", number, split=split, captions=("liver " * (40 if number % 4 == 0 else 3) + str(number),))
        for split in ("train", "val") for number in range(32 if split == "val" else 0, 40 if split == "val" else 32)
    ]).write()
    recipe = write_recipe_file(tmp_path, steps=6, batch=16)
    train(corpus=corpus, output=tmp_path / "model", recipe=recipe, device="cpu")
    assert load_model(tmp_path / "model").record.training.settings["truncated_captions"] == 3 * 8
    assert "24 captions were longer than 32 tokens" in capsys.readouterr().out


def test_a_truncated_shard_ends_the_command_with_its_name(tmp_path):
    damaged = write_corpus(tmp_path / "damaged", 30)
    path = sorted((damaged / "shards").glob("large-train-*.tar"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=path.name):
        train(corpus=damaged, output=tmp_path / "model", recipe=write_recipe_file(tmp_path), device="cpu")
    assert not (tmp_path / "model").exists()


def test_folders_are_not_overwritten_unasked_and_foreign_files_stay(corpus, tmp_path):
    recipe = write_recipe_file(tmp_path, steps=2)
    model = tmp_path / "model"
    with pytest.raises(UserError, match="holds no training to continue"):
        train(corpus=corpus, output=model, recipe=recipe, device="cpu", resume=True)
    train(corpus=corpus, output=model, recipe=recipe, device="cpu")
    (model / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"(?s)holds a finished model.*--overwrite"):
        train(corpus=corpus, output=model, recipe=recipe, device="cpu")
    with pytest.raises(UserError, match="give one of them"):
        train(corpus=corpus, output=model, recipe=recipe, device="cpu", resume=True, overwrite=True)
    for wrong, said in (
        ({"corpus": tmp_path / "nowhere"}, "does not exist"), ({"vision_weights": "gone.pt"}, r"gone\.pt is no file"),
        ({"recipe": write_recipe_file(tmp_path / "big", batch=100)}, "fewer than the batch"),
        ({"text_weights": str(model / "text")}, "text tower.*lie in"),
    ):
        with pytest.raises(UserError, match=said):
            train(**{"corpus": corpus, "output": model, "recipe": recipe, "device": "cpu", "overwrite": True, **wrong})
        assert (model / "model.json").exists() and (model / WEIGHTS).exists()
    train(corpus=corpus, output=model, recipe=recipe, device="cpu", overwrite=True, seed=9)
    assert load_model(model).record.training.seed == 9 and (model / "notes.txt").read_text() == "mine"


def test_resuming_needs_the_same_corpus_seed_and_recipe_and_may_go_on_for_longer(corpus, tmp_path):
    recipe = write_recipe_file(tmp_path, steps=4)
    model = tmp_path / "model"
    train(corpus=corpus, output=model, recipe=recipe, device="cpu", seed=4)
    with pytest.raises(UserError, match="another setting of --seed"):
        train(corpus=corpus, output=model, device="cpu", resume=True, seed=5)
    other = write_recipe_file(tmp_path, steps=4, rate=0.1)
    with pytest.raises(UserError, match="another setting of the recipe"):
        train(corpus=corpus, output=model, recipe=other, device="cpu", resume=True)
    train(corpus=corpus, output=model, device="cpu", resume=True, epochs=2)
    facts = load_model(model).record.training
    assert facts.steps == 8 and facts.seed == 4


def test_a_model_from_elsewhere_is_not_overwritten_unasked(corpus, tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"(?s)holds a finished model\.\nGive --overwrite"):
        train(corpus=corpus, output=tmp_path, recipe="mini", device="cpu")


@pytest.mark.parametrize("changes", ["captions.sources", "weights"])
def test_a_recipe_that_names_a_source_the_corpus_lacks_is_refused(corpus, tmp_path, changes):
    recipe = Path(write_recipe_file(tmp_path))
    text = recipe.read_text()
    recipe.write_text(text.replace("alpha = 1.0", "[data.weights]\nlarge = 1.0\nsmal = 2.0" if changes == "weights" else
                                   'alpha = 1.0\n[data.captions.sources]\nsmal = "first"'))
    with pytest.raises(UserError, match="smal: the corpus has no such source"):
        train(corpus=corpus, output=tmp_path / "model", recipe=str(recipe), device="cpu")
    assert not (tmp_path / "model" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("recipe", "said"), [
    ("unimed-b16", r"MetaCLIP-400M.*--vision-weights FILE"), ("nothing", "no such recipe"),
])
def test_what_a_recipe_needs_is_said_before_anything_is_written(corpus, tmp_path, recipe, said):
    big = write_recipe_file(tmp_path, batch=100)
    with pytest.raises(UserError, match="(?s)" + said):
        train(corpus=corpus, output=tmp_path / "model", recipe=recipe, device="cpu")
    with pytest.raises(UserError, match="64 training pairs, fewer than the batch of 100"):
        train(corpus=corpus, output=tmp_path / "model", recipe=big, device="cpu")
    assert not (tmp_path / "model" / "model.json").exists()


def test_a_batch_that_processes_cannot_share_is_refused(corpus, tmp_path):
    session = session_of(write_recipe_file(tmp_path, batch=15), corpus, tmp_path, processes=Processes(0, 2))
    with pytest.raises(UserError, match="15 pairs cannot be shared evenly by 2"):
        _ = session.local_batch_size


def test_a_warm_up_longer_than_the_training_is_refused(corpus, tmp_path):
    recipe = Path(write_recipe_file(tmp_path))
    recipe.write_text(recipe.read_text().replace("warmup_share = 0.1", "warmup_steps = 40").replace(
        "\nsteps = 10\n", "\nepochs = 9\n"))
    with pytest.raises(UserError, match=r"warm-up of 40 steps leaves none of this training's 36 steps"):
        _ = session_of(str(recipe), corpus, tmp_path).steps


def test_a_webdataset_made_elsewhere_can_be_trained_on(corpus, tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    for path in (corpus / "shards").glob("*-train-*.tar"):
        with tarfile.open(path) as source, tarfile.open(web / path.name, "w") as target:
            for info in source:
                if not info.name.endswith(".json"):
                    target.addfile(info, source.extractfile(info))
    # 64 pairs hold out one; two of them are needed to measure anything.
    for number in range(2):
        with tarfile.open(web / f"more-{number}.tar", "w") as target, tarfile.open(
                corpus / "shards" / "large-train-000000.tar") as source:
            for info in source:
                if not info.name.endswith(".json"):
                    target.addfile(info, source.extractfile(info))
    train(corpus=web, output=tmp_path / "model", recipe=write_recipe_file(tmp_path, steps=2), device="cpu")
    facts = load_model(tmp_path / "model").record.training
    assert facts.corpus == "web" and facts.settings["validation_pairs"] == 2


DRIVER = """
import sys
from pathlib import Path
from vlm.commands.train import train
if __name__ == "__main__":  # worker processes import this file
    corpus, output, recipe = sys.argv[1:]
    train(corpus=Path(corpus), output=Path(output), recipe=recipe, device="cpu", seed=3)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(corpus, tmp_path):
    recipe = write_recipe_file(tmp_path, steps=6, batch=16, every=4, dropout=0.0, loss="multi_positive",
                               optimization="chunk_size = 5\ngradient_clip = 0.5")
    train(corpus=corpus, output=tmp_path / "one", recipe=recipe, device="cpu", seed=3)
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(tmp_path / "driver.py"), str(corpus), str(tmp_path / "two"), recipe]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    # A weight moves by about 5e-3 in these steps; sums in another order move it by a thousandth of that.
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=2e-5) for name in one)
    first, second = (load_model(tmp_path / name).record.training for name in ("one", "two"))
    assert second.scores["infonce"].value == pytest.approx(first.scores["infonce"].value, rel=1e-4)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["earlier"] == []
    assert caption(0) != caption(1)  # the pairs differ, so that order matters
