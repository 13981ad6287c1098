"""What `train`'s switches mean: the model's default name, and the plan's normalization under domain generalization."""

import pytest
from test_planner import make_fingerprint, plan

from autoseg.commands.training_method import (
    WITH_FIRST_BLOCK,
    name_of_method,
    normalization_for_domains,
    plan_to_train,
    refuse_unfit,
)
from autoseg.errors import UserError
from autoseg.networks.builder import NETWORKS
from autoseg.planning.normalization import with_normalization
from autoseg.planning.planner import store_record
from autoseg.schema import Plan
from autoseg.training.settings import TrainSettings, override

CT = plan(make_fingerprint((60, 200, 200), channels=("CT", "PET")))
MR = plan(make_fingerprint((60, 200, 200), channels=("T1",), kept=0.5))
GENERALIZING = ("gin", "slaug", "ccsdg")


def settings(**choices: object) -> TrainSettings:
    return TrainSettings(**choices)  # type: ignore[arg-type]


def schemes(decided: Plan) -> set[str]:
    return {channel.scheme for one in decided.configurations.values() for channel in one.normalization}


@pytest.mark.parametrize("decided", [CT, MR, with_normalization(CT, "rank")])
@pytest.mark.parametrize("guided", [False, True])
def test_plain_training_takes_the_plan_as_it_is(decided: Plan, guided: bool, caplog) -> None:
    with caplog.at_level("INFO", logger="autoseg"):
        assert plan_to_train(decided, "3d_fullres", settings(text_guided=guided)) is decided
    assert not caplog.messages


@pytest.mark.parametrize("method", GENERALIZING)
@pytest.mark.parametrize("decided", [CT, MR])
def test_domain_generalization_replaces_normalizations_of_the_source_and_says_so(
    decided: Plan, method: str, caplog
) -> None:
    with caplog.at_level("INFO", logger="autoseg"):
        changed = plan_to_train(decided, "3d_fullres", settings(domain_generalization=method))
    expected = "rank" if "ct" in schemes(decided) else "percentile"
    assert normalization_for_domains(schemes(decided)) == expected
    assert changed == with_normalization(decided, expected) and schemes(changed) == {expected}
    [message] = caplog.messages
    planned = decided.configurations["3d_fullres"].normalization
    assert message.startswith(f"--domain-generalization {method}") and expected in message
    assert all(channel.scheme in message for channel in planned)
    assert store_record(changed, "3d_fullres") != store_record(decided, "3d_fullres")
    assert changed.configurations["3d_fullres"].networks == decided.configurations["3d_fullres"].networks


@pytest.mark.parametrize("method", GENERALIZING)
@pytest.mark.parametrize("scheme", ["percentile", "rank"])
def test_a_plan_that_normalizes_each_image_by_itself_is_kept(scheme: str, method: str, caplog) -> None:
    decided = with_normalization(CT, scheme)  # type: ignore[arg-type]
    with caplog.at_level("INFO", logger="autoseg"):
        assert plan_to_train(decided, "3d_fullres", settings(domain_generalization=method)) is decided
    assert not caplog.messages


def test_one_channel_that_will_not_do_is_enough() -> None:
    """A plan written by hand: PET by rank, CT by the dataset's window."""
    mixed = CT.model_copy(update={"configurations": {
        name: one.model_copy(update={"normalization": (
            one.normalization[0], one.normalization[1].model_copy(update={"scheme": "rank"}))})
        for name, one in CT.configurations.items()}})
    assert schemes(mixed) == {"ct", "rank"}
    assert schemes(plan_to_train(mixed, "2d", settings(domain_generalization="gin"))) == {"rank"}


@pytest.mark.parametrize("method", ["none", *GENERALIZING])
@pytest.mark.parametrize("scheme", ["percentile", "rank"])
@pytest.mark.parametrize("decided", [CT, with_normalization(CT, "percentile"), with_normalization(CT, "rank")])
def test_what_is_asked_for_wins(decided: Plan, scheme: str, method: str) -> None:
    asked = settings(domain_generalization=method, normalization=scheme)
    assert plan_to_train(decided, "3d_fullres", asked) == with_normalization(CT, scheme)  # type: ignore[arg-type]


@pytest.mark.parametrize(("choices", "name"), [
    ({}, ""),
    ({"text_route": "heads", "text_geometry": "raw"}, ""),
    ({"normalization": "percentile"}, "+percentile"),
    ({"domain_generalization": "ccsdg"}, "+ccsdg"),
    ({"text_guided": True}, "+text"),
    ({"text_guided": True, "text_geometry": "rotated"}, "+text-rotated"),
    ({"text_guided": True, "text_route": "gram", "text_geometry": "raw"}, "+text-gram-raw"),
    ({"normalization": "rank", "domain_generalization": "slaug", "text_guided": True, "text_route": "heads"},
     "+rank+slaug+text-heads"),
])  # fmt: skip
def test_a_name_says_the_method_and_what_is_not_its_default(choices: dict[str, object], name: str) -> None:
    assert name_of_method(settings(**choices)) == name


def test_methods_that_differ_have_names_that_differ() -> None:
    asked = [settings(normalization=scheme, domain_generalization=method, text_guided=guided, text_route=route,
                      text_geometry=geometry)
             for scheme in ("auto", "percentile", "rank") for method in ("none", *GENERALIZING)
             for guided, route, geometry in [
                 (False, "alignment", "centred"),
                 *((True, route, geometry) for route in ("alignment", "heads", "gram")
                   for geometry in ("centred", "raw", "random", "shuffled"))]]
    assert len({name_of_method(one) for one in asked}) == len(asked)


@pytest.mark.parametrize("method", ["none", *GENERALIZING])
@pytest.mark.parametrize("architecture", NETWORKS)
def test_ccsdg_alone_is_for_some_networks_only(architecture: str, method: str) -> None:
    """Those that are UNets, as `stem_of` asks: they are built by one function."""
    assert (NETWORKS[architecture] is NETWORKS["plain"]) == (architecture in WITH_FIRST_BLOCK)  # type: ignore[index]
    if method == "ccsdg" and architecture not in WITH_FIRST_BLOCK:
        with pytest.raises(UserError, match=f"(?s)--domain-generalization ccsdg with {architecture}.*hybrid"):
            refuse_unfit(architecture, settings(domain_generalization=method))  # type: ignore[arg-type]
    else:
        refuse_unfit(architecture, settings(domain_generalization=method))  # type: ignore[arg-type]


@pytest.mark.parametrize("views", [0, 3])
def test_gin_has_one_view_or_two(views: int) -> None:
    """Refused with the settings: later, --overwrite has deleted the older model."""
    with pytest.raises(UserError, match=f"gin_views is {views}; 1, or 2"):
        override(TrainSettings(), gin_views=views)
    assert override(TrainSettings(), gin_views=2).gin_views == 2
