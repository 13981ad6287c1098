"""A network with its first weights, from its plan."""

from collections.abc import Callable

from autoseg.networks.segmenter import Segmenter
from autoseg.networks.soundness import refuse_unsound
from autoseg.networks.unet import UNet
from autoseg.schema import ArchitectureName, NetworkPlan

# MONAI takes a second to import: only who asks for its networks waits for it.


def _unet(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    return UNet(architecture, network.topology, inputs, outputs, network.checkpointed_stages)


def _unetr(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.unetr import UNETR

    return UNETR(network, inputs, outputs)


def _unetr_pp(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.unetr_pp import UNETRPlusPlus

    return UNETRPlusPlus(network, inputs, outputs)


def _swin_unetr(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.monai_networks import SwinUNETR

    return SwinUNETR(network, inputs, outputs)


def _mednext(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.monai_networks import MedNeXt

    return MedNeXt(network, inputs, outputs)


NETWORKS: dict[ArchitectureName, Callable[[ArchitectureName, NetworkPlan, int, int], Segmenter]] = {
    "plain": _unet,
    "resenc": _unet,
    "hybrid": _unet,
    "unetr": _unetr,
    "unetr-pp": _unetr_pp,
    "swin-unetr": _swin_unetr,
    "mednext": _mednext,
}


def make_network(
    architecture: ArchitectureName, network: NetworkPlan, input_channels: int, output_channels: int
) -> Segmenter:
    """The planned network in float32 with weights that mean nothing yet, on torch's default device."""
    return NETWORKS[architecture](architecture, network, input_channels, output_channels)


def build_network(
    architecture: ArchitectureName, network: NetworkPlan, input_channels: int, output_channels: int
) -> Segmenter:
    """The planned network in float32 on the CPU, initialized from torch's global generator (seed it first).

    Raises
    ------
    UserError : the plan contradicts itself (plan.json was edited).
    """
    remedy = "Correct these entries in plan.json, or plan again: autoseg plan."
    refuse_unsound(architecture, network, "The plan's", remedy)
    built = make_network(architecture, network, input_channels, output_channels)
    built.initialize()
    return built
