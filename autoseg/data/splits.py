"""Which cases train and which validate: nnU-Net's five folds, patients kept together, rare labels spread; or given."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, RootModel

from autoseg.data.dataset import Case
from autoseg.data.stratification import Presence, gaps, label_counts, stratified_blocks
from autoseg.errors import UserError, all_of
from autoseg.records import read_record, write_json
from autoseg.schema import Split

FOLDS = 5


class _Splits(RootModel[tuple[Split, ...]]):
    """splits.json: a list of folds."""


@dataclass(frozen=True)
class Folds:
    """Folds and how they came to be.

    Attributes
    ----------
    rule : words that end the sentence "Folds: …".
    spread : label → patients with it among each fold's validation cases; labels that nnU-Net's folds spread badly.
    """

    splits: tuple[Split, ...]
    rule: str
    spread: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def make_splits(
    ids: Sequence[str],
    seed: int = 12345,
    patients: Mapping[str, str] | None = None,
    presence: Presence | None = None,
) -> tuple[Split, ...]:
    """The splits of `draw_folds`."""
    return draw_folds(ids, seed, patients, presence).splits


def draw_folds(
    ids: Sequence[str],
    seed: int = 12345,
    patients: Mapping[str, str] | None = None,
    presence: Presence | None = None,
) -> Folds:
    """nnU-Net's folds over patients, unless a label is rare: then folds stratified by the presence of labels.

    nnU-Net's: the sorted patients are shuffled with the legacy generator, then cut into five consecutive blocks (the
    first n mod 5 are one longer); a block's cases validate, the rest trains. Equal to scikit-learn's KFold(5,
    shuffle=True, random_state=seed). A label is rare where one of these folds lacks it needlessly: at least five
    patients have it and none of them would validate, or at least two have it and none of them would train. Then all
    labels are spread by `stratified_blocks`, if that leaves fewer such gaps.

    Fewer than five patients: leave one out, in sorted order. One patient: no folds (only `--fold all` can train).

    Parameters
    ----------
    patients : case → patient; a case not named is a patient of its own. Patients are sorted by their first case.
    presence : case → labels that it has, without background; None keeps nnU-Net's folds.
    """
    grouped = _grouped(ids, patients or {})
    who = "patients" if len(grouped) < len(ids) else "cases"
    together = ", all cases of a patient on one side" if who == "patients" else ""
    if len(grouped) < 2:
        return Folds((), f"none: there is one {who[:-1]} (train --fold all)")
    names = list(grouped)
    if len(names) < FOLDS:
        return Folds(_splits([[name] for name in names], grouped),
                     f"leave-one-out over {len(names)} {who}{together}: five folds need five")
    shuffled = np.arange(len(names))
    np.random.RandomState(seed).shuffle(shuffled)  # noqa: NPY002 (the generator that made nnU-Net's splits)
    blocks = [[names[position] for position in block] for block in np.array_split(shuffled, FOLDS)]
    nnunets = f"nnU-Net's five over {len(names)} {who}{together}"
    if presence is None:
        return Folds(_splits(blocks, grouped), nnunets)
    by_patient = {name: _labels_of(cases, presence) for name, cases in grouped.items()}
    rare = gaps(blocks, by_patient)
    if not rare:
        return Folds(_splits(blocks, grouped), nnunets)
    stratified = stratified_blocks(by_patient, FOLDS, seed)
    remaining = gaps(stratified, by_patient)
    labels = list(dict.fromkeys(label for label, _ in rare))
    listed = ", ".join(labels)
    if len(remaining) >= len(rare):
        return Folds(_splits(blocks, grouped), f"{nnunets}; stratifying by {listed} would spread them no better",
                     _spread(blocks, by_patient, labels))
    rule = (f"five over {len(names)} {who}, stratified by which labels a {who[:-1]} has{together}: nnU-Net's "
            f"{_folds_named(rare)} would validate or train without {listed}")
    return Folds(_splits(stratified, grouped), rule, _spread(stratified, by_patient, labels))


def patients_of(cases: Iterable[Case]) -> dict[str, str]:
    """Case → patient, of the cases whose patient dataset.json names."""
    return {case.id: case.patient for case in cases if case.patient is not None}


def write_splits(splits: Sequence[Split], path: Path) -> None:
    """Write splits.json: a list of {"train": […], "val": […]}, as nnU-Net's splits_final.json."""
    write_json([split.model_dump(mode="json") for split in splits], path)


def read_splits(
    path: Path,
    ids: Sequence[str],
    patients: Mapping[str, str] | None = None,
    remedy: str = "Correct it, or remove it and plan anew.",
) -> tuple[Split, ...]:
    """The folds in a file: ours or nnU-Net's splits_final.json.

    Raises
    ------
    UserError : not a list of folds; or, together: unknown cases, a case on both sides or twice, an empty side, a
        patient with cases on both sides.
    """
    splits = parse_splits(path)
    problems = [problem for fold, split in enumerate(splits)
                for problem in _problems(fold, split, set(ids), patients or {})]
    if problems:
        raise all_of(problems, f"{path} does not fit the dataset:", remedy)
    return splits


