"""Which of the processes that torchrun started this one is; the only one where torchrun did not start it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in every process (torch.distributed.run); all of them, or none is believed."""


@dataclass(frozen=True)
class Launch:
    """`rank` of `world` processes over all nodes; `local_rank` of `local_world` on this node. All count from 0."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """The one that writes files and talks to the user."""
        return self.rank == 0


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """What torchrun's variables in the environment (by default this process's) say."""
    environment = os.environ if environment is None else environment
    numbers = [environment.get(name, "") for name in VARIABLES[:4]]
    if not all(environment.get(name) for name in VARIABLES) or not all(number.isdigit() for number in numbers):
        return Launch()
    return Launch(*map(int, numbers))
