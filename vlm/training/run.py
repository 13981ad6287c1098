"""A session from its first step, or from where it was stopped, to a model folder."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.progress import readable_seconds
from autoseg.records import storage_error
from vlm.model.clip import CONFIG_NAME, RECORD_NAME, TEXT_NAME, WEIGHTS_NAME, save_model
from vlm.model.records import ModelRecord, TrainingFacts
from vlm.model.retrieval import DIRECTIONS, Ranks
from vlm.model.text_folder import TOKENIZER_FILES
from vlm.training.assembly import Parts, build_parts, open_job
from vlm.training.journal import METRICS_NAME, PICTURE_NAME, Journal, StepMetrics
from vlm.training.loop import LoopState, run_training
from vlm.training.recipe_file import write_recipe
from vlm.training.resume import FOLDER, STATE_NAME, save_state
from vlm.training.session import Facts, Session, matching_facts
from vlm.training.validation import RECALLS, Validation

RECIPE_NAME = "recipe.toml"
WRITTEN = (WEIGHTS_NAME, CONFIG_NAME, RECORD_NAME, TEXT_NAME, *TOKENIZER_FILES, METRICS_NAME, PICTURE_NAME, RECIPE_NAME,
           f"{FOLDER}/{STATE_NAME}", f"{FOLDER}/state-*.safetensors")
"""What a training leaves in the model's folder, beside run.json and the index of the corpus's shards."""

logger = logging.getLogger("autoseg")


def train_session(session: Session, resume: bool, stop: Callable[[int], bool]) -> ModelRecord | None:
    """Train to the schedule's end and write the model; None when `stop` ended it early (its state is written).

    The folder then holds the model, recipe.toml, metrics.jsonl, progress.png and the state in `resume`. Of several
    processes the first one writes. `stop` is asked after every step with the number of steps done. What an earlier
    training left in the folder is deleted, unless it is resumed, once model and validation pairs are there.

    Raises
    ------
    UserError : weights or shards that are missing or damaged; a recipe that does not fit the corpus; resuming with
        another corpus, seed or recipe; a loss or weights that are no numbers; a full disk.
    """
    session.check()
    facts = matching_facts(session) if resume else None
    parts = build_parts(session, facts)
    start = parts.validation() if facts is None else _start_of(facts)
    state = LoopState() if facts is None else LoopState(**facts["state"])
    is_first = session.processes.is_first
    if is_first and facts is None:
        clear(session.folder)
    journal = Journal(session.folder, state.step, chances_of(start)) if is_first else None
    on_line = _ignore if journal is None else journal.add
    if facts is None:
        on_line(StepMetrics(0, 0.0, 0.0, validation=start.figures()))
    elif is_first:
        logger.info("continuing after step %d (%s of training)", state.step, readable_seconds(state.seconds))
    with open_job(parts, state.step) as job:
        finished = run_training(job, state, on_line, lambda: parts.validation().figures(),
                                partial(_save, parts, start), stop)
    if not finished:
        return None
    end = parts.validation()
    on_line(StepMetrics(state.step, state.step / session.steps_per_epoch, round(state.seconds, 2),
                        validation=end.figures()))
    record = _record(parts, state, start, end)
    if journal is not None:
        journal.draw()
        write_recipe(session.recipe, session.folder / RECIPE_NAME)
        record = save_model(replace(parts.final_model(), record=record), session.folder)
    session.processes.wait()
    return record


def clear(folder: Path) -> None:
    """Delete what a training writes, and nothing else that lies there."""
    try:
        for path in (path for pattern in WRITTEN for path in folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def chances_of(validation: Validation) -> dict[str, float]:
    """What guessing gives, for each recall."""
    return {f"{direction}_r{k}": validation.ranks.chance(direction, k) for direction in DIRECTIONS for k in RECALLS}


def _save(parts: Parts, start: Validation, state: LoopState) -> None:
    session, ranks = parts.session, start.ranks
    # The loss of a step is that of the weights before it: such weights would only be noticed in the next one.
    if not all(parameter.isfinite().all() for parameter in parts.learning.network.parameters()):
        raise UserError(f"The weights are no finite numbers after step {state.step}; they were not saved.\nLower the "
                        "learning rate, set gradient_clip, or train in float32 (a recipe file, --recipe FILE). "
                        "--resume goes on from the last state that was saved.")
    if session.processes.is_first:
        begun = {"losses": start.losses, "image_to_text": ranks.image_to_text.tolist(),
                 "text_to_image": ranks.text_to_image.tolist(), "twins": ranks.twins.tolist(),
                 "captions": ranks.captions}
        facts = {**session.facts(), "computing": asdict(parts.computing), "state": asdict(state), "start": begun}
        save_state(session.folder / FOLDER, parts.learning, facts)
    session.processes.wait()


def _start_of(facts: Facts) -> Validation:
    begun = facts["start"]
    columns = {name: np.array(begun[name], np.int64) for name in ("image_to_text", "text_to_image", "twins")}
    ranks = Ranks(**columns, captions=int(begun["captions"]))
    return Validation(begun["losses"], ranks)


def _record(parts: Parts, state: LoopState, start: Validation, end: Validation) -> ModelRecord:
    session, recipe, patients = parts.session, parts.session.recipe, parts.data.patients
    facts = TrainingFacts(
        recipe=session.recipe_name, recipe_hash=recipe.hash, corpus=session.corpus.name,
        corpus_recipe=session.corpus.recipe, seed=session.seed, steps=state.step,
        samples=state.step * session.batch_size, epochs=state.step / session.steps_per_epoch,
        seconds=round(state.seconds, 2), precision=parts.computing.precision, device=str(session.device),
        scores=end.scores(patients), start_scores=start.scores(patients),
        better_than_start=end.gain_over(start, patients),
        settings={"loss": recipe.loss.name, "alpha": recipe.data.alpha, "captions": recipe.data.captions.policy,
                  "batch_size": session.batch_size, "ema_decay": recipe.optimization.ema_decay,
                  "truncated_captions": state.truncated, "validation_pairs": len(parts.data.captions)})
    return parts.model.record.model_copy(update={"training": facts})


def _ignore(line: StepMetrics) -> None:
    """Another process writes."""
