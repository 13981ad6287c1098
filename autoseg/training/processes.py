"""Training in several processes that torchrun started: what they sum, agree on and wait for.

Every process computes a share of the batch. Gradients are averaged after the backward passes of a step, in flat
buckets, and nothing is sent while they are computed: this fits objectives of several views and recomputed stages, and
costs the overlap that DistributedDataParallel has. Whatever decides (time, signals, precision) is agreed on, so that
all processes take the same branches; sums over processes would otherwise wait for each other forever.

Numbers on a GPU go through NCCL, those of the CPU through gloo. Alone, every function here does nothing.
"""

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.launch import Launch, launched
from autoseg.records import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)

STEP_LIMIT = datetime.timedelta(minutes=30)
"""So long may a process wait for the others' numbers; one that hangs then ends the training."""
WORK_LIMIT = datetime.timedelta(days=2)
"""So long may it wait for work that is not shared evenly: preprocessing, masks, scores."""
BUCKET_BYTES = 64 << 20
"""Gradients that are summed at once: one copy of so many bytes exists beside them."""


class _Sum(torch.autograd.Function):
    """The sum over processes; a gradient is the sum of all processes' gradients of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(gradient)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradients; every process must call it, in the same order.

    With L the mean of the processes' losses, the mean of their gradients is the gradient of L: each process's is that
    of the sum of all losses by its own part.
    """
    return _Sum.apply(tensor)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    `patient` : the group for waits without a close limit; None where there is one process.
    """

    launch: Launch = Launch()
    patient: Any = None

    @property
    def count(self) -> int:
        """Processes over all nodes."""
        return self.launch.world

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return self.launch.rank

    @property
    def is_first(self) -> bool:
        """The one that writes files."""
        return self.launch.is_first

    def fair_share(self, amount: int) -> int:
        """This process's part of a node's memory or cores; at least 1."""
        return max(1, amount // self.launch.local_world)

    def device(self, chosen: torch.device) -> torch.device:
        """Of the kind chosen, the device of this process; UserError where the node has fewer GPUs than processes."""
        if self.count == 1 or chosen.type != "cuda":
            return chosen
        gpus, processes = torch.cuda.device_count(), self.launch.local_world
        if processes > gpus:
            raise UserError(f"torchrun started {processes} processes on a machine with {gpus} GPU{'s' * (gpus != 1)}; "
                            f"at most one process per GPU was expected.\nStart it with --nproc-per-node {gpus}, or "
                            "train with --device cpu.")
        return torch.device("cuda", self.launch.local_rank)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, without gradients."""
        return tensor if self.count == 1 else _summed(tensor.detach())

    def means(self, values: Sequence[Tensor]) -> list[float]:
        """Of every scalar the mean over all processes; all have the same number of them."""
        if self.count == 1 or not values:
            return [float(value) for value in values]
        means: list[float] = (self.sum(torch.stack([value.detach() for value in values])) / self.count).tolist()
        return means

    def average_gradients(self, parts: nn.Module) -> None:
        """Replace every gradient by its mean over the processes (one that a process lacks counts as zero there).

        Of gradients that are scaled for float16: infinity in one process is infinity in all, so that all leave the
        step out.
        """
        if self.count == 1:
            return
        parameters = [parameter for parameter in parts.parameters() if parameter.requires_grad]
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        somewhere = self.sum(present).tolist()
        gradients = []
        for parameter, processes in zip(parameters, somewhere, strict=True):
            if processes and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            mean = _sum_into(torch.cat([gradient.reshape(-1) for gradient in bucket])).div_(self.count)
            for gradient, part in zip(bucket, torch.split(mean, [one.numel() for one in bucket]), strict=True):
                gradient.copy_(part.view(gradient.shape))

    def same_weights(self, parts: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if self.count == 1:
            return
        for value in parts.state_dict().values():
            sent = value.detach().clone(memory_format=torch.contiguous_format)
            with _together():
                torch.distributed.broadcast(sent, src=0)
            value.copy_(sent)

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's seconds, and whether any wants to stop."""
        if self.count == 1:
            return seconds, stop
        total = self.sum(torch.tensor([seconds if self.is_first else 0.0, float(stop)], dtype=torch.float64))
        return float(total[0]), bool(total[1] > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            _summed(torch.zeros(1), self.patient)

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The block in the first process, then in the others, which find done what it left on the disk."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def text_of_first(self, text: str) -> str:
        """The first process's text."""
        return self.texts(text if self.is_first else "")[0]

    def texts(self, text: str) -> list[str]:
        """Every process's text, in the order of their ranks, in each of them."""
        if self.count == 1:
            return [text]
        content = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = len(content)
        lengths = _summed(sizes, self.patient).tolist()
        padded = torch.zeros(self.count, max(lengths), dtype=torch.uint8)
        padded[self.rank, : len(content)] = content
        rows = _summed(padded, self.patient)
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    def from_first(self, make: Callable[[], AnyRecord], kind: type[AnyRecord]) -> AnyRecord:
        """What `make` gives in the first process, which alone calls it."""
        made = make() if self.is_first else None
        text = self.text_of_first("" if made is None or self.count == 1 else made.model_dump_json())
        return kind.model_validate_json(text) if made is None else made


ALONE = Processes()


@contextmanager
def joined(chosen: torch.device) -> Iterator[Processes]:
    """Meet the processes that torchrun started, for a training on `chosen`'s kind of device; alone without torchrun.

    Raises
    ------
    UserError : more processes on a node than it has GPUs; nodes with different kinds of devices; a process that does
        not come or ended.
    """
    launch = launched()
    if launch.world == 1:
        yield ALONE
        return
    device = Processes(launch).device(chosen)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _together():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                                             timeout=STEP_LIMIT)
        patient = torch.distributed.new_group(backend="gloo", timeout=WORK_LIMIT)
    processes = Processes(launch, patient)
    kinds = processes.texts(device.type)
    if len(set(kinds)) > 1:
        raise UserError(f"torchrun's processes would train on {', '.join(kinds)}, in the order of their ranks; one "
                        "kind of device was expected.\nName it with --device, on nodes that all have it.")
    yield processes
    # After an error nothing is closed: the others may never answer, and this process ends.
    processes.wait()
    torch.distributed.destroy_process_group()


def _summed(tensor: Tensor, group: Any = None) -> Tensor:
    return _sum_into(tensor.clone(memory_format=torch.contiguous_format), group)


def _sum_into(tensor: Tensor, group: Any = None) -> Tensor:
    """The same tensor, which holds the sum over processes now."""
    with _together():
        torch.distributed.all_reduce(tensor, group=group)
    return tensor


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in order, in lists of one type and about `BUCKET_BYTES` at most (at least one gradient each)."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


@contextmanager
def _together() -> Iterator[None]:
    """What torch.distributed says when another process is gone, for people."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"Another process of this training ended or does not answer ({reason}).\nIts own message, "
                        "where it left one, says why. An interrupted training continues with --resume.") from error
