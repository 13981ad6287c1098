"""Weights, finished models and resumable states survive the disk exactly, and damage is noticed."""

import json
from pathlib import Path

import pytest
import torch

from autoseg.errors import UserError
from autoseg.networks import checkpoint
from autoseg.networks.builder import build_network
from autoseg.networks.checkpoint import (
    load_resume,
    load_weights,
    read_model,
    read_resume_facts,
    save_resume,
    save_weights,
    write_model,
)
from autoseg.networks.segmenter import Segmenter
from autoseg.planning.optimizers import RECIPES
from autoseg.records import file_sha256
from autoseg.schema import CheckpointInfo, NetworkPlan, OptimizerPlan, StoreRecord, Topology
from autoseg.training.losses import deep_supervision_loss
from autoseg.training.optimization import clip_gradients, make_optimizer
from autoseg.training.probe import to_device_layout

SGD = RECIPES["sgd"]
TOPOLOGY = Topology(
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 3, features=(4, 6, 8),
    encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1),
)  # fmt: skip
PLAN = NetworkPlan(
    patch_shape=(8, 8, 8), batch_size=2, topology=TOPOLOGY, batch_dice=True, optimizer=RECIPES["sgd"], memory_gib=1.0,
    reasons=(),
)  # fmt: skip
INFO = CheckpointInfo(
    name="resenc", configuration="3d_fullres", fold="0", architecture="resenc", network=PLAN, is_2d=False,
    file_ending=".nii.gz", channel_names=("T1",), labels={"background": 0, "organ": 1},
    store=StoreRecord(axes=(0, 1, 2), spacing=(1.0, 1.0, 1.0), normalization=(), labels={"background": 0}),
    mirror_axes=(0, 1), training={"epochs": 1}, steps=3, seconds=1.5, plan_hash="0", weights_sha256="", versions={},
)  # fmt: skip


def network(seed: int = 0, plan: NetworkPlan = PLAN) -> Segmenter:
    torch.manual_seed(seed)
    return to_device_layout(build_network("resenc", plan, 1, 2), torch.device("cpu"))


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def optimizer_of(unet: Segmenter, plan: OptimizerPlan = SGD) -> torch.optim.Optimizer:
    return make_optimizer(unet, plan)


def train(unet: Segmenter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(2, 1, 8, 8, 8, generator=generator)
        labels = torch.randint(0, 2, (2, 8, 8, 8), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = unet.forward_all(image)
        deep_supervision_loss(logits, labels, True).backward()
        clip_gradients(unet, 12.0)
        optimizer.step()


def same_weights(first: Segmenter, second: Segmenter) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    sha256 = save_weights(network(0), path)
    other = network(1)
    load_weights(other, path)
    assert same_weights(network(0), other)
    assert sha256 == file_sha256(path)
    convolution = other.encoder.stages[0][0].first.convolution.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last_3d)


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    wider = PLAN.model_copy(update={"topology": TOPOLOGY.model_copy(update={"features": (4, 6, 10)})})
    deeper = PLAN.model_copy(update={"topology": TOPOLOGY.model_copy(update={"encoder_blocks": (1, 1, 2)})})
    save_weights(network(plan=wider), tmp_path / "wider.safetensors")
    save_weights(network(plan=deeper), tmp_path / "deeper.safetensors")
    untouched = network(3)
    with pytest.raises(UserError, match=r"shape \(10,\), expected \(8,\)"):
        load_weights(untouched, tmp_path / "wider.safetensors")
    with pytest.raises(UserError, match="not a weight of this network"):
        load_weights(untouched, tmp_path / "deeper.safetensors")
    with pytest.raises(UserError, match="missing"):
        load_weights(network(plan=deeper), write_plain(tmp_path))
    assert same_weights(untouched, network(3))


def write_plain(folder: Path) -> Path:
    save_weights(network(), folder / "plain.safetensors")
    return folder / "plain.safetensors"


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_weights_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="weights.safetensors"):
        load_weights(network(), path)


def test_a_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_model(tmp_path / "fold_0", network(4), INFO)
    state = torch.get_rng_state()
    unet, info = read_model(tmp_path / "fold_0")
    assert info == written
    assert info.weights_sha256 == file_sha256(tmp_path / "fold_0" / "weights.safetensors")
    assert same_weights(unet, network(4))
    torch.set_rng_state(state)
    read_model(tmp_path / "fold_0")
    assert torch.equal(torch.get_rng_state(), state)
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(unet(image), network(4)(image), atol=1e-5, rtol=1e-4)


