"""`autoseg demo`: a phantom dataset, then plan, train, predict and evaluate on it, and a picture."""

import shutil
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.commands.evaluate import evaluate
from autoseg.commands.options import DEFAULT_SEED, DeviceName, DeviceOption, JsonOption, SeedOption
from autoseg.commands.overlay import OverlayCase, draw_overlay
from autoseg.data.phantom import LABELS, write_phantom_dataset
from autoseg.data.volume import read_image, read_labels
from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from autoseg.progress import readable_seconds
from autoseg.recording import RunRecord, recorded
from autoseg.records import read_record, storage_error
from autoseg.schema import CaseScores, Scores

DemoOption = Annotated[Path, Parameter(name="--run", help="Folder for all that the demo makes.")]

# About 200 steps reach this. Steps are fixed, not minutes, so that a busy machine takes longer but learns as much.
EXPECTED_DICE = 0.9
EPOCHS = 7  # of the quick preset's 50 steps
TRAINING_CASES, HELD_OUT_CASES, DRAWN_CASES = 20, 6, 3

NEXT_STEPS = """
On your own data (a folder with dataset.json, imagesTr and labelsTr):
  autoseg plan DATASET
  autoseg train                          (without a GPU: --preset quick)
  autoseg predict -i IMAGES -o MASKS
  autoseg evaluate -p MASKS -r LABELS"""


@dataclass(frozen=True)
class DemoFolders:
    """Where the demo writes."""

    root: Path

    @property
    def dataset(self) -> Path:
        """The phantom dataset, nnU-Net raw."""
        return self.root / "dataset" / "Dataset001_Phantom"

    @property
    def run(self) -> Path:
        """The run folder, as `plan` and `train` fill it."""
        return self.root / "run"

    @property
    def masks(self) -> Path:
        """Predicted masks of the held-out cases, and their scores.json."""
        return self.root / "masks"

    @property
    def picture(self) -> Path:
        """The overlay."""
        return self.root / "overlay.png"

    @property
    def record(self) -> Path:
        """The demo's own run.json."""
        return self.root / "run.json"


