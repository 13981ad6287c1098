"""One pretraining from images to first weights: builds the parts, resumes, runs the steps."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.data.parallel import default_workers
from autoseg.errors import UserError
from autoseg.initialization.corruption import corrupt, draw_corruptions
from autoseg.initialization.heads import PretextNetwork, feature_shapes
from autoseg.initialization.images import ImageSource
from autoseg.initialization.objective import Loss, pretext_loss
from autoseg.initialization.schedule import Plateau, at_window, cosine_rate, progress_of
from autoseg.initialization.session import (
    EndedBy,
    InitSession,
    PretrainState,
    facts_of,
    matching_facts,
    other_version,
)
from autoseg.networks.builder import build_network
from autoseg.networks.checkpoint import load_resume, save_resume
from autoseg.networks.segmenter import Segmenter
from autoseg.progress import progress, readable_seconds
from autoseg.records import replacing, storage_error
from autoseg.training.draws import DrawSettings
from autoseg.training.loop import PATIENCE_STEPS, seed_layers
from autoseg.training.mirroring import mirror_positions
from autoseg.training.objective import DTYPES
from autoseg.training.optimization import describe_optimizer, make_optimizer, update_weights
from autoseg.training.probe import choose_precision, to_device_layout
from autoseg.training.streaming import PatchSource, default_memory_budget, open_case_patches

METRICS_NAME = "metrics.jsonl"
METRICS_LINES = 100
RECENT_SHARE = 0.02
"""Of a step in the running means that are shown: they forget over 50 steps."""

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Pretraining:
    """The parts of a running pretraining. `means`, `deviations` (channel) on the device."""

    session: InitSession
    network: PretextNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    patches: PatchSource
    precision: str
    means: Tensor
    deviations: Tensor


# ---------------------------------------------------------------- the whole
def pretrain(
    session: InitSession, resume: bool, stop: Callable[[int], bool]
) -> tuple[PretextNetwork, PretrainState, str] | None:
    """Pretrain to the end: the network, where it ended and its precision; None when `stop` ended it early.

    `stop` is asked after every step with the number of steps done; a resumable state is written before it counts.

    Raises
    ------
    UserError : resuming with other images, another plan or other settings; a diverging loss; a full disk.
    """
    facts = matching_facts(session) if resume else None
    torch.manual_seed(session.seed)
    network = to_pretext(session)
    for reason in session.pretext.reasons:
        logger.info("%s", reason)
    if session.pretext.slabs is not None:
        logger.info("order heads: at encoder stages %s (those whose maps divide into %d slabs)",
                    ", ".join(network.order), session.pretext.slabs)
    logger.info("optimizer: %s", describe_optimizer(session.optimizer))
    with ExitStack() as stack:
        running = _start(session, network, facts, stack)
        state = _restore(session, running, facts) if facts else PretrainState()
        _trim_metrics(session.folder / METRICS_NAME, state.step)
        finished = _run(running, state, stop)
        _save(running, state)
    return (network, state, running.precision) if finished else None


def to_pretext(session: InitSession) -> PretextNetwork:
    """The planned network with its first weights and pretraining's heads, on the device."""
    plan, network = session.plan, session.network_plan
    channels = len(plan.channel_names)
    built = build_network(session.architecture, network, channels, len(plan.outputs))
    shapes = feature_shapes(session.architecture, network, channels)
    heads = PretextNetwork(built, shapes, session.images.means, session.pretext.slabs,
                           reconstructs=session.pretext.mask_ratio > 0)
    on_device: Segmenter = to_device_layout(built, session.device)
    heads.network = on_device
    return heads.to(session.device)


def image_patches(
    session: InitSession, sources: Sequence[ImageSource], draws: DrawSettings
) -> AbstractContextManager[PatchSource]:
    """Patches of images as the network takes them; nothing made from labels is opened."""
    budgets = {"auto": default_memory_budget(), "resident": sys.maxsize, "streamed": 0}
    return open_case_patches([source.open for source in sources], session.store, session.network_plan, draws,
                             session.device, budgets[session.settings.caching], default_workers())


def _start(
    session: InitSession, network: PretextNetwork, facts: dict[str, Any] | None, stack: ExitStack
) -> Pretraining:
    axes, _ = mirror_positions(session.plan, session.configuration, session.settings.mirror)
    if session.pretext.slabs is not None:  # a mirrored slab axis would make "first" and "last" the same
        axes = tuple(axis for axis in axes if axis != 0)
    draws = DrawSettings(seed=session.seed, foreground_fraction=0.0, mirror_axes=axes, keep_detail=True,
                         augment=session.settings.augment)
    precision = str(facts["precision"]) if facts else _precision(session, network)
    return Pretraining(
        session=session, network=network, optimizer=make_optimizer(network, session.optimizer),
        scaler=torch.amp.GradScaler(session.device.type, enabled=precision == "float16"),
        patches=stack.enter_context(image_patches(session, session.images.training, draws)), precision=precision,
        means=torch.tensor(session.images.means, device=session.device),
        deviations=torch.tensor(session.images.deviations, device=session.device),
    )


def _precision(session: InitSession, network: PretextNetwork) -> str:
    if session.settings.precision != "auto":
        return session.settings.precision
    plan = session.network_plan
    shape = (plan.batch_size, len(session.plan.channel_names), *plan.patch_shape)
    probed = choose_precision(network.network, shape, session.device)
    logger.info("precision: %s (%s)", probed.precision, probed.reason)
    return probed.precision


