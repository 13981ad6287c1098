"""A text bank on disk: one unit vector per label, the sentences it was made from, and proof that both belong together.

The seam between the packages: `vlm` writes banks, `autoseg train` reads them; neither needs the other.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float, Float32
from safetensors import SafetensorError

from autoseg.errors import UserError, all_of
from autoseg.guidance.label_names import match_key
from autoseg.guidance.lexicon import Lexicon
from autoseg.guidance.records import (
    COLLINEAR,
    PAIRS_KEPT,
    CollinearPair,
    Precision,
    SimilaritySummary,
    TextBankRecord,
    TowerRecord,
)
from autoseg.records import content_hash, read_record, replacing, write_record

RECORD_NAME, VECTORS_NAME, TENSOR = "bank.json", "bank.safetensors", "vectors"
ENCODE_ANEW = "Encode the labels anew: vlm encode-labels DATASET --tower TOWER -o BANK."
LENGTH_TOLERANCE = 1e-3
"""float16 keeps a unit vector's length to some 1e-5; anything further off is no unit vector."""

Vector = Float32[np.ndarray, "dimension"]


@dataclass(frozen=True)
class TextBank:
    """Unit vectors of labels. names : of the rows; `make_bank` builds one, `read_bank` and `write_bank` store it."""

    names: tuple[str, ...]
    vectors: Float32[np.ndarray, "label dimension"]
    record: TextBankRecord

    def vectors_of(
        self, labels: Sequence[str], lexicon: Lexicon | None = None, context: Sequence[str] = ()
    ) -> Float32[np.ndarray, "wanted dimension"]:
        """The rows of these labels, in their order.

        A label is looked up as it stands, then by its words ("kidney_left" is "left kidney"), then by its entry in
        the lexicon (with `context`, see `Lexicon.find`). A paired structure without its side ("kidney") that is not
        in the bank is the mean direction of its two sides.

        Raises
        ------
        UserError : lists every label that is not in the bank, with the nearest names.
        """
        rows = {match_key(name): row for name, row in zip(reversed(self.names), self.vectors[::-1], strict=True)}
        rows |= dict(zip(((name,) for name in self.names), self.vectors, strict=True))
        found = [self._vector(label, rows, lexicon, context) for label in labels]
        if missing := [label for label, vector in zip(labels, found, strict=True) if vector is None]:
            raise all_of([f"{label!r}{self._nearest(label)}" for label in missing],
                         f"{len(missing)} of {len(labels)} labels are not in the text bank ({len(self.names)} names):",
                         ENCODE_ANEW)
        return np.stack([vector for vector in found if vector is not None])

    def _vector(
        self, label: str, rows: Mapping[tuple[str, ...], Vector], lexicon: Lexicon | None, context: Sequence[str]
    ) -> Vector | None:
        known = rows.get((label,), rows.get(match_key(label)))
        if known is not None or lexicon is None:
            return known
        try:
            entry = lexicon.find(label, context)
        except UserError:
            return None
        known = rows.get(match_key(entry.canonical))
        if known is not None or entry.halves is None:
            return known
        sides = [rows.get(match_key(name)) for name in entry.halves]
        both = [side for side in sides if side is not None]
        return mean_direction(np.stack(both)) if len(both) == 2 else None

    def _nearest(self, label: str) -> str:
        near = get_close_matches(label, self.names, n=3, cutoff=0.5)
        return f" (nearest: {', '.join(near)})" if near else ""


# ---------------------------------------------------------------- making
def mean_direction(sentences: Float[np.ndarray, "sentence dimension"]) -> Float32[np.ndarray, "dimension"]:
    """The unit vector of a label: the mean of its sentences' unit vectors, made unit length again.

    Raises
    ------
    ValueError : the sentences' vectors cancel, or one of them has no direction.
    """
    wide = sentences.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not len(wide) or not np.isfinite(lengths).all() or lengths.min() <= 0:
        raise ValueError("a vector without length has no direction")
    mean = (wide / lengths).mean(axis=0)
    if (length := float(np.linalg.norm(mean))) < 1e-6:
        raise ValueError("the sentences' vectors cancel; their mean has no direction")
    return np.asarray(mean / length, np.float32)


def centered(vectors: Float32[np.ndarray, "label dimension"]) -> Float32[np.ndarray, "label dimension"]:
    """Without what all labels have in common: minus the mean over labels, then unit length again.

    Text vectors lie in a narrow cone, and what they share says nothing about which label is which. Of two labels this
    makes opposite vectors.

    Raises
    ------
    UserError : fewer than two labels, or two labels with the same vector and nothing else: nothing is left.
    """
    wide = vectors.astype(np.float64)
    rest = wide - wide.mean(axis=0)
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    if len(vectors) < 2 or lengths.min() < 1e-6:
        raise UserError(f"The vectors of {len(vectors)} label(s) cannot be centered: nothing is left of at least one "
                        "of them. Add labels that lie elsewhere, or use the vectors as they are.")
    return np.asarray(rest / lengths, np.float32)


