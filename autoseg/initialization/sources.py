"""`--init PATH`: which folder of weights a path means, be it a run, a model, a fold or first weights."""

import logging
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import UserError, all_of
from autoseg.inference.trained import ALL_FOLD, FOLD_PREFIX
from autoseg.networks.checkpoint import MODEL_NAME

INIT_NAME = "init.json"
EXPECTED = (f"`auto`, `scratch`, a run folder or a folder with {MODEL_NAME} or {INIT_NAME} was expected: "
            "<run>/models/<name>/<configuration>[/fold_<k>] or <run>/init/<name>/<configuration>[/fold_<k>].")
logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class _Source:
    """The finished folds of one configuration of a model, or of first weights."""

    folder: Path
    folds: tuple[str, ...]

    def __str__(self) -> str:
        return f"--init {self.folder} (folds {', '.join(self.folds)})"

    def choose(self) -> Path:
        """The fold trained on every case if there is one, else the first."""
        return self.folder / f"{FOLD_PREFIX}{self.folds[0]}"


def find_source(path: Path) -> Path:
    """The folder with weights that a path means: itself, its only fold, or the only model or first weights of a run.

    Where a model has several folds, `all` is taken if it is there, else the first, and that is said.

    Raises
    ------
    UserError : there is no such folder, it holds nothing, or a run holds several: they are listed.
    """
    if not path.is_dir():
        raise UserError(f"--init {path}: there is no such folder; {EXPECTED}")
    if _is_finished(path):
        return path
    own = _source(path)
    sources = [own] if own is not None else _sources_of_run(path)
    if not sources:
        raise UserError(f"--init {path}: holds neither {MODEL_NAME} nor {INIT_NAME}, nor finished models; {EXPECTED}")
    if len(sources) > 1:
        raise all_of([str(source) for source in sources],
                     f"--init {path}: holds {len(sources)} trained models and first weights; which one is meant?",
                     "Choose one of these.")
    [source] = sources
    chosen = source.choose()
    if chosen != path:
        logger.info("--init %s: the weights of %s (of folds %s)", path, chosen, ", ".join(source.folds))
    return chosen


def _sources_of_run(run: Path) -> list[_Source]:
    folders = sorted(folder for kind in ("models", "init") for folder in (run / kind).glob("*/*") if folder.is_dir())
    return [source for folder in folders if (source := _source(folder)) is not None]


def _source(folder: Path) -> _Source | None:
    """The finished folds in a folder, `all` first, then by number; None where there is none."""
    names = [entry.name.removeprefix(FOLD_PREFIX) for entry in folder.glob(f"{FOLD_PREFIX}*") if _is_finished(entry)]
    names.sort(key=lambda name: (name != ALL_FOLD, not name.isdigit(), int(name) if name.isdigit() else 0, name))
    return _Source(folder, tuple(names)) if names else None


def _is_finished(folder: Path) -> bool:
    return (folder / MODEL_NAME).is_file() or (folder / INIT_NAME).is_file()
