"""Laws of the measured memory: known allocations, growth with the batch, checkpointing, repeatability."""

import math

import pytest
import torch

from autoseg.networks.builder import make_network
from autoseg.networks.introspection import describe_network
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import ArchitectureName, NetworkPlan, Topology
from autoseg.training import memory_probe
from autoseg.training.memory_probe import least_bytes, measure_training_memory

CPU = torch.device("cpu")
GIB = 2**30
TOPOLOGY = Topology(
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 3, features=(8, 16, 16),
    encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1),
)  # fmt: skip


def make_plan(batch: int = 2, **changes: object) -> NetworkPlan:
    planned = NetworkPlan(
        patch_shape=(24, 24, 24), batch_size=batch, topology=TOPOLOGY, batch_dice=False, optimizer=RECIPES["sgd"],
        memory_gib=1.0, reasons=(),
    )  # fmt: skip
    return planned.model_copy(update=changes)


def measure(network_plan: NetworkPlan, architecture: ArchitectureName = "resenc") -> float:
    return measure_training_memory(architecture, network_plan, 1, 3, CPU, "float32") * GIB


# ---------------------------------------------------------------- the meter
def test_the_meter_finds_the_largest_sum_of_live_tensors() -> None:
    def allocate() -> None:
        first = torch.empty(1 << 18)
        second = torch.empty(1 << 19)
        del first
        third = torch.empty(1 << 20)
        del second, third
        torch.empty(1 << 19)

    # Floats of the second and the third tensor.
    assert memory_probe._cpu_peak(allocate) == 4 * ((1 << 19) + (1 << 20))


def test_the_meter_sees_no_tensor_of_before() -> None:
    mine = [torch.empty(1 << 20)]

    def free() -> None:
        mine.clear()
        torch.empty(10)

    assert memory_probe._cpu_peak(free) == 40


def test_the_meter_agrees_with_a_layer_worked_out_by_hand() -> None:
    tokens, gradient = torch.randn(4096, 16), torch.randn(4096, 8)
    layer = torch.nn.Linear(16, 8)

    def run() -> None:
        layer(tokens).backward(gradient)

    output, weight, bias = 4096 * 8, 8 * 16, 8
    assert memory_probe._cpu_peak(run) == 4 * (output + weight + bias)


# ---------------------------------------------------------------- training
@pytest.mark.slow
def test_the_same_plan_takes_the_same_memory_twice() -> None:
    assert measure(make_plan()) == measure(make_plan())


def test_memory_is_weights_and_a_share_per_sample() -> None:
    two, four, six = (measure(make_plan(batch)) for batch in (2, 4, 6))
    share = (six - two) / 4
    assert four == pytest.approx(two + 2 * share, rel=0.02)
    with torch.device("meta"):
        weights = 4 * sum(weight.numel() for weight in make_network("resenc", make_plan(), 1, 3).parameters())
    # Weight and momentum; gradients of the layers that are through and kernels' copies of weights beside them.
    assert 2 * weights <= two - 2 * share <= 8 * weights
    saved = 2 * describe_network("resenc", make_plan(), 1, 3, (1.0, 1.0, 1.0)).saved_bytes
    # What the derivatives need, and some derivatives and logits beside it.
    assert saved <= share <= 2 * saved


def test_half_precision_and_checkpointing_take_less() -> None:
    full = measure(make_plan())
    assert measure_training_memory("resenc", make_plan(), 1, 3, CPU, "bfloat16") * GIB < full
    one, two = (measure(make_plan(checkpointed_stages=count)) for count in (1, 2))
    assert two <= one < 0.9 * full


def test_what_is_needed_at_any_rate_is_less_than_what_is_taken() -> None:
    for optimizer in RECIPES.values():
        network_plan = make_plan(optimizer=optimizer)
        assert least_bytes("resenc", network_plan, (1, 3), "float32") <= measure(network_plan)


def test_random_states_stay_as_they_are() -> None:
    before = torch.random.get_rng_state()
    measure(make_plan())
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_little_memory_is_infinity_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_probe, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(memory_probe, "_train", None)
    assert measure(make_plan()) == math.inf


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
])
def test_a_refused_allocation_is_infinity(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(memory_probe, "_train", refuse)
    assert measure(make_plan()) == math.inf


def test_a_bug_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(memory_probe, "_train", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        measure(make_plan())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_on_a_gpu_memory_grows_with_the_batch_and_repeats() -> None:
    device = torch.device("cuda")
    two, again, eight = (
        measure_training_memory("resenc", make_plan(batch), 1, 3, device, "bfloat16") for batch in (2, 2, 8)
    )
    assert two == again and two < eight < 8 * two
