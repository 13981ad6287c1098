"""Which file of predicted labels belongs to which reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.content import unlistable
from autoseg.data.probability_files import PROBABILITIES
from autoseg.data.volume import SUPPORTED_ENDINGS, ending_of
from autoseg.errors import UserError, all_of


@dataclass(frozen=True)
class FilePair:
    """A file of predicted labels and its reference."""

    id: str
    prediction: Path
    reference: Path


def pair_files(predictions: Path, references: Path | Mapping[str, Path]) -> tuple[FilePair, ...]:
    """Predictions and references of the same case (the file's name without its ending), sorted.

    `references`: a folder, or case → file. Raises UserError when a folder is absent or holds no label files,
    and, naming all, when a reference has no prediction or a prediction no reference.
    """
    ours = _label_files(predictions)
    theirs = _label_files(references) if isinstance(references, Path) else dict(references)
    where = f" in {references}" if isinstance(references, Path) else ""
    problems = [
        f"{path} has no prediction in {predictions}"
        for name, path in sorted(theirs.items())
        if name not in ours
    ]
    problems += [
        f"{path} has no reference{where}" for name, path in sorted(ours.items()) if name not in theirs
    ]
    if problems:
        raise all_of(
            problems,
            f"{len(problems)} of {len(ours) + len(theirs)} label files have no partner:",
            "Every case needs one file of the same name in both folders. Predict what is missing, "
            "or put the cases to score into folders of their own.",
        )
    return tuple(FilePair(name, ours[name], theirs[name]) for name in sorted(theirs))


def _beside_a_mask(path: Path) -> bool:
    """Whether these are the probabilities that `predict --save-probabilities` wrote beside a mask."""
    if not path.name.endswith(PROBABILITIES):
        return False
    case = path.name.removesuffix(PROBABILITIES)
    return any(path.with_name(f"{case}{ending}").is_file() for ending in SUPPORTED_ENDINGS)


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the folder that holds the label files.")
    try:
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and path.name.endswith(tuple(SUPPORTED_ENDINGS))
        ]
    except OSError as error:
        raise unlistable(folder, error) from None
    if not files:
        raise UserError(
            f"{folder} holds no label files; files ending in {', '.join(sorted(SUPPORTED_ENDINGS))} "
            "were expected."
        )
    files = [path for path in files if not _beside_a_mask(path)]
    named: dict[str, Path] = {}
    doubles = []
    for path in files:
        other = named.setdefault(path.name.removesuffix(ending_of(path)), path)
        if other is not path:
            doubles.append(f"{other.name} and {path.name}")
    if doubles:
        raise all_of(doubles, f"{folder} holds two files for one case:", "Remove one of each.")
    return named
