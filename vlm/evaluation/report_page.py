"""The page and the text of `vlm evaluate`: one HTML file with the pictures inside, and report.md."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from vlm.corpus.stats_page import STYLE
from vlm.corpus.stats_tables import Table
from vlm.evaluation.records import EvaluationReport
from vlm.evaluation.report_tables import all_tables, as_markdown, classes_of, percent, with_interval

PICTURES = {
    "scores": "Each set's own metric. Dotted: chance. White marks: what papers print, not measured here.",
    "probes": "Balanced accuracy without any label, with a linear classifier on the embeddings, and with one on tiny "
              "pictures.",
    "sentences": "How far the zero-shot result moves with the choice of sentences.",
    "confusion": "Images of each true class (rows) by what they were called (columns), zero-shot.",
    "retrieval": "Finding the caption of an image and the image of a caption. Red: chance.",
}

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>$style</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<p class="note">$about</p>
$body
</body></html>
""")


def summary(report: EvaluationReport) -> str:
    """One line with what was measured and the mean."""
    images = sum(sum(one.images.values()) for one in report.sets)
    parts = [f"{report.model} on {len(report.sets)} sets of the suite {report.suite} ({images:,} images)"]
    if report.retrieval:
        parts.append(f"and {len(report.retrieval)} for retrieval")
    line = " ".join(parts)
    if report.average is not None:
        found = report.average
        line += (f"; mean of the sets' metrics {with_interval(found.metric)}, balanced accuracy "
                 f"{with_interval(found.balanced_accuracy)}, chance {percent(found.balanced_accuracy.chance or 0.0)}")
    return line


def render_page(report: EvaluationReport, pictures: Mapping[str, Path]) -> str:
    """The page. pictures : of `figures.draw_all`."""
    shown = [f'<h2>In pictures</h2>{"".join(_figure(name, pictures[name]) for name in PICTURES if name in pictures)}']
    shown += [_as_html(table) for table in all_tables(report)]
    shown += ["<h2>Classes and sentences</h2>", *(_as_html(classes_of(one), "h3") for one in report.sets)]
    title = f"{report.title}: {report.model}"
    return PAGE.substitute(title=escape(title), style=STYLE, summary=escape(summary(report)),
                           about=escape(" ".join(_about(report))), body="\n".join(shown))


def render_markdown(report: EvaluationReport, pictures: Mapping[str, Path]) -> str:
    """report.md."""
    images = [f"![{name}]({pictures[name].name})\n\n{PICTURES[name]}" for name in PICTURES if name in pictures]
    return "\n\n".join([
        f"# {report.title}: {report.model}", f"{summary(report)}.", " ".join(_about(report)), *images,
        *map(as_markdown, all_tables(report)), *(as_markdown(classes_of(one)) for one in report.sets),
    ]) + "\n"


def _about(report: EvaluationReport) -> list[str]:
    lines = [f"Made by vlm evaluate, version {report.version}; weights {report.identity[:12] or 'in memory'}; trained "
             f"on: {report.trained_on}; seed {report.seed}, {report.resamples:,} resamples. All numbers are in "
             "report.json."]
    if report.absent:
        lines.append(f"Not on this disk and not measured: {', '.join(report.absent)}.")
    return [*lines, *report.notes]


def _figure(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<p class="note">{escape(PICTURES[name])}</p>'
            f'<img alt="{escape(PICTURES[name])}" src="data:image/png;base64,{data}">')


def _as_html(table: Table, heading: str = "h2") -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=text' if column in table.texts else ''}>{escape(cell)}</{tag}>"
                       for column, cell in enumerate(row))

    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (f"<{heading}>{escape(table.title)}</{heading}>{note}<div class=scroll><table>\n"
            f"<thead><tr>{cells(table.header, 'th')}</tr></thead>\n<tbody>{rows}</tbody></table></div>")