def make_bank(
    vectors: Float[np.ndarray, "label dimension"],
    prompts: Mapping[str, Sequence[str]],
    tower: TowerRecord,
    precision: Precision = "float32",
) -> TextBank:
    """A bank of unit vectors; the rows are those of the labels in `prompts`, in their order.

    precision : "float16" halves the file; the vectors in memory are then those that the file holds.

    Raises
    ------
    ValueError : not as many rows as labels, or rows that are not of unit length.
    """
    names = tuple(prompts)
    if len(names) != len(vectors) or not names:
        raise ValueError(f"{len(vectors)} vectors for {len(names)} labels")
    stored = np.ascontiguousarray(vectors, dtype=precision)
    rows = stored.astype(np.float32)
    if odd := _not_unit(rows, names):
        raise ValueError(f"vectors that are not of unit length: {', '.join(odd)}")
    record = TextBankRecord(
        names=names, prompts={name: tuple(texts) for name, texts in prompts.items()},
        prompts_sha256={name: content_hash(list(texts)) for name, texts in prompts.items()},
        tower=tower, dimension=stored.shape[1], precision=precision, sha256=vectors_hash(names, stored),
        similarity=summarize(names, rows))
    return TextBank(names, rows, record)


def summarize(names: Sequence[str], vectors: Float32[np.ndarray, "label dimension"]) -> SimilaritySummary:
    """Mean, extremes and the closest pairs of the cosines between different labels."""
    wide = vectors.astype(np.float64)
    first, second = np.triu_indices(len(names), k=1)
    cosines = (wide @ wide.T)[first, second]
    if not cosines.size:
        return SimilaritySummary(mean=None, min=None, max=None, near_collinear_count=0, near_collinear=())
    near = np.flatnonzero(cosines >= COLLINEAR)
    closest = near[np.argsort(-cosines[near], kind="stable")][:PAIRS_KEPT]
    return SimilaritySummary(
        mean=round(float(cosines.mean()), 4), min=round(float(cosines.min()), 4), max=round(float(cosines.max()), 4),
        near_collinear_count=len(near),
        near_collinear=tuple(CollinearPair(first=names[first[pair]], second=names[second[pair]],
                                           cosine=round(float(cosines[pair]), 4)) for pair in closest))


def vectors_hash(names: Sequence[str], stored: np.ndarray) -> str:
    """SHA-256 of the names, the type, the shape and the bytes of the stored vectors."""
    head = json.dumps([list(names), str(stored.dtype), list(stored.shape)], separators=(",", ":"))
    little_endian = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    return hashlib.sha256(head.encode() + b"\n" + little_endian.tobytes()).hexdigest()


# ---------------------------------------------------------------- disk
def write_bank(bank: TextBank, folder: Path) -> None:
    """Write bank.safetensors, then bank.json, each atomically."""
    stored = np.ascontiguousarray(bank.vectors, dtype=bank.record.precision)
    if vectors_hash(bank.names, stored) != bank.record.sha256 or bank.names != bank.record.names:
        raise ValueError("the record is not that of these vectors; build banks with make_bank")
    with replacing(folder / VECTORS_NAME) as temporary:
        temporary.write_bytes(safetensors.numpy.save({TENSOR: stored}))
    write_record(bank.record, folder / RECORD_NAME)


def read_bank(folder: Path) -> TextBank:
    """The bank in a folder, after every check that does not need the tower.

    Raises
    ------
    UserError : a file is absent or damaged; the vectors have another shape or type than the record says; the vectors,
        the names or a label's sentences were edited (named); a vector is not of unit length.
    """
    record = read_record(TextBankRecord, folder / RECORD_NAME, ENCODE_ANEW)
    path = folder / VECTORS_NAME
    stored = _read_vectors(path)
    expected = (len(record.names), record.dimension)
    if stored.shape != expected or stored.dtype.name != record.precision:
        raise UserError(f"{path} holds vectors of shape {stored.shape} and type {stored.dtype.name}; {RECORD_NAME} "
                        f"says {expected} ({len(record.names)} labels, dimension {record.dimension}) and "
                        f"{record.precision}.\nThe two files are not of one bank. {ENCODE_ANEW}")
    if (found := vectors_hash(record.names, stored)) != record.sha256:
        raise UserError(f"{folder}: the names in {RECORD_NAME} and the vectors in {VECTORS_NAME} (SHA-256 "
                        f"{found[:12]}…) are not those that the bank was written with ({record.sha256[:12]}…): one of "
                        f"the files was edited or replaced.\n{ENCODE_ANEW}")
    if edited := [name for name in record.names
                  if content_hash(list(record.prompts[name])) != record.prompts_sha256[name]]:
        raise UserError(f"{folder / RECORD_NAME}: the sentences of {', '.join(map(repr, edited))} were edited after "
                        f"their vectors were made, so the vectors no longer stand for them.\n{ENCODE_ANEW}")
    vectors = stored.astype(np.float32)
    if odd := _not_unit(vectors, record.names):
        raise UserError(f"{path}: vectors that are not of unit length: {', '.join(odd)}.\n{ENCODE_ANEW}")
    return TextBank(record.names, vectors, record)


def _read_vectors(path: Path) -> np.ndarray:
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.\n{ENCODE_ANEW}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}.\n{ENCODE_ANEW}") from None
    if set(tensors) != {TENSOR} or tensors[TENSOR].ndim != 2:
        raise UserError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; one matrix called '{TENSOR}' was "
                        f"expected.\n{ENCODE_ANEW}")
    return np.asarray(tensors[TENSOR])


def _not_unit(vectors: Float32[np.ndarray, "label dimension"], names: Sequence[str]) -> list[str]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    off = ~(np.abs(lengths - 1) <= LENGTH_TOLERANCE)
    return [f"{name} ({length:.4g})" for name, length, wrong in zip(names, lengths, off, strict=True) if wrong]
