"""One pretraining or one training of the study in initialization.py, as a line of its results."""

import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from compare_architectures import TASKS, plan_network, split_cases
from jaxtyping import Float
from measuring import device_name, machine

from autoseg.commands.plan import read_plan
from autoseg.data.dataset import Case, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.store import STORE_FILE, Store, open_store, open_unlabelled, store_folder, write_image
from autoseg.evaluation.pairing import pair_files
from autoseg.evaluation.scoring import score_files
from autoseg.inference.prediction import PredictSettings, predict_cases
from autoseg.initialization.images import gather_images, image_sources
from autoseg.initialization.measurement import measure
from autoseg.initialization.pretext import plan_pretext
from autoseg.initialization.pretraining import InitSession
from autoseg.initialization.pretraining import pretrain as run_pretraining
from autoseg.initialization.record import InitMethod
from autoseg.initialization.schedule import pretraining_optimizer
from autoseg.networks.checkpoint import read_model, read_tensors, save_tensors
from autoseg.networks.soundness import refuse_unsound
from autoseg.planning.optimizers import RECIPES
from autoseg.planning.planner import store_record
from autoseg.recording import versions
from autoseg.records import write_record
from autoseg.schema import ArchitectureName, ConfigurationName, Plan
from autoseg.training.journal import read_metrics
from autoseg.training.optimization import resolve_optimizer
from autoseg.training.session import FirstWeights, Session, replace_record, train_session
from autoseg.training.settings import OptimizerSettings, TrainSettings, load_preset

DATASET = "Hippocampus_MSD04"
CONFIGURATION = cast(ConfigurationName, TASKS[DATASET].configuration)
METHODS: dict[str, InitMethod] = {"lwi": "lwi", "mim": "mim", "order": "order", "scrambled": "lwi", "lwi-own": "lwi"}
"""Arms that begin with learned weights, and the pretext tasks that these were learned by."""
WARMUP_SHARE = 0.05
EPOCH_STEPS, VALIDATION_BATCHES = 20, 4
NO_CHECKPOINTS = 1e6
"""Minutes between resumable states; a run of the study that is killed is made anew."""


@dataclass(frozen=True)
class Recipe:
    """How long and at which rates; the same for every arm (`steps`: but for scratch-long)."""

    steps: int
    pretrain_steps: int
    rate: float
    pretrain_rate: float

    def record(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Pretraining:
    """Weights learned for an arm; `cases`: the number of the first cases that it sees, None for the whole pool."""

    arm: str
    cases: int | None
    seed: int

    @property
    def key(self) -> tuple[str, str, int | None, int]:
        return "pretraining", self.arm, self.cases, self.seed


@dataclass(frozen=True)
class Run:
    """One training with so many labelled cases."""

    arm: str
    cases: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int | None, int]:
        return "training", self.arm, self.cases, self.seed

    @property
    def pretraining(self) -> Pretraining | None:
        """What it begins with; None for drawn weights."""
        if self.arm not in METHODS:
            return None
        return Pretraining(self.arm, self.cases if self.arm == "lwi-own" else None, self.seed)

    def permuted(self, pool: Iterable[str]) -> tuple[str, ...]:
        """The pool in this seed's order, whatever order it is given in."""
        names = sorted(pool)
        return tuple(names[position] for position in np.random.default_rng(self.seed).permutation(len(names)))

    def labelled(self, pool: Iterable[str]) -> tuple[str, ...]:
        """The first cases in this seed's order: nested over the numbers of cases, the same for every arm."""
        return self.permuted(pool)[: self.cases]


@dataclass(frozen=True)
class Materials:
    """What all runs share; `plan` is the small one. `pool`, `validation`: ids of cases."""

    architecture: ArchitectureName
    plan: Plan
    cases: dict[str, Case]
    store: Store
    pool: tuple[str, ...]
    validation: tuple[str, ...]
    work: Path
    device: torch.device

    def folder_of(self, run: Run | Pretraining, recipe: Recipe) -> Path:
        """Where a run keeps its files; another recipe has another folder."""
        parts = (*run.key[1:], *asdict(recipe).values())
        return self.work / run.key[0] / "-".join([self.architecture, *map(str, parts)])

    def weights_of(self, pretraining: Pretraining, recipe: Recipe) -> Path:
        """The file of learned weights; the supervised training's recipe has no part in it."""
        return self.folder_of(pretraining, replace(recipe, steps=0, rate=0.0)) / "weights.safetensors"


class StepClock:
    """Asked after every step whether to stop (never), it notes what the step took.

    On a CPU these are processor seconds: those of one core and one thread, whatever else the machine does. On a GPU
    it waits for the device, and they are seconds. The first step, which also prepares, and the steps that end an epoch
    of `epoch` steps, in which validation patches are computed, are left out of the mean.
    """

    def __init__(self, device: torch.device, epoch: int | None = None) -> None:
        self._device, self._epoch = device, epoch
        self._before: float | None = None
        self._taken: list[float] = []

    def __call__(self, step: int) -> bool:
        now = self._now()
        ends_epoch = self._epoch is not None and step % self._epoch == 0
        if self._before is not None and not ends_epoch:
            self._taken.append(now - self._before)
        self._before = now
        return False

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def steps_per_second(self) -> float:
        """NaN before the second step."""
        return 1 / float(np.mean(self._taken)) if self._taken else float("nan")


