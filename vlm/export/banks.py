"""Sentences of labels → text banks: encoded by a tower, or drawn by chance as controls that know nothing of words."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from autoseg.errors import UserError, all_of
from autoseg.guidance.label_names import match_key
from autoseg.guidance.lexicon import Lexicon
from autoseg.guidance.modalities import modality_of_channels
from autoseg.guidance.prompts import match_labels, sentences_of_labels, sentences_of_lexicon
from autoseg.guidance.records import Control, Precision, TowerRecord
from autoseg.guidance.text_bank import TextBank, make_bank, mean_direction
from autoseg.records import read_record
from autoseg.schema import DatasetManifest
from vlm.export.towers import SentenceEncoder

NOTHING = "no label was given, so there is nothing to encode. Name at least one label with a sentence."
Prompts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class EncodedBank:
    """truncated : sentences that are longer than the tower's context and were cut."""

    bank: TextBank
    truncated: tuple[str, ...]


# ---------------------------------------------------------------- sentences
def prompts_of_dataset(folder: Path, lexicon: Lexicon, modality: str | None = None) -> dict[str, tuple[str, ...]]:
    """Label → sentences of an nnU-Net dataset's labels, without the background and the ignored label.

    The channel names only help to understand labels: what the sentences say is not tied to the device of these images,
    since a segmenter that is guided by them should hold on others too.

    modality : kind of device; the sentences then say how structures look there.

    Raises
    ------
    UserError : there is no dataset.json; or labels that the lexicon does not know, each with the nearest names.
    """
    manifest = read_record(DatasetManifest, folder / "dataset.json", "Give the folder of an nnU-Net dataset.")
    channels = manifest.channel_names or manifest.modality or {}
    labels = _label_names(manifest)
    if not labels:
        raise UserError(f"{folder / 'dataset.json'} names no label but the background; there is nothing to encode.")
    return sentences_of_labels(labels, lexicon, modality, manifest.name or folder.resolve().name,
                               modality or modality_of_channels(channels.values()))


def prompts_of_lexicon(lexicon: Lexicon, modality: str | None = None) -> dict[str, tuple[str, ...]]:
    """Canonical name → sentences, of every entry but paired structures without a side: a bank gives their mean."""
    return sentences_of_lexicon(lexicon, modality)


def prompts_beside_lexicon(given: Prompts, lexicon: Lexicon, modality: str | None = None) -> dict[str, Sequence[str]]:
    """A person's sentences, and the lexicon's for every structure that none of these labels means.

    Training takes wrong answers from a bank's other names: what a label means must not be among them.
    """
    meant = match_labels(tuple(given), lexicon)[0].values()
    taken = {name for entry in meant for name in (entry.canonical, *(entry.halves or ()))}
    own = {match_key(label) for label in given}
    rest = {name: texts for name, texts in prompts_of_lexicon(lexicon, modality).items()
            if name not in taken and match_key(name) not in own}
    return {**given, **rest}


# ---------------------------------------------------------------- banks
def encode_bank(prompts: Prompts, encoder: SentenceEncoder, precision: Precision = "float32") -> EncodedBank:
    """A bank whose vectors are the mean directions of each label's sentences.

    Raises
    ------
    UserError : a label without sentences.
    """
    if not prompts:
        raise UserError(NOTHING)
    if empty := [name for name, texts in prompts.items() if not texts or not all(text.strip() for text in texts)]:
        raise all_of([f"{name!r}: no sentence, or an empty one" for name in empty],
                     f"{len(empty)} labels have no words to encode:", "Give each label at least one sentence.")
    texts = [text for label in prompts.values() for text in label]
    vectors, cut = encoder.encode(texts)
    ends = np.cumsum([len(label) for label in prompts.values()])
    rows = np.stack([mean_direction(part) for part in np.split(vectors, ends[:-1])])
    return EncodedBank(make_bank(rows, prompts, encoder.tower, precision), tuple(texts[place] for place in cut))


def control_bank(
    names: Sequence[str], kind: Control, dimension: int, seed: int, precision: Precision = "float32"
) -> TextBank:
    """A bank whose vectors say nothing about their labels.

    random : directions by chance; a label's vector depends on its name and the seed only, not on the other labels.
    orthonormal : all at right angles, like one-hot vectors turned by chance.

    Raises
    ------
    UserError : no label; more labels than dimensions cannot be at right angles.
    """
    if not names:
        raise UserError(NOTHING)
    vectors = random_directions(names, dimension, seed) if kind == "random" else orthonormal(
        len(names), dimension, seed)
    tower = TowerRecord(name=f"{kind} (seed {seed})", kind=kind, sha256=None, seed=seed, corpus=None,
                        licence="none: numbers by chance")
    return make_bank(vectors, {name: () for name in names}, tower, precision)


def random_directions(names: Sequence[str], dimension: int, seed: int) -> Float32[np.ndarray, "label dimension"]:
    """Unit vectors in directions drawn from (seed, name)."""
    rows = []
    for name in names:
        digest = hashlib.sha256(name.encode()).digest()
        numbers = np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()]).standard_normal(dimension)
        rows.append(numbers / np.linalg.norm(numbers))
    return np.array(rows, np.float32)


def orthonormal(count: int, dimension: int, seed: int) -> Float32[np.ndarray, "label dimension"]:
    """Rows at right angles and of unit length, turned by chance."""
    if count > dimension:
        raise UserError(f"{count} labels cannot be at right angles in {dimension} dimensions.\n"
                        f"Take --dimension {count} or more.")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, count)))
    # With the signs of r, every rotation is equally likely.
    rows: Float[np.ndarray, "label dimension"] = (q * np.sign(np.diag(r))).T
    return rows.astype(np.float32)


def _label_names(manifest: DatasetManifest) -> list[str]:
    """Names in dataset.json, background and ignored label left out; older files have numbers as keys."""
    if all(str(key).isdigit() and isinstance(value, str) for key, value in manifest.labels.items()):
        return [str(value) for key, value in manifest.labels.items() if int(key) != 0]
    return [name for name, value in manifest.labels.items() if value not in (0, "0") and name.casefold() != "ignore"]
