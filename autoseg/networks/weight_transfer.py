"""What of a trained network's weights fits another network: tensor by tensor copied, adapted or drawn, and why.

Stages are aligned from the finest. Nothing is left unsaid: every tensor of the network to train is in the plan once,
and every tensor of the source is either used or left over with a reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from autoseg.networks.builder import make_network
from autoseg.networks.kernel_adaptation import MASK_PREFIX, fit_inputs, fit_kernel, same_name
from autoseg.networks.segmenter import Segmenter
from autoseg.schema import ArchitectureName, CheckpointInfo, NetworkPlan

Action = Literal["copied", "adapted", "drawn"]
FAMILIES: dict[ArchitectureName, str] = {"hybrid": "resenc"}
"""Architectures whose stages are made like another's; all others are like themselves alone."""
TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | TRANSPOSED
NO_LAYER, OTHER_FEATURES = "the source has no such layer", "other numbers of features"
OTHER_SHAPE, OTHER_HEADS = "another shape", "another number of attention heads"
FOLLOWS, NO_LABEL = "follows its layer's kernel, which is drawn", "no output of this name in the source"
_DECODER = re.compile(r"^decoder\.(\d+)\.")
_STAGE = re.compile(r"^encoder\.stages\.(\d+)\.")


@dataclass(frozen=True)
class NetworkFacts:
    """What a network's weights were made for.

    channels : of the input, by name; those of a previous stage's mask begin with `MASK_PREFIX`. outputs: of the
        logits, by name; empty: weights without heads.
    """

    architecture: ArchitectureName
    network: NetworkPlan
    channels: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def family(self) -> str:
        """Networks of one family have the same layers under the same names."""
        return FAMILIES.get(self.architecture, self.architecture)


def facts_of(info: CheckpointInfo) -> NetworkFacts:
    """Of a model folder."""
    channels = input_names(info.channel_names, tuple(info.labels) if info.previous_stage else ())
    return NetworkFacts(info.architecture, info.network, channels, info.outputs)


