"""Validation cases spread over the processes of a training, and what became of all of them."""

import json
from collections.abc import Sequence
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.inference.prediction import write_failures
from autoseg.schema import Failure
from autoseg.training.processes import Processes

Outcome = tuple[list[Path], list[Failure]]
"""Masks that were written, and cases that failed."""


def share_of(cases: Sequence[Case], processes: Processes) -> Sequence[Case]:
    """Every so-manieth case, from this process's on; may be none."""
    return cases[processes.rank :: processes.count]


def outcome_of_all(own: Outcome, output: Path, processes: Processes) -> Outcome:
    """The outcomes of all processes, in each of them; the first writes `output`/failures.json of all (or removes it).

    Every process must have written its masks into the same folder.
    """
    if processes.count == 1:
        return own
    masks, failures = own
    content = {"masks": [str(path) for path in masks],
               "failures": [failure.model_dump(mode="json") for failure in failures]}
    told = [json.loads(text) for text in processes.texts(json.dumps(content))]
    masks = sorted(Path(path) for one in told for path in one["masks"])
    failures = sorted((Failure.model_validate(failure) for one in told for failure in one["failures"]),
                      key=lambda failure: failure.id)
    if processes.is_first:
        write_failures(failures, output / "failures.json")
    return masks, failures