def test_weights_of_another_training_are_noticed(tmp_path: Path) -> None:
    write_model(tmp_path, network(0), INFO)
    save_weights(network(1), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"is not the file that model\.json was written for"):
        read_model(tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="autoseg train"):
        read_model(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_resuming_continues_bit_for_bit(tmp_path: Path, recipe: OptimizerPlan) -> None:
    straight = network(0)
    train(straight, optimizer_of(straight, recipe), range(6))

    first = network(0)
    optimizer = optimizer_of(first, recipe)
    train(first, optimizer, range(3))
    facts = {"step": 3, "seconds": 0.1 + 0.2, "losses": [0.5, -1e-30], "settings": {"name": None, "flag": True}}
    save_resume(tmp_path / "resume", first, optimizer, scaler(), facts)

    second = network(9)
    continued = optimizer_of(second, recipe)
    assert read_resume_facts(tmp_path / "resume") == facts
    load_resume(tmp_path / "resume", second, continued, scaler())
    for parameter, saved in zip(second.parameters(), first.parameters(), strict=True):
        assert_same_state(continued.state[parameter], optimizer.state[saved])
    train(second, continued, range(3, 6))
    assert same_weights(second, straight)


def assert_same_state(loaded: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == saved.keys()
    for kind, value in saved.items():
        assert torch.equal(loaded[kind], value) and loaded[kind].device == value.device, kind
        # Fused kernels walk weight and buffer together.
        assert loaded[kind].squeeze().stride() == value.squeeze().stride(), kind


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_state_is_resumed_on_the_gpu(tmp_path: Path, recipe: OptimizerPlan) -> None:
    first, second = network(0).cuda(), network(9).cuda()
    optimizer, continued = optimizer_of(first, recipe), optimizer_of(second, recipe)
    for trained, by in ((first, optimizer), (second, continued)):
        if trained is second:
            save_resume(tmp_path, first, optimizer, scaler(), {})
            load_resume(tmp_path, second, continued, scaler())
        sum(parameter.square().sum() for parameter in trained.parameters()).backward()
        by.step()
    for parameter, saved in zip(second.parameters(), first.parameters(), strict=True):
        for kind, value in optimizer.state[saved].items():
            assert continued.state[parameter][kind].device == value.device


def test_no_state_is_no_facts(tmp_path: Path) -> None:
    assert read_resume_facts(tmp_path / "resume") is None
    with pytest.raises(UserError, match="without --resume"):
        load_resume(tmp_path / "resume", network(), optimizer_of(network()), scaler())


@pytest.mark.parametrize("broken", ["_write_tensors", "write_record"])
def test_a_kill_while_saving_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The second save dies before its tensors are written, or before its record is."""
    save_resume(tmp_path, network(0), optimizer_of(network(0)), scaler(), {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, broken, killed)
        with pytest.raises(KeyboardInterrupt):
            save_resume(tmp_path, network(1), optimizer_of(network(1)), scaler(), {"step": 2})
    assert read_resume_facts(tmp_path) == {"step": 1}
    restored = network(5)
    load_resume(tmp_path, restored, optimizer_of(restored), scaler())
    assert same_weights(restored, network(0))

    save_resume(tmp_path, network(2), optimizer_of(network(2)), scaler(), {"step": 3})
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_state_is_noticed(tmp_path: Path) -> None:
    save_resume(tmp_path, network(0), optimizer_of(network(0)), scaler(), {})
    tensors = tmp_path / json.loads((tmp_path / "resume.json").read_text())["tensors"]
    tensors.write_bytes(tensors.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged"):
        load_resume(tmp_path, network(), optimizer_of(network()), scaler())


def test_a_disk_that_is_full_leaves_the_model_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, network(0), INFO)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_model(tmp_path, network(1), INFO)
    monkeypatch.undo()
    unet, _ = read_model(tmp_path)
    assert same_weights(unet, network(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "weights.safetensors"]


def test_the_loss_scale_is_kept(tmp_path: Path) -> None:
    unet = network()
    saved = torch.amp.GradScaler("cpu", init_scale=1024.0)
    save_resume(tmp_path, unet, optimizer_of(unet), saved, {})
    loaded = torch.amp.GradScaler("cpu")
    load_resume(tmp_path, unet, optimizer_of(unet), loaded)
    assert loaded.state_dict() == saved.state_dict()
