"""The plan of a dataset: which configurations there are and, for each, grid, patch, batch and network.

Pure functions of the fingerprint, following nnU-Net v2's planners (`ExperimentPlanner` for `plain`,
`ResEncUNetPlanner` and its M/L/XL presets for `resenc`); what is done differently without `nnunet_parity`
is said in the plan's reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from autoseg.errors import UserError, all_of
from autoseg.planning.choice import Candidates, choose_architecture
from autoseg.planning.configurations import (
    CASCADE,
    FULLRES,
    LOWRES,
    LOWRES_DICE_REASON,
    Draft,
    Drafts,
    draft_configurations,
    lowres_grid,
    plan_network,
    with_cascade,
)
from autoseg.planning.fitting import TooLittleMemory
from autoseg.planning.memory import find_reference
from autoseg.planning.normalization import OWN_REASON, choose_normalization, own_normalization, with_normalization
from autoseg.planning.patch import Budget, readable_mm
from autoseg.planning.sides import find_sided_pairs
from autoseg.planning.spacing import Target, find_target
from autoseg.schema import (
    ArchitectureName,
    ConfigurationName,
    ConfigurationPlan,
    Fingerprint,
    NetworkPlan,
    NormalizationChoice,
    Plan,
    StoreRecord,
)

ArchitectureChoice = Literal["auto", ArchitectureName]
PresetSize = Literal["M", "L", "XL"]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Choices of a person.

    Attributes
    ----------
    memory_gib : memory of the device in GiB; None means 8, or what the preset size is for (M 8, L 24, XL 40).
    architecture : "auto" chooses between `resenc` and `hybrid` for each configuration (see `choice`).
    configurations : plan only these; None means all that the dataset can have.
    preset_size : nnU-Net's residual encoder presets.
    nnunet_parity : keep nnU-Net's numbers where we would change them.
    normalization : "auto" goes by the channels' names, as nnU-Net (a plan that exists keeps its own); the others treat
        each image by itself.

    Raises
    ------
    UserError : nnU-Net's parity with a normalization that nnU-Net does not have.
    """

    memory_gib: float | None = None
    architecture: ArchitectureChoice = "auto"
    configurations: tuple[str, ...] | None = None
    preset_size: PresetSize | None = None
    nnunet_parity: bool = False
    normalization: NormalizationChoice = "auto"

    def __post_init__(self) -> None:
        if self.nnunet_parity and self.normalization != "auto":
            raise UserError(f"--normalization {self.normalization} with --nnunet-parity: nnU-Net has no such "
                            "normalization. Leave one of them out.")


def decide_plan(fingerprint: Fingerprint, settings: PlanSettings) -> Plan:
    """Plan a dataset.

    Raises
    ------
    UserError : a configuration that the dataset cannot have, memory that no network fits into, images that
        are too small for any network, or a preset size that the architecture does not have.
    """
    plan = _decide(fingerprint, settings)
    return plan if settings.normalization == "auto" else renormalized(plan, settings.normalization)


def renormalized(plan: Plan, scheme: Literal["percentile", "rank"]) -> Plan:
    """The plan with this normalization everywhere, and its reason in the place of the earlier one's."""
    kept = tuple(reason for reason in plan.reasons if not reason.startswith("Normalization "))
    return with_normalization(plan, scheme).model_copy(update={"reasons": (*kept, OWN_REASON[scheme])})


