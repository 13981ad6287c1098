"""`plan --explain`: the stages of the planned networks as a table for people and as rows for programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.schema import ConfigurationName, Plan

if TYPE_CHECKING:
    from autoseg.networks.introspection import NetworkDescription, PartRow

HEADINGS = ("part", "voxels", "stride", "mm", "channels", "tokens", "parameters", "MACs", "memory", "block")
RIGHT_ALIGNED = {"channels", "tokens", "parameters", "MACs", "memory"}
NOTES = (
    "  For one sample. MACs: multiplications of the forward pass. Memory: what is kept for the backward pass,",
    "  in 16-bit numbers; weights, their gradients and the optimizer's buffers come on top once per network.",
)


def describe_configurations(plan: Plan) -> "dict[ConfigurationName, NetworkDescription]":
    """The network that `train` takes by default, of every configuration."""
    from autoseg.networks.introspection import describe_network

    return {
        name: describe_network(
            configuration.architecture, configuration.networks[configuration.architecture], plan.input_channels(name),
            len(plan.outputs), configuration.spacing,
        )
        for name, configuration in plan.configurations.items()
    }  # fmt: skip


def stages_as_json(description: "NetworkDescription") -> dict[str, object]:
    """`stages` (one object per stage, memory in bytes per sample) and `totals`."""
    stages = [
        {"part": row.name, "shape": row.shape, "stride": row.stride, "spacing": row.spacing, "channels": row.channels,
         "block": row.block, "tokens": row.tokens, "parameters": row.parameters, "macs": row.macs,
         "memory_bytes": row.saved_bytes}
        for row in description.parts
    ]  # fmt: skip
    totals = {"parameters": description.parameters, "macs": description.macs, "memory_bytes": description.saved_bytes}
    return {"stages": stages, "totals": totals}


def format_stages(title: str, description: "NetworkDescription") -> str:
    """A title, the stages as an aligned table, their sums, and what the columns mean; no last newline."""
    total = ("total", "", "", "", "", "", *_amounts(description), "")
    rows = [HEADINGS, *(_cells(row) for row in description.parts), total]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  " + _line(row, widths) for row in rows]
    rule = "  " + "-" * max(len(line) for line in lines[:-1])
    return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1], *NOTES])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if heading in RIGHT_ALIGNED else cell.ljust(width)
        for heading, cell, width in zip(HEADINGS, row, widths, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _cells(row: "PartRow") -> tuple[str, ...]:
    tokens = "" if row.tokens is None else f"{row.tokens:,}"
    return (row.name, _product(row.shape), _product(row.stride), _product(row.spacing), str(row.channels), tokens,
            *_amounts(row), row.block)


def _amounts(row: "PartRow | NetworkDescription") -> tuple[str, str, str]:
    return f"{row.parameters / 1e6:.3f} M", f"{row.macs / 1e9:.3f} G", f"{row.saved_bytes / 2**20:.1f} MiB"


def _product(numbers: Sequence[int | float]) -> str:
    return "×".join(f"{number:.3g}" for number in numbers)
