"""First weights on disk and into a network: all of the backbone, nothing of the heads, for this plan and fold only."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_planner import STATISTICS
from test_pretext_plan import ARCHITECTURES, planned

from autoseg.data.dataset import Case
from autoseg.errors import UserError
from autoseg.initialization.record import InitMeasures, InitRecord, PretextPlan, SeenImage
from autoseg.initialization.session import input_hash
from autoseg.initialization.sources import find_source
from autoseg.initialization.transfer import (
    init_folder,
    is_finished,
    read_foreign_weights,
    read_init,
    with_warmup,
    write_init,
)
from autoseg.networks.builder import build_network
from autoseg.networks.checkpoint import load_backbone, write_model
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.weight_transfer import NetworkFacts
from autoseg.planning.optimizers import RECIPES
from autoseg.records import read_record
from autoseg.schema import ArchitectureName, ChannelNormalization, CheckpointInfo, NetworkPlan, StoreRecord
from autoseg.training.first_weights import FirstWeights, TransferRecord

CHANNEL = ChannelNormalization(scheme="zscore", within_nonzero=False, statistics=STATISTICS)
STORE = StoreRecord(axes=(0, 1, 2), spacing=(1.0, 1.0, 1.0), normalization=(CHANNEL,),
                    labels={"background": 0, "organ": 1})
NARROW = 8
Planned = tuple[ArchitectureName, NetworkPlan, StoreRecord]


def narrow(architecture: ArchitectureName, shape: tuple[int, ...] = (32, 32, 64)) -> NetworkPlan:
    """A planned network with few features and one block a stage (two, where one attends)."""
    network = planned(architecture, (1.0,) * len(shape), shape)
    topology = network.topology
    divisor = 4 if architecture == "swin-unetr" else NARROW
    features = tuple(count // divisor for count in topology.features)
    attention = topology.attention
    if attention is not None:
        attention = attention.model_copy(update={"heads": tuple(max(1, width // 8) for width in features)})
    blocks = topology.encoder_blocks if attention else tuple(min(1, count) for count in topology.encoder_blocks)
    if architecture in ("swin-unetr", "mednext"):
        blocks = topology.encoder_blocks
    changed = {"features": features, "attention": attention, "encoder_blocks": blocks}
    return network.model_copy(update={"topology": topology.model_copy(update=changed)})


def seeded(architecture: ArchitectureName, seed: int, classes: int = 2) -> Segmenter:
    torch.manual_seed(seed)
    network = build_network(architecture, narrow(architecture), 1, classes)
    with torch.no_grad():  # also what starts with the same numbers in every network
        for value in network.parameters():
            value.add_(torch.randn_like(value))
    return network


def record(architecture: ArchitectureName = "resenc", **changes: object) -> InitRecord:
    network = narrow(architecture)
    whole = InitRecord(
        name="tiny", configuration="3d_fullres", fold="0", architecture=architecture, network=network,
        channel_names=("T1",), store=STORE, method="lwi",
        pretext=PretextPlan(mask_block=(8, 8, 8), mask_ratio=0.6, slabs=4, border_slices=2, order_weight=0.2,
                            reasons=("masks", "slabs")),
        images=(SeenImage(id="a", sha256=("1" * 64,)), SeenImage(id="b", sha256=("2" * 64,))),
        held_back=(SeenImage(id="c", sha256=("3" * 64,)),), extra_images=(SeenImage(id="d", sha256=("4" * 64,)),),
        extra_folder="more", settings={"epochs": 3}, steps=7, planned_steps=9, ended_by="plateau", seconds=1.5,
        steps_per_second=4.7,
        measures=InitMeasures(images=("c",), held_back=True, patches=4, masked_error=0.5, order_accuracy=0.4,
                              order_accuracies={"encoder 2": 0.4}, order_chance=0.25),
        plan_hash=input_hash(architecture, network, STORE), weights_sha256="", versions={"autoseg": "0"},
    )
    return whole.model_copy(update=changes)


def as_planned(architecture: ArchitectureName = "resenc") -> Planned:
    return architecture, narrow(architecture), STORE


def wanted_by(planned: Planned) -> NetworkFacts:
    return NetworkFacts(planned[0], planned[1], ("T1",), tuple(planned[2].labels))


def foreign(folder: Path, planned: Planned, validation: Sequence[Case] = ()) -> FirstWeights:
    """Weights of a folder that the user names, for this network."""
    return read_foreign_weights(folder, planned, validation, wanted_by(planned))


@pytest.fixture
def written(tmp_path) -> Path:
    write_init(tmp_path / "init", seeded("resenc", 1), record())
    return tmp_path / "init"


# ---------------------------------------------------------------- on disk
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_comes_back_and_into_another_network_bit_for_bit(
    architecture: ArchitectureName, tmp_path: Path
) -> None:
    """The network to train has other heads, and more classes."""
    source, target = seeded(architecture, 1), seeded(architecture, 2, classes=5)
    tied = write_init(tmp_path, source, record(architecture))
    first = read_init(tmp_path, as_planned(architecture), ())
    assert read_record(InitRecord, tmp_path / "init.json") == tied
    assert first.sha256 == tied.weights_sha256 != "" and first.source == str(tmp_path)
    assert first.tensors is not None and not any(source.is_task_head(name) for name in first.tensors)
    drawn = {name: value.clone() for name, value in target.state_dict().items()}
    count = load_backbone(target, first.tensors, first.source)
    heads = 0
    for name, value in target.state_dict().items():
        expected = drawn[name] if target.is_task_head(name) else source.state_dict()[name]
        assert torch.equal(value, expected), name
        heads += target.is_task_head(name)
    assert heads > 0 and count == len(target.state_dict()) - heads == len(first.tensors)


def test_every_architecture_loses_its_heads_and_nothing_else() -> None:
    """Of two networks for other numbers of classes the backbones have the same shapes, and only those."""
    for architecture in ARCHITECTURES:
        few, many = (seeded(architecture, 0, classes).state_dict() for classes in (2, 5))
        same = {name for name in few if few[name].shape == many[name].shape}
        kept = set(seeded(architecture, 0).backbone_state())
        assert kept <= same and all("weight" not in name for name in same - kept)


def test_a_folder_is_finished_once_its_record_is_there(written, tmp_path) -> None:
    assert is_finished(written) and not is_finished(tmp_path)
    (written / "init.json").unlink()
    assert not is_finished(written)


def test_where_first_weights_lie() -> None:
    assert init_folder(Path("run"), "resenc", "3d_fullres", "2") == Path("run/init/resenc/3d_fullres/fold_2")


# ---------------------------------------------------------------- tensors that do not fit
def test_every_tensor_that_does_not_fit_is_listed_and_nothing_is_copied(written) -> None:
    tensors = dict(read_init(written, as_planned(), ()).tensors or {})
    names = sorted(name for name in tensors if name.endswith("weight"))
    missing, misshapen = names[0], names[1]
    del tensors[missing]
    tensors[misshapen] = torch.zeros(*tensors[misshapen].shape, 2)
    tensors["encoder.stranger"], tensors["encoder.foreigner"] = torch.zeros(3), torch.zeros(3)
    network = seeded("resenc", 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_backbone(network, tensors, "the folder")
    message = str(caught.value)
    assert "the folder does not fit this network (4 tensors differ)" in message
    assert f"{missing}: missing" in message and "encoder.stranger: not a weight of this network" in message
    assert message.index("encoder.foreigner") < message.index("encoder.stranger"), "in the same order every time"
    assert f"{misshapen}: shape {tuple(tensors[misshapen].shape)}, expected" in message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_heads_among_the_weights_are_ignored(written) -> None:
    """A whole model's weights fit, whatever its classes."""
    model, network = seeded("resenc", 1, classes=7), seeded("resenc", 2)
    head = {name: value.clone() for name, value in network.state_dict().items() if network.is_task_head(name)}
    load_backbone(network, model.state_dict(), "a model")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in head.items())


