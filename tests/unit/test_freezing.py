"""What `--freeze` takes out of training: which weights, by network, and that no gradient is computed for them."""

import warnings

import pytest
import torch
from test_init_transfer import narrow
from test_pretext_plan import ARCHITECTURES
from test_weight_transfer import LABELS, facts, made, tiny

from autoseg.errors import UserError
from autoseg.networks.weight_transfer import NetworkFacts
from autoseg.planning.optimizers import RECIPES
from autoseg.schema import ArchitectureName
from autoseg.training.freezing import freeze_weights, frozen_weights, refuse_freezing
from autoseg.training.optimization import make_optimizer
from autoseg.training.settings import TrainSettings, load_preset, override, settings_from_flat


def of(architecture: ArchitectureName) -> NetworkFacts:
    return NetworkFacts(architecture, narrow(architecture), ("CT",), LABELS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_has_an_encoder_that_ends_where_its_decoder_begins(architecture: ArchitectureName) -> None:
    network = made(of(architecture))
    everything = {name for name, _ in network.named_parameters()}
    encoder, backbone = frozen_weights(network, "encoder"), frozen_weights(network, "backbone")
    assert frozen_weights(network, "none") == set() and set() < encoder < backbone < everything
    assert {name for name in everything if network.is_task_head(name)} == everything - backbone
    used: dict[str, bool] = {}
    freeze_weights(network, "encoder")
    image = torch.randn(1, 1, *network_patch(architecture))
    maps = network.encoder_maps(image)
    used = {str(index): value.requires_grad for index, value in enumerate(maps)}
    assert not any(used.values()), "nothing of the encoder is kept for a backward pass"
    assert all(logits.requires_grad for logits in network.forward_all(image))


def network_patch(architecture: ArchitectureName) -> tuple[int, ...]:
    return narrow(architecture).patch_shape


def test_the_first_stages_are_frozen_with_the_stem() -> None:
    network = made(facts())
    one, two, three = (frozen_weights(network, str(count)) for count in (1, 2, 3))
    assert {name.split(".")[1] for name in one} == {"stem", "stages"} and one < two < three
    assert three == frozen_weights(network, "encoder")
    assert {name.rsplit("stages.")[1][0] for name in two if "stages" in name} == {"0", "1"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("freeze", ["1", "encoder", "backbone"])
def test_frozen_weights_stay_and_the_others_move_also_with_stages_that_are_computed_twice(freeze, name) -> None:
    planned = facts(tiny().model_copy(update={"checkpointed_stages": 2}))
    network = made(planned).train()
    freeze_weights(network, freeze)
    frozen = frozen_weights(network, freeze)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = make_optimizer(network, RECIPES[name])
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(before) - len(frozen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            optimizer.zero_grad()
            sum(logits.square().mean() for logits in network.forward_all(torch.randn(2, 1, 16, 16, 16))).backward()
            optimizer.step()
    after = network.state_dict()
    unsupervised = {key for key in after if key.startswith("decoder.0.head.")}
    for key, value in after.items():
        same = torch.equal(value, before[key])
        assert same if key in frozen else not same or key in unsupervised or "convolution.bias" in key, key


def test_the_frozen_part_computes_what_it_did() -> None:
    """Gradients of what is trained are those of a training without freezing."""
    planned, image = facts(), torch.randn(1, 1, 16, 16, 16)
    whole, part = made(planned).train(), made(planned).train()
    freeze_weights(part, "encoder")
    for network in (whole, part):
        sum(logits.square().mean() for logits in network.forward_all(image)).backward()
    gradients = dict(whole.named_parameters())
    for name, value in part.named_parameters():
        if name in frozen_weights(part, "encoder"):
            assert value.grad is None
        elif value.grad is not None:
            assert torch.allclose(value.grad, gradients[name].grad, atol=1e-6), name


# ---------------------------------------------------------------- refused
def test_freezing_what_was_drawn_is_refused() -> None:
    refuse_freezing(TrainSettings(), True, facts())
    refuse_freezing(TrainSettings(freeze="encoder"), False, facts())
    with pytest.raises(UserError, match=r"--freeze encoder: this training begins with drawn weights(.|\n)*--init PATH"):
        refuse_freezing(TrainSettings(freeze="encoder"), True, facts())
    with pytest.raises(UserError, match="gate on the first features"):
        refuse_freezing(TrainSettings(freeze="1", domain_generalization="ccsdg"), False, facts())


def test_stages_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"--freeze 4: the encoder has 3 stages(.|\n)*a number from 1 to 3"):
        refuse_freezing(TrainSettings(freeze="4"), False, facts())
    with pytest.raises(UserError, match="no numbered stages"):
        refuse_freezing(TrainSettings(freeze="1"), False, of("unetr"))


@pytest.mark.parametrize("value", ["0", "-1", "decoder", "1.5", "", "٣", "1\n"])
def test_what_cannot_be_frozen_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="freeze is .* none, encoder, backbone or a number"):
        override(load_preset("default"), freeze=value)


def test_settings_of_before_freeze_nothing() -> None:
    flat = {name: value for name, value in TrainSettings().flat().items() if name != "freeze"}
    assert settings_from_flat(flat, "a state").freeze == "none"
