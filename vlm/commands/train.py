"""`vlm train`: a CLIP from a corpus and a recipe."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from autoseg.commands.stopping import stop_on_signals
from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import readable_seconds
from autoseg.recording import Recording, recorded

if TYPE_CHECKING:
    from vlm.model.records import ModelRecord, Score
    from vlm.training.session import Session, Started
    from vlm.training.settings import Recipe

DEFAULT_RECIPE, DEFAULT_SEED = "mini", 0
SHOWN = ("infonce", "multi_positive", "image_to_text_r1", "image_to_text_r5", "image_to_text_r10", "text_to_image_r1",
         "text_to_image_r5", "text_to_image_r10")

logger = logging.getLogger("autoseg")


def train(  # noqa: PLR0913 (a command's options)
    *,
    corpus: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    recipe: str | None = None,
    max_minutes: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    epochs: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    vision_weights: str | None = None,
    text_weights: str | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: Annotated[int | None, Parameter(validator=validators.Number(gte=0, lt=2**32))] = None,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Train a CLIP on the train split of a corpus, and measure it on the val split; test pairs are not opened.

    Several GPUs: `torchrun --nproc-per-node 8 -m vlm.cli train …`; the batch is that of the recipe, shared among them.

    Parameters
    ----------
    corpus
        Folder that `vlm build-corpus` made, or any folder of webdataset tars (images with .txt captions).
    output
        Folder for the model. Stock open_clip can load it.
    recipe
        `mini` (CPU; the default), `mini-gpu`, `unimed-b16`, `unimed-l14` (as published), `better`, or a TOML file.
    max_minutes
        Training time; the learning rate reaches its end with it.
    epochs
        Length of the schedule, instead of the recipe's.
    vision_weights
        First weights of the vision tower instead of the recipe's: a CLIP checkpoint, or `random`.
    text_weights
        First weights of the text tower: a transformers folder, a hub id (downloaded), `package:NAME`, or `random`.
    resume
        Continue an interrupted training, or a finished one for longer. Recipe, length and seed are those it began with.
    overwrite
        Delete what the output folder holds of an earlier training.
    device
        `auto` takes a GPU where there is one.
    seed
        Every random draw is a function of it; 0 by default.
    """
    _refuse_what_exists(output, resume, overwrite)
    from vlm.training.processes import joined_processes
    from vlm.training.resume import FOLDER
    from vlm.training.run import train_session
    from vlm.training.session import Session, read_started
    from vlm.training.shards import read_index

    started = read_started(output) if resume else None
    chosen, name = _recipe(recipe, started)
    chosen = _adapted(chosen, epochs, vision_weights, text_weights)
    seed = seed if seed is not None else started.seed if started is not None else DEFAULT_SEED
    minutes = max_minutes if max_minutes is not None or started is None else started.max_minutes
    with joined_processes(device) as (processes, place), _recorded(output, seed, processes.is_first) as recording:
        recording.device = str(place)
        if not processes.is_first:  # the others find the index that the first one has kept
            processes.wait()
        index = read_index(corpus, keep_in=output / FOLDER)
        if processes.is_first:
            processes.wait()
        session = Session(
            recipe=chosen, recipe_name=name, corpus=index, folder=output, seed=seed, device=place, max_minutes=minutes,
            processes=processes)
        recording.inputs |= {"corpus": str(corpus.resolve()), "corpus_recipe": session.corpus.recipe, "recipe": name,
                             "recipe_hash": chosen.hash}
        with stop_on_signals() as stop:
            record = train_session(session, resume, stop)
        if record is None:
            raise UserError(f"Training was stopped; nothing is lost.\nContinue with the same command and --resume "
                            f"(state: {output / FOLDER}).")
        if processes.is_first:
            _report(session, record, recording, json)
    return recording.exit_status


@contextmanager
def _recorded(folder: Path, seed: int | None, is_first: bool) -> Iterator[Recording]:
    """run.json of the first process; the others leave none."""
    if not is_first:
        yield Recording()
        return
    with recorded("train", folder, seed) as recording:
        yield recording


def _refuse_what_exists(folder: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume continues a training, --overwrite deletes it: give one of them.")
    names = ("model.json", "open_clip_config.json")
    finished, started = any((folder / name).exists() for name in names), (folder / "resume" / "resume.json").exists()
    if resume and not started:
        raise UserError(f"--resume: {folder} holds no training to continue.\nRun without --resume to start one.")
    if (finished or started) and not (resume or overwrite):
        what = "a finished model" if finished else "a training that was interrupted"
        go_on = "--resume to continue it, " if started else ""
        raise UserError(f"{folder} holds {what}.\nGive {go_on}--overwrite to train anew, or another folder.")


def _recipe(name: str | None, started: "Started | None") -> "tuple[Recipe, str]":
    """The recipe asked for and its name; of a resumed training, the one that it began with."""
    from vlm.training.settings import read_recipe

    if name is None and started is not None:
        return started.recipe, started.recipe_name
    asked = name or DEFAULT_RECIPE
    return read_recipe(asked), Path(asked).stem


def _adapted(recipe: "Recipe", epochs: int | None, vision: str | None, text: str | None) -> "Recipe":
    """The recipe with what the command line says instead."""
    optimization = recipe.optimization
    if epochs is not None:
        optimization = optimization.model_copy(update={"epochs": epochs, "steps": None})
    given = {name: source for name, source in (("vision", vision), ("text", text)) if source is not None}
    if given.get("vision") == "random":
        given["keep_temperature"] = False  # type: ignore[assignment]
    return recipe.model_copy(update={"optimization": optimization, "initial": recipe.initial.model_copy(update=given)})


def _report(session: "Session", record: "ModelRecord", recording: Recording, json: bool) -> None:
    facts = record.training
    assert facts is not None and facts.better_than_start is not None
    gain = facts.better_than_start
    figures = {name: score.value for name, score in facts.scores.items()}
    recording.inputs["weights"] = str(record.weights_sha256)
    recording.results |= {"steps": facts.steps, "samples": facts.samples, "training_seconds": facts.seconds, **figures,
                          "gain_r5": gain.value, "gain_r5_low": gain.low, "gain_r5_high": gain.high}
    if json:
        write_json_object({"model": str(session.folder), **recording.results})
        return
    lines = [f"{'on the val split':22}{'start':>8}{'now':>8}  {'95 % interval':16}{'chance':>8}"]
    lines += [_line(name, facts.start_scores[name], facts.scores[name]) for name in SHOWN]
    verdict = "better than" if gain.low is not None and gain.low > 0 else "not shown to be better than"
    within = "no interval of one patient" if gain.low is None else f"{gain.low:+.3f} to {gain.high:+.3f}"
    if cut := int(facts.settings.get("truncated_captions") or 0):
        lines += ["", f"{cut:,} captions were longer than {record.context_length} tokens, the context, and were cut."]
    write_stdout("\n".join([
        *lines, "",
        f"R@5, mean of both directions: {gain.value:+.3f} ({within}) against its initial weights: {verdict} them.",
        f"{record.name}: {facts.steps} steps, {facts.samples:,} pairs in {readable_seconds(facts.seconds)}. Written: "
        f"{session.folder}",
        f"Next: vlm evaluate --model {session.folder} -o REPORT"]))


def _line(name: str, start: "Score", now: "Score") -> str:
    between = "" if now.low is None else f"{now.low:.3f} to {now.high:.3f}"
    chance = "" if now.chance is None else f"{now.chance:.3f}"
    return f"{name.replace('_', ' '):22}{start.value:8.3f}{now.value:8.3f}  {between:16}{chance:>8}".rstrip()
