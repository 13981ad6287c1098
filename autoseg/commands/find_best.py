"""`autoseg find-best`: compare trained models and pairs of them by cross-validation; `predict` takes the best."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from autoseg.commands.options import DEFAULT_RUN, DeviceOption, JsonOption, RunOption, WorkersOption
from autoseg.commands.plan import read_plan
from autoseg.errors import UserError, all_of
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded
from autoseg.records import write_record

if TYPE_CHECKING:
    from autoseg.inference.ranking import Comparison, Splits
    from autoseg.inference.trained import TrainedModel

logger = logging.getLogger("autoseg")


def find_best(  # noqa: PLR0913 (a command's options)
    *,
    run: RunOption = DEFAULT_RUN,
    names: Annotated[str | None, Parameter(help="Comma-separated names of models; by default all.")] = None,
    configurations: Annotated[str | None, Parameter(help="Comma-separated; by default all.")] = None,
    folds: Annotated[
        str | None, Parameter(help="Compare on these folds (0,1,…); by default on those of the model with the most.")
    ] = None,
    ensembles: Annotated[
        bool, Parameter(name="--ensembles", negative="--no-ensembles", help="Try every pair of models as well.")
    ] = True,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Rank trained models and pairs of them on their validation cases; write the best to best.json for `predict`.

    The mean Dice over labels on all validation cases of the same folds decides; of equal ones the simpler wins. The
    winner's masks then tell whether keeping only the largest component helps. Pairs are predicted now, each case by
    the networks that were not trained on it; a repeated command goes on where it was stopped.
    """
    import torch

    from autoseg.data.parallel import default_workers
    from autoseg.inference.best import BEST_NAME
    from autoseg.inference.best_table import describe_best
    from autoseg.inference.choosing import choose
    from autoseg.inference.device import choose_device
    from autoseg.inference.ranking import compare

    plan = read_plan(run)
    with recorded("find-best", run) as recording:
        chosen_device = choose_device(device)
        recording.device = str(chosen_device)
        torch.backends.cudnn.benchmark = chosen_device.type == "cuda"
        models = _asked_models(run, names, configurations)
        splits = _splits(run, Path(plan.dataset))
        comparison = compare(models, plan, splits, _asked_folds(folds, splits))
        _refuse_nothing(run, comparison, folds)
        for one in comparison.left_out:
            logger.warning("left out: %s %s: %s", one.name, one.configuration, one.reason)
        best = choose(run, comparison, splits, plan, ensembles, (chosen_device, workers or default_workers()))
        path = run / BEST_NAME
        write_record(best, path)
        recording.results.update(best=" + ".join(map(str, best.members)), dice=best.dice,
                                 dice_postprocessed=best.dice_postprocessed, folds=",".join(best.folds),
                                 cases=best.cases, candidates=len(best.candidates), left_out=len(best.left_out))
    if json:
        write_json_object({"best": str(path), **best.model_dump(mode="json", exclude={"version"})})
    else:
        write_stdout(f"{describe_best(best)}\nWritten: {path}\nNext: autoseg predict -i IMAGES -o MASKS --run {run}")
    return 0


def _asked_models(run: Path, names: str | None, configurations: str | None) -> list["TrainedModel"]:
    """The models named, or all; UserError where a name fits none of them."""
    from autoseg.inference.trained import list_models

    models = list_models(run)
    if not models:
        raise UserError(f"{run} holds no trained model; finished folds in {run / 'models'} were expected.\n"
                        f"Run `autoseg train --run {run}` first, or name another run folder with --run.")
    asked_names, asked_configurations = _listed(names), _listed(configurations)
    known = {model.name for model in models} | {model.configuration for model in models}
    if unknown := [one for one in (*asked_names, *asked_configurations) if one not in known]:
        raise all_of([f"{model.name} ({model.configuration})" for model in models],
                     f"{', '.join(unknown)}: no such model is trained in {run}. It holds:",
                     "Choose among these with --names and --configurations.")
    return [model for model in models if (not asked_names or model.name in asked_names)
            and (not asked_configurations or model.configuration in asked_configurations)]


def _splits(run: Path, dataset: Path) -> "Splits":
    """Fold → its validation cases."""
    from autoseg.data.dataset import open_dataset
    from autoseg.data.splits import read_splits

    cases = {case.id: case for case in open_dataset(dataset).cases}
    splits = read_splits(run / "splits.json", list(cases))
    return {str(fold): [cases[case] for case in split.val] for fold, split in enumerate(splits)}


def _asked_folds(folds: str | None, splits: "Splits") -> tuple[str, ...] | None:
    if folds is None:
        return None
    asked = _listed(folds)
    if not asked or (unknown := [fold for fold in asked if fold not in splits]):
        raise UserError(f"--folds {folds}: {', '.join(unknown) if asked else 'no fold'} is none of the folds of "
                        f"splits.json, {', '.join(splits) or 'which has none'}.\nName some of these, or leave --folds "
                        "out.")
    return asked


def _refuse_nothing(run: Path, comparison: "Comparison", folds: str | None) -> None:
    if comparison.models:
        return
    reasons = [f"{one.name} ({one.configuration}): {one.reason}" for one in comparison.left_out]
    which = f" on folds {folds}" if folds else ""
    raise all_of(reasons or ["no model fits both --names and --configurations"],
                 f"{run}: no model can be compared{which}:",
                 "Train what is missing (autoseg train --fold all-folds), or compare on other folds (--folds).")


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
