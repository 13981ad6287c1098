"""One training from a plan to a model folder: builds the parts, resumes, runs the loop, writes the model."""

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoseg.data.parallel import default_workers
from autoseg.data.previous_masks import PreviousMasks
from autoseg.data.store import Store
from autoseg.domains.style_contrast import ContentStyle, folded_state, stem_channels
from autoseg.errors import UserError
from autoseg.networks.builder import build_network
from autoseg.networks.checkpoint import (
    load_resume,
    read_resume_facts,
    save_resume,
    save_tensors,
    write_model,
)
from autoseg.networks.segmenter import Segmenter
from autoseg.progress import readable_seconds
from autoseg.records import content_hash
from autoseg.schema import (
    ArchitectureName,
    CheckpointInfo,
    ConfigurationName,
    NetworkPlan,
    OptimizerPlan,
    Plan,
    TextGuidanceFacts,
)
from autoseg.training.draws import DrawSettings
from autoseg.training.first_weights import FirstWeights
from autoseg.training.freezing import freeze_weights
from autoseg.training.journal import EpochMetrics, Journal
from autoseg.training.loop import LoopState, TrainingJob, run_training
from autoseg.training.mirroring import mirror_positions
from autoseg.training.objective import (
    Aim,
    LocationScale,
    Objective,
    RandomConvolution,
    StyleContrast,
    TrainedParts,
)
from autoseg.training.optimization import describe_optimizer, make_optimizer
from autoseg.training.probe import choose_precision, to_device_layout
from autoseg.training.processes import ALONE, Processes, sum_over_processes
from autoseg.training.settings import TrainSettings, settings_from_flat
from autoseg.training.streaming import PatchSource, default_memory_budget, open_patches
from autoseg.training.targets import Targets, make_targets

if TYPE_CHECKING:
    from autoseg.training.guiding import Words

ResumeFacts = dict[str, Any]

GUIDANCE_NAME = "guidance.safetensors"
PLAIN = ["none", False, "", "", "", 1]
"""What `_method` gives for a training without views and words: all that there was once."""

logger = logging.getLogger("autoseg")


@dataclass(frozen=True, kw_only=True)
class Session:
    """What is to be trained, on what, and where it goes.

    `optimizer`: as the settings resolve the plan's (`resolve_optimizer`). `train_ids`, `validation_ids`: cases of the
    store. `folder`: models/<name>/<configuration>/fold_<k>. `first_weights`: None draws them. `words`: of a text-guided
    training. `annotated`: of the cases in which not everything is annotated, the names that are. `processes`: those
    that train this together; each computes the plan's batch. `previous`: of a cascade, the masks that `store` has too.
    """

    plan: Plan
    configuration: ConfigurationName
    architecture: ArchitectureName
    name: str
    fold: str
    settings: TrainSettings
    optimizer: OptimizerPlan
    seed: int
    store: Store
    train_ids: tuple[str, ...]
    validation_ids: tuple[str, ...]
    folder: Path
    device: torch.device
    versions: dict[str, str]
    first_weights: FirstWeights | None = None
    words: "Words | None" = None
    annotated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    processes: Processes = ALONE
    previous: PreviousMasks | None = None

    @property
    def network_plan(self) -> NetworkPlan:
        """The plan's network, with the batch and the optimizer that this training uses."""
        planned = self.plan.configurations[self.configuration].networks[self.architecture]
        limit = self.settings.max_batch_size or planned.batch_size
        return replace_record(planned, batch_size=min(planned.batch_size, limit), optimizer=self.optimizer)

    @property
    def input_channels(self) -> int:
        """Of the network: the image's and, of a cascade, those of the previous masks."""
        return self.plan.input_channels(self.configuration)

    @property
    def plan_hash(self) -> str:
        """Changes when anything of the plan that shapes this training does, but for the optimizer."""
        network = self.plan.configurations[self.configuration].networks[self.architecture]
        about_memory = {"memory_gib", "memory_measured_on", "checkpointed_stages"}  # the same gradients
        return content_hash([network.model_dump(mode="json", exclude={"reasons", "optimizer", *about_memory}),
                             self.store.record.facts])


def replace_record(network: NetworkPlan, **changes: object) -> NetworkPlan:
    """A network plan with some fields changed, checked anew."""
    return NetworkPlan.model_validate({**network.model_dump(), **changes})


