"""Counts of parameters, multiplications and memory against formulas, and against the network as a whole."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoseg.networks.builder import make_network
from autoseg.networks.introspection import NetworkDescription, describe_network, trace
from autoseg.networks.segmenter import Part, Segmenter
from autoseg.planning.architectures import TOPOLOGIES, build_topology, pool_patch
from autoseg.planning.optimizers import OPTIMIZERS
from autoseg.schema import ArchitectureName, NetworkPlan, Topology

UNETS = ("plain", "resenc", "hybrid")
GRIDS = (((1.0, 1.0, 1.0), (40, 56, 40)), ((10.0, 1.56, 1.56), (20, 128, 112)), ((1.0, 1.0), (96, 128)))


def make_plan(
    architecture: ArchitectureName, spacing: tuple[float, ...], patch: tuple[int, ...], **changes: object
) -> NetworkPlan:
    pooling = pool_patch(architecture, spacing, patch)
    planned = NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=2, topology=build_topology(architecture, pooling),
        batch_dice=False, optimizer=OPTIMIZERS[architecture], memory_gib=1.0, reasons=(),
    )  # fmt: skip
    return planned.model_copy(update=changes)


def describe(architecture: ArchitectureName, spacing: tuple[float, ...], network: NetworkPlan) -> NetworkDescription:
    return describe_network(architecture, network, 2, 3, spacing)


# ---------------------------------------------------------------- against formulas
class Tiny(Segmenter):
    """Every kind of layer once: 8 channels on 4 × 6 × 8 voxels, halved along the last axis, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1), groups=8)
        self.strided = nn.Conv3d(8, 12, (1, 1, 2), (1, 1, 2))
        self.linear = nn.Linear(12, 12)
        self.up = nn.ConvTranspose3d(12, 2, (1, 1, 2), (1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.strided(self.depthwise(self.first(x)))
        tokens = self.linear(x.flatten(2).transpose(1, 2))[:, None]
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0]
        result: Tensor = self.up(mixed.transpose(1, 2).reshape(x.shape))
        return result

    def forward_all(self, x: Tensor) -> list[Tensor]:
        return [self(x)]

    def initialize(self) -> None:
        return

    def parts(self) -> list[Part]:
        modules = (self.first, self.depthwise, self.strided, self.linear, self.up)
        return [Part(str(index), "layer", module) for index, module in enumerate(modules)]


def test_every_kind_of_layer_is_counted_as_its_formula_says() -> None:
    with torch.device("meta"):
        tally = trace(Tiny(), (1, 1, 4, 6, 8))
    fine, coarse = 4 * 6 * 8, 4 * 6 * 4
    macs = {index: flops / 2 for index, flops in tally.flops.items()}
    assert macs[0] == fine * 27 * 8
    assert macs[1] == fine * 9 * 8
    assert macs[2] == coarse * 2 * 8 * 12
    # Attention runs between the linear layer and the last one: scores and sums over all pairs of tokens.
    assert macs[3] == coarse * 12 * 12 + 2 * coarse * coarse * 12
    assert macs[4] == coarse * 2 * 12 * 2


def test_every_kind_of_layer_keeps_what_its_derivative_needs() -> None:
    with torch.device("meta"):
        saved = trace(Tiny(), (1, 1, 4, 6, 8)).saved
    fine, coarse = 4 * 6 * 8, 4 * 6 * 4
    # A convolution keeps its input, a linear layer the tokens. Queries, keys and values are one tensor here; beside
    # it attention keeps its output and one number per token, no scores.
    values = {0: fine, 1: 8 * fine, 2: 8 * fine, 3: 12 * coarse + 12 * coarse + 12 * coarse + coarse, 4: 0}
    for index, expected in values.items():
        assert saved.get(index, 0) == 2 * expected, index


# ---------------------------------------------------------------- against the whole
CASES = [*itertools.product(UNETS, GRIDS), *((name, ((1.0,) * 3, (64,) * 3)) for name in TOPOLOGIES)]


@pytest.mark.parametrize(("architecture", "grid"), CASES)
def test_parts_sum_to_the_whole(
    architecture: ArchitectureName, grid: tuple[tuple[float, ...], tuple[int, ...]]
) -> None:
    spacing, patch = grid
    network_plan = make_plan(architecture, spacing, patch)
    described = describe(architecture, spacing, network_plan)
    with torch.device("meta"):
        network = make_network(architecture, network_plan, 2, 3)
    assert described.parameters == sum(weight.numel() for weight in network.parameters())
    kept: dict[int, Tensor] = {}
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    image = torch.empty(1, 2, *network_plan.patch_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network.forward_all(image)
    # Torch takes attention apart into products on this device: the same multiplications, but kept scores.
    assert described.macs == counter.get_total_flops() // 2
    whole = sum(
        tensor.untyped_storage().nbytes() // (1 + tensor.is_floating_point())
        for key, tensor in kept.items()
        if key not in own
    )
    assert described.saved_bytes <= whole
    if architecture in ("plain", "resenc"):
        assert described.saved_bytes == whole


@pytest.mark.parametrize("architecture", UNETS)
@pytest.mark.parametrize(("spacing", "patch"), GRIDS)
def test_rows_describe_the_planned_stages(
    architecture: ArchitectureName, spacing: tuple[float, ...], patch: tuple[int, ...]
) -> None:
    network_plan = make_plan(architecture, spacing, patch)
    topology = network_plan.topology
    rows = {row.name: row for row in describe(architecture, spacing, network_plan).parts}
    total = (1,) * len(patch)
    for stage, features in enumerate(topology.features):
        total = tuple(before * step for before, step in zip(total, topology.strides[stage], strict=True))
        row = rows[f"encoder {stage}"]
        assert row.channels == features and row.stride == total
        assert row.spacing == pytest.approx([step * size for step, size in zip(total, spacing, strict=True)])
        attends = topology.attention is not None and topology.attention.blocks[stage] > 0
        assert row.tokens == (math.prod(row.shape) if attends else None)
    finest = rows["decoder 0"]
    assert finest.shape == network_plan.patch_shape and finest.channels == topology.features[0]


def without_attention(network_plan: NetworkPlan) -> NetworkPlan:
    return network_plan.model_copy(
        update={"topology": network_plan.topology.model_copy(update={"attention": None})}
    )


def test_a_hybrid_without_attention_is_the_residual_network() -> None:
    spacing, patch = GRIDS[0]
    hybrid, residual = make_plan("hybrid", spacing, patch), make_plan("resenc", spacing, patch)
    assert describe("hybrid", spacing, without_attention(hybrid)).parts == describe("resenc", spacing, residual).parts


@pytest.mark.parametrize(
    ("features", "attention_millions", "residual_millions"), [(256, 0.79, 3.54), (320, 1.23, 5.53)]
)
def test_attention_blocks_have_the_published_size(
    features: int, attention_millions: float, residual_millions: float
) -> None:
    """The reference counts of this block, and of the residual block whose place it takes."""
    spacing = (1.0, 1.0, 1.0)
    hybrid = make_plan("hybrid", spacing, (128, 128, 128))
    stage = hybrid.topology.features.index(features)
    assert hybrid.topology.attention is not None
    count = hybrid.topology.attention.blocks[stage]
    name = f"encoder {stage}"
    [attending] = [row for row in describe("hybrid", spacing, hybrid).parts if row.name == name]
    [plain] = [row for row in describe("hybrid", spacing, without_attention(hybrid)).parts if row.name == name]
    residual_block = 2 * (27 * features**2 + 3 * features)
    assert residual_block / 1e6 == pytest.approx(residual_millions, rel=0.02)
    block = (attending.parameters - plain.parameters) / count + residual_block
    assert block / 1e6 == pytest.approx(attention_millions, rel=0.02)


# ---------------------------------------------------------------- other laws
def test_checkpointed_stages_keep_less_and_compute_the_same() -> None:
    spacing, patch = GRIDS[0]
    network_plan = make_plan("resenc", spacing, patch)
    kept = [describe("resenc", spacing, network_plan.model_copy(update={"checkpointed_stages": count}))
            for count in range(4)]
    assert len({description.macs for description in kept}) == 1
    saved = [description.saved_bytes for description in kept]
    assert saved == sorted(saved, reverse=True) and len(set(saved)) == 4


def test_describing_draws_nothing_and_takes_no_memory() -> None:
    before = torch.random.get_rng_state()
    described = describe("hybrid", (0.8, 0.8, 0.8), make_plan("hybrid", (0.8, 0.8, 0.8), (256, 256, 256)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert described.saved_bytes > 10 * 2**30


def test_memory_grows_with_the_patch_and_parameters_do_not() -> None:
    topology = Topology(
        strides=((1, 1), (2, 2), (2, 2)), kernel_sizes=((3, 3),) * 3, features=(4, 6, 8), encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )  # fmt: skip
    small = make_plan("resenc", (1.0, 1.0), (32, 32), topology=topology, patch_shape=(32, 32))
    large = small.model_copy(update={"patch_shape": (64, 128)})
    one, other = (describe("resenc", (1.0, 1.0), network) for network in (small, large))
    assert one.parameters == other.parameters
    assert other.macs == 8 * one.macs
    assert other.saved_bytes == pytest.approx(8 * one.saved_bytes, rel=0.02)