def open_materials(architecture: ArchitectureName, work: Path, data: Path, device: str) -> Materials:
    """Plan and preprocess the dataset in `work`, unless that is done."""
    folder = plan_network(DATASET, architecture, work, data)
    plan = read_plan(folder)
    cases = {case.id: case for case in open_dataset(Path(plan.dataset)).cases}
    pool, validation = split_cases(DATASET, list(cases))
    store = open_store(store_folder(folder, CONFIGURATION, store_record(plan, CONFIGURATION)))
    return Materials(architecture, small_plan(plan, architecture), cases, store, pool, validation, work,
                     torch.device(device))


def small_plan(plan: Plan, architecture: ArchitectureName) -> Plan:
    """The plan with half the features in every stage of this network; UserError where that cannot be built."""
    configuration = plan.configurations[CONFIGURATION]
    network = configuration.networks[architecture]
    topology = network.topology.model_copy(update={"features": tuple(n // 2 for n in network.topology.features)})
    small = replace_record(network, topology=topology.model_dump())
    refuse_unsound(architecture, small, "The small plan's", "Take another architecture for this study.")
    networks = {**configuration.networks, architecture: small}
    changed = configuration.model_copy(update={"networks": networks})
    return plan.model_copy(update={"configurations": {**plan.configurations, CONFIGURATION: changed}})


def study_settings(steps: int, recipe: Recipe) -> TrainSettings:
    """The quick preset, with AdamW, this recipe's rates and so many steps: whole epochs of 20, or one shorter."""
    epoch = min(EPOCH_STEPS, steps)
    return replace(
        load_preset("quick"), max_minutes=None, steps_per_epoch=epoch, epochs=math.ceil(steps / epoch),
        validation_steps=VALIDATION_BATCHES, checkpoint_minutes=NO_CHECKPOINTS, optimizer="adamw",
        caching="resident", adamw=OptimizerSettings(learning_rate=recipe.rate, warmup_share=WARMUP_SHARE),
        pretraining=OptimizerSettings(learning_rate=recipe.pretrain_rate, warmup_share=WARMUP_SHARE),
    )


# ---------------------------------------------------------------- pretraining
def pretrain(pretraining: Pretraining, recipe: Recipe, materials: Materials, pool: Sequence[str]) -> dict[str, Any]:
    """Learn weights from images of the pool and write them; the line of the results."""
    weights = materials.weights_of(pretraining, recipe)
    weights.unlink(missing_ok=True)
    settings = study_settings(recipe.steps, recipe)
    plan, architecture, seed = materials.plan, materials.architecture, pretraining.seed
    ids = Run(pretraining.arm, pretraining.cases or len(pool), seed).labelled(pool)
    chosen = [materials.cases[case] for case in ids]
    store = scrambled_store(materials, chosen, seed) if pretraining.arm == "scrambled" else materials.store
    method = METHODS[pretraining.arm]
    network = plan.configurations[CONFIGURATION].networks[architecture]
    session = InitSession(
        plan=plan, configuration=CONFIGURATION, architecture=architecture, name=pretraining.arm, fold="0",
        method=method, pretext=plan_pretext(architecture, network, method), settings=settings,
        optimizer=pretraining_optimizer(architecture, settings), steps=recipe.pretrain_steps, max_minutes=None,
        seed=seed, store=store.record, images=gather_images(image_sources(chosen, store), [], [], seed,
                                                             default_workers()),
        extra_folder=None, folder=weights.parent, device=materials.device, versions=versions(),
    )
    start = time.perf_counter()
    clock = StepClock(materials.device)
    ended = run_pretraining(session, False, clock)
    assert ended is not None
    learned, state, precision = ended
    measures, _ = measure(session, learned, precision)
    return {
        "kind": "pretraining", "architecture": architecture, "arm": pretraining.arm, "cases": pretraining.cases,
        "seed": seed, "steps": state.step, "ended_by": state.ended_by, **clock_fields(clock, state.step, state.seconds),
        "run_seconds": round(time.perf_counter() - start, 1),
        "learned_from": len(session.images.training), **measures.model_dump(mode="json", exclude={"images"}),
        "pretext": session.pretext.model_dump(mode="json"), "optimizer": session.optimizer.model_dump(mode="json"),
        "precision": precision, "weights_sha256": save_tensors(learned.network.backbone_state(), weights),
        "recipe": recipe.record(), **surroundings(materials),
    }


def scrambled_store(materials: Materials, cases: Sequence[Case], seed: int) -> Store:
    """A store of these cases' images with scrambled phases; made once per seed."""
    folder = materials.work / "scrambled" / f"{len(cases)}-{seed}"
    if not (folder / STORE_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for position, case in enumerate(sorted(cases, key=lambda one: one.id)):
            arrays = open_unlabelled(materials.store, case.id)
            rng = np.random.default_rng([seed, position])
            image = scramble_phases(np.asarray(arrays.image[:], np.float32), rng)
            write_image(folder, image, arrays.info, in_slices=CONFIGURATION == "2d")
        write_record(materials.store.record, folder / STORE_FILE)
    return open_store(folder)


def scramble_phases(
    image: Float[np.ndarray, "channel z y x"], rng: np.random.Generator
) -> Float[np.ndarray, "channel z y x"]:
    """The image with its amplitude spectrum and mean, its phases turned by those of white noise: no anatomy is left.

    Phases of real noise have the symmetry that makes the result real, and are uniform over the circle. One noise for
    all channels keeps how the channels' phases relate.
    """
    axes, shape = (-3, -2, -1), image.shape[1:]
    noise = np.fft.rfftn(rng.standard_normal(shape), axes=axes)
    turns = noise / np.abs(noise)
    turns[0, 0, 0] = 1.0  # the mean
    scrambled = np.fft.irfftn(np.fft.rfftn(image.astype(np.float64), axes=axes) * turns, s=shape, axes=axes)
    return scrambled.astype(np.float32)


# ---------------------------------------------------------------- training
def train(
    run: Run, recipe: Recipe, materials: Materials, pool: Sequence[str], validation: Sequence[str]
) -> dict[str, Any]:
    """Train for `recipe.steps`, predict the validation cases, score; the line of the results.

    An arm with learned weights finds them where `pretrain` wrote them.
    """
    plan, architecture = materials.plan, materials.architecture
    model = materials.folder_of(run, recipe)
    settings = study_settings(recipe.steps, recipe)
    planned = plan.configurations[CONFIGURATION].networks[architecture]
    first = None
    if run.pretraining is not None:
        tensors, sha256 = read_tensors(materials.weights_of(run.pretraining, recipe))
        first = FirstWeights(tensors, run.arm, sha256)
    labelled = run.labelled(pool)
    session = Session(
        plan=plan, configuration=CONFIGURATION, architecture=architecture, name=run.arm, fold="0", settings=settings,
        optimizer=resolve_optimizer(planned.optimizer, RECIPES, settings), seed=run.seed, store=materials.store,
        train_ids=labelled, validation_ids=tuple(validation), folder=model, device=materials.device,
        versions=versions(), first_weights=first,
    )
    start = time.perf_counter()
    clock = StepClock(materials.device, settings.steps_per_epoch)
    info = train_session(session, False, clock)
    assert info is not None
    predicting = time.perf_counter()
    scores = score(materials, model, validation)
    epochs = read_metrics(model / "metrics.jsonl")
    return {
        "kind": "training", "architecture": architecture, "arm": run.arm, "cases": run.cases, "seed": run.seed,
        **scores, "labelled": sorted(labelled), "steps": info.steps, **clock_fields(clock, info.steps, info.seconds),
        "prediction_seconds": round(time.perf_counter() - predicting, 1),
        "run_seconds": round(time.perf_counter() - start, 1),
        "curve": [[epoch.step, epoch.mean_pseudo_dice] for epoch in epochs],
        "init_sha256": None if first is None else first.sha256, "patch": planned.patch_shape,
        "features": planned.topology.features, "batch": info.network.batch_size,
        "precision": info.training["used_precision"], "optimizer": info.network.optimizer.model_dump(mode="json"),
        "recipe": recipe.record(), **surroundings(materials),
    }


def score(materials: Materials, model: Path, validation: Sequence[str]) -> dict[str, Any]:
    """Predict cases with the final weights in a model's folder: Dice and NSD, per case and per label."""
    held_out = [materials.cases[case] for case in validation]
    settings = PredictSettings(device=materials.device, tta=False, overwrite=True)
    _, failures = predict_cases(held_out, [read_model(model)], model / "validation", settings)
    assert not failures
    pairs = pair_files(model / "validation", {case.id: case.label for case in held_out})
    scores = score_files(pairs, materials.plan, workers=1)
    return {
        "dice": scores.mean.dice, "nsd": scores.mean.nsd,
        "case_dice": {case.id: float(np.mean([label.dice for label in case.labels.values()])) for case in scores.cases},
        "labels": {name: label.dice for name, label in scores.labels.items()},
    }


def clock_fields(clock: StepClock, steps: int, wall_seconds: float) -> dict[str, float]:
    """The clock's rate, and `seconds` of all steps at that rate; `wall_seconds`: with validation and interruptions."""
    rate = clock.steps_per_second
    return {"seconds": round(steps / rate, 2), "steps_per_second": round(rate, 3),
            "wall_seconds": round(wall_seconds, 2)}


def surroundings(materials: Materials) -> dict[str, Any]:
    """Where a run was made; `load`: the machine's processes that wanted a core at the run's end (1-minute mean)."""
    return {"device": device_name(materials.device), "threads": torch.get_num_threads(),
            "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 2), "machine": machine()}