def read_started_with(folder: Path) -> FirstWeights | None:
    """The first weights that the resumable training in a model folder began with, by name and hash."""
    facts = read_resume_facts(folder / "resume") or {}
    begun = facts.get("init_sha256")
    return None if begun is None else FirstWeights(None, facts["init"], begun)


def read_resume_settings(folder: Path) -> TrainSettings | None:
    """The settings that the resumable state in a model folder was trained with; None where there is none."""
    facts = read_resume_facts(folder / "resume")
    return None if facts is None else settings_from_flat(facts["settings"], str(folder / "resume"))


def train_session(session: Session, resume: bool, stop: Callable[[int], bool]) -> CheckpointInfo | None:
    """Train to the schedule's end and write the model; None when `stop` ended it early (its state is written).

    `stop` is asked after every step with the number of steps done.

    Raises
    ------
    UserError : resuming with a plan, optimizer or cases other than the state's; a diverging loss; a full disk.
    """
    facts = _matching_facts(session) if resume else None
    torch.manual_seed(session.seed)
    plan = session.plan
    built = build_network(session.architecture, session.network_plan, session.input_channels, len(plan.outputs))
    if session.first_weights is not None and facts is None:
        session.first_weights.begin(built, session.folder)
    freeze_weights(built, session.settings.freeze)
    network = to_device_layout(built, session.device)
    mirrored, why = mirror_positions(plan, session.configuration, session.settings.mirror)
    logger.info("%s", why)
    logger.info("optimizer: %s", describe_optimizer(session.optimizer))
    with ExitStack() as stack:
        job = _job(session, network, mirrored, facts, stack)
        state = _restore(session, job, facts) if facts else LoopState()
        on_epoch = _journal(session, state, stack)
        finished = run_training(job, state, on_epoch, lambda now: _save(session, job, now), stop)
        if not finished:
            return None
        _save(session, job, state)

    def write() -> CheckpointInfo:
        info = _info(session, mirrored, job, state)
        return write_model(session.folder, network, info, _finished_state(job))

    return session.processes.from_first(write, CheckpointInfo)


