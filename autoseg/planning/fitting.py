"""A patch that a network can be built for; where memory forbids every one, what would help."""

import math
from dataclasses import replace

from autoseg.errors import UserError
from autoseg.planning.memory import REFERENCES
from autoseg.planning.patch import Budget, FittedPatch, search_patch
from autoseg.planning.topology import Numbers
from autoseg.schema import ArchitectureName

MOST_MEMORY_GIB = 2.0**14
"""The search for a memory that would do ends here: no device has more."""
SEARCH_STEP = 1.01
"""The memory named in the error may be 1% more than needed."""


class TooLittleMemory(UserError):
    """Not even the smallest network of the architecture trains in the memory."""


def fit_patch(spacing: Numbers, median_shape: Numbers, budget: Budget) -> FittedPatch:
    """As `search_patch`, but a patch that a network can be built for.

    Raises
    ------
    TooLittleMemory : the memory is too small for the smallest network; says what would do.
    """
    patch = search_patch(spacing, median_shape, budget)
    if patch.buildable:
        return patch
    dimensions = len(spacing)
    enough = smallest_memory(spacing, median_shape, budget)
    others = fitting_architectures(spacing, median_shape, budget)
    where = f"in {dimensions}-D"
    hints = [
        f"The smallest memory that it would train in is {enough:g} GiB." if enough else "No memory would do.",
        f"In {budget.memory_gib:g} GiB these would train {where}: {', '.join(others)} (--architecture)."
        if others
        else f"No architecture trains {where} in {budget.memory_gib:g} GiB.",
    ]
    if dimensions == 3:
        hints.append("Configurations in 2-D need less: --configurations 2d.")
    raise TooLittleMemory(
        f"--memory-gib {budget.memory_gib:g}: not even the smallest {dimensions}-D patch fits into this memory with "
        f"the architecture {budget.architecture!r}.\n{' '.join(hints)}"
    )


def smallest_memory(spacing: Numbers, median_shape: Numbers, budget: Budget) -> float | None:
    """GiB, rounded up to two digits, in which the budget's architecture has a network; None if there is none."""

    def suffices(memory_gib: float) -> bool:
        return search_patch(spacing, median_shape, replace(budget, memory_gib=memory_gib)).buildable

    low = high = budget.memory_gib
    while not suffices(high):
        low, high = high, 2 * high
        if high > MOST_MEMORY_GIB:
            return None
    while high > low * SEARCH_STEP:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    digit = 10.0 ** (math.floor(math.log10(high)) - 1)
    return round(math.ceil(high / digit) * digit, 12)


def fitting_architectures(spacing: Numbers, median_shape: Numbers, budget: Budget) -> list[ArchitectureName]:
    """The other architectures that have a network in the budget's memory."""
    possible = []
    for (architecture, size), reference in REFERENCES.items():
        other = replace(budget, architecture=architecture, reference=reference)
        if (
            size is None
            and architecture != budget.architecture
            and search_patch(spacing, median_shape, other).buildable
        ):
            possible.append(architecture)
    return possible
