"""The parts of a training, built from a session: model, optimizer, batches, validation pairs."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autoseg.data.parallel import default_workers
from autoseg.networks.memory import keep_freed_memory
from vlm.model.architectures import read_model_config
from vlm.model.clip import ClipModel, new_model
from vlm.model.embedding import embedder_of
from vlm.model.records import InitialWeights, TowerStart
from vlm.training.computing import Computing, choose_computing
from vlm.training.gradients import Pass, Towers, checkpoint_activations
from vlm.training.loop import TrainingJob
from vlm.training.loss import LOSSES
from vlm.training.optimization import freeze, make_optimizer
from vlm.training.resume import FOLDER, Learning, load_state
from vlm.training.session import Facts, Session
from vlm.training.streaming import BatchPlan, open_batches
from vlm.training.validation import Validation, ValidationSet, read_validation_set, validate

SIGLIP_SCALE, SIGLIP_BIAS = 2.302585092994046, -10.0
"""The sigmoid loss begins with a logit scale of ln 10 and this bias, as SigLIP does."""
CALL_TOKENS_CPU, CALL_TOKENS_GPU = 128, 4096
"""What a call of the text tower costs beside its tokens, in tokens: on a GPU as much as padding a hundred captions."""

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Parts:
    """What a session is made of while it runs. initial : what the model started from."""

    session: Session
    model: ClipModel
    initial: InitialWeights
    towers: Towers
    learning: Learning
    computing: Computing
    data: ValidationSet

    def final_model(self) -> ClipModel:
        """The model as it would be saved now: with the average of weights where there is one."""
        average = self.learning.average
        return self.model if average is None else replace(self.model, network=average)

    def validation(self) -> Validation:
        """How that model does on the val split."""
        model = self.final_model()
        network: Any = model.network
        bias = None if network.logit_bias is None else network.logit_bias.item()
        with self.computing.forward(self.session.device):
            found = validate(embedder_of(model, self.session.device), self.data, bias, self.session.processes)
        self.model.network.train()
        return found


def build_parts(session: Session, facts: Facts | None) -> Parts:
    """The parts at the start, or as the state that `facts` belong to left them."""
    recipe, device = session.recipe, session.device
    if device.type == "cpu":
        keep_freed_memory()
    model, initial = _new_model(session)
    network: Any = model.network.to(device)
    network.train()
    freeze(network, recipe.optimization.frozen)
    if recipe.model.checkpoint_activations:
        checkpoint_activations(network)
    if session.processes.is_first and facts is None:
        _tell(initial)
    preprocess = model.record.preprocess
    towers = Towers(network, preprocess.mean, preprocess.std).to(device)
    if facts is None:
        computing = choose_computing(recipe.optimization, towers, model.record.image_size, device)
        computing = session.processes.told_by_first(computing)
    else:
        computing = Computing(**facts["computing"])
    average = copy.deepcopy(network).requires_grad_(False) if recipe.optimization.ema_decay is not None else None
    learning = Learning(network, make_optimizer(network, recipe.optimization, initial),
                        torch.amp.GradScaler(device.type, enabled=computing.precision == "float16"), average)
    if facts is not None:
        load_state(session.folder / FOLDER, learning)
    data = read_validation_set(session.corpus.of("val"), recipe.validation.pairs)
    return Parts(session, model, initial, towers, learning, computing, data)


@contextmanager
def open_job(parts: Parts, first_step: int) -> Iterator[TrainingJob]:
    """What the loop needs; threads that read batches end with the block."""
    session, recipe, device = parts.session, parts.session.recipe, parts.session.device
    parallel = None
    if session.processes.world > 1:
        parallel = nn.parallel.DistributedDataParallel(
            parts.towers, device_ids=[device] if device.type == "cuda" else None)
    how = Pass(
        towers=parts.towers, parallel=parallel, processes=session.processes,
        chunk_size=min(recipe.optimization.chunk_size or session.local_batch_size, session.local_batch_size),
        computing=parts.computing, seed=session.seed, scaled=parts.learning.scaler.scale)
    with open_batches(_batch_plan(parts, how.chunk_size), first_step, default_workers()) as batches:
        yield TrainingJob(
            learning=parts.learning, how=how, loss_of=LOSSES[recipe.loss.name], batches=batches,
            choice=recipe.optimization, validation=recipe.validation, steps=session.steps,
            steps_per_epoch=session.steps_per_epoch, max_minutes=session.max_minutes, device=device,
            processes=session.processes)


def _batch_plan(parts: Parts, chunk_size: int) -> BatchPlan:
    session, record = parts.session, parts.model.record
    call_tokens = CALL_TOKENS_GPU if session.device.type == "cuda" else CALL_TOKENS_CPU
    return BatchPlan(
        parts=session.corpus.of("train"), choice=session.recipe.data, tokenizer=parts.model.tokenizer,
        image_size=record.image_size, interpolation=record.preprocess.interpolation, batch_size=session.batch_size,
        steps_per_epoch=session.steps_per_epoch, seed=session.seed, rank=session.processes.rank,
        world=session.processes.world, text_call_tokens=call_tokens, texts_at_once=chunk_size)


def _new_model(session: Session) -> tuple[ClipModel, InitialWeights]:
    initial = session.recipe.initial
    config = read_model_config(session.recipe.model.config)
    if session.recipe.loss.name == "siglip" and config.init_logit_bias is None:
        config = config.model_copy(update={"init_logit_scale": SIGLIP_SCALE, "init_logit_bias": SIGLIP_BIAS})
    model, start = new_model(
        config, vision=None if initial.vision == "random" else initial.vision,
        text=None if initial.text == "random" else initial.text, seed=session.seed,
        keep_temperature=initial.keep_temperature)
    named = model.record.model_copy(update={"name": session.folder.resolve().name})
    return replace(model, record=named), start


def _tell(initial: InitialWeights) -> None:
    for tower, start in (("vision", initial.vision), ("text", initial.text)):
        logger.info("%s tower: %s", tower, _described(start))


def _described(start: TowerStart) -> str:
    if start.source == "random":
        return "begins by chance"
    parts = [f"{start.loaded} tensors of {start.source}"]
    parts += [f"{len(start.new)} new ({', '.join(start.new)})"] if start.new else []
    parts += [f"resized: {', '.join(start.resized)}"] if start.resized else []
    parts += [f"left out: {', '.join(start.left_out)}"] if start.left_out else []
    return "; ".join(parts)