# ---------------------------------------------------------------- the plan
def test_weights_of_another_plan_are_refused_with_what_changed(written) -> None:
    architecture, network, store = as_planned()
    ct = CHANNEL.model_copy(update={"scheme": "ct"})
    topology = network.topology.model_copy(update={"features": tuple(2 * one for one in network.topology.features)})
    changes: dict[str, Planned] = {
        "patch: then 32×32×64, now 64×32×64": (
            architecture, network.model_copy(update={"patch_shape": (64, 32, 64)}), store),
        "spacing: then 1×1×1 mm, now 2×1×1 mm": (
            architecture, network, store.model_copy(update={"spacing": (2.0, 1.0, 1.0)})),
        "labels: then background, organ, now background, tumor": (
            architecture, network, store.model_copy(update={"labels": {"background": 0, "tumor": 1}})),
        "architecture: then resenc, now plain": ("plain", network, store),
        "another topology": (architecture, network.model_copy(update={"topology": topology}), store),
        "another normalization": (architecture, network, store.model_copy(update={"normalization": (ct,)})),
        "the axes' order": (architecture, network, store.model_copy(update={"axes": (2, 1, 0)})),
    }
    for words, changed in changes.items():
        with pytest.raises(UserError, match=rf"(?s)another plan than the run has now \({words}\).*pretrain-init"):
            read_init(written, changed, ())


