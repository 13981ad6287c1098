"""A plan refined by measurements fits the memory measured, and is about the largest that does."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner import LARGE_CT, SMALL, make_fingerprint

from autoseg.errors import UserError
from autoseg.planning.measured import (
    ENOUGH,
    LEAST_ALLOWANCE,
    LOWRES_DECISION,
    MOST_ALLOWANCE,
    MOST_MEASUREMENTS,
    _Scaled,
    refine_plan,
)
from autoseg.planning.planner import PlanSettings, decide_plan
from autoseg.schema import ConfigurationName, Fingerprint, NetworkPlan, Plan

MEMORY_GIB = 6.0


def size(network: NetworkPlan) -> int:
    return math.prod(network.patch_shape) * network.batch_size


def refined(
    fingerprint: Fingerprint, gib: Callable[[NetworkPlan], float], configuration: ConfigurationName = "3d_fullres",
    parity: bool = False, architecture: str = "resenc",
) -> tuple[Plan, NetworkPlan, list[NetworkPlan]]:
    """The refined plan, its network and all networks that were measured."""
    asked = PlanSettings(memory_gib=MEMORY_GIB, architecture=architecture, nnunet_parity=parity)  # type: ignore[arg-type]
    plan = decide_plan(fingerprint, asked)
    seen: list[NetworkPlan] = []

    def measure(name: str, network: NetworkPlan) -> float:
        assert name == architecture
        seen.append(network)
        return gib(network)

    result = refine_plan(plan, fingerprint, asked, [configuration], measure, "a device")
    return result, result.configurations[configuration].networks[architecture], seen  # type: ignore[index]


def candidates(fingerprint: Fingerprint, configuration: ConfigurationName = "3d_fullres") -> list[NetworkPlan]:
    """Networks over the whole range of allowances."""
    asked = PlanSettings(memory_gib=MEMORY_GIB, architecture="resenc")
    scaled = _Scaled(fingerprint, asked, decide_plan(fingerprint, asked), configuration)
    steps = 60
    allowances = [LEAST_ALLOWANCE * (MOST_ALLOWANCE / LEAST_ALLOWANCE) ** (step / steps) for step in range(steps + 1)]
    return [scaled.network(allowance) for allowance in allowances]


CANDIDATES = {"3d_fullres": candidates(LARGE_CT), "2d": candidates(LARGE_CT, "2d")}


@pytest.mark.slow  # twenty seconds of searching; what it holds together is tested part by part below
@settings(max_examples=15)
@given(
    st.sampled_from(["3d_fullres", "2d"]), st.floats(0.3, 6.0), st.floats(0.0, 2.0), st.sampled_from([0.0, 0.25, 1.0]),
    st.booleans(),
)
def test_the_largest_plan_that_fits_is_found(
    configuration: ConfigurationName, slope: float, intercept: float, step: float, refuses: bool
) -> None:
    """Measures: affine in the values, in steps of an allocator, and a device that refuses instead of telling."""

    def gib(network: NetworkPlan) -> float:
        took = intercept + slope * network.memory_gib
        took = math.ceil(took / step) * step if step else took
        return math.inf if refuses and took > MEMORY_GIB else took

    fitting = [network for network in CANDIDATES[configuration] if gib(network) <= MEMORY_GIB]
    if not fitting:
        with pytest.raises(UserError, match="does not train in 6 GiB"):
            refined(LARGE_CT, gib, configuration)
        return
    _, network, seen = refined(LARGE_CT, gib, configuration)
    assert len(seen) <= MOST_MEASUREMENTS
    assert network.memory_gib <= MEMORY_GIB
    assert network.memory_measured_on == "a device"
    assert network.memory_gib >= ENOUGH * MEMORY_GIB or size(network) >= max(map(size, fitting)) / 2
    assert len({(one.patch_shape, one.batch_size, one.checkpointed_stages) for one in seen}) == len(seen)


def test_a_plan_that_uses_its_memory_is_measured_once() -> None:
    plan, network, seen = refined(LARGE_CT, lambda network: 0.93 * MEMORY_GIB)
    assert len(seen) == 1 and network.memory_gib == pytest.approx(0.93 * MEMORY_GIB)
    assert network.patch_shape == seen[0].patch_shape
    assert any("5.58 GiB" in one and "a device" in one and f"{seen[0].memory_gib:.2f} GiB" in one
               for one in network.reasons)
    assert any(reason.startswith("Batch dice") for reason in network.reasons)
    assert plan.configurations["2d"].networks["resenc"].memory_measured_on is None


@pytest.mark.parametrize("fingerprint", [SMALL, LARGE_CT])
def test_a_measurement_never_enlarges_beyond_the_rule(fingerprint: Fingerprint) -> None:
    """However much memory is left: nnU-Net's numbers are a budget of computation, too."""
    asked = PlanSettings(memory_gib=MEMORY_GIB, architecture="resenc")
    by_rule = decide_plan(fingerprint, asked).configurations["3d_fullres"].networks["resenc"]
    _, network, seen = refined(fingerprint, lambda network: 0.1 * network.memory_gib)
    assert len(seen) == 1
    assert (network.patch_shape, network.batch_size) == (by_rule.patch_shape, by_rule.batch_size)


