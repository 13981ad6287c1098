"""Weights of one network in another: every tensor told once, and what is moved does what it did."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from test_init_transfer import narrow
from test_pretext_plan import ARCHITECTURES
from torch import Tensor

from autoseg.networks.builder import build_network
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.weight_transfer import (
    FOLLOWS,
    NO_LABEL,
    NO_LAYER,
    OTHER_FEATURES,
    OTHER_HEADS,
    OTHER_SHAPE,
    NetworkFacts,
    TransferPlan,
    aligned_names,
    input_names,
    plan_transfer,
)
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import ArchitectureName, NetworkPlan, Topology
from autoseg.training.first_weights import describe_transfer

LABELS = ("background", "liver", "tumour")


def tiny(features: Sequence[int] = (4, 8, 8), axes: int = 3, kernels: Sequence[tuple[int, ...]] | None = None,
         strides: Sequence[tuple[int, ...]] | None = None, encoder: Sequence[int] | None = None,
         decoder: Sequence[int] | None = None) -> NetworkPlan:
    """A U-Net's plan; by default kernels of 3, halvings and one block a stage."""
    stages = len(features)
    topology = Topology(
        strides=tuple(strides or ((1,) * axes, *((2,) * axes,) * (stages - 1))), features=tuple(features),
        kernel_sizes=tuple(kernels or ((3,) * axes,) * stages), encoder_blocks=tuple(encoder or (1,) * stages),
        decoder_blocks=tuple(decoder or (1,) * (stages - 1)),
    )
    return NetworkPlan(patch_shape=(16,) * axes, batch_size=2, topology=topology, batch_dice=False,
                       optimizer=RECIPES["sgd"], memory_gib=1, reasons=())


def facts(network: NetworkPlan | None = None, architecture: ArchitectureName = "resenc",
          channels: tuple[str, ...] = ("CT",), outputs: tuple[str, ...] = LABELS) -> NetworkFacts:
    return NetworkFacts(architecture, network or tiny(), channels, outputs)


def made(of: NetworkFacts, seed: int = 0) -> Segmenter:
    """The network with random numbers everywhere, also where all networks start alike."""
    torch.manual_seed(seed)
    network = build_network(of.architecture, of.network, len(of.channels), len(of.outputs))
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) / 4)
    return network.eval()


def transferred(source: NetworkFacts, wanted: NetworkFacts) -> tuple[Segmenter, Segmenter, TransferPlan]:
    """The source's network, the other with what fits of it, and the plan, whose accounts are checked."""
    giver, taker = made(source, 1), made(wanted, 2)
    drawn = {name: value.clone() for name, value in taker.state_dict().items()}
    plan = plan_transfer(giver.state_dict(), source, wanted)
    check_accounts(plan, giver.state_dict(), drawn)
    plan.put_into(taker)
    for move in plan.moves:
        value, before = taker.state_dict()[move.name], drawn[move.name]
        if move.action == "copied":
            assert torch.equal(value, giver.state_dict()[move.source])
        elif move.action == "drawn":
            assert torch.equal(value, before) and move.why
        else:
            rows = range(value.shape[move.axis])
            others = torch.tensor([row for row in rows if row not in (move.rows or rows)], dtype=torch.long)
            kept, was = (one.index_select(move.axis, others) for one in (value, before))
            assert torch.equal(kept, was) and move.why
    return giver, taker, plan


