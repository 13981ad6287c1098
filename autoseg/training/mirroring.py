"""Which patch axes may be mirrored: not left-right where two labels differ only in side."""

from autoseg.schema import ConfigurationName, Plan
from autoseg.training.settings import MirrorChoice

AXIS_NAMES = ("z", "y", "x")


def mirror_positions(plan: Plan, configuration: ConfigurationName, choice: MirrorChoice) -> tuple[tuple[int, ...], str]:
    """Positions in the patch (plan order) to mirror in training and prediction, and a line that says why.

    `auto` leaves out every array axis that is left-right in some case when the plan holds labels that differ only
    in side: mirrored, a left kidney is a right one. `nnunet` mirrors all axes, `none` none.
    """
    patch_axes = plan.axes[1:] if configuration == "2d" else plan.axes
    everything = tuple(range(len(patch_axes)))
    if choice == "none":
        return (), "mirroring: none, as asked for (--mirror none)"
    if choice == "nnunet":
        return everything, "mirroring: every axis, as nnU-Net does (--mirror nnunet)"
    if not plan.sided_labels:
        return everything, "mirroring: every axis (no two labels differ only in side)"
    kept = tuple(position for position in everything if patch_axes[position] not in plan.left_right_axes)
    left_out = ", ".join(AXIS_NAMES[axis] for axis in plan.left_right_axes)
    pairs = ", ".join(f"{one}/{other}" for one, other in plan.sided_labels)
    disagreement = " (the cases' orientations disagree)" if len(plan.left_right_axes) > 1 else ""
    return kept, f"mirroring: not along {left_out}, the left-right axis{disagreement}, because of {pairs}"
