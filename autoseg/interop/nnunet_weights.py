"""The weights of nnU-Net's networks under the names that ours have; every tensor is accounted for."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from autoseg.errors import all_of
from autoseg.interop.nnunet_plans import Described
from autoseg.networks.builder import make_network
from autoseg.networks.checkpoint import differences
from autoseg.networks.segmenter import Segmenter

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and torch's data parallelism put before the names."""
ENCODER_AGAIN = "decoder.encoder."
"""The decoder refers to the encoder, so its weights are listed a second time."""
_IN_SEQUENCE = re.compile(r"\.all_modules\.(\d+)\.")
_OURS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^encoder\.stem\.convs\.0\.conv\.", r"encoder.stem.convolution."),
        (r"^encoder\.stem\.convs\.0\.norm\.", r"encoder.stem.norm."),
        (r"^encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.conv\.", r"encoder.stages.\1.\2.convolution."),
        (r"^encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.norm\.", r"encoder.stages.\1.\2.norm."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.conv\.", r"encoder.stages.\1.\2.first.convolution."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.norm\.", r"encoder.stages.\1.\2.first.norm."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv2\.conv\.", r"encoder.stages.\1.\2.second.convolution."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv2\.norm\.", r"encoder.stages.\1.\2.second.norm."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.[01]\.conv\.", r"encoder.stages.\1.\2.skip.convolution."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.[01]\.norm\.", r"encoder.stages.\1.\2.skip.norm."),
        (r"^decoder\.transpconvs\.(\d+)\.", r"decoder.\1.upsampling."),
        (r"^decoder\.stages\.(\d+)\.convs\.(\d+)\.conv\.", r"decoder.\1.blocks.\2.convolution."),
        (r"^decoder\.stages\.(\d+)\.convs\.(\d+)\.norm\.", r"decoder.\1.blocks.\2.norm."),
        (r"^decoder\.seg_layers\.(\d+)\.", r"decoder.\1.head."),
    )
)


def fill_network(weights: Mapping[str, Tensor], described: Described, source: str) -> Segmenter:
    """The network that is described, with these weights in float32.

    nnU-Net lists many tensors under several names (a layer also in its sequence, the encoder also in the decoder);
    these must be equal. source : for messages.

    Raises
    ------
    UserError : one line for each tensor that is missing, left over, of another shape, not finite, or unlike its copy.
    """
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        ours = own_name(name)
        if not value.dtype.is_floating_point:
            problems.append(f"{name}: {value.dtype} where floating point was expected")
        elif ours not in found:
            found[ours] = value
        elif not _are_equal(found[ours], value):
            problems.append(f"{name}: differs from {ours}, which is the same layer by another name")
    with torch.device("meta"):
        outputs = len(described.labelled.outputs)
        network = make_network(described.architecture, described.network, described.input_channels, outputs)
    expected = network.state_dict()
    problems += sorted(differences(expected, found), key=lambda line: line.endswith(": missing"))
    problems += [f"{name}: holds NaN or infinity" for name, value in found.items() if not bool(value.isfinite().all())]
    if problems:
        raise all_of(problems, f"{source} does not hold the weights of the network in plans.json ({len(problems)} "
                     "tensors differ; names are ours where we have one):",
                     "Give the plans.json that this checkpoint was trained with, in one folder with it.", shown=100)
    filled = {name: found[name].to(torch.float32, copy=True) for name in expected}
    network.load_state_dict(filled, assign=True)
    return network.eval()


def own_name(name: str) -> str:
    """Our name of a tensor of nnU-Net's networks; a name that is none of theirs stays, without wrappers."""
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    if name.startswith(ENCODER_AGAIN):
        name = name.removeprefix("decoder.")
    # A layer's modules in their order: the convolution first, the normalization behind it or behind a dropout.
    name = _IN_SEQUENCE.sub(lambda found: ".conv." if found[1] == "0" else ".norm.", name)
    for pattern, replacement in _OURS:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