def _journal(session: Session, state: LoopState, stack: ExitStack) -> Callable[[EpochMetrics], None]:
    """What is told of every epoch: the first process's journal."""
    if not session.processes.is_first:
        return lambda _: None
    journal = Journal(session.folder, kept_epochs=state.step // session.settings.steps_per_epoch)
    stack.callback(journal.close)
    return journal.add


def _job(session: Session, network: Segmenter, mirrored: tuple[int, ...], facts: ResumeFacts | None,
         stack: ExitStack) -> TrainingJob:
    settings = session.settings
    # SLAug and CCSDG change intensities themselves; nnU-Net's changes on top of theirs would double them.
    intensities = settings.augment_intensity and settings.domain_generalization in ("none", "gin")
    draws = DrawSettings(seed=session.seed, foreground_fraction=settings.foreground_fraction, mirror_axes=mirrored,
                         augment=settings.augment, change_intensities=intensities,
                         process=session.processes.rank, processes=session.processes.count,
                         regions=session.plan.members if session.plan.regions else (),
                         has_ignore=session.plan.ignore is not None)
    checks = replace(draws, augment=False, mirror_axes=(), is_validation=True)
    precision = str(facts["precision"]) if facts else session.processes.text_of_first(_precision(session, network))
    targets = make_targets(session.plan, session.annotated, session.device)
    if session.processes.count > 1:
        targets = replace(targets, across=sum_over_processes, processes=session.processes.count)
    parts = _parts(session, network, targets)
    session.processes.same_weights(parts)
    scaler = torch.amp.GradScaler(session.device.type, enabled=precision == "float16")
    objective = _objective(session, network, parts, Aim(targets, session.network_plan.batch_dice))
    objective.precision, objective.scaler, objective.process = precision, scaler, session.processes.rank
    stack.callback(objective.close)
    return TrainingJob(
        network=network, parts=parts, objective=objective,
        optimizer=make_optimizer(parts, session.optimizer), optimizer_plan=session.optimizer, scaler=scaler,
        training=stack.enter_context(_patches(session, session.train_ids, draws)),
        validation=stack.enter_context(_patches(session, session.validation_ids, checks))
        if session.validation_ids and settings.validation_steps else None,
        settings=settings, foreground_names=tuple(session.plan.foreground),
        device=session.device, precision=precision, seed=session.seed, processes=session.processes,
    )


def _parts(session: Session, network: Segmenter, targets: Targets) -> nn.Module:
    """The network alone, or with what guides it or disentangles its first features."""
    settings = session.settings
    guide = style = None
    if session.words is not None:
        from autoseg.training.guiding import Guide  # only whom words guide waits for it

        guide = Guide(session.words, network, session.network_plan, session.input_channels, settings,
                      session.seed, targets)
    if settings.domain_generalization == "ccsdg":
        style = ContentStyle(stem_channels(network), len(session.network_plan.patch_shape))
    if guide is None and style is None:
        return network
    return TrainedParts(network, guide, style).to(session.device)


def _objective(session: Session, network: Segmenter, parts: nn.Module, aim: Aim) -> Objective:
    guide, seed = parts.guide if isinstance(parts, TrainedParts) else None, session.seed
    method = session.settings.domain_generalization
    if method == "gin":
        return RandomConvolution(network, guide, aim, seed, session.settings.gin_views)
    if method == "slaug":
        return LocationScale(network, guide, aim, seed)
    if method == "ccsdg":
        assert isinstance(parts, TrainedParts) and parts.style is not None
        return StyleContrast(network, guide, aim, seed, parts.style)
    return Objective(network, guide, aim, seed)


def _finished_state(job: TrainingJob) -> dict[str, Tensor]:
    """The weights of an ordinary network: heads made of vectors and the content's gate are folded into it."""
    parts = job.parts
    state = job.network.state_dict()
    if isinstance(parts, TrainedParts) and parts.guide is not None and parts.guide.heads is not None:
        state |= parts.guide.heads.kernels()
    if isinstance(parts, TrainedParts) and parts.style is not None:
        state |= folded_state(job.network, parts.style)
    return state


def _patches(session: Session, ids: tuple[str, ...], draws: DrawSettings) -> AbstractContextManager[PatchSource]:
    fair_share = session.processes.fair_share
    budgets = {"auto": fair_share(default_memory_budget()), "resident": sys.maxsize, "streamed": 0}
    return open_patches(session.store, ids, session.network_plan, draws, session.device,
                        budgets[session.settings.caching], fair_share(default_workers()))


def _precision(session: Session, network: Segmenter) -> str:
    if session.settings.precision != "auto":
        return session.settings.precision
    plan = session.network_plan
    probed = choose_precision(network, (plan.batch_size, session.input_channels, *plan.patch_shape),
                              session.device)
    logger.info("precision: %s (%s)", probed.precision, probed.reason)
    return probed.precision


def _matching_facts(session: Session) -> ResumeFacts:
    """What the resumable state was trained with; UserError where this session asks for something else."""
    facts = read_resume_facts(session.folder / "resume")
    if facts is None:
        raise UserError(f"{session.folder} holds no training to continue.\nRun without --resume to start one.")
    asked = _facts(session)
    compared = {"plan_hash": "the plan", "cases": "the fold's cases", "seed": "--seed", "batch_size": "the batch size",
                "optimizer": "the optimizer", "init_sha256": "the first weights (--init)", "freeze": "--freeze",
                "method": "--domain-generalization or --text-guided", "words": "the text bank (--text-bank)",
                "previous": "the previous stage's masks (of other weights now)",
                "targets": "regions or annotated_labels in dataset.json",
                "processes": "the number of processes (torchrun), each of which computes a batch"}
    # Begun before there were any:
    facts = {"init_sha256": None, "method": PLAIN, "words": None, "freeze": "none", "previous": None,
             "targets": None, "processes": 1, **facts}
    if absent := [name for name in compared if name not in facts]:
        raise UserError(f"--resume: {session.folder} was begun by another version of autoseg ({', '.join(absent)} "
                        "not recorded).\nContinue with that version, or start anew with --overwrite.")
    changed = [name for name in compared if facts[name] != asked[name]]
    if changed:
        what = ", ".join(compared[name] for name in changed)
        if "optimizer" in changed:
            before = describe_optimizer(OptimizerPlan.model_validate(facts["optimizer"]))
            what += f" (then {before}; now {describe_optimizer(session.optimizer)})"
        if "processes" in changed:
            what += f" (then {facts['processes']}; now {asked['processes']})"
        raise UserError(f"--resume: {session.folder} was trained with another setting of {what}.\nRestore it, or start "
                        "anew with --overwrite or under another --name.")
    return facts


def _facts(session: Session) -> ResumeFacts:
    return {"plan_hash": session.plan_hash, "cases": content_hash([session.train_ids, session.validation_ids]),
            "seed": session.seed, "batch_size": session.network_plan.batch_size, "processes": session.processes.count,
            "optimizer": session.optimizer.model_dump(mode="json"),
            **({"init_sha256": None} if session.first_weights is None else session.first_weights.facts),
            "freeze": session.settings.freeze, "method": _method(session.settings),
            "words": None if session.words is None else _words_facts(session.words),
            "previous": None if session.previous is None else session.previous.identity,
            "targets": _targets_facts(session), "settings": session.settings.flat()}


def _targets_facts(session: Session) -> str | None:
    """Changes with regions and with what is annotated; None without either."""
    regions = [region.model_dump(mode="json") for region in session.plan.regions]
    annotated = sorted((case, list(names)) for case, names in session.annotated.items())
    return content_hash([regions, annotated]) if regions or annotated else None


def _method(settings: TrainSettings) -> list[str | bool | int]:
    """What a resumed training must share with its beginning; PLAIN where nothing is switched on."""
    method: list[str | bool | int] = [settings.domain_generalization, settings.text_guided]
    words = [settings.text_route, settings.text_geometry, content_hash(asdict(settings.guidance))]
    views = settings.gin_views if settings.domain_generalization == "gin" else 1
    return [*method, *(words if settings.text_guided else ["", "", ""]), views]


def _words_facts(words: "Words") -> list[str | None]:
    return [words.facts.bank_sha256, words.facts.tower_sha256]


def _save(session: Session, job: TrainingJob, state: LoopState) -> None:
    """By the first process; the others wait, so that none ends before the state is written."""
    if session.processes.is_first:
        facts = {**_facts(session), "precision": job.precision, "state": asdict(state)}
        save_resume(session.folder / "resume", job.parts, job.optimizer, job.scaler, facts)
    session.processes.wait()


def _restore(session: Session, job: TrainingJob, facts: ResumeFacts) -> LoopState:
    load_resume(session.folder / "resume", job.parts, job.optimizer, job.scaler)
    state = LoopState(**facts["state"])
    logger.info("continuing after step %d (%s of training)", state.step, readable_seconds(state.seconds))
    return state


def _info(session: Session, mirrored: tuple[int, ...], job: TrainingJob, state: LoopState) -> CheckpointInfo:
    plan = session.plan
    return CheckpointInfo(
        name=session.name, configuration=session.configuration, fold=session.fold, architecture=session.architecture,
        network=session.network_plan, is_2d=plan.is_2d, file_ending=plan.file_ending,
        channel_names=plan.channel_names, labels=plan.labels, regions=plan.regions,
        ignore=plan.ignore, store=session.store.record, mirror_axes=mirrored,
        previous_stage=None if session.previous is None else session.previous.stage,
        text_guidance=_write_words(session, job),
        training={**session.settings.flat(), "seed": session.seed, "used_precision": job.precision,
                  "device": str(session.device), "processes": session.processes.count,
                  **({} if session.first_weights is None else session.first_weights.facts)},
        steps=state.step, seconds=round(state.seconds, 2), plan_hash=session.plan_hash, weights_sha256="",
        versions=session.versions,
    )


def _write_words(session: Session, job: TrainingJob) -> TextGuidanceFacts | None:
    """Write vectors and what was learned beside them into the model's folder; the record of both."""
    if session.words is None:
        return None
    assert isinstance(job.parts, TrainedParts) and job.parts.guide is not None
    tensors = {"vectors": torch.from_numpy(session.words.vectors),
               "distractors": torch.from_numpy(session.words.distractors),
               **job.parts.guide.state_dict(prefix="guide.")}
    sha256 = save_tensors(tensors, session.folder / GUIDANCE_NAME)
    return session.words.facts.model_copy(update={"tensors_sha256": sha256})
