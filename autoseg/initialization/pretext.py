"""The pretext tasks of a plan: how large hidden boxes are, and into how many slabs a patch is cut.

After LWI (Kunhimon et al., 2024), with lengths tied to the planned network instead of to one patch.
"""

from collections.abc import Sequence

from autoseg.errors import UserError
from autoseg.initialization.record import InitMethod, PretextPlan
from autoseg.planning.attention import SHALLOW_STAGES, SMALLEST_STRIDE, SMALLEST_STRIDE_SHALLOW, cumulative_strides
from autoseg.schema import ArchitectureName, NetworkPlan, Topology

MASK_RATIO = 0.6
"""LWI hides 0.4, of cubes of 16 voxels (UNETR) or 4 (UNETR++); other published work on masked images 0.6 to 0.75."""
BLOCK_STRIDES = 2
"""A hidden box is two tokens wide: one with visible neighbors on every side could be interpolated."""
LARGEST_BLOCK = 4
"""At most a quarter of the patch, so that visible boxes are left around every hidden one."""
FINEST_STRIDE = 4
"""Boxes of stages that attend at a finer stride (windows of a Swin UNETR) would hide what interpolation restores."""
SLAB_COUNTS = (6, 5, 4, 3, 2)
"""LWI cuts into 6 (UNETR) and 4 (UNETR++); the most that the patch allows is taken."""
THINNEST_SLAB = 4
ORDER_WEIGHT = 0.2
"""Of the mean cross entropy divided by that of guessing. In LWI the order outweighs the reconstruction in [0, 1] by
about two orders of magnitude."""
SHUFFLED_SHARE = 0.5
"""Errors beside seams do not count, and seams are at fixed places: with every sample shuffled, what a network restores
there is arbitrary (measured: LOG.md), also in images in order, which are all that it sees later."""
BORDER_SLICES = 3
"""Contiguous slabs are put in order by matching their borders, without anatomy; hidden border slices prevent it."""


def plan_pretext(architecture: ArchitectureName, network: NetworkPlan, method: InitMethod) -> PretextPlan:
    """The pretext tasks of a network.

    Raises
    ------
    UserError : `order` alone is asked for where a patch cannot be cut into slabs.
    """
    strides, why_stride = token_stride(architecture, network.topology)
    block = mask_block(strides, network.patch_shape)
    ratio = 0.0 if method == "order" else MASK_RATIO
    slabs, why_slabs = None, "order task: off (--method mim)"
    if method != "mim":
        slabs, why_slabs = choose_slabs(network.patch_shape, strides)
    if method == "order" and slabs is None:
        raise UserError(f"--method order: {why_slabs.removeprefix('order task: off, ')}.\n"
                        "Use --method mim, or plan a configuration with thicker patches.")
    masks = "masks: none (--method order)"
    if ratio:
        whole = all(size == BLOCK_STRIDES * step for size, step in zip(block, strides, strict=True))
        limit = "" if whole else "; at most a quarter of the patch"
        masks = f"masks: {ratio:.0%} of boxes of {_times(block)} voxels ({why_stride}{limit})"
    return PretextPlan(
        mask_block=block, mask_ratio=ratio, slabs=slabs,
        shuffled_share=0.0 if slabs is None else 1.0 if method == "order" else SHUFFLED_SHARE,
        border_slices=0 if slabs is None else min(BORDER_SLICES, network.patch_shape[0] // slabs // 4),
        order_weight=(1.0 if method == "order" else ORDER_WEIGHT) if slabs else 0.0, reasons=(masks, why_slabs),
    )


def token_stride(architecture: ArchitectureName, topology: Topology) -> tuple[tuple[int, ...], str]:
    """Voxels per token, per axis, of the stage that boxes are tied to, and why that one.

    The first stage that attends, but none of a finer in-plane stride than 4. Without attention the first stage with
    an in-plane stride of 8, or 4 in a network of at most 4 stages: where a `hybrid` on that skeleton would attend.
    """
    totals = cumulative_strides(topology)
    attending = first_attending_stage(architecture, topology)
    shallow = len(totals) <= SHALLOW_STAGES
    smallest = SMALLEST_STRIDE_SHALLOW if shallow else SMALLEST_STRIDE
    first, enough = (0, smallest) if attending is None else (attending, FINEST_STRIDE)
    stage = next((index for index in range(first, len(totals)) if min(totals[index][-2:]) >= enough), len(totals) - 1)
    if attending is None:
        return totals[stage], f"twice the stride {_times(totals[stage])} of stage {stage}"
    return totals[stage], f"twice the stride {_times(totals[stage])} of stage {stage}, which attends"


def first_attending_stage(architecture: ArchitectureName, topology: Topology) -> int | None:
    """The finest stage whose voxels are tokens of an attention; None in a network of convolutions."""
    if topology.attention is not None:
        return next((stage for stage, count in enumerate(topology.attention.blocks) if count), None)
    if architecture == "unetr":
        return len(topology.strides) - 1
    return 1 if architecture in ("unetr-pp", "swin-unetr") else None


def mask_block(strides: Sequence[int], patch_shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels of a hidden box per axis: two tokens, or one where two exceed a quarter of the patch, or that quarter."""
    block = []
    for step, size in zip(strides, patch_shape, strict=True):
        most = max(1, size // LARGEST_BLOCK)
        block.append(next((step * count for count in range(BLOCK_STRIDES, 0, -1) if step * count <= most), most))
    return tuple(block)


def choose_slabs(patch_shape: Sequence[int], strides: Sequence[int]) -> tuple[int | None, str]:
    """Into how many slabs the first axis (the coarsest) is cut, and why; None where it cannot be.

    Slabs are of equal thickness, whole numbers of tokens and at least 4 slices thick.
    """
    if len(patch_shape) == 2:
        return None, "order task: off, 2-D patches have no slices"
    size, step = patch_shape[0], strides[0]
    for count in SLAB_COUNTS:
        thickness, rest = divmod(size, count)
        if not rest and thickness >= THINNEST_SLAB and thickness % step == 0:
            return count, f"order task: {count} slabs of {thickness} slices along the coarsest axis"
    return None, (f"order task: off, {size} slices cannot be cut into 2 to 6 slabs of at least {THINNEST_SLAB} slices, "
                  f"each a multiple of the stride {step}")


def _times(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))
