"""First weights on disk: written at the end of a pretraining, found and checked for a training."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from autoseg.data.dataset import Case
from autoseg.data.volume import files_of
from autoseg.errors import UserError, all_of
from autoseg.initialization.record import InitRecord, SeenImage
from autoseg.initialization.session import input_hash
from autoseg.initialization.sources import EXPECTED, INIT_NAME
from autoseg.networks.builder import make_network
from autoseg.networks.checkpoint import (
    MODEL_NAME,
    WEIGHTS_NAME,
    read_tensors,
    refuse_other_backbone,
    save_tensors,
)
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.weight_transfer import NetworkFacts, facts_of, input_names, plan_transfer
from autoseg.records import file_sha256, read_record, write_record
from autoseg.schema import ArchitectureName, CheckpointInfo, ConfigurationName, NetworkPlan, OptimizerPlan, StoreRecord
from autoseg.training.first_weights import FirstWeights, reasons_of

LEAST_SHARE = 0.1
"""Of a network's numbers: with less, it is drawn weights that are trained, and the name `+init` would mislead."""
WARMUP_SHARE = 0.05
"""Of a training that begins with first weights, at least: as nnU-Net's trainer for pretrained weights, 50 of 1000
epochs. The heads are drawn anew; their first gradients would carry the weights away."""

logger = logging.getLogger("autoseg")


def init_folder(run: Path, name: str, configuration: ConfigurationName, fold: str) -> Path:
    """Where a run keeps first weights of this name."""
    return run / "init" / name / configuration / f"fold_{fold}"


def is_finished(folder: Path) -> bool:
    """Whether a folder holds first weights; the record is written last."""
    return (folder / INIT_NAME).is_file()


def write_init(folder: Path, network: Segmenter, record: InitRecord) -> InitRecord:
    """Write the backbone's weights, then the record with their hash, which is returned."""
    tied = record.model_copy(update={"weights_sha256": save_tensors(network.backbone_state(), folder / WEIGHTS_NAME)})
    write_record(tied, folder / INIT_NAME)
    return tied


def with_warmup(optimizer: OptimizerPlan) -> OptimizerPlan:
    """The optimizer of a training that begins with first weights: fresh, with a warm-up of at least 5 %."""
    return optimizer.model_copy(update={"warmup_share": max(optimizer.warmup_share, WARMUP_SHARE)})


Planned = tuple[ArchitectureName, NetworkPlan, StoreRecord]


def read_init(folder: Path, planned: Planned, validation: Sequence[Case]) -> FirstWeights:
    """The first weights that this run's pretraining left, for the network and the fold as they are now.

    Raises
    ------
    UserError : the plan has changed since; pretraining saw cases that the fold validates on (splits.json was changed);
        a file is absent or damaged.
    """
    record = read_record(InitRecord, folder / INIT_NAME)
    names = {image.id for image in seen_images(record)}
    _refuse_seen(folder, [case.id for case in validation if case.id in names])
    if record.plan_hash != input_hash(*planned):
        raise UserError(
            f"{folder} was pretrained for another plan than the run has now ({_changes(record, *planned)}).\nPretrain "
            "again (autoseg pretrain-init --overwrite), or train from scratch (--init scratch)."
        )
    return _weights(folder, record.weights_sha256)


def read_foreign_weights(folder: Path, planned: Planned, validation: Sequence[Case], wanted: NetworkFacts
                         ) -> FirstWeights:
    """What fits of the weights in a folder that the user names: an `init` folder or a model's, of any network.

    wanted : of the network to train. A plan that differs is said.

    Raises
    ------
    UserError : a file is absent or damaged; less than 10 % of the network could be moved; pretraining saw images that
        this fold validates on (their files are compared by hash, whatever their names).
    """
    if is_finished(folder):
        record = read_record(InitRecord, folder / INIT_NAME)
        hashes = {sha256 for image in seen_images(record) for sha256 in image.sha256}
        _refuse_seen(folder, [case.id for case in validation
                              if any(file_sha256(file) in hashes for path in case.images for file in files_of(path))])
        if record.plan_hash != input_hash(*planned):
            logger.warning("--init %s: made for another plan (%s); used as you asked", folder,
                           _changes(record, *planned))
        made_for = NetworkFacts(record.architecture, record.network, input_names(record.channel_names), ())
        return _fitted(_weights(folder, record.weights_sha256), made_for, wanted)
    if not (folder / MODEL_NAME).is_file():
        raise UserError(f"--init {folder}: holds neither {INIT_NAME} nor {MODEL_NAME}; {EXPECTED}")
    info = read_record(CheckpointInfo, folder / MODEL_NAME)
    logger.warning("--init %s: a model's weights; whether it was trained on cases that this fold validates on is for "
                   "you to know", folder)
    return _fitted(_weights(folder, info.weights_sha256), facts_of(info), wanted)


