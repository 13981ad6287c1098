"""Which images of all sources are kept: leaks, equal files, articles, patients in two splits, near duplicates."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.records import Record, parse_toml
from vlm.corpus.facts import (
    FACTS,
    LEAKS,
    MODALITIES,
    SPLITS,
    Decisions,
    Facts,
    Fate,
    first_of_equals,
    name_hash,
    words,
)
from vlm.corpus.leaks import EvaluationSet
from vlm.corpus.near import Indices
from vlm.corpus.thinning import Looks, most_alike, thin
from vlm.schema import Modality, Split

__all__ = ["FACTS", "LEAKS", "MODALITIES", "SPLITS", "Decisions", "Fate", "assign_split", "decide", "load_thresholds",
           "name_hash"]

EXACT_COPY = 0


class DuplicateThresholds(Record):
    """presets/vlm/duplicates.toml: modality → the largest number of differing bits of near duplicates."""

    thresholds: dict[Modality, int]


def load_thresholds() -> dict[str, int]:
    """The thresholds that come with the package."""
    file = resources.files("presets") / "vlm" / "duplicates.toml"
    content = parse_toml(DuplicateThresholds, file.read_text(encoding="utf-8"), Path("preset duplicates"))
    return {str(modality): bits for modality, bits in content.thresholds.items()}


def assign_split(seed: int, source: str, group: str, shares: Mapping[Split, float]) -> Split:
    """The split of a group (patient, article or file) of a source that names none: always the same for a seed.

    shares : of "val" and "test"; the rest is "train". ValueError where they exceed 1.
    """
    test, val = shares.get("test", 0.0), shares.get("val", 0.0)
    if test < 0 or val < 0 or test + val > 1:
        raise ValueError(f"shares of val {val} and test {test}: neither may be negative, nor their sum exceed 1")
    digest = hashlib.sha256("\0".join((str(seed), source, group)).encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    if draw < test:
        return "test"
    return "val" if draw < test + val else "train"


def decide(
    facts: Facts, thresholds: Mapping[str, int], evaluation: Sequence[EvaluationSet] = (),
    listed: NDArray[np.int16] | None = None, near_duplicates: bool = True,
) -> Decisions:
    """What becomes of every image.

    Of images that exclude each other the one in the stronger split is kept (test before val before train), then the
    earlier one. In turn, each among what is left:

    1. leaks: in an evaluation set's id list; equal to, or within the threshold of, an image of it; any other image of
       a patient of whom an image is listed or equal to one of the set; files equal to any of these;
    2. images of a patient in a weaker split than another of his;
    3. files equal to another;
    4. images of an article that an image of another source comes from;
    5. near duplicates (`thin`): only of an image that is kept.

    Parameters
    ----------
    facts : FACTS [image], in order of preference.
    thresholds : modality → bits; a modality without one is compared for equal files only.
    evaluation : what must not be trained on.
    listed : [image] position of the evaluation set that lists the image, -1 for none (`leaks.listed_by`).
    near_duplicates : False leaves out 5; leaks are always looked for.
    """
    desk = _Desk(facts)
    if listed is not None:
        hit = np.flatnonzero(listed >= 0)
        desk.drop(hit, Fate.LEAK_ID, evaluation=listed[hit])
        desk.certain[hit] = True
    for position, known in enumerate(evaluation):
        _drop_images_of(desk, known, position, thresholds)
    _drop_copies_of_leaks(desk)
    _drop_leaked_patients(desk, evaluation)
    _drop_copies_of_leaks(desk)  # of the patients' other images, in sources that do not know the patient
    _drop_patients_of_stronger_splits(desk)
    _drop_copies(desk)
    _drop_articles(desk)
    if near_duplicates:
        left = desk.left()
        likeness = thin(desk.looks(left), thresholds)
        found = likeness.of >= 0
        desk.drop(left[found], Fate.NEAR, left[likeness.of[found]], likeness.distance[found])
    return desk.decisions


class _Desk:
    """Facts and what is decided so far.

    order : all facts, the one to be preferred first. certain : is an image of an evaluation set, and not only alike.
    """

    def __init__(self, facts: Facts) -> None:
        count = len(facts)
        self.facts = facts
        self.order: Indices = np.argsort(-facts["split"], kind="stable")
        self.certain = np.zeros(count, bool)
        self.decisions = Decisions(np.full(count, Fate.KEPT, np.int8), np.full(count, -1), np.full(count, -1, np.int16),
                                   np.full(count, -1, np.int16))

    def left(self) -> Indices:
        """Facts that nothing has excluded yet, in order."""
        kept: NDArray[np.bool_] = self.decisions.fate[self.order] == Fate.KEPT
        return self.order[kept]

    def drop(
        self, which: Indices, fate: Fate, of: Indices | int = -1, distance: NDArray[np.int16] | int = -1,
        evaluation: NDArray[np.int16] | int = -1,
    ) -> None:
        """The first decision stands: `which` must still be kept."""
        self.decisions.fate[which] = fate
        self.decisions.of[which] = of
        self.decisions.distance[which] = distance
        self.decisions.evaluation[which] = evaluation

    def looks(self, which: Indices) -> Looks:
        return Looks(self.facts["phash"][which], self.facts["mirrored"][which], self.facts["modality"][which])


def _drop_images_of(desk: _Desk, known: EvaluationSet, position: int, thresholds: Mapping[str, int]) -> None:
    """Files equal to one of an evaluation set, and images that look like one."""
    if len(known.sha256) == 0:
        return
    left = desk.left()
    files = [np.concatenate(pair) for pair in zip(words(known.sha256), words(desk.facts["sha256"][left]), strict=True)]
    firsts = first_of_equals(files)[len(known.sha256):]
    equal = firsts < len(known.sha256)
    desk.drop(left[equal], Fate.LEAK_IMAGE, firsts[equal], EXACT_COPY, position)
    desk.certain[left[equal]] = True
    left = left[~equal]
    modality = np.full(len(known.phash), MODALITIES.index(known.modality), np.int8)
    likeness = most_alike(desk.looks(left), Looks(known.phash, known.phash, modality), thresholds)
    found = likeness.of >= 0
    desk.drop(left[found], Fate.LEAK_IMAGE, likeness.of[found], likeness.distance[found], position)


def _drop_copies_of_leaks(desk: _Desk) -> None:
    """A file equal to a leaked one has leaked in the same way."""
    leaked = np.flatnonzero(desk.decisions.fate)
    left = desk.left()
    if len(leaked) == 0:
        return
    firsts = first_of_equals(words(desk.facts["sha256"][np.concatenate([leaked, left])]))[len(leaked):]
    copies = firsts < len(leaked)
    decisions, original = desk.decisions, leaked[firsts[copies]]
    desk.certain[left[copies]] = desk.certain[original]
    for fate in LEAKS:
        same = decisions.fate[original] == fate
        model = original[same]
        desk.drop(left[copies][same], fate, decisions.of[model], decisions.distance[model], decisions.evaluation[model])


def _drop_leaked_patients(desk: _Desk, evaluation: Sequence[EvaluationSet]) -> None:
    """All images of a patient that a set lists, or of whom an image is listed or equal to one of the set.

    An image that only looks like one does not condemn its patient's other images: it may be another patient's.
    """
    decisions, patients = desk.decisions, desk.facts["patient"]
    certain = np.flatnonzero(desk.certain & (patients != 0))
    known = [patients[certain], *(item.patients for item in evaluation)]
    listed = (np.full(len(item.patients), position, np.int16) for position, item in enumerate(evaluation))
    sets = [decisions.evaluation[certain], *listed]
    names, where = np.unique(np.concatenate(known), return_index=True)
    if len(names) == 0:
        return
    left = desk.left()
    place = np.minimum(np.searchsorted(names, patients[left]), len(names) - 1)
    hit = (names[place] == patients[left]) & (patients[left] != 0)
    desk.drop(left[hit], Fate.LEAK_PATIENT, evaluation=np.concatenate(sets)[where[place[hit]]])


def _drop_patients_of_stronger_splits(desk: _Desk) -> None:
    """Images of a patient in a weaker split than another of his, and equal files in a weaker split than that."""
    left = desk.left()
    left = left[desk.facts["patient"][left] != 0]
    firsts = left[first_of_equals([desk.facts["patient"][left]])]  # `left` begins with the strongest split
    weaker = desk.facts["split"][left] < desk.facts["split"][firsts]
    desk.drop(left[weaker], Fate.PATIENT_SPLIT, firsts[weaker])
    dropped, reasons = left[weaker], firsts[weaker]
    left = desk.left()
    equals = first_of_equals(words(desk.facts["sha256"][np.concatenate([dropped, left])]))[len(dropped):]
    copies = np.flatnonzero(equals < len(dropped))
    reason = reasons[equals[copies]]
    weaker = desk.facts["split"][left[copies]] < desk.facts["split"][reason]
    desk.drop(left[copies[weaker]], Fate.PATIENT_SPLIT, reason[weaker])


def _drop_copies(desk: _Desk) -> None:
    left = desk.left()
    firsts = left[first_of_equals(words(desk.facts["sha256"][left]))]
    copies = firsts != left
    desk.drop(left[copies], Fate.EXACT, firsts[copies], EXACT_COPY)


def _drop_articles(desk: _Desk) -> None:
    """An article belongs to the source of its first image."""
    left = desk.left()
    left = left[desk.facts["article"][left] != 0]
    firsts = left[first_of_equals([desk.facts["article"][left]])]
    elsewhere = desk.facts["source"][left] != desk.facts["source"][firsts]
    desk.drop(left[elsewhere], Fate.ARTICLE, firsts[elsewhere])
