"""Plans refined by measured memory: the largest patch and batch up to the rule's that a device was seen to train.

The measurement itself comes in as a function; nothing here knows a device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoseg.errors import UserError
from autoseg.geometry import Shape
from autoseg.planning.configurations import CASCADE, fullres_dice_reason, plan_network, with_cascade
from autoseg.planning.fitting import TooLittleMemory
from autoseg.planning.patch import Budget, readable_shape
from autoseg.planning.planner import PlanSettings, Request, find_budget
from autoseg.planning.spacing import find_target
from autoseg.schema import ArchitectureName, ConfigurationName, Fingerprint, NetworkPlan, Plan

Measure = Callable[[ArchitectureName, NetworkPlan], float]
"""GiB of one training step of a planned network; infinite where it does not fit the device."""

LEAST_ALLOWANCE, MOST_ALLOWANCE = 1 / 8, 1.0
"""The rule's count of feature-map values is scaled by a factor between these. A device that needs eight times more
memory than the rule says is not met. Nothing is enlarged beyond the rule (decision 004): its numbers are a budget of
computation, too, and a plan should not depend on the machine unless it has to."""
MOST_MEASUREMENTS = 6
"""Per configuration. Each trains two steps, seconds on a GPU; five halvings narrow a factor of 8 to 7%."""
ENOUGH, AIM = 0.9, 0.95
"""Of the memory: a plan that takes the first share is not enlarged again; where only one side is known, the next trial
is the one that would take the second if memory were proportional to values."""
LOWRES_DECISION = ("Whether there is a 3d_lowres, at which spacing, and with it batch dice, was decided by the rule's "
                   "patch, before memory was measured.")
FINEST_STEP = 1.02
"""Allowances closer than this are not told apart: the smallest change of a patch changes its values by more."""


def refine_plan(  # noqa: PLR0913 (a plan, what it was made from, and how to measure)
    plan: Plan,
    fingerprint: Fingerprint,
    settings: PlanSettings,
    configurations: Sequence[ConfigurationName],
    measure: Measure,
    device_name: str,
) -> Plan:
    """The plan with the default networks of `configurations` fitted to measured memory.

    With `nnunet_parity` patch and batch stay, and the number alone is stored. Otherwise the allowance of
    feature-map values is narrowed down, at most `MOST_MEASUREMENTS` times, to the largest plan, the rule's at most,
    whose measured memory is within the memory planned for. Other networks and configurations stay as they are, but
    for a cascade, which follows `3d_fullres`.

    Raises
    ------
    UserError : not even the smallest plan tried fits the device; or a configuration is not in the plan.
    """
    changed = dict(plan.configurations)
    for name in configurations:
        if name not in plan.configurations:
            raise UserError(f"the plan does not hold the configuration {name}; it holds "
                            f"{', '.join(plan.configurations)}.\nName one of these with --configurations.")
        scaled = _Scaled(fingerprint, settings, plan, name)
        measured = _stored(scaled, measure) if settings.nnunet_parity else _fitted(scaled, measure, device_name)
        configuration = plan.configurations[name]
        networks = {**configuration.networks, scaled.architecture: _finished(measured, scaled, device_name)}
        changed[name] = configuration.model_copy(update={"networks": networks})
    if CASCADE in plan.configurations:
        changed = with_cascade(changed, len(plan.labels))
    return plan.model_copy(update={"configurations": changed})


@dataclass(frozen=True)
class Measured:
    """A planned network and its measured GiB."""

    network: NetworkPlan
    gib: float


class _Scaled:
    """The networks of one configuration, on its grid, for any allowance of feature-map values.

    `by_rule` is the one that the planner decided on, `own_reasons` those of its reasons that are not about memory.
    """

    def __init__(
        self, fingerprint: Fingerprint, settings: PlanSettings, plan: Plan, name: ConfigurationName
    ) -> None:
        configuration = plan.configurations[name]
        self.name, self.architecture = name, configuration.architecture
        self.budget: Budget = find_budget(fingerprint, self.architecture, settings)
        target = find_target(fingerprint, nnunet_parity=settings.nnunet_parity, axes=plan.axes)
        self._grid = (configuration.spacing, configuration.median_shape)
        # A 3d_lowres has fewer voxels than the target, in proportion to its spacing; 2d has those of all slices.
        spacing = configuration.spacing
        reduction = math.prod(spacing) / math.prod(target.spacing[-len(spacing):])
        self._dataset_voxels = math.prod(target.median_shape) / reduction * len(fingerprint.cases)
        request = Request(fingerprint, settings, target, frozenset({len(spacing)}))
        self.by_rule = request.network(name, spacing, self.architecture)
        about_memory = self.network(1.0).reasons
        self.own_reasons = tuple(reason for reason in self.by_rule.reasons if reason not in about_memory)

    def network(self, allowance: float) -> NetworkPlan:
        """The network for so many times the values that the rule allows; TooLittleMemory if none is small enough."""
        budget = replace(self.budget, allowance=allowance)
        return plan_network(self._grid, self._dataset_voxels, budget, self.by_rule.batch_dice, ())

    def network_or_none(self, allowance: float) -> NetworkPlan | None:
        """As `network`, None where no network is small enough."""
        try:
            return self.network(allowance)
        except TooLittleMemory:
            return None

    def other_reasons(self, patch_shape: Shape) -> tuple[str, ...]:
        """Reasons that are not about memory, for a patch that may be smaller than the rule's."""
        if patch_shape == self.by_rule.patch_shape or self.name == "2d":
            return self.own_reasons
        if self.name == "3d_lowres":
            return (*self.own_reasons, LOWRES_DECISION)
        share = math.prod(patch_shape) / math.prod(self._grid[1])
        return fullres_dice_reason(self.by_rule.batch_dice, share), LOWRES_DECISION