def test_reasons_are_those_of_the_patch_that_was_measured() -> None:
    """A patch that had to become smaller does not cover what the rule's did."""
    asked = PlanSettings(memory_gib=MEMORY_GIB, architecture="resenc")
    fingerprint = make_fingerprint((104, 104, 104))
    before = decide_plan(fingerprint, asked).configurations["3d_fullres"].networks["resenc"]
    assert any("covers the whole median case" in reason for reason in before.reasons)
    plan, network, _ = refined(fingerprint, lambda network: 3 * network.memory_gib)
    assert math.prod(network.patch_shape) < math.prod(before.patch_shape)
    words = " ".join(network.reasons)
    share = math.prod(network.patch_shape) / 104**3
    assert "covers the whole median case" not in words
    assert f"a patch covers {share:.0%} of the median case's voxels" in words and LOWRES_DECISION in words
    (batch,) = [reason for reason in network.reasons if reason.startswith(f"Batch {network.batch_size}")]
    assert "by the rule's count times 0." in batch and "as measured" in batch
    assert not network.batch_dice and "3d_lowres" not in plan.configurations


def test_a_lowres_says_that_it_was_decided_on_before_measuring() -> None:
    _, network, _ = refined(LARGE_CT, lambda network: 2 * network.memory_gib, "3d_lowres")
    assert LOWRES_DECISION in network.reasons
    _, unchanged, _ = refined(LARGE_CT, lambda network: 5.9, "3d_lowres")
    assert LOWRES_DECISION not in unchanged.reasons


def test_a_cascade_follows_the_measured_fullres() -> None:
    plan, network, _ = refined(LARGE_CT, lambda network: 2 * network.memory_gib)
    cascade = plan.configurations["3d_cascade_fullres"].networks["resenc"]
    assert cascade == network.model_copy(update={"reasons": cascade.reasons})
    assert cascade.reasons[:-1] == network.reasons and cascade.memory_measured_on == "a device"
    other, _, _ = refined(LARGE_CT, lambda network: 2 * network.memory_gib, "2d")
    assert other.configurations["3d_cascade_fullres"].networks["resenc"].memory_measured_on is None


def test_parity_keeps_patch_and_batch_and_stores_the_number() -> None:
    plan, network, seen = refined(LARGE_CT, lambda network: 11.5, parity=True)
    by_rule = decide_plan(LARGE_CT, PlanSettings(memory_gib=MEMORY_GIB, architecture="resenc", nnunet_parity=True))
    before = by_rule.configurations["3d_fullres"].networks["resenc"]
    assert len(seen) == 1 and network.memory_gib == 11.5
    assert (network.patch_shape, network.batch_size) == (before.patch_shape, before.batch_size)
    assert set(before.reasons) < set(network.reasons)
    with pytest.raises(UserError, match="--nnunet-parity"):
        refined(LARGE_CT, lambda network: math.inf, parity=True)


def test_a_device_that_trains_nothing_is_refused_with_what_would_help() -> None:
    with pytest.raises(UserError, match="more than there is") as caught:
        refined(LARGE_CT, lambda network: math.inf)
    for word in ("3d_fullres", "--memory-gib", "--architecture", "--configurations 2d", "a device"):
        assert word in str(caught.value)


def test_a_configuration_outside_the_plan_is_refused() -> None:
    with pytest.raises(UserError, match="3d_lowres"):
        refined(SMALL, lambda network: 1.0, "3d_lowres")


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres", "3d_lowres"])
def test_a_measure_that_agrees_with_the_rule_gives_the_rules_plan(configuration: ConfigurationName) -> None:
    """The grid and the dataset's voxels are the planner's own."""
    asked = PlanSettings(memory_gib=MEMORY_GIB, architecture="resenc")
    plan = decide_plan(LARGE_CT, asked)
    scaled = _Scaled(LARGE_CT, asked, plan, configuration)
    network = plan.configurations[configuration].networks["resenc"]
    again = scaled.network(1.0)
    assert (again.patch_shape, again.batch_size, again.memory_gib) == (
        network.patch_shape, network.batch_size, network.memory_gib)
    assert again.reasons + scaled.own_reasons == network.reasons


def test_other_architectures_are_refined_alike() -> None:
    fingerprint = make_fingerprint((160, 320, 320))
    for architecture in ("hybrid", "unetr", "swin-unetr"):
        _, network, _ = refined(fingerprint, lambda network: 1.7 * network.memory_gib, architecture=architecture)
        assert network.memory_gib <= MEMORY_GIB
