"""What a build wrote beside its shards: rejects.jsonl, duplicates.jsonl and leaks.json, counted line by line."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from autoseg.errors import UserError
from autoseg.records import Record, read_record
from vlm.corpus.leaks import LeakReport
from vlm.schema import CorpusManifest, SourceCount

MOST_REASONS = 200
"""Distinct reasons kept per source; a reason may name a size or a position and then never comes twice."""

OTHER_REASONS = "other reasons"


class BuildRecords(Record):
    """What became of the rows that are no pairs.

    sources : of the manifest, without its labels. fates : source → fate in lower case ("exact", "near", "article",
    "patient_split", "leak_image", …) → dropped rows. twins : source → source of the kept image → dropped rows.
    reasons : source → why → rejected rows. leaks : leaks.json. missing : files that are not there.
    """

    sources: dict[str, SourceCount]
    fates: dict[str, dict[str, int]]
    twins: dict[str, dict[str, int]]
    reasons: dict[str, dict[str, int]]
    leaks: LeakReport | None
    missing: tuple[str, ...]


def read_build_records(corpus: Path, manifest: CorpusManifest) -> BuildRecords:
    """Count the lines of a corpus's lists; a list that is not there is named in `missing`, and is no error."""
    fates: dict[str, Counter[str]] = {}
    twins: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    paths = [corpus / name for name in ("rejects.jsonl", "duplicates.jsonl", "leaks.json")]
    rejects, duplicates, leaks = paths
    for line in _lines(duplicates):
        source = str(line.get("source"))
        fates.setdefault(source, Counter())[str(line.get("fate")).lower()] += 1
        twin = str(line.get("of")).rpartition("_")[0]
        if twin in manifest.sources:
            twins.setdefault(source, Counter())[twin] += 1
    for line in _lines(rejects):
        known = reasons.setdefault(str(line.get("source")), Counter())
        reason = str(line.get("reason"))
        known[reason if reason in known or len(known) < MOST_REASONS else OTHER_REASONS] += 1
    return BuildRecords(
        sources={name: count.model_copy(update={"labels": ()}) for name, count in sorted(manifest.sources.items())},
        fates=_sorted(fates), twins=_sorted(twins), reasons=_sorted(reasons),
        leaks=read_record(LeakReport, leaks) if leaks.is_file() else None,
        missing=tuple(path.name for path in paths if not path.is_file()),
    )


def _sorted(counters: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """Sources by name, the most frequent first in each."""
    return {source: dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
            for source, counter in sorted(counters.items())}


def _lines(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a JSONL file, none where it does not exist. UserError naming the line that is none."""
    if not path.is_file():
        return
    number = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for text in stream:
                number += 1
                content = json.loads(text)
                if not isinstance(content, dict):
                    raise ValueError("no JSON object")
                yield content
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        where = f"line {number}" if not isinstance(error, UnicodeError) else f"after line {number}"
        raise UserError(f"{path}, {where}: a JSON object was expected ({error}).\n"
                        "The build writes this file; copy it again from where the corpus was built.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
