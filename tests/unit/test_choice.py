"""`auto` takes `hybrid` only where it was measured to hold its own, and says with numbers why or why not."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_planner import LARGE_CT, SMALL, make_fingerprint

from autoseg.errors import UserError
from autoseg.planning import choice
from autoseg.planning.choice import FEWEST_CASES, LARGEST_LOSS, Candidates, Evidence, choose_architecture
from autoseg.planning.fitting import smallest_memory
from autoseg.planning.memory import find_reference
from autoseg.planning.patch import Budget
from autoseg.planning.planner import PlanSettings, Request, add_architecture, decide_plan
from autoseg.planning.receptive_field import EFFECTIVE_SIGMAS, effective_field, theoretical_field
from autoseg.planning.summary import describe_plan
from autoseg.schema import Fingerprint, NetworkPlan, Plan, Topology

GOOD = Evidence(mean=0.2, low=-0.1, high=0.5, on="phantoms", where="docs/architectures.md")
LARGE = make_fingerprint((200, 256, 256), count=60)


def network(fingerprint: Fingerprint, architecture: str, configuration: str = "3d_fullres") -> NetworkPlan:
    planned = decide_plan(fingerprint, PlanSettings(architecture=architecture))  # type: ignore[arg-type]
    return planned.configurations[configuration].networks[architecture]  # type: ignore[index]


def pair(fingerprint: Fingerprint) -> Candidates:
    return Candidates(network(fingerprint, "resenc"), network(fingerprint, "hybrid"))


def verdict(
    fingerprint: Fingerprint, evidence: Evidence | None = GOOD, candidates: Candidates | None = None
) -> tuple[str, str]:
    chosen, reasons = choose_architecture(
        fingerprint, (0, 1, 2), (1.0, 1.0, 1.0), candidates or pair(fingerprint), {2: None, 3: evidence}
    )
    return chosen, " ".join(reasons)


PAIR = pair(LARGE)


def test_hybrid_is_chosen_where_everything_asks_for_it() -> None:
    chosen, words = verdict(LARGE, candidates=PAIR)
    assert chosen == "hybrid"
    for fact in ("60 cases", "+0.20 Dice points", "-0.10 to +0.50", "docs/architectures.md", "4480 at stage 3"):
        assert fact in words


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_the_lower_end_of_the_interval_decides(mean: float, below: float, above: float) -> None:
    evidence = Evidence(mean=mean, low=mean - below, high=mean + above, on="phantoms", where="somewhere")
    chosen, words = verdict(LARGE, evidence, PAIR)
    assert (chosen == "hybrid") == (evidence.low >= LARGEST_LOSS)
    assert f"{evidence.low:+.2f}" in words and f"{evidence.high:+.2f}" in words


@pytest.mark.parametrize(("what", "word"), [
    ("unmeasured", "have not been compared in 3-D"), ("few cases", f"at least {FEWEST_CASES}"),
    ("small patch", "of resenc's"), ("small image", "the whole patch"), ("no stage", "no stage has the stride"),
])
def test_each_condition_alone_forbids_it(what: str, word: str) -> None:
    fingerprint, evidence, candidates = LARGE, GOOD, PAIR
    if what == "unmeasured":
        evidence = None
    if what == "few cases":
        fingerprint = make_fingerprint((200, 256, 256), count=FEWEST_CASES - 1)
    if what == "small patch":
        smaller = candidates.hybrid.model_copy(update={"patch_shape": (96, 96, 96)})
        candidates = replace(candidates, hybrid=smaller)
    if what == "small image":
        # At stage 3 convolutions see 96 voxels.
        fingerprint = make_fingerprint((64, 80, 80), count=60)
        candidates = pair(fingerprint)
    if what == "no stage":
        candidates = pair(make_fingerprint((14, 14, 14)))
    chosen, words = verdict(fingerprint, evidence, candidates)
    assert chosen == "resenc" and words.startswith("Architecture resenc, not hybrid: ")
    assert word in words
    assert ";" not in words.split("hybrid: ")[1].split(". ")[0]


def test_a_hybrid_with_more_stages_than_resenc_is_judged_by_its_own() -> None:
    """Of images with one short, fine axis a shorter patch can have more stages."""
    shallow = network(make_fingerprint((14, 14, 14)), "resenc")
    candidates = replace(PAIR, resenc=shallow)
    assert len(shallow.topology.strides) < 3 < len(PAIR.hybrid.topology.strides)
    chosen, words = verdict(LARGE, candidates=candidates)
    assert chosen == "hybrid" and "at stage 3" in words
    assert f"its patch is {'×'.join(map(str, PAIR.hybrid.patch_shape))} mm" in words


def test_the_extent_of_the_structures_is_said_in_mm_and_plan_order() -> None:
    extents = {"organ": (10, 20, 30), "absent": None}
    facts = {"class_extents": extents, "spacing": (2.0, 1.0, 0.5)}
    cases = tuple(case.model_copy(update=facts) for case in LARGE.cases)
    fingerprint = LARGE.model_copy(update={"cases": cases})
    _, reasons = choose_architecture(fingerprint, (2, 0, 1), (1.0, 1.0, 1.0), PAIR, {3: None})
    assert "up to 15×20×20 mm" in " ".join(reasons)
    assert "was not measured" in verdict(LARGE, candidates=PAIR)[1]


# ---------------------------------------------------------------- receptive fields
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_effective_field_is_the_spread_of_averaging_convolutions(stage: int) -> None:
    """An impulse sent back through averages of width 3 at the encoder's steps has the variance of the random walk."""
    topology = network(SMALL, "resenc").topology
    steps = [1]
    for index in range(stage + 1):
        steps += [2 ** max(0, index - 1)] + [2**index] * (2 * topology.encoder_blocks[index] - 1)
    kernels = []
    for step in steps:
        kernel = np.zeros(2 * step + 1)
        kernel[::step] = 1 / 3
        kernels.append(kernel)
    impulse = np.ones(1)
    for kernel in kernels:
        impulse = np.convolve(impulse, kernel)
    place = np.arange(impulse.size) - (impulse.size - 1) / 2
    sigma = math.sqrt(float((impulse * place**2).sum()))
    assert theoretical_field(topology, stage) == (impulse.size,) * 3
    assert effective_field(topology, stage) == pytest.approx((min(EFFECTIVE_SIGMAS * sigma, impulse.size),) * 3)


