"""What a planned network consists of and costs, stage by stage: one forward pass on torch's `meta` device.

Nothing is computed and no memory is taken, so that every plan can be described on every machine.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.hooks import RemovableHandle

from autoseg.networks.builder import make_network
from autoseg.networks.segmenter import Part, Segmenter
from autoseg.schema import ArchitectureName, NetworkPlan

BYTES_PER_ACTIVATION = 2
"""Of bfloat16 and float16, the precisions of training on a GPU."""
ATTENTION_INPUTS = ("query", "key", "value")


@dataclass(frozen=True)
class PartRow:
    """One stage of a network, for one sample; axes in plan order.

    Attributes
    ----------
    shape, channels : of the stage's feature map.
    stride : voxels of the patch per voxel of the map, per axis; spacing : mm between the map's voxels.
    tokens : voxels of the map where the stage attends, else None.
    macs : multiplications of the forward pass in convolutions, matrix products and attention.
    saved_bytes : of the tensors that the stage keeps for the backward pass, every number of them in 16 bits. Weights
        and what other stages keep already are not counted; what runs between two stages counts for the earlier.
    """

    name: str
    block: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: int
    tokens: int | None
    parameters: int
    macs: int
    saved_bytes: int


@dataclass(frozen=True)
class NetworkDescription:
    """The stages in the order of computation, and their sums."""

    parts: tuple[PartRow, ...]

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiplications of one sample's forward pass."""
        return sum(part.macs for part in self.parts)

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for one sample's backward pass."""
        return sum(part.saved_bytes for part in self.parts)


