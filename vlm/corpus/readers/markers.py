"""Captions that UniMed joined into one text by markers, taken apart again.

The eight markers and what stands between them are those of the published scripts and loader (UniMed's training data
module): a caption's last period is lost in, or doubled by, the marker's own period.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm.corpus.readers.opening import mended
from vlm.schema import Caption, CaptionKind

NOTHING = frozenset({"", "nan", "none", "noreportpresent", "nothingpresent"})
"""What stands where a caption, a report or a mention is absent ("nan": pandas writes a missing value so)."""


@dataclass(frozen=True)
class Marker:
    """kinds : of the first, second, … part; the last one holds for all further parts.

    dotted : the marker brings the period of the sentence before it.
    """

    name: str
    kinds: tuple[CaptionKind, ...]
    dotted: bool = True
    last: Literal["report"] | None = None


MARKERS = (
    Marker("_radimagenet_", ("template",)),
    Marker("_chexpert_", ("template",)),
    Marker("_chestxray8_", ("template",)),
    Marker("_openi_", ("report", "refined")),
    Marker("_all_retina_merged_", ("template",)),
    Marker("_mimiccxr_", ("template",), last="report"),
    Marker("_medicat_", ("native",), dotted=False),
    Marker("_dr_", ("template",), dotted=False),
)
"""In the order in which they are looked for: `_dr_` last, because it is the one that other text may contain."""

SENTENCE_WORDS = 3
"""A part of a `_dr_` text has at least so many words; a file name that contains `_dr_` has fewer around it."""

SURELY_JOINED = 10
"""So many parts are captions however they look: fifteen were written per grade, and a native text has no such list."""


def marked_captions(text: str) -> tuple[Caption, ...]:
    """The captions in a text of a UniMed shard or table, in their order, each once; a text without marker is one.

    Empty parts and the words for "no report" and "nothing" are dropped, double periods become one, and a period that
    went into a marker is put back. No caption is left out, be it beyond the tenth.
    """
    marker = find_marker(text)
    if marker is None:
        return captions_of([(text, "native")], "text without marker")
    parts = re.split(rf"\.*{marker.name}" if marker.dotted else marker.name, text)
    kinds = _kinds(marker, parts)
    ends = [marker.dotted] * (len(parts) - 1) + [False]
    whole = [_with_period(part) if end else part for part, end in zip(parts, ends, strict=True)]
    return captions_of(list(zip(whole, kinds, strict=True)), f"marker {marker.name}")


def find_marker(text: str) -> Marker | None:
    """The marker that joins a text; None where there is none, or where its letters are part of a name."""
    for marker in MARKERS:
        if marker.name not in text:
            continue
        if marker.name == "_dr_" and not _all_sentences(text.split(marker.name)):
            continue
        if not marker.dotted or f".{marker.name}" in text:
            return marker
    return None


def captions_of(texts: Sequence[tuple[str, CaptionKind]], origin: str) -> tuple[Caption, ...]:
    """Captions of (text, kind), each text once; what says that there is nothing is left out."""
    found: dict[str, Caption] = {}
    for text, kind in texts:
        plain = tidy(text)
        if plain.rstrip(".").lower() not in NOTHING and plain not in found:
            found[plain] = Caption(text=plain, kind=kind, origin=origin)
    return tuple(found.values())


def tidy(text: str) -> str:
    """One line of Unicode without double spaces or doubled periods (three or more are an ellipsis and stay)."""
    return re.sub(r"(?<!\.)\.\.(?!\.)", ".", " ".join(mended(text).split()))


def _kinds(marker: Marker, parts: Sequence[str]) -> list[CaptionKind]:
    """The kind of each part. MIMIC writes its templates, an empty part, then the report or the word for none."""
    kinds = [marker.kinds[min(position, len(marker.kinds) - 1)] for position in range(len(parts))]
    if marker.last is not None and len(parts) > 1:
        gap = next((at for at, part in enumerate(parts) if not part.strip() and 0 < at < len(parts) - 1), None)
        first = len(parts) - 1 if gap is None else gap
        kinds[first:] = [marker.last] * (len(parts) - first)
    return kinds


def _with_period(text: str) -> str:
    plain = text.strip()
    return f"{plain}." if plain and plain[-1] not in ".!?" else plain


def _all_sentences(parts: Sequence[str]) -> bool:
    filled = [part.strip() for part in parts if part.strip()]
    if len(filled) >= SURELY_JOINED:
        return True
    return bool(filled) and all(len(part.split()) >= SENTENCE_WORDS and part[0].isupper() for part in filled)
