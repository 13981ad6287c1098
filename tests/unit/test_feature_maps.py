"""Laws of `Segmenter.feature_maps` and `task_heads`, for every architecture."""

import itertools
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_models import model_info
from torch import Tensor, nn

from autoseg.guidance.alignment import tapped_level
from autoseg.networks.builder import build_network, make_network
from autoseg.networks.checkpoint import read_model, write_model
from autoseg.networks.segmenter import FeatureMaps, Part, Segmenter
from autoseg.planning.architectures import TOPOLOGIES, build_topology, pool_patch
from autoseg.planning.optimizers import OPTIMIZERS
from autoseg.schema import ArchitectureName, NetworkPlan

UNETS: tuple[ArchitectureName, ...] = ("plain", "resenc", "hybrid")
SWIN: ArchitectureName = "swin-unetr"
UNUSED = "norm_cross_attn"
"""MONAI's ViT makes these layers and never calls them."""


@dataclass(frozen=True)
class Example:
    architecture: ArchitectureName
    spacing: tuple[float, ...]
    patch: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.architecture}-{'x'.join(map(str, self.patch))}"


EXAMPLES = [
    *(Example(architecture, (1.0, 1.0, 1.0), (16, 16, 32)) for architecture in TOPOLOGIES if architecture != SWIN),
    Example(SWIN, (1.0, 1.0, 1.0), (32, 32, 64)),
    *(Example(architecture, (5.0, 1.0, 1.0), (8, 32, 32)) for architecture in (*UNETS, "unetr", "unetr-pp")),
    *(Example(architecture, (1.0, 1.0), (64, 96)) for architecture in TOPOLOGIES),
]
EVERY = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def plan_of(example: Example, checkpointed_stages: int = 0) -> NetworkPlan:
    """The planned network with a few of its channels and no more than two blocks in a stage."""
    pooling = pool_patch(example.architecture, example.spacing, example.patch)
    assert pooling.patch_shape == example.patch
    topology = build_topology(example.architecture, pooling)
    divisor = 4 if example.architecture == SWIN else 8
    features = tuple(count // divisor for count in topology.features)
    attention = topology.attention
    if attention is None:
        encoder = tuple(min(2, count) for count in topology.encoder_blocks)
    else:
        attention = attention.model_copy(update={"heads": tuple(max(1, width // 8) for width in features)})
        encoder = topology.encoder_blocks
    narrow = {"features": features, "attention": attention, "encoder_blocks": encoder}
    return NetworkPlan(
        patch_shape=pooling.patch_shape, batch_size=2, topology=topology.model_copy(update=narrow), batch_dice=False,
        optimizer=OPTIMIZERS[example.architecture], memory_gib=1.0, reasons=(), checkpointed_stages=checkpointed_stages,
    )  # fmt: skip


def seeded(example: Example, checkpointed_stages: int = 0) -> Segmenter:
    torch.manual_seed(5)
    return build_network(example.architecture, plan_of(example, checkpointed_stages), 2, 3)


def image_of(example: Example) -> Tensor:
    return torch.randn(2, 2, *example.patch, generator=torch.Generator().manual_seed(2))


def drawn_maps(network: Segmenter, image: Tensor) -> FeatureMaps:
    """With the same dropout in every call."""
    torch.manual_seed(7)
    return network.feature_maps(image)


# ---------------------------------------------------------------- maps
@EVERY
@pytest.mark.parametrize("training", [True, False], ids=["training", "prediction"])
def test_heads_on_the_maps_give_the_logits_of_forward(example: Example, training: bool) -> None:
    network, image = seeded(example).train(training), image_of(example)
    with torch.no_grad():
        maps = drawn_maps(network, image)
        torch.manual_seed(7)
        levels = network.forward_all(image)
        torch.manual_seed(7)
        finest = network(image)
        heads = [network.get_submodule(name) for name in network.task_heads()]
        assert len(heads) >= len(levels)
        assert torch.equal(heads[0](maps.decoder[0]), finest)
        for head, features, logits in zip(heads, (*maps.decoder, maps.encoder[-1]), levels, strict=False):
            assert torch.equal(head(features), logits)
        again = network.logits_of(maps)
        assert len(again) == len(levels)
        assert all(torch.equal(one, other) for one, other in zip(again, levels, strict=True))


@EVERY
def test_the_finest_head_is_one_linear_map_of_the_finest_features(example: Example) -> None:
    network, image = seeded(example).eval(), image_of(example)
    matrix, offset = network.head_map()
    with torch.no_grad():
        features, logits = network.finest_features(image), network(image)
        linear = torch.einsum("kc,bc...->bk...", matrix, features) + offset.view(-1, *(1 for _ in example.patch))
    torch.testing.assert_close(linear, logits, rtol=1e-5, atol=1e-5)
    matrix.zero_()
    assert network.head_map()[0].any()  # a copy


@EVERY
def test_a_network_that_is_read_has_all_its_tensors_and_trains(example: Example, tmp_path: Path) -> None:
    """It is built without memory; every parameter and buffer must come from the file."""
    network, image, plan = seeded(example), image_of(example), plan_of(example)
    info = model_info(channels=2, is_2d=len(example.patch) == 2, architecture=example.architecture, network=plan)
    write_model(tmp_path, network, info)
    found, _ = read_model(tmp_path)
    tensors = dict(itertools.chain(found.named_parameters(), found.named_buffers()))
    assert {name: (value.dtype, value.device.type) for name, value in tensors.items()} == {
        name: (value.dtype, "cpu") for name, value in itertools.chain(network.named_parameters(),
                                                                     network.named_buffers())}
    assert all(parameter.requires_grad for parameter in found.parameters())
    with torch.no_grad():
        assert torch.equal(found(image), network.eval()(image))
        next(found.parameters()).add_(1)
    assert torch.equal(read_model(tmp_path)[0](image), network(image)), "the file's weights are not shared"


@EVERY
def test_every_network_has_a_level_to_align_with_words(example: Example) -> None:
    network = seeded(example).train()
    level, features, shape = tapped_level(network, plan_of(example), 2)
    assert network.training
    with torch.no_grad():
        decoder = network.eval().feature_maps(image_of(example)).decoder
    assert (features, *shape) == tuple(decoder[level].shape[1:])
    assert math.prod(shape) * 8 <= math.prod(example.patch)


@EVERY
def test_shapes_divide_the_patch_from_fine_to_coarse(example: Example) -> None:
    network = seeded(example)
    maps = network.feature_maps(image_of(example))
    *above, bottleneck = (tuple(features.shape[2:]) for features in maps.encoder)
    decoded = [tuple(features.shape[2:]) for features in maps.decoder]
    strides = plan_of(example).topology.strides
    total = [math.prod(steps) for steps in zip(*strides, strict=True)]
    coarsest = tuple(size // step for size, step in zip(example.patch, total, strict=True))
    assert decoded[0] == example.patch and bottleneck == coarsest
    assert len(decoded) == len(strides) - 1
    for finer, coarser in itertools.pairwise([*decoded, bottleneck]):
        assert all(size >= below for size, below in zip(finer, coarser, strict=True)) and finer != coarser
    for shape in (*above, *decoded, bottleneck):
        assert all(size % part == 0 for size, part in zip(example.patch, shape, strict=True))
    if example.architecture == "unetr":  # all its states are at the resolution of its tokens
        assert above == [example.patch, *(coarsest,) * (len(strides) - 2)]
    else:
        assert above == decoded


@EVERY
def test_every_weight_of_the_backbone_shapes_the_decoder(example: Example) -> None:
    network = seeded(example).train()
    maps = drawn_maps(network, image_of(example))
    loss = torch.stack([features.square().sum() for features in maps.decoder]).sum()
    loss.backward()
    reached = {name for name, weight in network.named_parameters() if weight.grad is not None}
    used = {name for name, _ in network.named_parameters() if UNUSED not in name}
    assert reached == {name for name in used if not network.is_task_head(name)}
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)


@EVERY
def test_the_finest_map_is_made_of_all_others(example: Example) -> None:
    """They lie on the way to it: none is a copy, and no in-place layer has written over one."""
    maps = drawn_maps(seeded(example).train(), image_of(example))
    others = (*maps.encoder, *maps.decoder[1:])
    gradients = torch.autograd.grad(maps.decoder[0].pow(3).sum(), others)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@EVERY
def test_maps_have_their_shapes_on_the_meta_device(example: Example) -> None:
    with torch.device("meta"):
        network = make_network(example.architecture, plan_of(example), 2, 3)
        ghosts = network.feature_maps(torch.empty(2, 2, *example.patch))
    maps = seeded(example).feature_maps(image_of(example))
    for ghost, real in zip((*ghosts.encoder, *ghosts.decoder), (*maps.encoder, *maps.decoder), strict=True):
        assert ghost.is_meta and ghost.shape == real.shape


# ---------------------------------------------------------------- memory
@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.architecture in UNETS], ids=str)
def test_stages_computed_twice_change_no_map_and_keep_less(example: Example) -> None:
    """Less is kept in training only; the maps and gradients are the same to the bit."""

    def result(checkpointed: int, training: bool) -> tuple[list[Tensor], list[Tensor | None], list[int]]:
        network, kept = seeded(example, checkpointed).train(training), [0]

        def count(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.numel()
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            encoder = network._encode(image_of(example))
            kept.append(0)
            decoder = list(network._decode(list(encoder)))
        torch.stack([features.square().sum() for features in decoder]).sum().backward()
        return [*encoder, *decoder], [weight.grad for weight in network.parameters()], kept

    for training in (True, False):
        (first, gradients, kept), (second, again, less) = result(0, training), result(2, training)
        if training:
            assert less[0] < kept[0] and less[1] < kept[1]
        else:
            assert less == kept
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        for one, other in zip(gradients, again, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.architecture != SWIN], ids=str)
def test_prediction_keeps_no_map_that_it_has_used(example: Example) -> None:
    """Beside the finest map at most its skip and the map below are there. (Swin UNETR predicts by MONAI's forward.)"""
    network, maps, left = seeded(example).eval(), list[weakref.ref[Tensor]](), list[int]()
    encode, decode = network._encode, network._decode

    def watched_encode(x: Tensor) -> list[Tensor]:
        encoded = encode(x)
        maps.extend(map(weakref.ref, encoded))
        return encoded

    def watched_decode(encoded: list[Tensor]) -> Iterator[Tensor]:
        for features in decode(encoded):
            left.append(sum(one() is not None for one in maps))
            maps.append(weakref.ref(features))
            yield features

    network._encode, network._decode = watched_encode, watched_decode
    with torch.no_grad():
        network(image_of(example))
    assert len(maps) >= 5 and len(left) > 1
    assert left[-1] <= 2


# ---------------------------------------------------------------- heads
@EVERY
def test_task_heads_are_exactly_what_the_classes_shape(example: Example) -> None:
    with torch.device("meta"):
        few, many = (make_network(example.architecture, plan_of(example), 2, classes) for classes in (3, 5))
    shapes = {name: value.shape for name, value in many.state_dict().items()}
    assert few.state_dict().keys() == shapes.keys()
    shaped = {name for name, value in few.state_dict().items() if value.shape != shapes[name]}
    assert shaped == {name for name in shapes if few.is_task_head(name)}
    assert few.backbone_state().keys() == shapes.keys() - shaped
    assert few.task_heads() == many.task_heads()
    for head in few.task_heads():
        assert any(name.startswith(f"{head}.") for name in shaped)


class Similar(Segmenter):
    """Layers whose names begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.outer, self.inner = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 1, 1), nn.ModuleDict()
        self.inner["out"] = nn.Conv2d(1, 1, 1)

    def task_heads(self) -> tuple[str, ...]:
        return ("out",)

    def parts(self) -> list[Part]:
        return []


def test_a_head_is_a_whole_name() -> None:
    state = Similar().backbone_state()
    assert set(state) == {"outer.weight", "outer.bias", "inner.out.weight", "inner.out.bias"}