def _decide(fingerprint: Fingerprint, settings: PlanSettings) -> Plan:
    target = find_target(fingerprint, nnunet_parity=settings.nnunet_parity)
    request = Request(fingerprint, settings, target, _dimensions(settings.configurations))
    drafts = request.drafts(chosen_architecture(settings))
    wanted = _asked_for(drafts, settings.configurations)
    normalization, normalization_reason = choose_normalization(fingerprint)
    sided = find_sided_pairs(fingerprint.foreground)
    return Plan(
        dataset=fingerprint.dataset,
        name=fingerprint.name,
        is_2d=fingerprint.is_2d,
        file_ending=fingerprint.file_ending,
        channel_names=fingerprint.channel_names,
        labels=fingerprint.labels,
        regions=fingerprint.regions,
        ignore=fingerprint.ignore,
        axes=target.axes,
        left_right_axes=_left_right_axes(fingerprint),
        sided_labels=sided,
        memory_target_gib=request.memory_gib,
        nnunet_parity=settings.nnunet_parity,
        reasons=(
            *target.reasons,
            normalization_reason,
            *_absence_reasons(drafts),
            *_side_reasons(fingerprint, sided),
        ),
        configurations=_with_cascade({
            name: ConfigurationPlan(
                spacing=draft.spacing,
                median_shape=draft.median_shape,
                normalization=normalization,
                architecture=(choice := request.choose(name, draft.spacing)).architecture,
                architecture_reasons=choice.reasons,
                networks={choice.architecture: choice.network},
                next_stage=draft.next_stage,
            )
            for name, draft in wanted.items() if name != CASCADE
        }, CASCADE in wanted, fingerprint),
    )


def add_architecture(plan: Plan, fingerprint: Fingerprint, settings: PlanSettings) -> Plan:
    """The plan with `networks.<architecture>` added or renewed in every configuration and made the default.

    A cascade follows `3d_fullres`, and is added where the plan, from before there were any, has its parts.

    Spacing stays that of the plan, because the preprocessed data are shared, and so does the normalization unless the
    settings ask for one (the store is then another one; trained models keep their own record). Where this
    architecture alone would have got another `3d_lowres` spacing, its network is planned at the plan's and
    says so.

    Raises
    ------
    UserError : as `decide_plan`; also when the settings name a configuration that the plan does not hold, or ask for
        nnU-Net's numbers in a plan with a normalization that nnU-Net does not have.
    """
    if settings.nnunet_parity and (own := own_normalization(plan)):
        raise UserError(f"--nnunet-parity: the plan of this run normalizes by {own}, which nnU-Net does not have.\n"
                        "Leave --nnunet-parity out, or plan into another --run folder.")
    known = {*plan.configurations, *({CASCADE} if {FULLRES, LOWRES} <= set(plan.configurations) else ())}
    absent = [name for name in settings.configurations or () if name not in known]
    if absent:
        raise UserError(
            f"the plan does not hold the configuration {', '.join(absent)}; it holds "
            f"{', '.join(plan.configurations)}.\nLeave --configurations out, or plan into another --run "
            "folder."
        )
    target = find_target(fingerprint, axes=plan.axes)
    request = Request(fingerprint, settings, target, _dimensions(tuple(plan.configurations)))
    configurations = {}
    for name, configuration in plan.configurations.items():
        if name == CASCADE:
            continue
        choice = request.choose(name, configuration.spacing)
        configurations[name] = configuration.model_copy(update={
            "networks": {**configuration.networks, choice.architecture: choice.network},
            "architecture": choice.architecture,
            "architecture_reasons": choice.reasons,
        })
    cascade = CASCADE in plan.configurations or CASCADE in (settings.configurations or (CASCADE,))
    added = plan.model_copy(update={
        "configurations": _with_cascade(configurations, cascade, fingerprint),
        "memory_target_gib": request.memory_gib,
        "nnunet_parity": settings.nnunet_parity,
    })
    return added if settings.normalization == "auto" else renormalized(added, settings.normalization)


def store_record(plan: Plan, configuration: str) -> StoreRecord:
    """What shapes the preprocessed data of a configuration; a `2d` store keeps each case's slice spacing.

    Raises
    ------
    UserError : the plan does not hold the configuration.
    """
    planned = {str(name): entry for name, entry in plan.configurations.items()}.get(configuration)
    if planned is None:
        raise UserError(
            f"the plan does not hold the configuration {configuration!r}; it holds "
            f"{', '.join(plan.configurations)}.\nChoose one of these with --configuration."
        )
    in_plane = planned.spacing[-2:]
    along_first = planned.spacing[0] if len(planned.spacing) == 3 else None
    return StoreRecord(
        axes=plan.axes,
        spacing=(along_first, in_plane[0], in_plane[1]),
        normalization=planned.normalization,
        labels=plan.labels,
        ignore=plan.ignore,
    )


