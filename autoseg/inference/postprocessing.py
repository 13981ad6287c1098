"""Only the largest component of a mask stays: how that is done, and where it is accepted (nnU-Net's rule).

The rule, on cross-validated masks: of all foreground together, where the mean Dice improves and no label or region
gets worse; then, on top, of every single one whose own Dice improves.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from autoseg.data.parallel import map_cases
from autoseg.data.volume import read_labels
from autoseg.evaluation.metrics import dice
from autoseg.labelling import Labelled
from autoseg.records import Record

Mask = Integer[np.ndarray, "z y x"]
Names = tuple[str | None, ...]
DiceOf = dict[str, float | None]

EVERY_NEIGHBOR = np.ones((3, 3, 3), bool)


# ---------------------------------------------------------------- what is done
def keep_largest(mask: Mask, values: Iterable[int]) -> Mask:
    """The mask without the voxels of `values` that are not in their largest component; they become 0.

    The values make one structure together. Components touch by faces, edges or corners; of several that are equally
    large all stay, as in nnU-Net. The mask itself is left as it is, and returned where nothing is removed.
    """
    inside = _inside(mask, tuple(values))
    boxes = ndimage.find_objects(inside.view(np.uint8))
    if not boxes:
        return mask
    inside = inside[boxes[0]]
    components, count = ndimage.label(inside, EVERY_NEIGHBOR)
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    result = mask.copy()
    result[boxes[0]][inside & (sizes < sizes.max())[components]] = 0
    return result


def keep_largest_components(mask: Mask, labelled: Labelled, names: Iterable[str | None]) -> Mask:
    """`keep_largest` of these labels or regions, one after another; None: of all foreground together."""
    for name in names:
        mask = keep_largest(mask, values_of(labelled, name))
    return mask


def values_of(labelled: Labelled, name: str | None) -> tuple[int, ...]:
    """The files' values of a label or region; None: of all foreground."""
    if name is None:
        return tuple(value for value in labelled.labels.values() if value != 0)
    return labelled.foreground[name]


# ---------------------------------------------------------------- where it is accepted
class TriedStep(Record):
    """One removal that was tried.

    Attributes
    ----------
    of : a label or region; None: all foreground together.
    dice_before, dice_after : the mean over labels for all foreground, else the label's own; None: undefined.
    worse : of all foreground together: the labels that got worse.
    """

    of: str | None
    accepted: bool
    dice_before: float | None
    dice_after: float | None
    worse: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReferencedMask:
    """A mask, its reference, and the labels or regions that somebody annotated there (None: all)."""

    id: str
    mask: Path
    reference: Path
    annotated: tuple[str, ...] | None = None


def choose_postprocessing(
    masks: Sequence[ReferencedMask], labelled: Labelled, workers: int = 1
) -> tuple[TriedStep, ...]:
    """Every removal in the order in which it was tried; those accepted are applied in this order.

    Parameters
    ----------
    masks : cross-validated ones: none of a case that the network trained on.
    """
    before, (after,) = _mean_dice(masks, labelled, (), (None,), workers)
    first = judge_all(before, after)
    accepted: Names = (None,) if first.accepted else ()
    steps = [first]
    names = tuple(labelled.foreground)
    if len(names) == 1:
        return tuple(steps)
    # Labels do not touch each other: all are tried in one pass. Regions overlap: each on top of those before it.
    for together in [(name,) for name in names] if labelled.regions else [names]:
        before, tried = _mean_dice(masks, labelled, accepted, together, workers)
        for name, after in zip(together, tried, strict=True):
            step = judge_one(name, before.get(name), after.get(name))
            steps.append(step)
            accepted = (*accepted, name) if step.accepted else accepted
    return tuple(steps)


def dice_after(
    masks: Sequence[ReferencedMask], labelled: Labelled, names: Iterable[str | None], workers: int = 1
) -> float | None:
    """The mean over labels of their mean Dice after these removals."""
    means, _ = _mean_dice(masks, labelled, tuple(names), (), workers)
    return _mean(value for value in means.values() if value is not None)


def judge_all(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> TriedStep:
    """The rule for all foreground together, from every label's mean Dice."""
    both = [(name, was, now) for name, was in before.items()
            if was is not None and (now := after[name]) is not None]
    worse = tuple(name for name, was, now in both if now < was)
    was_mean, now_mean = _mean(was for _, was, _ in both), _mean(now for _, _, now in both)
    better = was_mean is not None and now_mean is not None and now_mean > was_mean
    return TriedStep(of=None, accepted=better and not worse, dice_before=was_mean, dice_after=now_mean, worse=worse)


def judge_one(name: str, before: float | None, after: float | None) -> TriedStep:
    """The rule for one label or region, from its own mean Dice."""
    better = before is not None and after is not None and after > before
    return TriedStep(of=name, accepted=better, dice_before=before, dice_after=after)


def _mean_dice(
    masks: Sequence[ReferencedMask], labelled: Labelled, accepted: Names, tried: Names, workers: int
) -> tuple[DiceOf, list[DiceOf]]:
    """Means over cases: of every label after the `accepted` removals, and then after each of `tried` as well."""
    score = partial(_case_dice, labelled=labelled, accepted=accepted, tried=tried)
    cases = map_cases(score, list(masks), workers, "postprocessing")
    before = _over_cases([base for base, _ in cases])
    return before, [_over_cases([after[step] for _, after in cases]) for step in range(len(tried))]


def _case_dice(
    case: ReferencedMask, labelled: Labelled, accepted: Names, tried: Names
) -> tuple[DiceOf, list[DiceOf]]:
    """Of one case: every label's Dice, and what each removal makes of it (a label's own removal: of that label)."""
    reference = read_labels(case.reference).voxels[0]
    mask = keep_largest_components(read_labels(case.mask).voxels[0], labelled, accepted)
    counted = None if labelled.ignore is None else reference != labelled.ignore
    names = labelled.foreground if case.annotated is None else case.annotated
    before = {name: _dice(mask, reference, labelled.foreground[name], counted) for name in names}
    after = []
    for name in tried:
        removed = mask if name is not None and name not in before else keep_largest_components(mask, labelled, [name])
        concerned = [one for one in before if name in (None, one)]
        after.append(before if removed is mask else
                     {one: _dice(removed, reference, labelled.foreground[one], counted) for one in concerned})
    return before, after


def _dice(
    mask: Mask, reference: Mask, values: Sequence[int], counted: Bool[np.ndarray, "z y x"] | None
) -> float | None:
    ours, theirs = _inside(mask, values), _inside(reference, values)
    return dice(ours, theirs) if counted is None else dice(ours & counted, theirs & counted)


def _inside(mask: Mask, values: Sequence[int]) -> Bool[np.ndarray, "z y x"]:
    return np.asarray(mask == values[0] if len(values) == 1 else np.isin(mask, values))


def _over_cases(cases: Sequence[DiceOf]) -> DiceOf:
    names = dict.fromkeys(name for case in cases for name in case)
    return {name: _mean(value for case in cases if (value := case.get(name)) is not None) for name in names}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
