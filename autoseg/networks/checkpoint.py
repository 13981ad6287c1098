"""Weights on disk: safetensors beside JSON, never a pickle; finished models and states to resume from.

A finished model is `weights.safetensors` and `model.json`, tied by the hash of the weights. A resumable state
is `resume.json` and the tensor file that it names: the record is replaced last, so a kill at any moment leaves
the newest state that was written completely.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor, nn

from autoseg.errors import UserError, all_of
from autoseg.networks.builder import make_network
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.soundness import refuse_unsound
from autoseg.records import Record, read_record, replacing, write_record
from autoseg.schema import CheckpointInfo

WEIGHTS_NAME, MODEL_NAME, RESUME_NAME = "weights.safetensors", "model.json", "resume.json"
WEIGHTS_PREFIX, OPTIMIZER_PREFIX = "network.", "optimizer."


# ---------------------------------------------------------------- weights
def save_weights(network: nn.Module, path: Path) -> str:
    """Write the weights atomically; returns the SHA-256 of the file."""
    return _write_tensors(network.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write named tensors atomically; returns the SHA-256 of the file."""
    return _write_tensors(tensors, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Named tensors of a safetensors file and its SHA-256; UserError where it is absent or damaged."""
    content = _read_bytes(path)
    return _parse(content, path), hashlib.sha256(content).hexdigest()


def refuse_other_backbone(network: Segmenter, weights: Mapping[str, Tensor], source: str) -> None:
    """UserError listing every weight but those of the task heads that is missing, unexpected or of another shape.

    The network may be on the "meta" device: only shapes are compared.
    """
    given = {name: value for name, value in weights.items() if not network.is_task_head(name)}
    if problems := differences(network.backbone_state(), given):
        raise all_of(problems, f"{source} does not fit this network ({len(problems)} tensors differ):",
                     "Pretrain this network (autoseg pretrain-init), or train from scratch (--init scratch).")


def load_backbone(network: Segmenter, weights: Mapping[str, Tensor], source: str) -> int:
    """Copy every weight but those of the task heads, which stay; returns their number.

    Raises what `refuse_other_backbone` raises.
    """
    refuse_other_backbone(network, weights, source)
    expected = network.backbone_state()
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(weights[name])
    return len(expected)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load weights of exactly this network.

    Raises
    ------
    UserError : the file is absent or not safetensors; a weight is missing, unexpected or has another shape.
    """
    _assign(network, _parse(_read_bytes(path), path), path)


def misfits(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """One line for every weight that is missing, unexpected or has another shape than the network's."""
    return differences(network.state_dict(), weights)


def differences(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """One line for every tensor that `weights` lacks, has in excess, or has in another shape."""
    missing = [f"{name}: missing" for name in expected if name not in weights]
    unexpected = [f"{name}: not a weight of this network" for name in sorted(weights) if name not in expected]
    misshapen = [
        f"{name}: shape {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    return missing + unexpected + misshapen


# ---------------------------------------------------------------- finished models
def write_model(
    folder: Path, network: nn.Module, info: CheckpointInfo, state: Mapping[str, Tensor] | None = None
) -> CheckpointInfo:
    """Write `weights.safetensors`, then `model.json`; returns the record with the weights' hash.

    state : weights of the network that take the place of its own (what guided the training is folded into them).
    """
    path = folder / WEIGHTS_NAME
    sha256 = save_weights(network, path) if state is None else save_tensors(state, path)
    tied = info.model_copy(update={"weights_sha256": sha256})
    write_record(tied, folder / MODEL_NAME)
    return tied


def read_model(folder: Path) -> tuple[Segmenter, CheckpointInfo]:
    """The network of a model folder with its weights, on the CPU, and its record.

    Raises
    ------
    UserError : a file is absent or damaged, or the weights are not those that the record was written for.
    """
    info = read_record(CheckpointInfo, folder / MODEL_NAME, "Train the model first: autoseg train.")
    path = folder / WEIGHTS_NAME
    content = _read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != info.weights_sha256:
        raise UserError(
            f"{path} (SHA-256 {found[:12]}…) is not the file that {MODEL_NAME} was written for "
            f"({info.weights_sha256[:12]}…).\n"
            "Copy both files of the model again, or train it anew with --overwrite."
        )
    remedy = "Copy the model folder again as it was written."
    refuse_unsound(info.architecture, info.network, f"{folder / MODEL_NAME}: the", remedy)
    # No memory and no random draws for weights that are replaced at once.
    with torch.device("meta"):
        network = make_network(info.architecture, info.network, info.input_channels, len(info.outputs))
    weights = _parse(content, path)
    _refuse_misfits(network, weights, path)
    # Not `to_empty` first: on "meta" torch imports its symbolic shapes for it, most of a second.
    network.load_state_dict({name: weights[name].to(value.dtype) for name, value in network.state_dict().items()},
                            assign=True)
    return network.eval(), info


# ---------------------------------------------------------------- states to resume from
class ResumeRecord(Record):
    """A training's state to resume from: `tensors` names the safetensors file beside it (weights, momentum).

    `scaler`: the gradient scaler's state (empty unless float16). `facts`: what the training wants back, JSON.
    """

    version: Literal[1] = 1
    tensors: str
    tensors_sha256: str
    scaler: dict[str, float | int]
    facts: dict[str, JsonValue]


def save_resume(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    facts: dict[str, Any],
) -> None:
    """Write all that continuing a training needs; the state before it stays valid until this one is complete.

    facts : JSON-able; given back by `read_resume_facts`. The optimizer's groups (rate, decay) are not kept:
    whoever resumes builds the same optimizer first. Nor are random states: every draw is a function of (seed, step).
    """
    tensors = {f"{WEIGHTS_PREFIX}{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{OPTIMIZER_PREFIX}{kind}.{name}"] = value
    path = folder / f"state-{uuid4().hex[:8]}.safetensors"
    sha256 = _write_tensors(tensors, path)
    scale = scaler.state_dict()
    record = ResumeRecord(tensors=path.name, tensors_sha256=sha256, scaler=scale, facts=facts)
    write_record(record, folder / RESUME_NAME)
    # Also what a kill left behind: states that were never completed.
    for other in [*folder.glob("state-*.safetensors"), *folder.glob(".state-*.safetensors")]:
        if other != path:
            other.unlink(missing_ok=True)


def read_resume_facts(folder: Path) -> dict[str, Any] | None:
    """The facts of the state in a resume folder; None where there is no state."""
    path = folder / RESUME_NAME
    return dict(read_record(ResumeRecord, path).facts) if path.exists() else None


def load_resume(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Put the state's weights, optimizer buffers and loss scale into parts built as for the saved training.

    Raises
    ------
    UserError : there is no state, it is damaged, or its tensors do not fit the network.
    """
    record = read_record(ResumeRecord, folder / RESUME_NAME, "Run without --resume to start a training.")
    path = folder / record.tensors
    content = _read_bytes(path)
    if hashlib.sha256(content).hexdigest() != record.tensors_sha256:
        raise UserError(
            f"{path} is damaged: its content is not what {RESUME_NAME} was written for.\n"
            "Start the training anew with --overwrite."
        )
    tensors = _parse(content, path)
    weights = {name: value for name, value in tensors.items() if name.startswith(WEIGHTS_PREFIX)}
    _assign(network, {name.removeprefix(WEIGHTS_PREFIX): value for name, value in weights.items()}, path)
    buffers = {name: value for name, value in tensors.items() if name.startswith(OPTIMIZER_PREFIX)}
    parameters = dict(network.named_parameters())
    is_fused = bool(optimizer.defaults.get("fused"))
    for name, value in buffers.items():
        _, kind, parameter_name = name.split(".", 2)
        parameter = parameters[parameter_name]
        if kind == "step":
            # AdamW's number of steps: fused kernels read it where the weight is, others on the CPU.
            optimizer.state[parameter][kind] = value.to(parameter.device) if is_fused else value
        else:
            # Fused kernels walk weight and buffer together: the memory format must be the weight's.
            optimizer.state[parameter][kind] = torch.empty_like(parameter).copy_(value)
    scaler.load_state_dict(record.scaler)


# ---------------------------------------------------------------- files
def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    # Files hold plain row-major tensors, whatever the memory format in the process.
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(plain)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; the weights of a network were expected.\n"
            "Copy the complete model folder, or train the model anew."
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Check the file and its permissions."
        ) from None


def _parse(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is not a valid safetensors file ({error}).\n"
                        "Copy it again from where it was trained, or train the model anew.") from None
    return tensors


def _assign(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into a network, keeping its device and memory format; UserError where they do not fit."""
    _refuse_misfits(network, weights, path)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(weights[name])


def _refuse_misfits(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    if problems := misfits(network, weights):
        raise all_of(
            problems,
            f"{path} does not hold the weights of this network ({len(problems)} of its tensors differ):",
            "Use the model folder as `autoseg train` wrote it, or train anew.",
        )
