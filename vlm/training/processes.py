"""One process, or several that `torchrun` started: who they are, and what they tell each other."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from autoseg.errors import UserError
from vlm.model.devices import DeviceName, choose_device

AnyValue = TypeVar("AnyValue")


@dataclass(frozen=True)
class Processes:
    """rank : of this process among `world` of them; the first one writes and reports."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, rows: Shaped[Tensor, "pair ..."]) -> Shaped[Tensor, "all ..."]:
        """Rows of all processes, in the order of ranks; gradients flow to this process's own rows only."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def gather_lists(self, items: Sequence[str]) -> list[str]:
        """The items of all processes, in the order of ranks."""
        if self.world == 1:
            return list(items)
        parts: list[list[str]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def told_by_first(self, value: AnyValue) -> AnyValue:
        """The first process's value, in every process."""
        told = [value]
        if self.world > 1:
            dist.broadcast_object_list(told, 0)
        return told[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined_processes(name: DeviceName) -> Iterator[tuple[Processes, torch.device]]:
    """This process's place among those of torchrun, and its device: a GPU of its own, or the CPU."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(name, int(os.environ.get("LOCAL_RANK", "0")), world)
    if world == 1:
        yield Processes(), device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world), device
    finally:
        dist.destroy_process_group()


def _device(name: DeviceName, local_rank: int, world: int) -> torch.device:
    device = choose_device(name)
    if device.type == "cpu" or world == 1:
        return device
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"torchrun started a process for GPU {local_rank}, but this machine has "
                        f"{torch.cuda.device_count()}.\nStart as many processes as there are GPUs (--nproc-per-node).")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
