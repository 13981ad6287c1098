"""Where a run's splits.json comes from: a file that is given, the one that is there, or folds drawn by rule."""

import logging
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.dataset import Dataset
from autoseg.data.splits import Folds, draw_folds, gaps_of, parse_splits, patients_of, read_splits, write_splits
from autoseg.errors import UserError
from autoseg.records import read_record
from autoseg.schema import Fingerprint, Split

NNUNET_SPLITS = "splits_final.json"
SHOWN_LABELS = 10
logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class GivenSplits:
    """Folds that were not drawn, and the file that holds them."""

    splits: tuple[Split, ...]
    path: Path


def find_given_splits(run: Path, dataset: Dataset, asked: Path | None) -> GivenSplits | None:
    """The folds that a run is to take: of `--splits`, of its own splits.json, or of the dataset's splits_final.json.

    None: they are to be drawn.

    Raises
    ------
    UserError : a file that does not fit the dataset; `asked` where models were trained with other folds; cases that
        were added since the run's splits.json was written.
    """
    own, nnunets = run / "splits.json", dataset.root / NNUNET_SPLITS
    path = asked or (own if own.exists() else nnunets if nnunets.exists() else None)
    if path is None:
        return None
    ids = [case.id for case in dataset.cases]
    remedy = "Correct it." if asked else f"Correct {path}, or move it away to have folds drawn anew."
    splits = read_splits(path, ids, patients_of(dataset.cases), remedy)
    if not splits and path == own:
        return None  # there were too few cases
    if not splits:
        raise UserError(f"{path} holds no fold; a list of {{\"train\": [cases], \"val\": [cases]}} was expected.\n"
                        f"{remedy}")
    left_out = sorted(set(ids) - {case for split in splits for case in (*split.train, *split.val)})
    if path == own and (added := [case for case in left_out if case not in _known_cases(run)]):
        raise UserError(f"{path} does not name {', '.join(added[:5])} (cases added since it was written?).\nAdd them "
                        "to it, or move the file away to have new splits drawn.")
    if left_out:
        logger.warning("%s names %d of %d cases; no fold trains on the others or validates on them: %s%s", path,
                       len(ids) - len(left_out), len(ids), ", ".join(left_out[:5]), " …" * (len(left_out) > 5))
    if asked is not None:
        _refuse_to_change_trained_folds(run, splits, asked)
    elif path == nnunets:
        logger.info("folds: taken from %s", path)
    return GivenSplits(splits, path)


def settle_folds(
    run: Path, dataset: Dataset, fingerprint: Fingerprint, given: GivenSplits | None, seed: int, nnunet_parity: bool
) -> Folds:  # fmt: skip
    """The folds of a run, written to its splits.json, and the rule that made them.

    With `nnunet_parity` nnU-Net's folds stay even where they lack rare labels.
    """
    ids, patients = [case.id for case in dataset.cases], patients_of(dataset.cases)
    presence = {case.id: frozenset(name for name, voxels in case.class_voxels.items()
                                   if voxels and fingerprint.labels.get(name, 0) != 0) for case in fingerprint.cases}
    folds = draw_folds(ids, seed, patients, None if nnunet_parity else presence)
    if given is not None and given.splits != folds.splits:
        folds = Folds(given.splits, f"as in {given.path}", gaps_of(given.splits, patients, presence))
    if given is None or given.path != run / "splits.json":
        write_splits(folds.splits, run / "splits.json")
    return folds


def describe_folds(folds: Folds) -> list[str]:
    """The rule, then per label that is hard to spread how many patients (or cases) of every fold validate with it."""
    shown = [f"{label}: {', '.join(map(str, counts))}" for label, counts in list(folds.spread.items())[:SHOWN_LABELS]]
    if not shown:
        return [f"Folds: {folds.rule}."]
    more = f"; {len(folds.spread) - SHOWN_LABELS} more labels" * (len(folds.spread) > SHOWN_LABELS)
    return [f"Folds: {folds.rule}.", f"Rare labels, with how many each fold validates: {'; '.join(shown)}{more}."]


def _known_cases(run: Path) -> set[str]:
    """The cases that the run was planned with before; those that its splits leave out were left out on purpose."""
    path = run / "fingerprint.json"
    return {case.id for case in read_record(Fingerprint, path).cases} if path.exists() else set()


def _refuse_to_change_trained_folds(run: Path, splits: tuple[Split, ...], asked: Path) -> None:
    path = run / "splits.json"
    if not path.exists() or splits == parse_splits(path):
        return
    trained = sorted(str(folder) for folder in (run / "models").glob("*/*/fold_*") if folder.name != "fold_all"
                     and ((folder / "model.json").exists() or (folder / "resume").is_dir()))
    if trained:
        raise UserError(f"--splits {asked}: {path} holds other folds, and {len(trained)} were trained with these: "
                        f"{', '.join(trained[:3])}{' …' * (len(trained) > 3)}.\nName another folder with --run, or "
                        f"move {run / 'models'} away first.")
    logger.info("%s is replaced by %s; nothing was trained with the folds before", path, asked)