def input_names(images: Sequence[str], previous_labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of a network's input channels; `previous_labels`: of a cascade's previous stage, background first."""
    return (*images, *(f"{MASK_PREFIX}{name}" for name in previous_labels[1:]))


@dataclass(frozen=True, kw_only=True)
class Move:
    """What becomes of one tensor of the network to train.

    Attributes
    ----------
    part : the stage that it belongs to, for people.
    why : how it was adapted, or why it is drawn; for a copied tensor empty, or which channel's kernels it holds.
    source : the source's tensor by name, where there is one at its place.
    value : None where it is drawn; rows: only these, along `axis`, are the value's, the others are drawn.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    action: Action
    why: str = ""
    source: str | None = None
    source_shape: tuple[int, ...] | None = None
    value: Tensor | None = None
    rows: tuple[int, ...] | None = None
    axis: int = 0

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return torch.Size(self.shape).numel()

    @property
    def moved(self) -> int:
        """Of these, how many come from the source."""
        return 0 if self.value is None else self.value.numel()


@dataclass(frozen=True)
class LeftOver:
    """A tensor of the source that no tensor of the network takes."""

    name: str
    shape: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class TransferPlan:
    """Every tensor of the network to train, in the order of its state dict; what of the source is left over."""

    moves: tuple[Move, ...]
    left_over: tuple[LeftOver, ...]

    @property
    def size(self) -> int:
        """Numbers in the network."""
        return sum(move.size for move in self.moves)

    @property
    def share(self) -> float:
        """Of the network's numbers, how many come from the source."""
        return sum(move.moved for move in self.moves) / self.size

    def count(self, action: Action) -> int:
        """So many tensors are `copied`, `adapted` or `drawn`."""
        return sum(move.action == action for move in self.moves)

    def put_into(self, network: Segmenter) -> None:
        """Replace what is not drawn; the network, with drawn weights, is one that the plan was made for."""
        state = network.state_dict()
        with torch.no_grad():
            for move in self.moves:
                here = state[move.name]
                if move.value is not None and move.rows is None:
                    here.copy_(move.value)
                elif move.value is not None:
                    here.index_copy_(move.axis, torch.tensor(move.rows), move.value.to(here.dtype))


def plan_transfer(tensors: Mapping[str, Tensor], made_for: NetworkFacts, wanted: NetworkFacts) -> TransferPlan:
    """What of `tensors`, made for one network, goes where in another, of which no weights are needed.

    Between families (plain convolutions and residual ones) nothing fits.
    """
    with torch.device("meta"):
        target = make_network(wanted.architecture, wanted.network, len(wanted.channels), max(1, len(wanted.outputs)))
    if made_for.family == wanted.family:
        return _Matching(tensors, made_for, target, wanted).plan()
    why = f"{made_for.architecture} and {wanted.architecture} networks have other layers"
    parts = _parts_of(target)
    moves = tuple(Move(name=name, part=parts[name], shape=tuple(value.shape), action="drawn", why=why)
                  for name, value in target.state_dict().items())
    return TransferPlan(moves, tuple(LeftOver(name, tuple(value.shape), why) for name, value in tensors.items()))


class _Matching:
    """The tensors of two networks of one family, side by side."""

    def __init__(
        self, tensors: Mapping[str, Tensor], made_for: NetworkFacts, target: Segmenter, wanted: NetworkFacts
    ) -> None:
        self.tensors, self.made_for, self.target, self.wanted = tensors, made_for, target, wanted
        self.state = target.state_dict()
        self.kernels = {f"{name}.weight": module for name, module in target.named_modules()
                        if isinstance(module, CONVOLUTIONS)}
        self.input_kernels = _input_kernels(target, (1, len(wanted.channels), *wanted.network.patch_shape))
        self.source_of = {place: name for name, place in aligned_names(tensors).items()}
        self.places, self.parts = aligned_names(self.state), _parts_of(target)

    def plan(self) -> TransferPlan:
        moves = {name: self._move(name) for name in self.state}
        for name, move in moves.items():
            leader = moves.get(self._leader(name) or "")
            if leader is not None and leader.value is None and move.value is not None:
                moves[name] = self._as_drawn(name, FOLLOWS)
        taken = {move.source for move in moves.values() if move.value is not None}
        replaced = {move.source: move for move in moves.values() if move.value is None}
        left = []
        for name, value in self.tensors.items():
            if name not in taken:
                why = f"{replaced[name].name} is drawn: {replaced[name].why}" if name in replaced else \
                    "this network has no such layer"
                left.append(LeftOver(name, tuple(value.shape), why))
        return TransferPlan(tuple(moves.values()), tuple(left))

    def _move(self, name: str) -> Move:
        source = self.source_of.get(self.places[name])
        if source is None or self._other_heads(name):
            return self._as_drawn(name, NO_LAYER if source is None else OTHER_HEADS)
        given, shape, how = self.tensors[source], tuple(self.state[name].shape), ""
        if self.target.is_task_head(name):
            return self._head(name, given)
        if name in self.input_kernels and self._is_input_kernel(given, shape):
            given, how = fit_inputs(given, self.made_for.channels, self.wanted.channels)
        if tuple(given.shape) == shape:
            is_same = given is self.tensors[source] or torch.equal(given, self.tensors[source])
            return self._moved(name, "copied" if is_same else "adapted", given, how)
        fitted, why = self._fitted(name, given, shape)
        if fitted is None:
            return self._as_drawn(name, why)
        return self._moved(name, "adapted", fitted, "; ".join(text for text in (how, why) if text))

    def _fitted(self, name: str, given: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | None, str]:
        module = self.kernels.get(name)
        if module is None or given.shape[:2] != shape[:2]:
            return None, OTHER_SHAPE if module is None else OTHER_FEATURES
        is_transposed = isinstance(module, TRANSPOSED)
        fitted = None
        if not is_transposed or module.kernel_size == module.stride:
            fitted = fit_kernel(given, shape[2:], blockwise=is_transposed)
        return (None, "a kernel that no rule fits") if fitted is None else fitted

    def _head(self, name: str, given: Tensor) -> Move:
        """Rows of the outputs that both have, by name."""
        pairs = _same_outputs(self.made_for.outputs, self.wanted.outputs)
        axis = int(isinstance(self.kernels.get(name), TRANSPOSED))
        if given.ndim <= axis or given.shape[axis] != len(self.made_for.outputs) or not pairs:
            return self._as_drawn(name, NO_LABEL)
        value, how = given.index_select(axis, torch.tensor([there for _, there in pairs])), ""
        shape = tuple(len(pairs) if at == axis else size for at, size in enumerate(self.state[name].shape))
        if value.shape != shape:
            fitted, how = self._fitted(name, value, shape)
            if fitted is None:
                return self._as_drawn(name, how)
            value = fitted
        rows = tuple(here for here, _ in pairs)
        if not how and value.shape == self.state[name].shape and torch.equal(value, given):
            return self._moved(name, "copied", value, "")
        drawn = [name for index, name in enumerate(self.wanted.outputs) if index not in rows]
        said = f"outputs by name: {', '.join(self.wanted.outputs[row] for row in rows)}"
        said += f"; drawn: {', '.join(drawn)}" if drawn else ""
        moved = self._moved(name, "adapted", value, f"{said}; {how}" if how else said)
        return replace(moved, rows=rows, axis=axis)

    def _is_input_kernel(self, given: Tensor, shape: tuple[int, ...]) -> bool:
        return given.ndim > 2 and given.shape[:2] == (shape[0], len(self.made_for.channels))

    def _other_heads(self, name: str) -> bool:
        """Whether a tensor belongs to an attention whose features are shared out to another number of heads."""
        found = _STAGE.match(name)
        ours, theirs = self.wanted.network.topology.attention, self.made_for.network.topology.attention
        if found is None or ours is None or theirs is None or ".attention." not in name:
            return False
        stage = int(found[1])
        return stage < len(theirs.heads) and ours.heads[stage] != theirs.heads[stage]

    def _leader(self, name: str) -> str | None:
        """The kernel without which a bias or a norm means nothing."""
        owner, _, kind = name.rpartition(".")
        own = f"{owner}.weight"
        if kind == "bias" and own in self.state and self.state[own].ndim > 1:
            return own
        block, _, last = owner.rpartition(".")
        kernel = f"{block}.convolution.weight"
        return kernel if last == "norm" and kernel in self.state else None

    def _moved(self, name: str, action: Action, value: Tensor, why: str) -> Move:
        source = self.source_of[self.places[name]]
        return Move(name=name, part=self.parts[name], shape=tuple(self.state[name].shape), action=action, why=why,
                    source=source, source_shape=tuple(self.tensors[source].shape), value=value)

    def _as_drawn(self, name: str, why: str) -> Move:
        source = self.source_of.get(self.places[name])
        shape = None if source is None else tuple(self.tensors[source].shape)
        return Move(name=name, part=self.parts[name], shape=tuple(self.state[name].shape), action="drawn", why=why,
                    source=source, source_shape=shape)


def aligned_names(names: Mapping[str, object]) -> dict[str, str]:
    """Tensor name → its place, the same in networks of any depth: decoder levels are counted from the finest."""
    levels = [int(found[1]) for name in names if (found := _DECODER.match(name))]
    finest = max(levels, default=0)
    return {name: _DECODER.sub(lambda found: f"decoder level {finest - int(found[1])}.", name) for name in names}


def _same_outputs(given: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Positions in `wanted` and in `given` of the outputs that both have."""
    return [(here, there) for here, name in enumerate(wanted) for there, other in enumerate(given)
            if same_name(name, other)]


def _parts_of(network: Segmenter) -> dict[str, str]:
    """Tensor name → the name of its stage."""
    part_of = {id(module): part.name for part in network.parts() for module in part.module.modules()}
    modules = dict(network.named_modules())
    return {name: part_of.get(id(modules[name.rpartition(".")[0]]), "other") for name in network.state_dict()}


def _input_kernels(network: Segmenter, shape: tuple[int, ...]) -> set[str]:
    """The kernels of the convolutions that see the image itself, found by a pass of the network on the meta device."""
    image, seeing = torch.empty(shape, device="meta"), set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] is image:
            seeing.add(module)

    handles = [module.register_forward_pre_hook(note) for module in network.modules()
               if isinstance(module, CONVOLUTIONS)]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return {f"{name}.weight" for name, module in network.named_modules() if module in seeing}