def splits_of_run(run: Path, cases: Sequence[Case]) -> tuple[Split, ...]:
    """The folds of a run folder, checked against its dataset's cases; raises what `read_splits` raises."""
    return read_splits(run / "splits.json", [case.id for case in cases], patients_of(cases))


def parse_splits(path: Path) -> tuple[Split, ...]:
    """The folds in a file, whatever cases they name; UserError where it is not a list of folds."""
    record: BaseModel = read_record(_Splits, path, "Expected: a list of {\"train\": [cases], \"val\": [cases]}, one "
                                    "entry per fold; `autoseg plan` writes it.")
    return record.root if isinstance(record, _Splits) else ()


def gaps_of(
    splits: Sequence[Split], patients: Mapping[str, str], presence: Presence
) -> dict[str, tuple[int, ...]]:
    """Label → patients with it among each fold's validation cases; of the labels that some fold lacks needlessly."""
    grouped = [_grouped(split.val, patients) for split in splits]
    blocks = [list(groups) for groups in grouped]
    by_patient = {name: _labels_of(cases, presence) for groups in grouped for name, cases in groups.items()}
    return _spread(blocks, by_patient, list(dict.fromkeys(label for label, _ in gaps(blocks, by_patient))))


def training_cases(
    splits: Sequence[Split], fold: str, ids: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training ids, validation ids) of fold "0", "1", … or of "all": every case on both sides.

    Raises
    ------
    UserError : a fold that does not exist.
    """
    if fold == "all":
        return tuple(sorted(ids)), tuple(sorted(ids))
    if fold in map(str, range(len(splits))):
        split = splits[int(fold)]
        return split.train, split.val
    if not splits:
        raise UserError(f"fold {fold} does not exist: with {len(ids)} case{'s' * (len(ids) != 1)} there are "
                        "no folds. Train with --fold all, or add cases.")
    raise UserError(f"fold {fold} does not exist; the folds of this run are 0 to {len(splits) - 1}, one "
                    "at a time, and 'all'. Choose one of these.")


def _grouped(ids: Sequence[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Patient, by its first case → its cases; both sorted."""
    groups: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for case in sorted(ids):
        groups[(case in patients, patients.get(case, case))].append(case)
    return {cases[0]: cases for cases in groups.values()}


def _labels_of(cases: Iterable[str], presence: Presence) -> frozenset[str]:
    return frozenset(label for case in cases for label in presence[case])


def _splits(blocks: Sequence[Sequence[str]], grouped: Mapping[str, Sequence[str]]) -> tuple[Split, ...]:
    """Every block's cases validate once; all others train."""
    every = sorted(case for cases in grouped.values() for case in cases)
    held_out = [{case for name in block for case in grouped[name]} for block in blocks]
    return tuple(Split(train=tuple(case for case in every if case not in out),
                       val=tuple(case for case in every if case in out)) for out in held_out)


def _spread(
    blocks: Sequence[Sequence[str]], presence: Presence, labels: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    counts = label_counts(blocks, presence)
    return {label: counts[label] for label in labels}


def _folds_named(absent: Sequence[tuple[str, int]]) -> str:
    folds = sorted({fold for _, fold in absent})
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"


def _problems(fold: int, split: Split, known: set[str], patients: Mapping[str, str]) -> list[str]:
    both = sorted(set(split.train) & set(split.val))
    unknown = sorted((set(split.train) | set(split.val)) - known)
    problems = [f"fold {fold}: unknown case '{case}'" for case in unknown]
    problems += [f"fold {fold}: case '{case}' is both in train and in val" for case in both]
    for side, cases in (("train", split.train), ("val", split.val)):
        problems += [f"fold {fold}: case '{case}' stands {times} times in {side}"
                     for case, times in Counter(cases).items() if times > 1]
        if not cases:
            problems.append(f"fold {fold}: {side} is empty")
    return problems + _leaks(fold, split, patients)


def _leaks(fold: int, split: Split, patients: Mapping[str, str]) -> list[str]:
    """Patients with different cases on both sides."""
    sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for number, (own, other) in enumerate(((split.train, split.val), (split.val, split.train))):
        for case in dict.fromkeys(own):
            if case in patients and case not in other:
                sides[patients[case]][number].append(case)
    return [f"fold {fold}: patient '{patient}' is on both sides: train has {', '.join(training[:3])}"
            f"{' …' * (len(training) > 3)}, val has {', '.join(held_out[:3])}{' …' * (len(held_out) > 3)}"
            for patient, (training, held_out) in sorted(sides.items()) if training and held_out]
