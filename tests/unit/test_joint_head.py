"""Laws of sums of features: with many classes they give the mean of the networks' logits, in the memory of few."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import model_info

from autoseg.inference import joint_head as joint
from autoseg.inference import needs, sliding_window
from autoseg.inference.accumulating import RollingMean
from autoseg.inference.joint_head import PLANES, joint_head
from autoseg.inference.sliding_window import WindowSettings, collect, ensemble_logits, stream_logits
from autoseg.networks.builder import build_network
from autoseg.planning.optimizers import OPTIMIZERS
from autoseg.schema import NetworkPlan, Topology

EXACT = WindowSettings(device=torch.device("cpu"))
FEATURES = 6


def network_of(classes: int, dimensions: int = 3, seed: int = 0, features: int = FEATURES):
    """A U-Net whose normalization makes every window see its own surroundings."""
    ones, twos, threes = ((n,) * dimensions for n in (1, 2, 3))
    topology = Topology(strides=(ones, twos), kernel_sizes=(threes, threes), features=(features, 2 * features),
                        encoder_blocks=(1, 1), decoder_blocks=(1,))
    plan = NetworkPlan(patch_shape=(8,) * dimensions, batch_size=2, topology=topology, batch_dice=False,
                       optimizer=OPTIMIZERS["plain"], memory_gib=1.0, reasons=())
    torch.manual_seed(seed)
    network = build_network("plain", plan, 1, classes).eval()
    with torch.no_grad():  # an offset that is not 0
        network.get_submodule(network.task_heads()[0]).bias.normal_()
    return network


def image_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def by_logits(members, image, patch, how):
    """The same networks, whose features nobody knows: their logits are summed."""
    hidden = [(torch.nn.Sequential(network), axes) for network, axes in members]
    assert joint_head([network for network, _ in hidden]) is None
    return ensemble_logits(hidden, image, patch, how)


@settings(max_examples=12, deadline=None)
@given(shape=st.tuples(*[st.integers(4, 21)] * 3), dimensions=st.sampled_from([2, 3]), folds=st.integers(1, 2),
       overlap=st.sampled_from([0.25, 0.5]), batch_voxels=st.sampled_from([1, 2000]),
       mirrored=st.sampled_from([(), (0,), (0, 1)]), seed=st.integers(0, 99))
def test_the_head_of_the_mean_features_gives_the_mean_logits(
    shape, dimensions, folds, overlap, batch_voxels, mirrored, seed
):
    members = [(network_of(20, dimensions, seed + fold), mirrored if fold == 0 else ()) for fold in range(folds)]
    image, how = image_of(*shape, seed=seed), replace(EXACT, overlap=overlap, batch_voxels=batch_voxels)
    assert joint_head([network for network, _ in members]) is not None
    found = ensemble_logits(members, image, (8,) * dimensions, how)
    torch.testing.assert_close(found, by_logits(members, image, (8,) * dimensions, how), rtol=1e-4, atol=1e-4)


def test_networks_of_unlike_width_are_joined_in_their_order():
    members = [(network_of(30, seed=1, features=4), (2,)), (network_of(30, seed=2, features=6), ())]
    assert joint_head([network for network, _ in members]).starts == (0, 4)
    image = image_of(12, 10, 9)
    found = ensemble_logits(members, image, (8, 8, 8), EXACT)
    torch.testing.assert_close(found, by_logits(members, image, (8, 8, 8), EXACT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("classes", "folds", "by_features"),
                         [(FEATURES, 1, False), (FEATURES + 1, 1, True), (2 * FEATURES, 2, False), (13, 2, True)])
def test_features_are_summed_where_they_are_fewer_than_the_classes(monkeypatch, classes, folds, by_features):
    networks = [network_of(classes, seed=fold) for fold in range(folds)]
    held, allocate = [], RollingMean._allocate
    monkeypatch.setattr(RollingMean, "_allocate",
                        lambda self, channels: (held.append(channels), allocate(self, channels))[1])
    ensemble_logits([(network, ()) for network in networks], image_of(8, 8, 8), (8, 8, 8), EXACT)
    assert held == [folds * FEATURES if by_features else classes]
    assert (joint_head(networks) is not None) is by_features


def test_a_few_planes_of_logits_are_there_at_once_and_their_memory_is_used_again(monkeypatch):
    image, network = image_of(40, 16, 16), network_of(50)
    expected = by_logits([(network, ())], image, (8, 8, 8), EXACT)

    def streamed():
        places, first = set(), 0
        for start, logits in stream_logits([(network, ())], image, (8, 8, 8), EXACT):
            assert start == first and len(logits) == 50
            first += logits.shape[1]
            torch.testing.assert_close(logits, expected[:, start:first], rtol=1e-4, atol=1e-4)
            places.add(logits.data_ptr())
            yield logits.shape[1]
        assert first == 40 and len(places) == 1

    assert max(streamed()) > 3
    monkeypatch.setattr(joint, "PLANES", 3)
    assert max(streamed()) == 3
    monkeypatch.setattr(joint, "LOGITS_BYTES", 2 * 4 * 50 * 16 * 16)
    assert max(streamed()) == 2
    monkeypatch.setattr(joint, "LOGITS_BYTES", 1)
    assert set(streamed()) == {1}


@torch.inference_mode()
def test_logits_come_where_the_features_are_and_only_so_many_are_written():
    head, room = joint_head([network_of(20)]), torch.full((5000,), 7.0)
    features = torch.randn(FEATURES, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    logits = head(features, room)
    assert logits.data_ptr() == room.data_ptr() and (room[20 * 60 :] == 7).all()
    assert torch.equal(logits, head(features))
    expected = torch.einsum("kc,czyx->kzyx", head.matrix, features) + head.offset[:, None, None, None]
    torch.testing.assert_close(logits, expected)


def test_the_last_layer_moves_to_the_host_where_a_gpu_is_too_small(monkeypatch, caplog):
    """Features say that they are on a GPU; the head fails there, and is applied to their copy on the host."""
    members, image = [(network_of(20), ())], image_of(12, 8, 8)
    expected, whole = ensemble_logits(members, image, (8, 8, 8), EXACT), sliding_window.JointHead.__call__

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    def short(self, features, room=None):
        if isinstance(features, OnGpu):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, features, room)

    finished = RollingMean.finished
    monkeypatch.setattr(RollingMean, "finished", lambda self, stop: replace(
        made := finished(self, stop), planes=made.planes.as_subclass(OnGpu)))
    monkeypatch.setattr(sliding_window.JointHead, "__call__", short)
    with caplog.at_level("INFO", "autoseg"):
        torch.testing.assert_close(ensemble_logits(members, image, (8, 8, 8), EXACT), expected)
    assert "applied on the host" in caplog.text


def test_sums_of_features_move_to_the_host_as_they_are(monkeypatch):
    members, image = [(network_of(20), (0,)), (network_of(20, seed=1), ())], image_of(20, 8, 8)
    expected, whole, calls = ensemble_logits(members, image, (8, 8, 8), EXACT), RollingMean.adding, []

    def moving(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            self.to_host()
        return whole(self, *arguments)

    monkeypatch.setattr(RollingMean, "adding", moving)
    torch.testing.assert_close(ensemble_logits(members, image, (8, 8, 8), EXACT), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) > 4


def test_half_precision_leaves_the_head_in_single():
    network, image = network_of(20), image_of(12, 12, 12)
    how = replace(EXACT, precision=torch.bfloat16)
    half, single = (ensemble_logits([(network, (0,))], image, (8, 8, 8), one) for one in (how, EXACT))
    assert half.dtype == torch.float32 and not torch.equal(half, single)
    assert not torch.equal(half, half.bfloat16().float())
    torch.testing.assert_close(half, single, rtol=0.1, atol=0.1)


def test_air_that_no_window_reaches_gets_its_logits_after_the_head():
    image = image_of(24, 8, 8)
    image[:, 8:] = -3.5
    certain = (7.0, *[-7.0] * 19)
    members, how = [(network_of(20), (0,))], replace(EXACT, constant_logits=certain)
    found = ensemble_logits(members, image, (8, 8, 8), how)
    torch.testing.assert_close(found, by_logits(members, image, (8, 8, 8), how), rtol=1e-4, atol=1e-4)
    assert (found[0, 12:] == 7).all() and (found[1:, 12:] == -7).all()
    nothing = collect(stream_logits(members, torch.zeros(1, 20, 8, 8), (8, 8, 8), how), 20)
    assert (nothing[0] == 7).all() and (nothing[1:] == -7).all()


def test_memory_that_runs_out_between_windows_changes_no_feature(monkeypatch):
    image, how, members = image_of(17, 17, 17), replace(EXACT, batch_voxels=4 * 512), [(network_of(20), (0, 2))]
    expected = ensemble_logits(members, image, (8, 8, 8), how)
    whole, calls = RollingMean.adding, []

    def short(self, *arguments):
        calls.append(arguments)
        if len(calls) in (2, 9):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *arguments)

    monkeypatch.setattr(RollingMean, "adding", short)
    torch.testing.assert_close(ensemble_logits(members, image, (8, 8, 8), how), expected, rtol=1e-4, atol=1e-4)


def test_what_a_case_needs_is_sums_of_features_and_a_few_planes_of_logits():
    shape, plane = (64, 64, 64), 64 * 64
    grid, window = sliding_window.lay_windows(shape, (16, 16, 16), 0.5), 16**3
    depth = grid.depth(grid.rows(1, 1))
    for classes in (20, 200):
        info = model_info(labels={str(index): index for index in range(classes)})
        networks = [build_network(info.architecture, info.network, 1, classes) for _ in range(2)]
        features = networks[0].head_map()[0].shape[1]
        for count in (1, 2):
            needed = needs.stream_bytes(info, shape, EXACT, 1, joint_head(networks[:count]))
            summed = count * features
            assert needed == 4 * (summed * depth * plane + features * window + (classes + summed) * PLANES * plane)
        assert needs.stream_bytes(info, shape, EXACT, 1, None) == 4 * classes * (depth * plane + window)


def test_a_network_alone_computes_features_where_these_are_summed():
    many, few = network_of(20), network_of(3)
    window = image_of(8, 8, 8)[None]
    with torch.no_grad():
        assert torch.equal(joint.summed_map(many)(window), many.finest_features(window))
        assert torch.equal(joint.summed_map(few)(window), few(window))