def test_what_does_not_shape_the_network_may_change(written) -> None:
    """Batch, optimizer, reasons and the estimate of memory are the training's own."""
    architecture, network, store = as_planned()
    other = network.model_copy(update={"batch_size": 9, "optimizer": RECIPES["sgd"], "reasons": ("why",),
                                       "memory_gib": 3.0, "checkpointed_stages": 2})
    assert read_init(written, (architecture, other, store), ()).tensors


# ---------------------------------------------------------------- damage
def test_damaged_absent_and_exchanged_weights_are_refused(written, tmp_path) -> None:
    path = written / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file that the record beside it was written for"):
        read_init(written, as_planned(), ())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"weights\.safetensors.*safetensors"):
        read_init(written, as_planned(), ())
    write_init(tmp_path / "other", seeded("resenc", 8), record())
    path.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(UserError, match="SHA-256"):
        foreign(written, as_planned())
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_init(written, as_planned(), ())
    (written / "init.json").write_text("{}")
    with pytest.raises(UserError, match=r"init\.json does not hold what was expected"):
        read_init(written, as_planned(), ())


# ---------------------------------------------------------------- folders that the user names
def scanned(folder: Path, case: str, content: bytes) -> Case:
    """A case whose image file has this content."""
    path = folder / f"{case}_0000.nii.gz"
    path.write_bytes(content)
    return Case(case, (path,), None)


def test_own_weights_that_saw_validation_cases_are_refused(written, tmp_path) -> None:
    """Splits may have changed since: names of the same run's cases."""
    fresh = scanned(tmp_path, "e", b"e")
    assert read_init(written, as_planned(), [fresh]).tensors
    for seen in ("a", "c", "d"):  # learned from, measured on, added
        with pytest.raises(UserError, match=rf"(?s)images that this fold validates on.*'{seen}'") as caught:
            read_init(written, as_planned(), [fresh, scanned(tmp_path, seen, b"whatever")])
        assert "'e'" not in str(caught.value)


def test_foreign_weights_that_saw_validation_images_are_refused_whatever_their_names_and_labels(tmp_path) -> None:
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two", "three")}
    seen = {"images": (SeenImage(id="a", sha256=(hashes["one"],)),),
            "held_back": (SeenImage(id="b", sha256=(hashes["two"],)),),
            "extra_images": (SeenImage(id="c", sha256=(hashes["three"],)),),
            "store": STORE.model_copy(update={"labels": {"background": 0, "other": 1}})}
    write_init(tmp_path / "init", seeded("resenc", 1), record(**seen))
    same_name = scanned(tmp_path, "a", b"another image")
    assert foreign(tmp_path / "init", as_planned(), [same_name]).transfer
    for content in hashes:
        with pytest.raises(UserError, match="(?s)images that this fold validates on.*'renamed'"):
            foreign(tmp_path / "init", as_planned(), [same_name, scanned(tmp_path, "renamed", content.encode())])


def test_foreign_weights_of_another_plan_are_taken_with_a_warning(written, caplog) -> None:
    architecture, network, store = as_planned()
    other = (architecture, network.model_copy(update={"patch_shape": (64, 32, 64)}), store)
    with caplog.at_level(logging.WARNING, logger="autoseg"):
        assert foreign(written, other).transfer
    assert any("another plan (patch: then 32×32×64, now 64×32×64)" in message for message in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="autoseg"):
        foreign(written, as_planned())
    assert not caplog.messages


def write_tiny_model(folder: Path, **changes: object) -> tuple[Segmenter, CheckpointInfo]:
    model = seeded("resenc", 1)
    facts = dict(
        name="m", configuration="3d_fullres", fold="0", architecture="resenc", network=narrow("resenc"), is_2d=False,
        file_ending=".nii.gz", channel_names=("T1",), labels={"background": 0, "organ": 1}, store=STORE,
        mirror_axes=(), training={}, steps=1, seconds=1.0, plan_hash="", weights_sha256="", versions={})
    return model, write_model(folder, model, CheckpointInfo(**{**facts, **changes}))


