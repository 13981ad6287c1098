"""What label values demand of a network's channels: exclusive labels, overlapping regions, unknown annotation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from autoseg.labelling import Labelled


def alone(tensor: Tensor) -> Tensor:
    """The sum over all processes where there is one."""
    return tensor


@dataclass(frozen=True)
class Targets:
    """How labels become targets.

    Attributes
    ----------
    members : the internal labels that make up each foreground output; the ignore label is not among the columns.
    overlapping : each output is decided by itself (a sigmoid); otherwise background and the outputs exclude each other
        (a softmax whose first channel is background), and each output is one label.
    ignore : the internal label of voxels that count for nothing.
    annotated : of cases in which not everything is annotated: whether each foreground output is.
    across, processes : the differentiable sum over the processes of a training, and how many there are.
    """

    members: Bool[Tensor, "output label"]
    overlapping: bool = False
    ignore: int | None = None
    annotated: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    across: Callable[[Tensor], Tensor] = alone
    processes: int = 1

    def annotated_in(self, case_ids: Sequence[str], device: torch.device) -> Bool[Tensor, "sample output"] | None:
        """Whether each output is annotated in each sample's case; None where all are."""
        if not any(case in self.annotated for case in case_ids):
            return None
        full = (True,) * len(self.members)
        return torch.tensor([self.annotated.get(case, full) for case in case_ids], device=device)


def label_members(labels: int) -> Bool[Tensor, "output label"]:
    """Each of so many exclusive labels by itself, background (0) left out."""
    return torch.eye(labels, dtype=torch.bool)[1:]


def make_targets(
    labelled: Labelled, annotated: Mapping[str, Sequence[str]], device: torch.device
) -> Targets:
    """The targets of a plan. `annotated`: of cases in which not everything is annotated, the names that are."""
    members = torch.zeros(len(labelled.foreground), len(labelled.labels), dtype=torch.bool)
    for row, internal in enumerate(labelled.members):
        members[row, list(internal)] = True
    known = {case: tuple(name in names for name in labelled.foreground) for case, names in annotated.items()}
    return Targets(members.to(device), bool(labelled.regions), labelled.internal_ignore, known)
