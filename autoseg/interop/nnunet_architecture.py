"""The network that a configuration of nnU-Net's plans describes, in today's form and in that of 2023."""

from collections.abc import Mapping
from typing import Any

from autoseg.schema import ArchitectureName, Topology

PACKAGE = "dynamic_network_architectures.architectures."
NETWORKS: dict[str, ArchitectureName] = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "resenc"}
BLOCKS: dict[ArchitectureName, str] = {"plain": "n_conv_per_stage", "resenc": "n_blocks_per_stage"}
TOPOLOGY_KEYS = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
WITHOUT_EFFECT = ("dropout_op", "dropout_op_kwargs", "deep_supervision")
"""On what a trained network computes: dropout is for training, and every level has its head anyway."""


def describe_network(
    configuration: Mapping[str, Any], axes: int
) -> tuple[ArchitectureName | None, Topology | None, list[str]]:
    """Architecture and topology of a configuration, and all in which the network is not one of ours.

    axes : of the patch.
    """
    try:
        name, arguments = _named(configuration)
    except KeyError as missing:
        return None, None, [f"{missing.args[0]} is missing from the network's description"]
    architecture = NETWORKS.get(name.rsplit(".", 1)[-1])
    if architecture is None or not (name.startswith(PACKAGE) or "." not in name):
        return None, None, [f"the network is {name}; one of {', '.join(NETWORKS)} of nnU-Net was expected"]
    problems = _layer_problems(arguments, axes)
    known = {*TOPOLOGY_KEYS, *WITHOUT_EFFECT, BLOCKS[architecture], *_layers(arguments, axes)}
    problems += [f"the network's {key} is {value!r}; it was expected not to be set"
                 for key, value in arguments.items() if key not in known and value not in (None, False)]
    if missing_keys := [key for key in (*TOPOLOGY_KEYS, BLOCKS[architecture]) if key not in arguments]:
        return architecture, None, [*problems, f"the network lacks {', '.join(missing_keys)}"]
    try:
        return architecture, _topology(arguments, arguments[BLOCKS[architecture]], axes), problems
    except (TypeError, ValueError) as error:
        return architecture, None, [*problems, f"the network's stages are not whole numbers in lists: {error}"]


def _named(configuration: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The network's class and arguments; KeyError for what is missing."""
    if "architecture" in configuration:
        described = configuration["architecture"]
        return str(described["network_class_name"]), dict(described["arch_kwargs"])
    name = str(configuration["UNet_class_name"])
    count = len(configuration["n_conv_per_stage_encoder"])
    first, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    axes = len(configuration["patch_size"])
    return name, {
        "n_stages": count,
        "features_per_stage": [min(first * 2**stage, most) for stage in range(count)],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        BLOCKS.get(NETWORKS.get(name, "plain"), ""): configuration["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        **{key: expected for key, expected in _expected(axes).items()},
    }


def _expected(axes: int) -> dict[str, Any]:
    """The layers that every network of nnU-Net's own planners has; ours have the same."""
    return {
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"negative_slope": 0.01},
    }


def _layers(arguments: Mapping[str, Any], axes: int) -> dict[str, Any]:
    """What the arguments say about layers, in the words of `_expected`; what does not change results is left out."""
    expected = _expected(axes)
    found = {key: arguments.get(key) for key in expected}
    for key in ("conv_op", "norm_op", "nonlin"):
        torch_name = str(found[key])
        if torch_name.startswith("torch.nn.") and torch_name.rsplit(".", 1)[-1] == expected[key].rsplit(".", 1)[-1]:
            found[key] = expected[key]
    norm = {"eps": 1e-5, "affine": False, **(found["norm_op_kwargs"] or {})}
    found["norm_op_kwargs"] = {key: value for key, value in norm.items() if key != "momentum"}
    slope = {"negative_slope": 0.01, **(found["nonlin_kwargs"] or {})}
    found["nonlin_kwargs"] = {key: value for key, value in slope.items() if key != "inplace"}
    return found


def _layer_problems(arguments: Mapping[str, Any], axes: int) -> list[str]:
    return [
        f"the network's {key} is {found!r}; {expected!r} was expected"
        for (key, expected), found in zip(_expected(axes).items(), _layers(arguments, axes).values(), strict=True)
        if found != expected
    ]


def _topology(arguments: Mapping[str, Any], blocks: object, axes: int) -> Topology:
    """Numbers that hold for every stage are written out."""
    stages = arguments["n_stages"]
    return Topology(
        strides=_per_axis(arguments["strides"], stages, axes),
        kernel_sizes=_per_axis(arguments["kernel_sizes"], stages, axes),
        features=_per_stage(arguments["features_per_stage"], stages),
        encoder_blocks=_per_stage(blocks, stages),
        decoder_blocks=_per_stage(arguments["n_conv_per_stage_decoder"], stages - 1),
    )


def _per_stage(numbers: Any, stages: int) -> tuple[int, ...]:
    return (numbers,) * stages if isinstance(numbers, int) else tuple(numbers)


def _per_axis(numbers: Any, stages: int, axes: int) -> tuple[tuple[int, ...], ...]:
    entries = [numbers] * stages if isinstance(numbers, int) else numbers
    return tuple((entry,) * axes if isinstance(entry, int) else tuple(entry) for entry in entries)