def test_a_model_folder_is_a_source(tmp_path, caplog) -> None:
    """Of other labels: the head's row of the label that both have is moved, and the account is written."""
    model, info = write_tiny_model(tmp_path / "model")
    network = seeded("resenc", 2, classes=3)
    drawn = {name: value.clone() for name, value in network.state_dict().items()}
    wanted = replace(wanted_by(as_planned()), outputs=("background", "lesion", "organ"))
    with caplog.at_level(logging.INFO, logger="autoseg"):
        first = read_foreign_weights(tmp_path / "model", as_planned(), (), wanted)
        first.begin(network, tmp_path / "new")
    assert first.sha256 == info.weights_sha256 and any("for you to know" in message for message in caplog.messages)
    state, source = network.state_dict(), model.state_dict()
    for name, value in state.items():
        if network.is_task_head(name):
            assert torch.equal(value[[0, 2]], source[name]) and torch.equal(value[1], drawn[name][1])
        else:
            assert torch.equal(value, source[name])
    written = read_record(TransferRecord, tmp_path / "new" / "init_transfer.json")
    heads = [one for one in written.tensors if network.is_task_head(one.name)]
    assert [one.name for one in written.tensors] == list(state) and written.left_over == ()
    assert {one.why for one in heads} == {"outputs by name: background, organ; drawn: lesion"}
    assert first.figures == {"init_share": round(written.share, 4), "init_copied": len(state) - len(heads),
                             "init_adapted": len(heads), "init_drawn": 0, "init_left_over": 0}
    said = caplog.messages[-1]
    assert f"moved {100 * written.share:.1f} % of" in said and "lesion" in said and "encoder 0" in said


def test_weights_of_which_next_to_nothing_fits_are_refused_with_every_reason(tmp_path) -> None:
    architecture, network, store = as_planned()
    topology = network.topology.model_copy(update={"features": tuple(3 * n for n in network.topology.features)})
    write_tiny_model(tmp_path / "model")
    wider = (architecture, network.model_copy(update={"topology": topology}), store)
    with pytest.raises(UserError) as caught:
        foreign(tmp_path / "model", wider)
    said = str(caught.value)
    assert "0.0% of its weights could be moved, and 10% at least" in said and "other numbers of features" in said
    assert "features 4, 8" in said and "--init scratch" in said
    with pytest.raises(UserError, match="resenc and plain networks have other layers"):
        foreign(tmp_path / "model", as_planned("plain"))


def test_a_model_is_refused_where_it_is_damaged(tmp_path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        foreign(tmp_path, as_planned())
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(UserError, match=r"model\.json does not hold what was expected"):
        foreign(tmp_path, as_planned())


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"holds neither init\.json nor model\.json"):
            foreign(folder, as_planned())


# ---------------------------------------------------------------- what a path means
def finished(folder: Path, name: str = "model.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    return folder


def test_a_path_is_a_folder_of_weights_a_configuration_or_a_run(tmp_path, caplog) -> None:
    run = tmp_path / "run"
    configuration = run / "models/resenc/3d_fullres"
    for fold in ("10", "2"):
        finished(configuration / f"fold_{fold}")
    (configuration / "fold_0" / "resume").mkdir(parents=True)
    with caplog.at_level(logging.INFO, logger="autoseg"):
        assert find_source(configuration / "fold_10") == configuration / "fold_10" and not caplog.messages
        assert find_source(configuration) == find_source(run) == configuration / "fold_2"
    assert caplog.messages[-1] == f"--init {run}: the weights of {configuration / 'fold_2'} (of folds 2, 10)"
    finished(configuration / "fold_all")
    assert find_source(run) == configuration / "fold_all"
    first = finished(tmp_path / "other/init/resenc/2d/fold_0", "init.json")
    assert find_source(tmp_path / "other") == first


def test_a_run_with_several_models_asks_which(tmp_path) -> None:
    finished(tmp_path / "models/resenc/3d_fullres/fold_0")
    finished(tmp_path / "models/plain/2d/fold_1")
    finished(tmp_path / "init/resenc/3d_fullres/fold_0", "init.json")
    with pytest.raises(UserError) as caught:
        find_source(tmp_path)
    said = str(caught.value)
    assert "holds 3 trained models and first weights; which one is meant?" in said
    assert f"--init {tmp_path / 'models/plain/2d'} (folds 1)" in said
    assert f"--init {tmp_path / 'init/resenc/3d_fullres'} (folds 0)" in said


def test_a_path_that_is_nothing_of_the_kind_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="there is no such folder; `auto`, `scratch`, a run folder or"):
        find_source(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is no such folder"):
        find_source(tmp_path / "file")
    (tmp_path / "models/resenc/3d_fullres/fold_0/resume").mkdir(parents=True)
    with pytest.raises(UserError, match=r"nor finished models"):
        find_source(tmp_path)


# ---------------------------------------------------------------- the training that follows
def test_the_training_warms_up_at_least_five_percent() -> None:
    assert with_warmup(RECIPES["sgd"]) == RECIPES["sgd"].model_copy(update={"warmup_share": 0.05})
    longer = RECIPES["adamw"].model_copy(update={"warmup_share": 0.2})
    assert with_warmup(longer) == longer and with_warmup(RECIPES["adamw"]) == RECIPES["adamw"]