# ---------------------------------------------------------------- steps
def _run(running: Pretraining, state: PretrainState, stop: Callable[[int], bool]) -> bool:
    session = running.session
    start, saved_at = time.perf_counter() - state.seconds, state.seconds
    limit = None if session.max_minutes is None else 60 * session.max_minutes - state.seconds
    pending: list[Loss] = []
    state.ended_by = state.ended_by or _end(session, state)  # one that ended at a plateau stays ended
    every = max(1, session.steps // METRICS_LINES)
    with progress("pretrain", session.steps - state.step, "steps", limit) as bar:
        while state.ended_by is None:
            pending.append(pretrain_step(running, state))
            state.step += 1
            state.seconds = time.perf_counter() - start
            stopped = stop(state.step)
            noted = state.step % every == 0
            due = state.seconds - saved_at >= 60 * session.settings.checkpoint_minutes
            ended = _end(session, state)
            asked = noted or due or stopped or ended or at_window(state.step, session.steps)
            if asked or len(pending) >= PATIENCE_STEPS:
                state.ended_by = _settle(running, state, pending) or ended
            if noted or state.ended_by:
                _note(session.folder / METRICS_NAME, state, running.optimizer)
            if stopped and state.ended_by is None:
                return False
            if due:
                _save(running, state)
                saved_at = state.seconds
            bar.advance(note=_shown(state))
    return True


def pretrain_step(running: Pretraining, state: PretrainState) -> Loss:
    """One update of network and heads; its loss is still on the device."""
    session, network = running.session, running.network
    batch = running.patches.batch(state.step)
    seed_layers(session.seed, state.step)
    draws = draw_corruptions(session.pretext, session.network_plan.patch_shape, session.seed, state.step,
                             len(batch.case_ids))
    with torch.autocast(session.device.type, DTYPES[running.precision], enabled=running.precision != "float32"):
        corrupted = corrupt(batch.image, draws, session.pretext, network.mask_value, batch.labels > 0)
        output = network(corrupted.image)
    loss = pretext_loss(output, corrupted, session.pretext, running.means, running.deviations)
    warmup = session.optimizer.warmup_share
    done = progress_of(state.step, session.steps, state.seconds, session.max_minutes, warmup)
    update_weights(loss.total, network, running.optimizer, running.scaler, session.optimizer.gradient_clip,
                   cosine_rate(session.optimizer, done))
    return Loss(loss.total.detach(), loss.masked_error, loss.order_accuracy)


def _end(session: InitSession, state: PretrainState) -> EndedBy | None:
    if state.step >= session.steps:
        return "steps"
    if session.max_minutes is not None and state.seconds >= 60 * session.max_minutes:
        return "time"
    return None


def _settle(running: Pretraining, state: PretrainState, pending: list[Loss]) -> EndedBy | None:
    """Fetch losses from the device into the running means; "plateau" where the error stopped falling.

    A loss that is not a number ends the pretraining (float16: ten in a row; the scaler leaves such steps out).
    """
    totals = [float(loss.total) for loss in pending]
    wrong = [total for total in totals if not math.isfinite(total)]
    if wrong and (not running.scaler.is_enabled() or len(wrong) == len(totals) >= PATIENCE_STEPS):
        raise UserError(f"The loss is {wrong[-1]} near step {state.step}: pretraining has diverged.\nLower the "
                        f"learning rate, now {running.session.optimizer.learning_rate:g} (--learning-rate), or compute "
                        "in float32 (precision = \"float32\" in a preset file, --preset FILE).")
    ended: EndedBy | None = None
    first = state.step - len(pending) + 1
    for step, (loss, total) in enumerate(zip(pending, totals, strict=True), start=first):
        if not math.isfinite(total):
            continue
        if loss.masked_error is not None:
            state.masked_error = _running(state.masked_error, float(loss.masked_error))
        if loss.order_accuracy is not None:
            state.order_accuracy = _running(state.order_accuracy, float(loss.order_accuracy))
        watched = total if loss.masked_error is None else float(loss.masked_error)
        if state.plateau.update(watched, step, running.session.steps):
            ended = "plateau"
            logger.info("the error stopped falling: pretraining ends after %d of %d steps", step, running.session.steps)
    pending.clear()
    return ended


def _running(before: float | None, now: float) -> float:
    return now if before is None else (1 - RECENT_SHARE) * before + RECENT_SHARE * now


def _shown(state: PretrainState) -> str:
    parts = [] if state.masked_error is None else [f"masked error {state.masked_error:.3f}"]
    parts += [] if state.order_accuracy is None else [f"order {state.order_accuracy:.0%} right"]
    return ", ".join(parts)


# ---------------------------------------------------------------- what stays
def _note(path: Path, state: PretrainState, optimizer: torch.optim.Optimizer) -> None:
    line = {"step": state.step, "seconds": round(state.seconds, 2), "masked_error": state.masked_error,
            "order_accuracy": state.order_accuracy, "learning_rate": optimizer.param_groups[0]["lr"]}
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{json.dumps(line)}\n")
    except OSError as error:
        raise storage_error(error, path) from error


def _trim_metrics(path: Path, kept_steps: int) -> None:
    """Keep the lines up to a step: a resumed pretraining repeats the later ones."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    kept = [line for line in lines if _step_of(line) <= kept_steps]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite (so it is not kept) where the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _save(running: Pretraining, state: PretrainState) -> None:
    facts = {**facts_of(running.session), "precision": running.precision, "state": asdict(state)}
    save_resume(running.session.folder / "resume", running.network, running.optimizer, running.scaler, facts)


def _restore(session: InitSession, running: Pretraining, facts: dict[str, Any]) -> PretrainState:
    try:
        kept = facts["state"]
        state = PretrainState(**{**kept, "plateau": Plateau(**kept["plateau"])})
    except (KeyError, TypeError):
        raise other_version(session.folder) from None
    load_resume(session.folder / "resume", running.network, running.optimizer, running.scaler)
    logger.info("continuing after step %d (%s of pretraining)", state.step, readable_seconds(state.seconds))
    return state