def _stored(scaled: _Scaled, measure: Measure) -> Measured:
    """The plan of the rule as it is, measured."""
    network = scaled.by_rule
    gib = measure(scaled.architecture, network)
    if math.isinf(gib):
        raise UserError(
            f"{scaled.name}: nnU-Net's own plan (patch {readable_shape(network.patch_shape)}, batch "
            f"{network.batch_size}) does not fit this device.\nLeave --nnunet-parity out to have patch and "
            "batch fitted to it, or plan for less with --memory-gib."
        )
    return Measured(network, gib)


def _fitted(scaled: _Scaled, measure: Measure, device_name: str) -> Measured:
    """The largest network that was measured to fit; UserError where none was."""
    search, memory_gib = _Search(), scaled.budget.memory_gib
    while search.goes_on():
        network = scaled.network_or_none(search.allowance)
        if network is None:
            search.floor = search.allowance
            search.allowance = search.middle()
        elif (known := search.known(network)) is not None:
            search.narrow(known, memory_gib, known_before=True)
        else:
            measured = Measured(network, measure(scaled.architecture, network))
            search.narrow(measured, memory_gib, known_before=False)
    if search.fitting is None:
        smallest = min(search.tried, key=lambda one: _size(one.network), default=None)
        raise _misfit(scaled, smallest, device_name)
    return search.fitting


class _Search:
    """Where the largest allowance that fits may still lie: between `floor` and `ceiling`, both excluded."""

    def __init__(self) -> None:
        self.floor, self.ceiling = LEAST_ALLOWANCE / FINEST_STEP, MOST_ALLOWANCE * FINEST_STEP
        self.allowance = 1.0
        self.tried: list[Measured] = []
        self.fitting: Measured | None = None
        self.enough = False

    def goes_on(self) -> bool:
        """Whether another trial could find something larger that fits."""
        undecided = self.ceiling > self.floor * FINEST_STEP
        return undecided and not self.enough and len(self.tried) < MOST_MEASUREMENTS

    def known(self, network: NetworkPlan) -> Measured | None:
        """What was measured of the same patch, batch and recomputation."""
        return next((one for one in self.tried if _shape(one.network) == _shape(network)), None)

    def narrow(self, measured: Measured, memory_gib: float, *, known_before: bool) -> None:
        """Draw the conclusion of the trial at `allowance`, and choose the next."""
        if not known_before:
            self.tried.append(measured)
        fits = measured.gib <= memory_gib
        if fits:
            self.floor = self.allowance
            if self.fitting is None or _size(measured.network) >= _size(self.fitting.network):
                self.fitting = measured
            self.enough = measured.gib >= ENOUGH * memory_gib
        else:
            self.ceiling = self.allowance
        failed = len(self.tried) > 1 and any(one.gib > memory_gib for one in self.tried)
        if self.fitting is None and len(self.tried) == MOST_MEASUREMENTS - 1:
            self.allowance = self.floor * FINEST_STEP
        elif known_before or math.isinf(measured.gib) or (self.fitting is not None and failed):
            self.allowance = self.middle()
        else:
            proportional = self.allowance * AIM * memory_gib / measured.gib
            self.allowance = min(max(proportional, self.floor * FINEST_STEP), self.ceiling / FINEST_STEP)

    def middle(self) -> float:
        """The geometric middle of what is undecided."""
        return math.sqrt(self.floor * self.ceiling)


def _misfit(scaled: _Scaled, smallest: Measured | None, device_name: str) -> UserError:
    found = "no patch is small enough for the rule"
    if smallest is not None:
        took = "more than there is" if math.isinf(smallest.gib) else f"{smallest.gib:.2f} GiB"
        found = (f"the smallest network tried (patch {readable_shape(smallest.network.patch_shape)}, batch "
                 f"{smallest.network.batch_size}) takes {took} on {device_name}")
    lighter = "" if scaled.name == "2d" else ", or plan --configurations 2d, which needs less"
    return UserError(
        f"{scaled.name}: {scaled.architecture} does not train in {scaled.budget.memory_gib:g} GiB: {found}.\n"
        f"Free the device's memory (other programs may hold it), raise --memory-gib to what it has, plan another "
        f"--architecture{lighter}."
    )


def _finished(measured: Measured, scaled: _Scaled, device_name: str) -> NetworkPlan:
    """The network with its measured memory, and a sentence that sets it against the rule's."""
    by_rule, network = scaled.by_rule, measured.network
    gib = round(measured.gib, 3)
    reason = (f"Memory measured on {device_name}: {gib:.2f} GiB for one training step; the rule's estimate "
              f"for this network is {network.memory_gib:.2f} GiB.")
    if _shape(network) != _shape(by_rule):
        reason += (f" The rule alone gave patch {readable_shape(by_rule.patch_shape)} and batch {by_rule.batch_size}; "
                   f"the largest up to it that was measured to fit {scaled.budget.memory_gib:g} GiB was taken.")
    reasons = by_rule.reasons
    if network is not by_rule:
        reasons = (*network.reasons, *scaled.other_reasons(network.patch_shape))
    return network.model_copy(update={
        "memory_gib": gib, "memory_measured_on": device_name, "reasons": (*reasons, reason),
    })


def _shape(network: NetworkPlan) -> tuple[tuple[int, ...], int, int]:
    return network.patch_shape, network.batch_size, network.checkpointed_stages


def _size(network: NetworkPlan) -> int:
    """Voxels of a batch."""
    return math.prod(network.patch_shape) * network.batch_size
