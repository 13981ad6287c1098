"""Weights of a convolution made to fit another kernel, another number of axes or other input channels.

Every rule keeps the response to a constant image: what a kernel sums up to along an axis stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MASK_PREFIX = "previous stage: "
"""Begins the names of input channels that hold a mask instead of an image."""


def fit_kernel(weight: Tensor, wanted: Sequence[int], blockwise: bool = False) -> tuple[Tensor, str] | None:
    """A kernel (·, ·, *sizes) as (·, ·, *wanted) and how it was made; None where no rule covers it.

    Wider: centred among zeros. Narrower: the taps beyond the edge are added to those at the edge (all taps are summed
    where one is left). From 2-D to 3-D and back the axis of the slices is the first, with one tap in 2-D. `blockwise`,
    a transposed convolution whose blocks do not overlap: every tap makes a voxel of its own, so one tap is repeated,
    and several are averaged to one; between other sizes no rule holds. Nor does one for even sizes.
    """
    if abs(weight.ndim - 2 - len(wanted)) > 1:
        return None
    is_flattened = weight.ndim - 2 > len(wanted)
    result = weight.unsqueeze(2) if weight.ndim - 2 < len(wanted) else weight
    for axis, size in enumerate((1, *wanted) if is_flattened else wanted, start=2):
        if result.shape[axis] != size:
            fitted = _fit_blocks(result, axis, size) if blockwise else _fit_axis(result, axis, size)
            if fitted is None:
                return None
            result = fitted
    result = result.squeeze(2) if is_flattened else result
    before, after = ("×".join(map(str, sizes)) for sizes in (weight.shape[2:], wanted))
    return result, f"kernel {before} → {after}"


def _fit_axis(weight: Tensor, axis: int, size: int) -> Tensor | None:
    taps = weight.shape[axis]
    if taps % 2 == 0 or size % 2 == 0:
        return None
    beyond = abs(taps - size) // 2
    if taps < size:
        return functional.pad(weight, [0, 0] * (weight.ndim - 1 - axis) + [beyond, beyond])
    kept = weight.narrow(axis, beyond, size).clone()
    kept.narrow(axis, 0, 1).add_(weight.narrow(axis, 0, beyond).sum(axis, keepdim=True))
    kept.narrow(axis, size - 1, 1).add_(weight.narrow(axis, taps - beyond, beyond).sum(axis, keepdim=True))
    return kept


def _fit_blocks(weight: Tensor, axis: int, size: int) -> Tensor | None:
    if size == 1:
        return weight.mean(axis, keepdim=True)
    return weight.repeat_interleave(size, axis) if weight.shape[axis] == 1 else None


def fit_inputs(weight: Tensor, given: Sequence[str], wanted: Sequence[str]) -> tuple[Tensor, str]:
    """A kernel (feature, `given` channels, …) as (feature, `wanted` channels, …) and how; "" where it is as it was.

    A channel takes the kernel of the source's channel of the same name. What is left on both sides is taken in order
    if it is equally many; else each of the others takes the mean over the source's images, times their number by the
    number of images here. Without common names the response to equal images keeps its size. A mask without namesake
    begins at zero.
    """
    taken, images, here = _pair(given, wanted), _images(given), _images(wanted)
    mean = weight[:, images].mean(1) * (len(images) / len(here))
    kernels, said = [], []
    for index, name in enumerate(wanted):
        if index in taken:
            kernels.append(weight[:, taken[index]])
            other = given[taken[index]]
            if taken[index] != index or not same_name(name, other):
                said.append(f"{name} by name" if same_name(name, other) else f"{name} takes {other}")
        elif name.startswith(MASK_PREFIX):
            kernels.append(torch.zeros_like(mean))
            said.append(f"{name} begins at zero")
        else:
            kernels.append(mean)
            said.append(f"{name} takes the mean of {len(images)}, times {len(images)}/{len(here)}")
    is_averaged = any(index not in taken for index in here)
    unused = [name for index, name in enumerate(given)
              if index not in taken.values() and not (is_averaged and index in images)]
    said += [f"{', '.join(unused)} not used"] if unused else []
    return torch.stack(kernels, dim=1), f"input channels: {'; '.join(said)}" if said else ""


def _pair(given: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Positions in `wanted` → positions in `given`: of the same name; then, if equally many are left, in order."""
    found: dict[int, int] = {}
    for here, name in enumerate(wanted):
        free = (there for there, other in enumerate(given) if there not in found.values() and same_name(name, other))
        if (there := next(free, None)) is not None:
            found[here] = there
    left = [index for index in _images(given) if index not in found.values()]
    places = [index for index in _images(wanted) if index not in found]
    return found | (dict(zip(places, left, strict=True)) if len(left) == len(places) else {})


def _images(names: Sequence[str]) -> list[int]:
    return [index for index, name in enumerate(names) if not name.startswith(MASK_PREFIX)]


def same_name(one: str, other: str) -> bool:
    """Whether two names of channels or labels mean the same: letter case and outer spaces do not count."""
    return one.strip().casefold() == other.strip().casefold()
