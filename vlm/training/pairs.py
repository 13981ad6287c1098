"""A pair as training sees it: image bytes, captions, labels; and the keys that say which pairs belong together."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from autoseg.errors import UserError
from vlm.corpus.stored_pairs import REMEDY
from vlm.schema import Caption, PairRecord


@dataclass(frozen=True)
class TrainingPair:
    """image : bytes of a JPEG or PNG. source, labels : what makes other pairs mean the same. patient : None where not
    known.
    """

    uid: str
    source: str
    image: bytes
    captions: tuple[Caption, ...]
    labels: tuple[str, ...] = ()
    patient: str | None = None


def pair_of_record(image: bytes, record: bytes, shard: Path) -> TrainingPair:
    """A pair of a corpus that `vlm build-corpus` made, from its image and .json member."""
    try:
        parsed = PairRecord.model_validate_json(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "a .json member"
        raise UserError(f"{shard} is damaged: {field}: {first['msg']}.\n{REMEDY}") from None
    return TrainingPair(parsed.uid, parsed.source, image, parsed.captions, parsed.labels, parsed.patient)


def pair_of_text(image: bytes, text: bytes, uid: str, source: str, shard: Path) -> TrainingPair:
    """A pair of a webdataset made elsewhere: its text is its only caption."""
    try:
        caption = text.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UserError(f"{shard}: the text of {uid} is not UTF-8.\nWrite the shard again with UTF-8 texts.") from None
    if not caption:
        raise UserError(f"{shard}: the text of {uid} is empty; a caption was expected.\n"
                        "Leave pairs without a caption out of the shards.")
    return TrainingPair(uid, source, image, (Caption(text=caption, kind="native", origin="text member"),))


def label_key(pair: TrainingPair) -> int:
    """Equal for pairs of one source with the same labels; a pair without labels is equal to itself alone."""
    if not pair.labels:
        return _key(f"uid\n{pair.uid}")
    return _key("\n".join(["labels", pair.source, *sorted(pair.labels)]))


def text_key(caption: str) -> int:
    """Equal for captions that differ in nothing but case and spaces."""
    return _key(" ".join(caption.casefold().split()))


def _key(text: str) -> int:
    """A signed 64-bit number: two of ten million texts agree by chance with a probability of 3 in a million."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
