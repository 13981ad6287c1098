"""The weights that a training begins with, and `init_transfer.json`: what became of every tensor."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from autoseg.launch import launched
from autoseg.networks.checkpoint import load_backbone
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.weight_transfer import Action, TransferPlan
from autoseg.records import Record, write_record

TRANSFER_NAME = "init_transfer.json"
ACTIONS: tuple[Action, ...] = ("copied", "adapted", "drawn")
logger = logging.getLogger("autoseg")


class MovedTensor(Record):
    """A tensor of the trained network; `source`: the one at its place, used unless it is drawn."""

    name: str
    part: str
    action: Action
    why: str
    shape: tuple[int, ...]
    source: str | None
    source_shape: tuple[int, ...] | None


class UnusedTensor(Record):
    """A tensor of the source that the network has no use for."""

    name: str
    shape: tuple[int, ...]
    why: str


class TransferRecord(Record):
    """`init_transfer.json` beside a model that began with another network's weights.

    share : of the network's numbers that came from the source; weights: so many numbers it has.
    """

    version: Literal[1] = 1
    source: str
    source_sha256: str
    share: float
    weights: int
    copied: int
    adapted: int
    drawn: int
    tensors: tuple[MovedTensor, ...]
    left_over: tuple[UnusedTensor, ...]


@dataclass(frozen=True)
class FirstWeights:
    """Weights to begin with: where they came from, the hash of their file, and how they get into the network.

    tensors : of the backbone of exactly this network, by name. transfer: of another network, what of it fits. Both
        None: a training is continued, whose own state holds the weights.
    """

    tensors: Mapping[str, Tensor] | None
    source: str
    sha256: str
    transfer: TransferPlan | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What a model records of them."""
        return {"init": self.source, "init_sha256": self.sha256}

    @property
    def figures(self) -> dict[str, float | int]:
        """What run.json tells of a transfer; empty where there was none."""
        plan = self.transfer
        if plan is None:
            return {}
        return {"init_share": round(plan.share, 4), **{f"init_{action}": plan.count(action) for action in ACTIONS},
                "init_left_over": len(plan.left_over)}

    def begin(self, network: Segmenter, folder: Path) -> None:
        """Put them into a network with drawn weights, and say what was moved; a transfer is recorded in `folder`.

        Raises
        ------
        UserError : `tensors` do not fit.
        """
        if self.tensors is not None:
            count = load_backbone(network, self.tensors, self.source)
            logger.info("first weights: %d tensors of %s; the heads for this dataset's labels are drawn", count,
                        self.source)
        if self.transfer is not None:
            self.transfer.put_into(network)
            logger.info("first weights from %s: %s", self.source, describe_transfer(self.transfer))
            if launched().is_first:
                folder.mkdir(parents=True, exist_ok=True)
                write_record(self._record(self.transfer), folder / TRANSFER_NAME)

    def _record(self, plan: TransferPlan) -> TransferRecord:
        return TransferRecord(
            source=self.source, source_sha256=self.sha256, share=plan.share, weights=plan.size,
            copied=plan.count("copied"), adapted=plan.count("adapted"), drawn=plan.count("drawn"),
            tensors=tuple(MovedTensor(name=move.name, part=move.part, action=move.action, why=move.why,
                                      shape=move.shape, source=move.source, source_shape=move.source_shape)
                          for move in plan.moves),
            left_over=tuple(UnusedTensor(name=one.name, shape=one.shape, why=one.why) for one in plan.left_over),
        )  # fmt: skip


def describe_transfer(plan: TransferPlan) -> str:
    """"moved 96.0 % of 30.8 M weights: …", a table of the stages, and every reason; several lines."""
    counts = ", ".join(f"{plan.count(action)} {action}" for action in ACTIONS)
    lines = [f"moved {100 * plan.share:.1f} % of {plan.size / 1e6:.3g} M weights (tensors: {counts})"]
    parts: dict[str, list[str]] = {"stage": ["weights", "moved", *ACTIONS]}
    for part in dict.fromkeys(move.part for move in plan.moves):
        moves = [move for move in plan.moves if move.part == part]
        size = sum(move.size for move in moves)
        parts[part] = [f"{size:,}", f"{100 * sum(move.moved for move in moves) / size:.1f} %",
                       *(str(sum(move.action == action for move in moves)) for action in ACTIONS)]
    widths = [max(map(len, column)) for column in zip(*parts.values(), strict=True)]
    first = max(map(len, parts))
    lines += ["  ".join([f"  {part:<{first}}", *(cell.rjust(width) for cell, width in zip(row, widths, strict=True))])
              for part, row in parts.items()]
    return "\n".join([*lines, *(f"  {reason}" for reason in reasons_of(plan))])


def reasons_of(plan: TransferPlan) -> list[str]:
    """One line for every way in which tensors were adapted, every reason why some are drawn, and what is left over."""
    said: dict[tuple[str, str], list[str]] = {}
    for move in plan.moves:
        if move.why:
            said.setdefault((move.action, move.why), []).append(move.part)
    lines = [f"{action}: {why} ({_counted(parts)})" for (action, why), parts in said.items()]
    unused: dict[str, list[str]] = {}
    for one in plan.left_over:
        unused.setdefault(one.why.rpartition(" is drawn: ")[2], []).append(one.name)
    return lines + [f"left over of the source: {len(names)} tensors, {names[0]}{' …' if len(names) > 1 else ''} ({why})"
                    for why, names in unused.items()]


def _counted(parts: Sequence[str]) -> str:
    names = list(dict.fromkeys(parts))
    shown = ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]}"
    return f"{len(parts)} tensor{'s' * (len(parts) > 1)} of {shown}"