def demo(
    *,
    run: DemoOption = Path("autoseg_demo"),
    max_minutes: Annotated[float, Parameter(help="Training ends after this long, however few its steps.")] = 10.0,
    seed: SeedOption = DEFAULT_SEED,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> int:
    """Make a phantom dataset and run plan, train, predict and evaluate on it.

    The phantom is MR-like: two organs, and other structures of exactly their intensity, so that thresholding
    cannot find them. Training takes 350 steps, two minutes on two idle cores; the scores are those of cases that
    training never saw.
    A demo that is in the folder already is replaced.
    """
    folders, start = DemoFolders(run), time.perf_counter()
    clear_earlier_demo(folders)
    with recorded("demo", run, seed) as recording:
        with redirect_stdout(sys.stderr) if json else nullcontext():
            write_stdout(f"A phantom dataset: {TRAINING_CASES} training cases, {HELD_OUT_CASES} held out.")
            write_phantom_dataset(folders.dataset, TRAINING_CASES, HELD_OUT_CASES, seed)
            run_pipeline(folders, max_minutes, seed, device)
        scores = read_record(Scores, folders.masks / "scores.json")
        _draw(folders, scores)
        recording.results |= {"cases": len(scores.cases), **scores.mean.model_dump()}
    seconds = time.perf_counter() - start
    if json:
        write_json_object({"dice": scores.mean.dice, "nsd": scores.mean.nsd, "hd95": scores.mean.hd95,
                           "cases": len(scores.cases), "seconds": round(seconds, 1),
                           "scores": str(folders.masks / "scores.json"), "overlay": str(folders.picture)})
    else:
        write_stdout(_closing(folders, seconds))
        if (scores.mean.dice or 0.0) < EXPECTED_DICE:
            write_stdout(f"\nThe mean Dice is below {EXPECTED_DICE}: this machine was slow or busy, and training made "
                         f"few steps.\nTry again with more time: autoseg demo --run {run} "
                         f"--max-minutes {3 * max_minutes:g}")
    return 0


def run_pipeline(folders: DemoFolders, max_minutes: float, seed: int, device: DeviceName) -> None:
    """The four commands as a user would type them; their tables and hints go to stdout."""
    from autoseg.commands.plan import plan
    from autoseg.commands.predict import predict
    from autoseg.commands.train import train

    _announce(f"autoseg plan {folders.dataset} --run {folders.run}")
    plan(folders.dataset, run=folders.run, seed=seed)
    _announce(f"autoseg train --run {folders.run} --preset quick --epochs {EPOCHS} --max-minutes {max_minutes:g}")
    train(run=folders.run, preset="quick", epochs=EPOCHS, max_minutes=max_minutes, seed=seed, device=device)
    images, references = folders.dataset / "imagesTs", folders.dataset / "labelsTs"
    _announce(f"autoseg predict -i {images} -o {folders.masks} --run {folders.run}")
    if predict(input=images, output=folders.masks, run=folders.run, device=device, seed=seed) != 0:
        raise UserError(f"Some held-out cases were not predicted; see {folders.masks / 'failures.json'}.")
    _announce(f"autoseg evaluate -p {folders.masks} -r {references}")
    evaluate(predictions=folders.masks, references=references)


def _announce(command: str) -> None:
    write_stdout(f"\n$ {command}")


def clear_earlier_demo(folders: DemoFolders) -> None:
    """Remove an earlier demo; refuse a folder that holds anything else."""
    found = set(folders.root.iterdir()) if folders.root.is_dir() else set()
    if _is_demo(folders):
        found -= {folders.dataset.parent, folders.run, folders.masks, folders.picture, folders.record}
    if found:
        raise UserError(f"{folders.root} holds {min(found).name}, which no demo wrote; a new folder or "
                        "that of an earlier demo was expected.\nName another folder with --run.")
    try:
        for folder in (folders.dataset.parent, folders.run, folders.masks):
            if folder.exists():
                shutil.rmtree(folder)
        folders.picture.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, folders.root) from error


def _is_demo(folders: DemoFolders) -> bool:
    # The dataset's folder is the first thing a demo makes, its record the last.
    if folders.dataset.is_dir():
        return True
    return folders.record.exists() and read_record(RunRecord, folders.record).command == "demo"


def _draw(folders: DemoFolders, scores: Scores) -> None:
    """The overlay of some held-out cases, the worst first: the picture flatters no more than the table."""
    worst_first = sorted(scores.cases, key=_mean_dice)[:DRAWN_CASES]
    title = f"autoseg demo: the {len(worst_first)} lowest scores of {len(scores.cases)} held-out cases"
    draw_overlay([_overlay_case(folders, case) for case in worst_first], LABELS, title, folders.picture)


def _overlay_case(folders: DemoFolders, case: CaseScores) -> OverlayCase:
    image = read_image([folders.dataset / "imagesTs" / f"{case.id}_0000.nii.gz"], 1)
    reference = read_labels(folders.dataset / "labelsTs" / f"{case.id}.nii.gz")
    prediction = read_labels(folders.masks / f"{case.id}.nii.gz")
    dice = ", ".join(f"{name} {one.dice or 0.0:.3f}" for name, one in case.labels.items())
    return OverlayCase(
        caption=f"{case.id}    Dice: {dice}", image=image.voxels[0], reference=reference.voxels[0],
        prediction=prediction.voxels[0], spacing=image.grid.spacing,
    )


def _mean_dice(case: CaseScores) -> float:
    return sum(one.dice or 0.0 for one in case.labels.values()) / len(case.labels)


def _closing(folders: DemoFolders, seconds: float) -> str:
    return "\n".join([
        f"\nThe demo took {readable_seconds(seconds)} and wrote",
        f"  {folders.picture}   look at this first: images, references and predictions",
        f"  {folders.masks}   masks of the held-out cases and scores.json",
        f"  {folders.run}   plan.json, and the model with its validation scores and progress.png",
        f"  {folders.dataset}   the phantom dataset, laid out as yours should be",
        NEXT_STEPS,
    ])