def describe_network(
    architecture: ArchitectureName,
    network_plan: NetworkPlan,
    input_channels: int,
    output_channels: int,
    spacing: Sequence[float],
) -> NetworkDescription:
    """Describe a planned network as it trains: all levels of `forward_all`, stages checkpointed as planned.

    `output_channels` counts background; `spacing` is mm between the patch's voxels, plan order.
    """
    with torch.device("meta"):
        network = make_network(architecture, network_plan, input_channels, output_channels)
    tally = trace(network, (1, input_channels, *network_plan.patch_shape))
    counted: set[int] = set()
    rows = []
    for index, part in enumerate(network.parts()):
        fresh = {id(weight): weight.numel() for weight in part.module.parameters() if id(weight) not in counted}
        counted |= fresh.keys()
        channels, *shape = tally.output_shapes[index]
        stride = tuple(size // small for size, small in zip(network_plan.patch_shape, shape, strict=True))
        rows.append(PartRow(
            name=part.name, block=part.block, shape=tuple(shape), stride=stride,
            spacing=tuple(step * size for step, size in zip(stride, spacing, strict=True)), channels=channels,
            tokens=math.prod(shape) if part.attends else None, parameters=sum(fresh.values()),
            macs=tally.flops.get(index, 0) // 2, saved_bytes=tally.saved.get(index, 0),
        ))  # fmt: skip
    return NetworkDescription(tuple(rows))


@dataclass
class Tally:
    """Per part (its position): flops, bytes saved, and the (channel, *shape) of its output."""

    flops: dict[int, int]
    saved: dict[int, int]
    output_shapes: dict[int, tuple[int, ...]]


def trace(network: Segmenter, input_shape: tuple[int, ...]) -> Tally:
    """Run `forward_all` of a network on the meta device and count what every part does.

    input_shape : (batch, channel, *patch); `saved` counts the whole batch. A multiplication and its addition are
    two flops, as in torch's counter. Random states stay as they are.
    """
    parts = network.parts()
    tally = Tally({}, {}, {})
    with _FusedAttention() as attention, FlopCounterMode(display=False) as counter:
        position = _Position(lambda: counter.get_total_flops() + attention.flops, tally.flops)
        ledger = _Ledger(network, position, tally.saved)
        with _following(parts, position, tally.output_shapes):
            with torch.autograd.graph.saved_tensors_hooks(ledger.pack, _as_it_is):
                outputs = network.forward_all(torch.empty(input_shape, device="meta"))
            position.settle()
        # Until here, so that no storage's address was given to another.
        del outputs
    return tally


class _Position:
    """Which part is running; flops since the last change of parts are credited to it."""

    def __init__(self, flops_so_far: Callable[[], int], credited: dict[int, int]) -> None:
        self.part = 0
        self._running: list[int] = []
        self._flops_so_far, self._credited, self._settled = flops_so_far, credited, 0

    def enter(self, part: int) -> None:
        self.settle()
        self._running.append(part)
        self.part = part

    def leave(self) -> None:
        self.settle()
        left = self._running.pop()
        self.part = self._running[-1] if self._running else left

    def settle(self) -> None:
        total = self._flops_so_far()
        self._credited[self.part] = self._credited.get(self.part, 0) + total - self._settled
        self._settled = total


class _Ledger:
    """Bytes of the tensors that autograd saves, every storage once, weights and buffers not at all."""

    def __init__(self, network: nn.Module, position: _Position, saved: dict[int, int]) -> None:
        self._seen = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self._kept: list[Tensor] = []
        self._position, self._saved = position, saved

    def pack(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._seen:
            self._seen.add(_storage(tensor))
            self._kept.append(tensor)
            part = self._position.part
            self._saved[part] = self._saved.get(part, 0) + _bytes(tensor)
        return tensor


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: scores are never kept. On the meta device torch takes the explicit formula."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(keywords or {})
        if function is not functional.scaled_dot_product_attention or _masked(arguments, given):
            return function(*arguments, **given)
        queries, keys, values = (*arguments[:3], *(given[name] for name in ATTENTION_INPUTS[len(arguments) :]))
        self.flops += int(sdpa_flop_count(queries.shape, keys.shape, values.shape))  # type: ignore[no-untyped-call]
        return _Attend.apply(queries, keys, values)  # type: ignore[no-untyped-call]


def _masked(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether attention has a mask: then not every fused kernel takes it, and the formula is counted."""
    return len(arguments) > 3 and arguments[3] is not None or keywords.get("attn_mask") is not None


class _Attend(torch.autograd.Function):
    """Shapes of scaled dot-product attention, and what a fused kernel keeps of it; it cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        mixed = queries.new_empty(*queries.shape[:-1], values.shape[-1])
        logarithms = queries.new_empty(queries.shape[:-1])
        ctx.save_for_backward(queries, keys, values, mixed, logarithms)
        return mixed


@contextmanager
def _following(
    parts: Sequence[Part], position: _Position, output_shapes: dict[int, tuple[int, ...]]
) -> Iterator[None]:
    """Tell `position` whenever a module of a part runs, and note the shapes of the parts' outputs."""
    seen: set[int] = set()
    with ExitStack() as stack:
        for index, part in enumerate(parts):
            stack.callback(part.module.register_forward_hook(_shape_taker(index, output_shapes)).remove)
            for module in part.module.modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    for handle in _announce(module, index, position):
                        stack.callback(handle.remove)
        yield


def _announce(module: nn.Module, index: int, position: _Position) -> list[RemovableHandle]:
    return [
        module.register_forward_pre_hook(lambda *_: position.enter(index)),
        module.register_forward_hook(lambda *_: position.leave()),
    ]


def _shape_taker(index: int, output_shapes: dict[int, tuple[int, ...]]) -> Callable[..., None]:
    def take(_module: nn.Module, _inputs: object, output: Any) -> None:
        last = output if isinstance(output, Tensor) else output[-1]
        output_shapes[index] = tuple(last.shape[1:])

    return take


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    """Of the whole storage, numbers with a fraction in 16 bits."""
    stored = tensor.untyped_storage().nbytes()
    return stored // tensor.element_size() * BYTES_PER_ACTIVATION if tensor.is_floating_point() else stored


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
