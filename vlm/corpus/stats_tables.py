"""The tables of `vlm corpus-stats`, as rows of texts: for the terminal and for the page."""

from collections.abc import Iterable
from dataclasses import dataclass

from vlm.corpus.facts import SPLITS
from vlm.corpus.statistics import CorpusStatistics, GroupStatistics

MOST_REASONS_SHOWN = 15
MOST_LABELS_SHOWN = 12


@dataclass(frozen=True)
class Table:
    """title : what is counted. note : how to read it. header, rows : the first column is a name, the others numbers
    unless `texts` says so (positions of columns with texts)."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: frozenset[int] = frozenset({0})


def summary(statistics: CorpusStatistics) -> str:
    """One line."""
    total = statistics.total
    pairs, size = sum(total.pairs.values()), readable_bytes(statistics.size_bytes)
    return (f"{pairs:,} pairs of {len(statistics.sources)} sources in {statistics.shards:,} shards ({size}); "
            f"{total.captions:,} captions, {total.distinct_captions:,} distinct")


def all_tables(statistics: CorpusStatistics) -> tuple[Table, ...]:
    """Those shown on the terminal, in order; a table without rows is left out."""
    tables = (modalities(statistics), sources(statistics), rows_of_sources(statistics), kinds(statistics),
              captions_per_pair(statistics), duplicates(statistics), leaks(statistics), rejects(statistics))
    return tuple(table for table in tables if table.rows)


def modalities(statistics: CorpusStatistics) -> Table:
    """Pairs of each modality and split, and their captions."""
    groups = {**statistics.modalities, "all": statistics.total}
    return Table("Pairs per modality", _GROUP_HEADER, tuple(_group_row(name, group) for name, group in groups.items()),
                 "Words: what stands between spaces. Distinct: captions that differ in any character.")


def sources(statistics: CorpusStatistics) -> Table:
    """Pairs of each source and split, and their captions."""
    rows = tuple((*_group_row(name, group), str(group.patients) if group.patients else "–", ", ".join(group.modalities))
                 for name, group in statistics.sources.items())
    return Table("Pairs per source", (*_GROUP_HEADER, "patients", "modalities"), rows,
                 "–: the source names no patients.", frozenset({0, len(_GROUP_HEADER) + 1}))


def rows_of_sources(statistics: CorpusStatistics) -> Table:
    """What became of each source's rows."""
    counts = statistics.build.sources
    fields = ("rows", "pairs", "rejected", "duplicates", "leaks", "left_out")
    rows = [(name, *(f"{getattr(count, field):,}" for field in fields)) for name, count in counts.items()]
    sums = [f"{sum(getattr(count, field) for count in counts.values()):,}" for field in fields]
    return Table("What became of the rows", ("source", *(field.replace("_", " ") for field in fields)),
                 (*rows, ("all", *sums)), "As the build recorded it: rows = pairs + all that stands right of them.")


def kinds(statistics: CorpusStatistics) -> Table:
    """Captions of each kind."""
    rows = tuple((kind, f"{one.captions:,}", f"{one.distinct_captions:,}", f"{one.pairs:,}", f"{one.first:,}",
                  str(one.words.median), str(one.words.p95)) for kind, one in statistics.kinds.items())
    return Table("Kinds of captions", ("kind", "captions", "distinct", "pairs", "first", "words", "p95"), rows,
                 "native: came with the image; report: a radiologist's text; refined: a native one, rewritten; "
                 "template: from labels by a grammar; generated: from labels by a model. Pairs: that have at least "
                 "one; first: whose first caption (the .txt in the shard) is of this kind. Words: median; p95: 95 % "
                 "are no longer.")


def captions_per_pair(statistics: CorpusStatistics) -> Table:
    """How many captions a pair has."""
    total = sum(statistics.captions_per_pair.values())
    rows = tuple((count, f"{pairs:,}", f"{100 * pairs / total:.1f}")
                 for count, pairs in statistics.captions_per_pair.items())
    return Table("Captions per pair", ("captions", "pairs", "%"), rows)