def test_kernels_of_one_do_not_see_their_neighbors() -> None:
    topology = Topology(
        strides=((1, 1, 1), (1, 2, 2)), kernel_sizes=((1, 3, 3), (1, 3, 3)), features=(32, 64), encoder_blocks=(1, 3),
        decoder_blocks=(1,),
    )
    assert theoretical_field(topology, 1)[0] == 1 and effective_field(topology, 1)[0] == 0.0
    assert theoretical_field(topology, 1)[1] == 1 + 2 + 2 * 2 + 2 + 5 * 2 * 2


# ---------------------------------------------------------------- plans
def measured(monkeypatch: pytest.MonkeyPatch, evidence: Evidence | None) -> None:
    for dimensions in (2, 3):
        monkeypatch.setitem(choice.MEASURED, dimensions, evidence)


def chosen(plan: Plan) -> dict[str, str]:
    return {str(name): configuration.architecture for name, configuration in plan.configurations.items()}


def test_auto_plans_the_chosen_network_only_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, GOOD)
    planned = decide_plan(LARGE, PlanSettings())
    assert chosen(planned)["3d_fullres"] == "hybrid"
    for name, configuration in planned.configurations.items():
        assert set(configuration.networks) == {configuration.architecture}
        assert configuration.architecture_reasons[0].startswith(f"Architecture {configuration.architecture}")
        alone = decide_plan(LARGE, PlanSettings(architecture=configuration.architecture))
        if name != "3d_lowres":
            ours = configuration.networks[configuration.architecture]
            assert ours == alone.configurations[name].networks[configuration.architecture]
    words = " ".join(describe_plan(planned, LARGE).split())
    for configuration in planned.configurations.values():
        assert all(reason in words for reason in configuration.architecture_reasons)
    # Grids are resenc's: a choice must not change the data.
    by_resenc = decide_plan(LARGE, PlanSettings(architecture="resenc"))
    assert {name: one.spacing for name, one in planned.configurations.items()} == {
        name: one.spacing for name, one in by_resenc.configurations.items()}


def test_auto_without_evidence_is_resenc(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, None)
    for fingerprint in (LARGE, LARGE_CT, SMALL):
        planned = decide_plan(fingerprint, PlanSettings())
        assert set(chosen(planned).values()) == {"resenc"}
        assert all("have not been compared" in one.architecture_reasons[0] for one in planned.configurations.values())


@pytest.mark.parametrize("asked", [PlanSettings(nnunet_parity=True), PlanSettings(preset_size="M")])
def test_who_asks_for_nnunets_numbers_gets_its_network(asked: PlanSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, GOOD)
    planned = decide_plan(LARGE, asked)
    assert set(chosen(planned).values()) == {"resenc"}
    option = "--nnunet-parity" if asked.nnunet_parity else "--preset-size"
    assert all(option in one.architecture_reasons[0] for one in planned.configurations.values())


def test_a_named_architecture_is_not_argued_about() -> None:
    assert all(not one.architecture_reasons for one in decide_plan(
        LARGE, PlanSettings(architecture="hybrid")).configurations.values())


def test_adding_with_auto_chooses_for_every_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    first = decide_plan(LARGE, PlanSettings(architecture="plain"))
    measured(monkeypatch, GOOD)
    second = add_architecture(first, LARGE, PlanSettings())
    direct = decide_plan(LARGE, PlanSettings())
    for name in ("2d", "3d_fullres"):
        configuration = second.configurations[name]  # type: ignore[index]
        assert configuration.architecture == direct.configurations[name].architecture  # type: ignore[index]
        assert set(configuration.networks) == {"plain", configuration.architecture}
    assert add_architecture(second, LARGE, PlanSettings()) == second


def test_a_hybrid_that_does_not_fit_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, GOOD)
    grid = (1.0, 1.0), (256, 256)
    enough = {
        name: smallest_memory(*grid, Budget(name, find_reference(name, None), 1e-3, 2, False))
        for name in ("resenc", "hybrid")
    }
    assert enough["resenc"] is not None and enough["hybrid"] is not None and enough["resenc"] < enough["hybrid"]
    planned = decide_plan(LARGE, PlanSettings(memory_gib=enough["resenc"], configurations=("2d",)))
    assert chosen(planned) == {"2d": "resenc"}
    (reason,) = planned.configurations["2d"].architecture_reasons
    assert "no hybrid fits" in reason


def test_an_error_that_is_not_about_memory_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    by_itself = Request.network

    def network_of(request: Request, name: object, spacing: object, architecture: str) -> NetworkPlan:
        if architecture == "hybrid":
            raise UserError("something else")
        return by_itself(request, name, spacing, architecture)  # type: ignore[arg-type]

    monkeypatch.setattr(Request, "network", network_of)
    with pytest.raises(UserError, match="something else"):
        decide_plan(LARGE, PlanSettings())