def chosen_architecture(settings: PlanSettings) -> ArchitectureName:
    """The architecture that the settings mean, or that "auto" begins with: its patch decides on a `3d_lowres`."""
    return "resenc" if settings.architecture == "auto" else settings.architecture


def find_budget(fingerprint: Fingerprint, architecture: ArchitectureName, settings: PlanSettings) -> Budget:
    """What a network of the architecture is planned for; UserError for a memory that makes no sense."""
    reference = find_reference(architecture, settings.preset_size)
    memory_gib = reference.memory_gib if settings.memory_gib is None else float(settings.memory_gib)
    if not 0 < memory_gib < float("inf"):
        raise UserError(f"--memory-gib {memory_gib:g}: a positive number of GiB was expected.\n"
                        "Give the memory of the device that will train, for example 8.")
    return Budget(architecture, reference, memory_gib, len(fingerprint.outputs), settings.nnunet_parity)


@dataclass(frozen=True)
class Choice:
    """The network that `train` takes by default, and why its architecture was chosen."""

    architecture: ArchitectureName
    network: NetworkPlan
    reasons: tuple[str, ...]


class Request:
    """What was asked for, and the drafts of the architectures that come into question, each made once."""

    def __init__(
        self, fingerprint: Fingerprint, settings: PlanSettings, target: Target, dimensions: frozenset[int]
    ) -> None:
        self.fingerprint, self.settings, self.target = fingerprint, settings, target
        self._dimensions = dimensions
        self.memory_gib = find_budget(fingerprint, chosen_architecture(settings), settings).memory_gib
        self._drafts: dict[ArchitectureName, Drafts] = {}

    def drafts(self, architecture: ArchitectureName) -> Drafts:
        """All configurations as the architecture alone would have them; UserError as `draft_configurations`."""
        if architecture not in self._drafts:
            budget = find_budget(self.fingerprint, architecture, self.settings)
            self._drafts[architecture] = draft_configurations(
                self.target, len(self.fingerprint.cases), budget, self._dimensions
            )
        return self._drafts[architecture]

    def choose(self, name: ConfigurationName, spacing: tuple[float, ...]) -> Choice:
        """The network of a configuration on the grid of `spacing` mm."""
        architecture = chosen_architecture(self.settings)
        network = self.network(name, spacing, architecture)
        if self.settings.architecture != "auto":
            return Choice(architecture, network, ())
        if self.settings.nnunet_parity or self.settings.preset_size is not None:
            asked = "--nnunet-parity" if self.settings.nnunet_parity else "--preset-size"
            return Choice(architecture, network, (f"Architecture resenc: {asked} asks for nnU-Net's own network.",))
        try:
            hybrid = self.network(name, spacing, "hybrid")
        except TooLittleMemory:
            reason = f"Architecture resenc: no hybrid fits into {self.memory_gib:g} GiB."
            return Choice(architecture, network, (reason,))
        axes = self.target.axes[-len(spacing):]
        chosen, reasons = choose_architecture(self.fingerprint, axes, spacing, Candidates(network, hybrid))
        return Choice(chosen, hybrid if chosen == "hybrid" else network, reasons)

    def network(
        self, name: ConfigurationName, spacing: tuple[float, ...], architecture: ArchitectureName
    ) -> NetworkPlan:
        """The architecture's network at a spacing that another architecture, or an earlier plan, may have chosen."""
        draft = self.drafts(architecture).possible.get(name)
        if draft is not None and draft.spacing == spacing:
            return draft.network
        if name != "3d_lowres":
            raise UserError(f"the plan was not made from this fingerprint: {name} has another spacing.\n"
                            "Plan again into an empty --run folder.")
        budget = find_budget(self.fingerprint, architecture, self.settings)
        own = "would have no 3d_lowres" if draft is None else f"would have chosen {readable_mm(draft.spacing)} mm"
        reason = (f"The spacing is the plan's, {readable_mm(spacing)} mm, because the preprocessed "
                  f"data are shared; {architecture} with {budget.memory_gib:g} GiB alone {own}.")
        grid = lowres_grid(self.target, spacing)
        voxels = grid.voxels * len(self.fingerprint.cases)
        return plan_network(
            (grid.spacing, grid.median_shape), voxels, budget, False, (reason, LOWRES_DICE_REASON)
        )


