"""A state to continue a training from: tensors in a safetensors file, the rest in a record that names it.

The record is replaced last, so a kill at any moment leaves the newest state that was written completely. Random states
need not be kept: every draw is a function of (seed, step).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import torch
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.records import Record, read_record, write_record
from vlm.model.tensor_files import load_exactly, read_tensors, weights_sha256, write_tensors
from vlm.schema import Hex64

FOLDER, STATE_NAME = "resume", "resume.json"
REMEDY = "Start the training anew with --overwrite."


class ResumeRecord(Record):
    """resume.json. tensors : the file beside it. scaler : of the loss. facts : what the caller wants back."""

    format: Literal[1] = 1
    tensors: str
    tensors_sha256: Hex64
    scaler: dict[str, float | int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Learning:
    """All that changes in a training. average : the moving average of weights, where there is one."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None


def save_state(folder: Path, learning: Learning, facts: dict[str, Any]) -> None:
    """Write all that continuing needs; the state before it stays valid until this one is complete."""
    tensors = {f"network.{name}": value for name, value in learning.network.state_dict().items()}
    if learning.average is not None:
        tensors |= {f"average.{name}": value for name, value in learning.average.state_dict().items()}
    for name, parameter in learning.network.named_parameters():
        for kind, value in learning.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{kind}.{name}"] = value
    path = folder / f"state-{uuid4().hex[:8]}.safetensors"
    sha256 = write_tensors(tensors, path)
    record = ResumeRecord(tensors=path.name, tensors_sha256=sha256, scaler=learning.scaler.state_dict(), facts=facts)
    write_record(record, folder / STATE_NAME)
    for other in [*folder.glob("state-*.safetensors"), *folder.glob(".state-*.safetensors")]:
        if other != path:  # also what a kill left behind
            other.unlink(missing_ok=True)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The facts of the state in a folder; None where there is none."""
    path = folder / STATE_NAME
    return dict(read_record(ResumeRecord, path, REMEDY).facts) if path.exists() else None


def load_state(folder: Path, learning: Learning) -> None:
    """Put a state into parts that were built as for the training that saved it; UserError where they do not fit."""
    record = read_record(ResumeRecord, folder / STATE_NAME, REMEDY)
    path = folder / record.tensors
    if not path.is_file() or weights_sha256(path) != record.tensors_sha256:
        raise UserError(f"{path} is missing or damaged: it is not what {STATE_NAME} was written for.\n{REMEDY}")
    tensors = read_tensors(path)
    load_exactly(learning.network, _below("network.", tensors), str(path), REMEDY)
    if learning.average is not None:
        load_exactly(learning.average, _below("average.", tensors), str(path), REMEDY)
    parameters = dict(learning.network.named_parameters())
    for full_name, value in _below("optimizer.", tensors).items():
        kind, _, name = full_name.partition(".")
        parameter = parameters[name]
        learning.optimizer.state[parameter][kind] = value.to(parameter.device)
    learning.scaler.load_state_dict(record.scaler)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
