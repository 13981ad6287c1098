"""`train --freeze`: stages of the network whose first weights stay as they are."""

import logging

import torch

from autoseg.errors import UserError
from autoseg.networks.builder import make_network
from autoseg.networks.segmenter import Part, Segmenter
from autoseg.networks.weight_transfer import NetworkFacts
from autoseg.training.settings import TrainSettings

DECODING = ("decoder", "logits", "up ")
"""Beginnings of the names of parts that compute logits from the encoder's maps."""
logger = logging.getLogger("autoseg")


def freeze_weights(network: Segmenter, freeze: str) -> None:
    """Take the frozen weights out of training: they get no gradients, and `make_optimizer` leaves them out.

    freeze : `none`; `encoder`, all that is computed before the decoder; `backbone`, all but the task heads; or a
        number n, the first n encoder stages and what lies before them.

    Raises
    ------
    UserError : the network has no stages by that number.
    """
    frozen = frozen_weights(network, freeze)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if frozen:
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        logger.info("--freeze %s: %.3g M of %.3g M weights stay as they are", freeze,
                    sum(sizes[name] for name in frozen) / 1e6, sum(sizes.values()) / 1e6)


def frozen_weights(network: Segmenter, freeze: str) -> set[str]:
    """Names of the parameters that stay as they are. Raises what `freeze_weights` raises."""
    if freeze == "none":
        return set()
    if freeze == "backbone":
        return {name for name, _ in network.named_parameters() if not network.is_task_head(name)}
    chosen = {id(value) for part in _frozen_parts(network.parts(), freeze) for value in part.module.parameters()}
    return {name for name, value in network.named_parameters() if id(value) in chosen}


def _frozen_parts(parts: list[Part], freeze: str) -> list[Part]:
    encoder = [part for part in parts if not part.name.startswith(DECODING)]
    if freeze == "encoder":
        return encoder
    stages = [part.name for part in encoder if part.name.startswith("encoder ")]
    last = f"encoder {int(freeze) - 1}"
    if last not in stages:
        raise UserError(f"--freeze {freeze}: " + (f"the encoder has {len(stages)} stages" if stages else "the encoder "
                        "of this network has no numbered stages") + ".\nGive none, encoder, backbone"
                        + (f" or a number from 1 to {len(stages)}." if stages else "."))
    return encoder[: [part.name for part in encoder].index(last) + 1]


def refuse_freezing(settings: TrainSettings, begins_drawn: bool, wanted: NetworkFacts) -> None:
    """UserError where what is to be frozen was drawn, does not exist, or is changed by the method of training."""
    if settings.freeze == "none":
        return
    if begins_drawn:
        raise UserError(f"--freeze {settings.freeze}: this training begins with drawn weights, which are of no use "
                        "unless they are trained.\nName a source of first weights (--init PATH, or autoseg "
                        "pretrain-init), or leave --freeze out.")
    if settings.domain_generalization == "ccsdg":
        raise UserError(f"--freeze {settings.freeze} with --domain-generalization ccsdg: the method learns a gate on "
                        "the first features, which goes into the frozen weights.\nLeave one of them out, or generalize "
                        "by gin or slaug.")
    with torch.device("meta"):
        network = make_network(wanted.architecture, wanted.network, len(wanted.channels), len(wanted.outputs))
    frozen_weights(network, settings.freeze)