def _dimensions(configurations: Sequence[str] | None) -> frozenset[int]:
    """Of the configurations asked for; None asks for all."""
    return frozenset((2, 3) if configurations is None else (2 if name == "2d" else 3 for name in configurations))


def _asked_for(drafts: Drafts, asked: tuple[str, ...] | None) -> dict[ConfigurationName, Draft]:
    """The drafts that were asked for; UserError naming every one that cannot be had, and why."""
    why_not: dict[str, str] = {str(name): reason for name, reason in drafts.impossible.items()}
    for name in asked or ():
        if name not in get_args(ConfigurationName):
            why_not[name] = "there is no configuration of this name."
    problems = [f"{name}: {why_not[name]}" for name in asked or () if name in why_not]
    if problems:
        possible = ", ".join(drafts.possible) or "none"
        raise all_of(problems, "--configurations: not all of them can be planned for this dataset.",
                     f"Of those looked at, this dataset can have: {possible}.")
    if not drafts.possible or asked == ():
        raise all_of([f"{name}: {reason}" for name, reason in why_not.items()],
                     "No configuration can be planned for this dataset.",
                     "Provide images with a larger field of view or smaller voxels.")
    wanted = set(drafts.possible) if asked is None else {*asked, *({FULLRES, LOWRES} if CASCADE in asked else ())}
    return {name: draft for name, draft in drafts.possible.items() if name in wanted}


def _with_cascade(
    configurations: dict[ConfigurationName, ConfigurationPlan], wanted: bool, fingerprint: Fingerprint
) -> dict[ConfigurationName, ConfigurationPlan]:
    return with_cascade(configurations, len(fingerprint.labels)) if wanted else configurations


def _absence_reasons(drafts: Drafts) -> tuple[str, ...]:
    """One sentence per reason, naming every configuration that it rules out."""
    names: dict[str, list[str]] = {}
    for name, sentence in drafts.impossible.items():
        names.setdefault(sentence, []).append(name)
    return tuple(f"No {' and no '.join(absent)}: {sentence}" for sentence, absent in names.items())


def _left_right_axes(fingerprint: Fingerprint) -> tuple[int, ...]:
    """Array axes that are left-right in at least one case."""
    axes = {case.left_right_axis for case in fingerprint.cases}
    return tuple(sorted(axis for axis in axes if axis is not None))


def _side_reasons(fingerprint: Fingerprint, sided: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """What the labels' sides mean for mirroring."""
    if not sided:
        return ()
    pairs = "; ".join(f"{left} / {right}" for left, right in sided)
    axes = _left_right_axes(fingerprint)
    if not axes:
        return (f"Labels that differ only in side: {pairs}. The fingerprint does not say which axis is "
                "left-right.",)
    names = " and ".join("zyx"[axis] for axis in axes)
    found = [case.left_right_axis for case in fingerprint.cases]
    counts = ", ".join(f"{'zyx'[axis]} in {found.count(axis)} cases" for axis in axes)
    return (f"Labels that differ only in side: {pairs}. Mirroring along left-right would swap them; that is "
            f"array axis {names} ({counts}).",)
