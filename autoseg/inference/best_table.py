"""What find-best found, as plain text that a person reads."""

from collections.abc import Sequence

from autoseg.evaluation.table import UNDEFINED, aligned
from autoseg.inference.best import Best, Candidate
from autoseg.inference.postprocessing import TriedStep

SHOWN_LABELS = 6
SHOWN_REFUSED = 10


def describe_best(best: Best) -> str:
    """The table of candidates, the best first; what was left out; the choice and its postprocessing."""
    lines = _table(best)
    if best.left_out:
        lines.append("\nLeft out:")
        lines += [f"  {one.name} {one.configuration}: {one.reason}" for one in best.left_out]
    members = " + ".join(f"{member} (folds {', '.join(member.folds)})" for member in best.members)
    lines.append(f"\nBest: {members}" + (", probabilities averaged" if len(best.members) > 1 else ""))
    lines += _postprocessing(best)
    return "\n".join(lines)


def _table(best: Best) -> list[str]:
    labels = tuple(best.candidates[0].labels)
    shown = labels if len(labels) <= SHOWN_LABELS else ()
    over = f"{best.cases} validation cases of fold{'s' * (len(best.folds) > 1)} {', '.join(best.folds)}"
    lines = aligned([("model", "Dice", "± folds", "NSD", *shown), *(_row(one, shown) for one in best.candidates)])
    rule = "-" * max(len(line) for line in lines)
    note = "" if shown or not labels else f" over {len(labels)} labels"
    return [f"Mean{note} on the {over}; labels: Dice", lines[0], rule, *lines[1:]]


def _row(one: Candidate, labels: Sequence[str]) -> tuple[str, ...]:
    numbers = (one.dice, one.dice_std, one.nsd, *(one.labels.get(label) for label in labels))
    return (one.members_text, *map(_number, numbers))


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}"


def _postprocessing(best: Best) -> list[str]:
    accepted = [step for step in best.postprocessing if step.accepted]
    refused = [step for step in best.postprocessing if not step.accepted]
    lines = ["Keeping only the largest component:"]
    lines += [f"  {_step(step)}: accepted" for step in accepted]
    lines += [f"  {_step(step)}: refused" for step in refused[:SHOWN_REFUSED]]
    if len(refused) > SHOWN_REFUSED:
        lines.append(f"  and {len(refused) - SHOWN_REFUSED} more refused")
    if accepted:
        lines.append(f"Mean Dice with it: {best.dice_postprocessed:.4f} instead of {best.dice:.4f} (measured on the "
                     "cases that decided it)")
    return lines


def _step(step: TriedStep) -> str:
    what = "all foreground together" if step.of is None else step.of
    worse = f" ({', '.join(step.worse)} worse)" if step.worse else ""
    return f"{what}: Dice {_number(step.dice_before)} → {_number(step.dice_after)}{worse}"
