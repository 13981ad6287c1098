"""`autoseg evaluate`: score a folder of masks against a folder of references."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.commands.options import JsonOption, WorkersOption
from autoseg.data.manifest import read_declarations
from autoseg.data.parallel import default_workers
from autoseg.errors import UserError, all_of
from autoseg.evaluation.scoring import TWO_MM, Tolerance, score_folders
from autoseg.evaluation.table import format_table
from autoseg.labelling import Labelled
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded
from autoseg.records import read_record, write_record
from autoseg.schema import LabelNames


def evaluate(
    *,
    predictions: Annotated[Path, Parameter(name=["--predictions", "-p"])],
    references: Annotated[Path, Parameter(name=["--references", "-r"])],
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    dataset: Path | None = None,
    tolerance_mm: tuple[str, ...] = (),
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Score masks against reference labels: Dice, surface Dice (NSD), HD95, volumes.

    Parameters
    ----------
    predictions
        Folder of predicted masks.
    references
        Folder of reference labels, one file of the same name per mask.
    output
        Where to write the scores; by default `scores.json` in the folder of predictions.
    dataset
        Folder with the dataset.json that names the labels. Without it the names come from the `labels.json`
        that `predict` writes beside its masks, else labels are called `label_<value>`.
    tolerance_mm
        How far a boundary may lie off for NSD: a number of mm for every label, or NAME=MM for one label;
        may be given several times. 2 mm by default.
    """
    path = output if output is not None else predictions / "scores.json"
    with recorded("evaluate", path.parent) as recording:
        labelled, annotated = label_names(predictions, dataset)
        scores = score_folders(
            predictions,
            references,
            labelled,
            annotated=annotated,
            tolerance=parse_tolerance(tolerance_mm),
            workers=workers or default_workers(),
        )
        write_record(scores, path)
        recording.inputs["predictions"] = str(predictions.resolve())
        recording.inputs["references"] = str(references.resolve())
        recording.results |= {"cases": len(scores.cases), **scores.mean.model_dump()}
    if json:
        by_label = {name: means.model_dump() for name, means in scores.labels.items()}
        write_json_object({"scores": str(path), "cases": len(scores.cases), "mean": scores.mean.model_dump(),
                           "labels": by_label})
    else:
        write_stdout(f"{format_table(scores)}\nWritten: {path}")
    return 0


def label_names(predictions: Path, dataset: Path | None) -> tuple[Labelled | None, dict[str, tuple[str, ...]]]:
    """What the values mean, from dataset.json or the predictions' labels.json (None without either), and what is
    annotated in the cases in which not everything is."""
    if dataset is not None:
        declared = read_declarations(dataset)
        if declared.problems:
            raise all_of(declared.problems, f"{dataset} cannot name the labels:", "Correct dataset.json.")
        return declared.labelled, declared.annotated
    names = predictions / "labels.json"
    if names.exists():
        hint = "`autoseg predict` writes this file. Remove it, or name the labels with --dataset."
        return read_record(LabelNames, names, hint), {}
    return None, {}


def parse_tolerance(given: Sequence[str]) -> Tolerance:
    """`("1.5", "liver=3")`: 1.5 mm for every label but the liver. UserError for anything but mm ≥ 0."""
    default_mm, by_label = TWO_MM.default_mm, {}
    for one in given:
        name, separator, number = one.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0) or bool(name) != bool(separator):
            raise UserError(f"--tolerance-mm {one}: mm (2.0) or NAME=MM (liver=3.0) was expected.")
        if name:
            by_label[name] = value
        else:
            default_mm = value
    return Tolerance(default_mm, by_label)