def duplicates(statistics: CorpusStatistics) -> Table:
    """Dropped images by source and reason, and whether the kept one is of the same source."""
    build = statistics.build
    found = {source: {fate: count for fate, count in fates.items() if not fate.startswith("leak")}
             for source, fates in build.fates.items()}
    fates = sorted({fate for counts in found.values() for fate in counts})
    rows = []
    for source, counts in found.items():
        if counts:
            twins = build.twins.get(source, {})
            others = ", ".join(f"{name} {count:,}" for name, count in twins.items() if name != source)
            rows.append((source, *(f"{counts.get(fate, 0):,}" for fate in fates), f"{sum(counts.values()):,}",
                         others or "–"))
    header = ("source", *(fate.replace("_", " ") for fate in fates), "sum", "of other sources' images")
    return Table("Duplicates that were dropped", header, tuple(rows), _DUPLICATES_NOTE,
                 frozenset({0, len(header) - 1}))


def leaks(statistics: CorpusStatistics) -> Table:
    """Evaluation sets that the corpus was checked against."""
    report = statistics.build.leaks
    if report is None:
        return Table("Leaks", (), ())
    rows = []
    for name, one in report.sets.items():
        found = ", ".join(f"{source}: " + ", ".join(f"{count:,} by {how}" for how, count in ways.items())
                          for source, ways in one.found.items())
        unresolved = ", ".join(report.unresolved.get(name, ()))
        rows.append((name, f"{one.images:,}", f"{one.dropped:,}", one.checked, found or "–", unresolved or "–"))
    return Table("Evaluation sets kept out", ("evaluation set", "images", "dropped", "checked by", "found", "open"),
                 tuple(rows), "Open: sources of this corpus that are known to hold images of the set, which could not "
                 "be looked for here; a result on such a set has to say so.", frozenset({0, 3, 4, 5}))


def rejects(statistics: CorpusStatistics) -> Table:
    """The most frequent reasons for which rows could not be used."""
    found = [(count, source, reason) for source, reasons in statistics.build.reasons.items()
             for reason, count in reasons.items()]
    found.sort(key=lambda one: (-one[0], one[1:]))
    rows = tuple((source, f"{count:,}", reason) for count, source, reason in found[:MOST_REASONS_SHOWN])
    left = len(found) - len(rows)
    more = f"And {left} more reasons; " if left else ""
    return Table("Rows that could not be used", ("source", "rows", "why"), rows,
                 f"{more}rejects.jsonl names every row.", frozenset({0, 2}))


def labels(statistics: CorpusStatistics) -> Table:
    """The most frequent labels of each source: for the page, too long for a terminal."""
    rows = []
    for name, source in statistics.sources.items():
        if source.labels:
            shown = list(source.labels.items())[:MOST_LABELS_SHOWN]
            text = ", ".join(f"{label} {count:,}" for label, count in shown)
            more = len(source.labels) - len(shown)
            rows.append((name, f"{len(source.labels):,}", text + (f", … and {more} more" if more > 0 else "")))
    return Table("Labels", ("source", "labels", "pairs in which the finding is present"), tuple(rows),
                 texts=frozenset({0, 2}))


def format_table(table: Table) -> str:
    """A title line, then aligned columns; numbers to the right. Without the note."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    shown = [f"{table.title}:"]
    for line in lines:
        cells = [cell.ljust(widths[column]) if column in table.texts else cell.rjust(widths[column])
                 for column, cell in enumerate(line)]
        shown.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(shown)


def readable_bytes(size: float) -> str:
    """"3.4 MB": powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


_GROUP_HEADER = ("", *SPLITS, "pairs", "captions", "distinct", "per pair", "words", "p95")
_DUPLICATES_NOTE = (
    "exact: the same file; near: looks the same (perceptual hash); article: from an article that another source has; "
    "patient split: another image of the patient is in a stronger split. duplicates.jsonl names every dropped image "
    "and the kept one."
)


def _group_row(name: str, group: GroupStatistics) -> tuple[str, ...]:
    counts: Iterable[int] = (*(group.pairs.get(split, 0) for split in SPLITS), sum(group.pairs.values()),
                             group.captions, group.distinct_captions)
    return (name, *(f"{count:,}" for count in counts), f"{group.captions_per_pair:.1f}", str(group.words.median),
            str(group.words.p95))