def check_accounts(plan: TransferPlan, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Every tensor of the network once; every tensor of the source taken, or left over, once."""
    assert [move.name for move in plan.moves] == list(target)
    assert all(move.shape == tuple(target[move.name].shape) for move in plan.moves)
    taken = [move.source for move in plan.moves if move.value is not None]
    assert sorted([*taken, *(one.name for one in plan.left_over)]) == sorted(source)
    assert all(one.why for one in plan.left_over)
    said = describe_transfer(plan)
    reasons = {move.why for move in plan.moves if move.why}
    assert all(reason in said for reason in reasons), "every reason is in the log"
    assert ("left over" in said) == bool(plan.left_over)


def reasons(plan: TransferPlan, *beginnings: str) -> set[str]:
    return {move.why for move in plan.moves if move.name.startswith(beginnings)}


# ---------------------------------------------------------------- the same network
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_network_is_copied_whole(architecture: ArchitectureName) -> None:
    same = NetworkFacts(architecture, narrow(architecture), ("CT",), LABELS)
    giver, taker, plan = transferred(same, same)
    assert plan.share == 1 and plan.count("copied") == len(plan.moves) and not plan.left_over
    assert not any(move.why for move in plan.moves)
    assert all(torch.equal(value, giver.state_dict()[name]) for name, value in taker.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_labels_change_the_heads_alone_and_other_channels_the_first_layers(
    architecture: ArchitectureName,
) -> None:
    """Also of networks that see the image in several places."""
    source = NetworkFacts(architecture, narrow(architecture), ("CT", "PET", "MR"), LABELS)
    wanted = NetworkFacts(architecture, narrow(architecture), ("MR", "PET", "CT"), ("background", "tumour", "cyst"))
    giver, taker, plan = transferred(source, wanted)
    changed = [move for move in plan.moves if move.action != "copied"]
    assert plan.count("drawn") == 0 and not plan.left_over
    heads = [move for move in changed if taker.is_task_head(move.name)]
    assert heads and all(move.rows == (0, 1) and "drawn: cyst" in move.why for move in heads)
    firsts = [move for move in changed if not taker.is_task_head(move.name)]
    assert 0 < len(firsts) <= 4 and all("MR by name; CT by name" in move.why for move in firsts)
    image = torch.randn(1, 3, *wanted.network.patch_shape)
    with torch.no_grad():
        logits, expected = taker(image)[:, [0, 1]], giver(image.flip(1))[:, [0, 2]]
    assert torch.allclose(logits, expected, atol=1e-3 * float(expected.std()))


# ---------------------------------------------------------------- channels
def test_equal_images_in_more_channels_give_the_same_logits() -> None:
    giver, taker, plan = transferred(facts(), facts(channels=("A", "B", "C")))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(giver(image), taker(image.expand(-1, 3, -1, -1, -1)), atol=1e-4)
    assert {move.name for move in plan.moves if move.action == "adapted"} == {"encoder.stem.convolution.weight"}


def test_a_mask_of_a_previous_stage_changes_nothing_at_first() -> None:
    cascade = facts(channels=input_names(("CT",), LABELS))
    assert cascade.channels == ("CT", "previous stage: liver", "previous stage: tumour")
    giver, taker, _ = transferred(facts(), cascade)
    image, mask = torch.randn(1, 1, 16, 16, 16), torch.rand(1, 2, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(giver(image), taker(torch.cat((image, mask), 1)), atol=1e-4)


def test_an_inner_layer_with_as_many_channels_as_the_image_is_not_taken_for_the_first() -> None:
    """Four image channels, and features of four."""
    names = ("a", "b", "c", "d")
    _, _, plan = transferred(facts(channels=names), facts(channels=names[::-1]))
    assert {move.name for move in plan.moves if move.action == "adapted"} == {"encoder.stem.convolution.weight"}


# ---------------------------------------------------------------- kernels, axes
def test_slices_under_an_anisotropic_network_give_the_logits_of_the_two_dimensional_one() -> None:
    """Kernels of 1 and strides of 1 between slices: every slice for itself, but for the norm over the volume."""
    flat, deep = tiny(axes=2), tiny(kernels=((1, 3, 3),) * 3, strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)))
    giver, taker, plan = transferred(facts(flat), facts(deep))
    assert plan.count("drawn") == 0 and plan.share == 1 and not plan.left_over
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        volume = taker(image[:, :, None].expand(-1, -1, 16, -1, -1))
        assert torch.allclose(volume, giver(image)[:, :, None].expand_as(volume), atol=1e-4)


def test_a_volume_of_equal_slices_gives_the_two_dimensional_logits_with_full_kernels_too() -> None:
    """Kernels of 3 whose outer taps are zero, strides of 2 between slices, blocks repeated."""
    giver, taker, plan = transferred(facts(tiny(axes=2)), facts(tiny()))
    assert plan.count("drawn") == 0
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        volume = taker(image[:, :, None].expand(-1, -1, 16, -1, -1))
        assert torch.allclose(volume, giver(image)[:, :, None].expand_as(volume), atol=1e-4)


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
def test_from_three_dimensions_to_two_everything_is_moved(architecture: ArchitectureName) -> None:
    anisotropic = tiny(kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    _, _, plan = transferred(facts(anisotropic, architecture), facts(tiny(axes=2), architecture))
    assert plan.count("drawn") == 0 and plan.share == 1 and not plan.left_over


def test_another_spacing_changes_kernels_and_upsampling() -> None:
    anisotropic = tiny(kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    _, _, plan = transferred(facts(), facts(anisotropic))
    assert plan.share == 1 and plan.count("drawn") == 0
    assert reasons(plan, "encoder.stem.convolution.weight") == {"kernel 3×3×3 → 1×3×3"}
    assert "kernel 2×2×2 → 1×2×2" in reasons(plan, "decoder.1.upsampling")


# ---------------------------------------------------------------- depth, blocks, features
def test_stages_are_aligned_from_the_finest() -> None:
    deeper = tiny(features=(4, 8, 8, 8))
    giver, taker, plan = transferred(facts(), facts(deeper))
    assert reasons(plan, "encoder.stages.3", "decoder.0") == {NO_LAYER}
    for theirs, ours in (("decoder.0", "decoder.1"), ("decoder.1", "decoder.2"), ("encoder.stages.2",) * 2):
        for name, value in giver.state_dict().items():
            if name.startswith(f"{theirs}."):
                assert torch.equal(taker.state_dict()[name.replace(theirs, ours)], value)
    assert not plan.left_over
    _, _, back = transferred(facts(deeper), facts())
    assert back.count("drawn") == 0
    assert {one.name.split(".blocks")[0].split(".0.")[0] for one in back.left_over} >= {"encoder.stages.3"}
    assert {one.why for one in back.left_over} == {"this network has no such layer"}


def test_of_more_blocks_the_first_are_moved() -> None:
    more = tiny(encoder=(1, 2, 3), decoder=(2, 1))
    _, _, plan = transferred(facts(), facts(more))
    drawn = {move.name.rpartition(".convolution")[0].rpartition(".norm")[0] or move.name for move in plan.moves
             if move.action == "drawn"}
    assert {move.why for move in plan.moves if move.action == "drawn"} == {NO_LAYER} and drawn
    assert all(name.startswith(("encoder.stages.1.1", "encoder.stages.2.1", "encoder.stages.2.2", "decoder.0.blocks.1"))
               for name in (move.name for move in plan.moves if move.action == "drawn"))
    _, _, back = transferred(facts(more), facts())
    assert back.count("drawn") == 0 and len(back.left_over) == plan.count("drawn")


def test_stages_of_other_features_are_drawn_with_their_norms_and_biases() -> None:
    """The same norms would fit by shape where only the layer before is another."""
    _, _, plan = transferred(facts(tiny((4, 8, 8))), facts(tiny((4, 12, 8))))
    by_name = {move.name: move for move in plan.moves}
    first = "encoder.stages.2.0.first"
    assert by_name[f"{first}.convolution.weight"].why == OTHER_FEATURES
    assert by_name[f"{first}.convolution.bias"].why == by_name[f"{first}.norm.weight"].why == FOLLOWS
    assert by_name["encoder.stages.2.0.second.convolution.weight"].action == "copied"
    assert by_name["encoder.stem.norm.bias"].action == "copied"
    assert 0.1 < plan.share < 0.9 and plan.left_over
    assert any(one.why == f"{first}.convolution.weight is drawn: {OTHER_FEATURES}" for one in plan.left_over)


def test_plain_and_residual_networks_have_nothing_in_common() -> None:
    _, _, plan = transferred(facts(architecture="plain"), facts())
    assert plan.share == 0 and reasons(plan, "") == {"plain and resenc networks have other layers"}
    assert len(plan.left_over) == len(made(facts(architecture="plain")).state_dict())


def test_a_hybrid_takes_the_convolutions_of_a_residual_network() -> None:
    hybrid, resenc = narrow("hybrid"), narrow("resenc")
    blocks = hybrid.topology.encoder_blocks
    topology = hybrid.topology.model_copy(update={"attention": None, "encoder_blocks": blocks})
    resenc = resenc.model_copy(update={"topology": topology})
    _, taker, plan = transferred(facts(resenc), facts(hybrid, "hybrid"))
    attending = {move.name for move in plan.moves if ".attention" in move.name}
    assert attending and all(move.action == "drawn" for move in plan.moves if move.name in attending)
    assert plan.share > 0.1 and len(taker.state_dict()) > plan.count("drawn")


def test_attention_with_another_number_of_heads_is_drawn() -> None:
    hybrid = narrow("hybrid")
    attention = hybrid.topology.attention
    heads = tuple(1 if count > 1 else 2 for count in attention.heads)
    other = hybrid.model_copy(update={"topology": hybrid.topology.model_copy(
        update={"attention": attention.model_copy(update={"heads": heads})})})
    _, _, plan = transferred(facts(hybrid, "hybrid"), facts(other, "hybrid"))
    drawn = [move for move in plan.moves if move.action == "drawn"]
    assert drawn and all(".attention." in move.name and move.why == OTHER_HEADS for move in drawn)


def test_a_table_of_positions_of_another_patch_is_drawn() -> None:
    small, large = narrow("unetr"), narrow("unetr", (64, 32, 64))
    _, _, plan = transferred(facts(small, "unetr"), facts(large, "unetr"))
    assert {move.why for move in plan.moves if "position" in move.name} == {OTHER_SHAPE}
    assert plan.share > 0.4


# ---------------------------------------------------------------- heads
def test_heads_are_told_by_the_names_of_their_outputs() -> None:
    regions = facts(outputs=("whole", "Liver"))
    giver, taker, plan = transferred(facts(), regions)
    for level in (0, 1):
        for kind in ("weight", "bias"):
            name = f"decoder.{level}.head.{kind}"
            assert torch.equal(taker.state_dict()[name][1], giver.state_dict()[name][1])
    assert {move.why for move in plan.moves if ".head." in move.name} == {"outputs by name: Liver; drawn: whole"}
    _, _, none = transferred(facts(outputs=("a", "b")), facts(outputs=("c", "d")))
    assert reasons(none, "decoder.0.head", "decoder.1.head") == {NO_LABEL}


def test_weights_without_heads_leave_those_drawn() -> None:
    giver = made(facts())
    plan = plan_transfer(giver.backbone_state(), facts(outputs=()), facts())
    check_accounts(plan, giver.backbone_state(), giver.state_dict())
    assert {move.why for move in plan.moves if giver.is_task_head(move.name)} == {NO_LAYER}
    assert plan.count("drawn") == 4


def test_places_are_the_same_at_any_depth() -> None:
    names = aligned_names({f"decoder.{level}.head.bias": 0 for level in range(3)} | {"encoder.x": 0})
    assert names["decoder.2.head.bias"] == "decoder level 0.head.bias" and names["encoder.x"] == "encoder.x"
    assert aligned_names({"decoder.0.head.bias": 0})["decoder.0.head.bias"] == names["decoder.2.head.bias"]