def _fitted(first: FirstWeights, made_for: NetworkFacts, wanted: NetworkFacts) -> FirstWeights:
    """What of a folder's weights fits; UserError where it is next to nothing."""
    plan = plan_transfer(first.tensors or {}, made_for, wanted)
    if plan.share < LEAST_SHARE:
        raise all_of(
            reasons_of(plan),
            f"--init {first.source} does not fit this network: {plan.share:.1%} of its weights could be moved, and "
            f"{LEAST_SHARE:.0%} at least was expected.",
            f"Train the architecture that the weights are of ({made_for.architecture}, features "
            f"{', '.join(map(str, made_for.network.topology.features))}; autoseg plan --architecture), name other "
            "weights, or train from scratch (--init scratch).",
        )
    return replace(first, tensors=None, transfer=plan)


def refuse_misfit(first: FirstWeights, planned: Planned, channels: int) -> None:
    """UserError listing the tensors that do not fit the planned network; nothing is computed, nothing is changed."""
    architecture, network, store = planned
    if first.tensors is not None:
        with torch.device("meta"):
            built = make_network(architecture, network, channels, len(store.labels))
        refuse_other_backbone(built, first.tensors, first.source)


def seen_images(record: InitRecord) -> tuple[SeenImage, ...]:
    """Every image that pretraining learned from or was measured on."""
    return (*record.images, *record.held_back, *record.extra_images)


def _refuse_seen(folder: Path, seen: Sequence[str]) -> None:
    if seen:
        raise all_of([f"'{case}'" for case in seen],
                     f"{folder}: its pretraining saw images that this fold validates on:",
                     "Pretrain for this fold (autoseg pretrain-init --fold …), or the scores would be too good.")


def _weights(folder: Path, expected_sha256: str) -> FirstWeights:
    tensors, found = read_tensors(folder / WEIGHTS_NAME)
    if found != expected_sha256:
        raise UserError(f"{folder / WEIGHTS_NAME} (SHA-256 {found[:12]}…) is not the file that the record beside it "
                        f"was written for ({expected_sha256[:12]}…).\nCopy the complete folder again, or make it anew "
                        "(autoseg pretrain-init --overwrite; of a model: autoseg train --overwrite).")
    return FirstWeights(tensors, str(folder), found)


def _changes(record: InitRecord, architecture: ArchitectureName, network: NetworkPlan, store: StoreRecord) -> str:
    """What differs between the plan of the pretraining and the present one, in words."""
    pairs = {
        "architecture": (record.architecture, architecture),
        "patch": ("×".join(map(str, record.network.patch_shape)), "×".join(map(str, network.patch_shape))),
        "spacing": (_mm(record.store.spacing), _mm(store.spacing)),
        "labels": (", ".join(record.store.labels), ", ".join(store.labels)),
    }
    said = [f"{name}: then {before}, now {now}" for name, (before, now) in pairs.items() if before != now]
    if record.network.topology != network.topology:
        said.append("another topology")
    if record.store.normalization != store.normalization:
        said.append("another normalization")
    return "; ".join(said) or "the axes' order"


def _mm(spacing: Sequence[float | None]) -> str:
    """"1.5×1×1 mm"; a 2-D store has no spacing between its slices."""
    return f"{'×'.join(f'{step:.6g}' for step in spacing if step is not None)} mm"
