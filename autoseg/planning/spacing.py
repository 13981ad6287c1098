"""Target spacing, axis order and median shape of a dataset: what all configurations share.

Rules of nnU-Net v2 (`determine_fullres_target_spacing`, `determine_transpose` of its planner).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from autoseg.geometry import resampled_shape
from autoseg.planning.patch import readable_mm, readable_shape
from autoseg.schema import Fingerprint

Triple = tuple[float, float, float]
ANISOTROPY = 3.0
"""An axis is coarse when its spacing is more than this many times that of every other axis."""


@dataclass(frozen=True)
class Target:
    """The grid at full resolution.

    Attributes
    ----------
    axes : array axis at each plan position, coarsest first.
    spacing : mm, plan order. For natural 2-D images the first entry has no meaning.
    median_shape : voxels of the median case at `spacing`, plan order; may hold halves.
    reasons : how spacing and axes were decided.
    """

    axes: tuple[int, int, int]
    spacing: tuple[float, float, float]
    median_shape: tuple[float, float, float]
    reasons: tuple[str, ...]

    @property
    def has_depth(self) -> bool:
        """Whether the median case has more than one slice, so that 3D configurations make sense."""
        return self.median_shape[0] != 1


def find_target(
    fingerprint: Fingerprint, *, nnunet_parity: bool = False, axes: tuple[int, int, int] | None = None
) -> Target:
    """Decide spacing and axes from the spacings and cropped shapes of all cases.

    The coarsest axis comes first; without `nnunet_parity`, an axis along which the median case has one voxel does,
    since nothing can be learned along it. `axes`: those of a plan that exists already.
    """
    spacing, spacing_reason = _target_spacing(fingerprint)
    shapes = [resampled_shape(case.cropped_shape, case.spacing, spacing) for case in fingerprint.cases]
    # One slice at a coarser spacing would round to none.
    median_shape = _triple(np.maximum(np.median(shapes, axis=0), 1))
    if fingerprint.is_2d:
        median_shape = (1.0, *median_shape[1:])
    first = _first_axis(spacing, median_shape, fingerprint.is_2d, nnunet_parity)
    second, third = (axis for axis in range(3) if axis != first)
    axes = axes or (first, second, third)
    return Target(
        axes=axes,
        spacing=_in_order(spacing, axes),
        median_shape=_in_order(median_shape, axes),
        reasons=(spacing_reason, _axes_reason(axes, spacing, fingerprint.is_2d)),
    )


def _first_axis(spacing: Triple, median_shape: Triple, is_2d: bool, nnunet_parity: bool) -> int:
    """The array axis that stands first in the plan."""
    flat = [axis for axis in range(3) if median_shape[axis] == 1]
    among = flat if flat and not nnunet_parity else range(3)
    return 0 if is_2d else max(among, key=lambda axis: spacing[axis])


def _target_spacing(fingerprint: Fingerprint) -> tuple[Triple, str]:
    """mm in array order, and why.

    The median of each axis; where one axis is coarse and has few slices, the 10th percentile of that axis,
    because resampling the cases with thinner slices to the median would lose slices that are few already.
    """
    spacings = np.array([case.spacing for case in fingerprint.cases])
    shape = np.percentile([case.cropped_shape for case in fingerprint.cases], 50, axis=0)
    target = np.percentile(spacings, 50, axis=0)
    if fingerprint.is_2d:
        target[0] = 1.0
        return _triple(target), f"Pixel spacing {readable_mm(target[1:].tolist())} mm: the median of all."
    median = readable_mm(target.tolist())
    coarsest = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarsest]
    in_plane = max(target[others])
    if not (target[coarsest] > ANISOTROPY * in_plane and shape[coarsest] * ANISOTROPY < min(shape[others])):
        return _triple(target), (
            f"Spacing {median} mm (z, y, x): the median of all cases. No axis is both more than "
            f"{ANISOTROPY:g} times coarser and more than {ANISOTROPY:g} times shorter than the others."
        )
    finer = np.percentile(spacings[:, coarsest], 10)
    if finer < in_plane:
        finer = in_plane + 1e-5
    reason = (
        f"Spacing: the median of all cases is {median} mm (z, y, x) with {readable_shape(shape.tolist())} "
        f"voxels. Axis {'zyx'[coarsest]} is more than {ANISOTROPY:g} times coarser and shorter than the "
        f"others, so it takes the 10th percentile, {finer:.3g} mm: thin slices are kept."
    )
    target[coarsest] = finer
    return _triple(target), reason


def _axes_reason(axes: tuple[int, int, int], spacing: tuple[float, ...], is_2d: bool) -> str:
    if is_2d:
        return "Natural 2-D images: axes stay (y, x)."
    order = ", ".join("zyx"[axis] for axis in axes)
    if axes[0] != int(np.argmax(spacing)):
        return (f"Axis order of the plan: ({order}); the median case has one voxel along {'zyx'[axes[0]]}, which "
                "comes first, the others keep their order.")
    coarsest = f"{'zyx'[axes[0]]}, {spacing[axes[0]]:.3g} mm"
    return (f"Axis order of the plan: ({order}); the coarsest axis ({coarsest}) comes first, the others keep "
            "their order.")


def _in_order(values: Triple, axes: tuple[int, int, int]) -> Triple:
    return values[axes[0]], values[axes[1]], values[axes[2]]


def _triple(values: Float64[np.ndarray, "3"]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
