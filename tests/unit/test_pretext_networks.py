"""Every architecture can be pretrained, in two and three dimensions, with several channels."""

import pytest
import torch
from test_feature_maps import EXAMPLES, UNUSED, plan_of

from autoseg.initialization.corruption import corrupt, draw_corruptions
from autoseg.initialization.heads import PretextNetwork, feature_shapes
from autoseg.initialization.objective import pretext_loss
from autoseg.initialization.pretext import plan_pretext
from autoseg.networks.builder import build_network

MEANS, DEVIATIONS = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 3.0])


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_one_step_reaches_every_weight_of_the_backbone(example):
    plan = plan_of(example)
    torch.manual_seed(0)
    network = build_network(example.architecture, plan, 2, 3)
    pretext = plan_pretext(example.architecture, plan, "lwi")
    pretext = pretext.model_copy(update={"shuffled_share": 1.0})
    learned = PretextNetwork(network, feature_shapes(example.architecture, plan, 2), MEANS.tolist(), pretext.slabs)
    image = torch.randn(2, 2, *plan.patch_shape)
    drawn = draw_corruptions(pretext, plan.patch_shape, 0, 0, 2)
    corrupted = corrupt(image, drawn, pretext, learned.mask_value)
    output = learned(corrupted.image)
    assert output.reconstructions[0].shape == image.shape
    assert bool(output.order_logits) == (pretext.slabs is not None)
    assert all(logits.shape == (2, pretext.slabs, pretext.slabs) for logits in output.order_logits.values())
    loss = pretext_loss(output, corrupted, pretext, MEANS, DEVIATIONS)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    without = {name for name, parameter in learned.named_parameters() if parameter.grad is None}
    heads = {f"network.{name}" for name, _ in network.named_parameters() if network.is_task_head(name)}
    assert heads <= without
    assert all(UNUSED in name for name in without - heads), "only what the network itself never uses"
