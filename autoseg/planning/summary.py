"""The plan in plain words: what was measured, what was decided, and why."""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Num

from autoseg.planning.attention import stage_shapes
from autoseg.planning.patch import readable_mm, readable_shape
from autoseg.planning.topology import Numbers
from autoseg.schema import ConfigurationPlan, Fingerprint, NetworkPlan, OptimizerPlan, Plan

WIDTH = 100


def describe_plan(plan: Plan, fingerprint: Fingerprint, about_folds: Sequence[str] = ()) -> str:
    """Dataset facts, decisions for the whole dataset, each configuration; plain text, no last newline."""
    blocks = [
        [f"Dataset {plan.name}  ({plan.dataset})", *_dataset_lines(fingerprint)],
        ["Decided for the whole dataset", *_bullets((*plan.reasons, *about_folds))],
    ]
    for name, configuration in plan.configurations.items():
        after = f"  (a coarse stage before {configuration.next_stage})" if configuration.next_stage else ""
        if configuration.previous_stage:
            after = f"  (after {configuration.previous_stage}, whose masks it takes)"
        blocks.append([f"Configuration {name}{after}", *_configuration_lines(configuration, plan)])
    blocks.append(_closing_lines(plan))
    return "\n\n".join("\n".join(block) for block in blocks)


def _dataset_lines(fingerprint: Fingerprint) -> list[str]:
    """Facts; axes as in the arrays (z, y, x)."""
    cases = fingerprint.cases
    drop = 1 if fingerprint.is_2d else 0
    axes = "(y, x)" if fingerprint.is_2d else "(z, y, x)"
    shapes = np.array([case.shape for case in cases])[:, drop:]
    cropped = np.array([case.cropped_shape for case in cases])[:, drop:]
    spacings = np.array([case.spacing for case in cases])[:, drop:]
    kept = fingerprint.median_relative_size_after_cropping
    lines = [
        f"  cases      {len(cases)} ({'2-D' if fingerprint.is_2d else '3-D'}, {fingerprint.file_ending})",
        f"  channels   {', '.join(fingerprint.channel_names)}",
        f"  shape      {_range(shapes, readable_shape)} voxels {axes}",
        f"  spacing    {_range(spacings, readable_mm)} mm {axes}",
    ]
    if kept < 1:
        lines.append(f"  cropped    {_range(cropped, readable_shape)} voxels: all nonzero ones ({kept:.0%})")
    return [*lines, "  labels     " + ("\n" + " " * 13).join(_label_lines(fingerprint))]


def _label_lines(fingerprint: Fingerprint) -> list[str]:
    """Per label in how many cases it occurs and its median volume there."""
    lines = []
    for name, value in fingerprint.labels.items():
        if value == 0:
            continue
        found = [case for case in fingerprint.cases if case.class_voxels[name]]
        voxels = [case.class_voxels[name] for case in found]
        volumes = [case.class_voxels[name] * float(np.prod(case.spacing)) / 1000 for case in found]
        typical = f"{np.median(voxels):.0f} pixels" if fingerprint.is_2d else f"{np.median(volumes):.3g} ml"
        lines.append(f"{name} ({value}): in {len(found)} of {len(fingerprint.cases)} cases, median {typical}")
    return lines


def _configuration_lines(configuration: ConfigurationPlan, plan: Plan) -> list[str]:
    axes = plan.axes[-len(configuration.spacing):]
    order = ", ".join("zyx"[axis] for axis in axes)
    lines = [
        f"  spacing    {readable_mm(configuration.spacing)} mm ({order})",
        f"  image      {readable_shape(configuration.median_shape)} voxels (the median case at this spacing)",
    ]
    if configuration.architecture_reasons:
        lines += ["  choice     between resenc and hybrid", *_bullets(configuration.architecture_reasons)]
    for architecture, network in configuration.networks.items():
        default = " (train takes this one)" if architecture == configuration.architecture else ""
        several = default if len(configuration.networks) > 1 else ""
        lines += [f"  network    {architecture}{several}", *_network_lines(network)]
    return lines


def _network_lines(network: NetworkPlan) -> list[str]:
    topology = network.topology
    stages = [
        f"{readable_shape(shape)} ({features})"
        for shape, features in zip(stage_shapes(topology, network.patch_shape), topology.features, strict=True)
    ]
    path = textwrap.wrap(" > ".join(stages), WIDTH - 13, break_long_words=False)
    return [
        f"  patch      {readable_shape(network.patch_shape)} voxels, {network.batch_size} per step",
        f"  memory     {_memory(network)}",
        *_checkpointing_lines(network),
        f"  optimizer  {_optimizer(network.optimizer)}",
        f"  stages     {len(topology.strides)}; voxels (features):",
        *(" " * 13 + line for line in path),
        "  why",
        *_bullets(network.reasons),
    ]


def _memory(network: NetworkPlan) -> str:
    if network.memory_measured_on is None:
        digits = ".1f" if network.memory_gib >= 1 else ".2g"
        return f"about {network.memory_gib:{digits}} GiB to train (estimated by rule, not measured here)"
    return f"{network.memory_gib:.2f} GiB to train, measured on {network.memory_measured_on}"


def _checkpointing_lines(network: NetworkPlan) -> list[str]:
    stages = network.checkpointed_stages
    if stages == 0:
        return []
    first = "stage 0" if stages == 1 else f"stages 0 to {stages - 1}"
    return [f"  recomputed {first}, in the backward pass (gradient checkpointing)"]


def _optimizer(optimizer: OptimizerPlan) -> str:
    """The recipe with its constants on one line."""
    rate = f"learning rate {optimizer.learning_rate:g}"
    decay, clip = f"weight decay {optimizer.weight_decay:g}", f"gradients clipped at {optimizer.gradient_clip:g}"
    if optimizer.warmup_share:
        rate += f" after a warm-up over {optimizer.warmup_share:.0%}"
    if optimizer.name == "sgd":
        return f"SGD, {rate}, Nesterov momentum {optimizer.momentum:g}, {decay}, {clip}"
    return f"AdamW, {rate}, betas {optimizer.momentum:g} and {optimizer.second_momentum:g}, {decay}, {clip}"


def _closing_lines(plan: Plan) -> list[str]:
    """The settings of the last planning; networks that were added to earlier ones may have others."""
    parity = "nnU-Net's numbers are kept unchanged." if plan.nnunet_parity else (
        "The rules are nnU-Net's; what differs is said above."
    )
    several = any(len(configuration.networks) > 1 for configuration in plan.configurations.values())
    subject = "The network planned last: planned" if several else "Planned"
    return [f"{subject} for {plan.memory_target_gib:g} GiB of memory. {parity}"]


def _range(rows: Num[np.ndarray, "case axis"], readable: Callable[[Numbers], str]) -> str:
    """Median of the rows, and the smallest and largest per axis where they differ."""
    median = readable(np.median(rows, axis=0).tolist())
    low, high = readable(rows.min(axis=0).tolist()), readable(rows.max(axis=0).tolist())
    return median if low == high else f"{median} (from {low} to {high})"


def _bullets(sentences: Sequence[str]) -> list[str]:
    """Each sentence indented and wrapped behind a dash."""
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, WIDTH, initial_indent="    - ", subsequent_indent="      ",
                                  break_on_hyphens=False)
    ]
