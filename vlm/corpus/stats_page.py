"""The page of `vlm corpus-stats`: one HTML file with the tables and both figures inside, to open in any browser."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from vlm.corpus.examples import Example
from vlm.corpus.statistics import CorpusStatistics
from vlm.corpus.stats_tables import Table, all_tables, labels, summary

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 .4rem; } .note { color: #555; max-width: 55rem; margin: .3rem 0 .6rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th, td { white-space: nowrap; }
th { border-bottom: 2px solid #888; } .text { text-align: left; } td.text { white-space: normal; }
td.text:first-child { white-space: nowrap; font-weight: 600; } tr:last-child.sum td { border-top: 2px solid #888; }
img { max-width: 100%; border: 1px solid #ddd; } code { background: #f2f2f2; padding: 0 .25rem; }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>$style</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<p class="note">A pair is an image with its captions. Made by <code>vlm corpus-stats</code>; all numbers are in
<code>stats.json</code>. Seed $seed, recipe <code>$recipe</code>, version $version.$missing</p>
<h2>Contact sheet</h2>
<p class="note">Pairs drawn by a hash of their name, taking turns between sources and labels: the same for the same
corpus. Beneath each: source; split and labels; its first caption. □ stands for a letter that the picture's font lacks;
the captions are written out in the last table. The picture is also in
<code>contact_sheet.png</code>.</p>
<a href="contact_sheet.png"><img alt="Images of every modality with their first captions" src="$sheet"></a>
<h2>Lengths of captions</h2>
<p class="note">For each kind of caption, the share of the modality's captions of that kind that have so many words. The
axis is logarithmic; dotted lines are the medians.</p>
<img alt="Histograms of words per caption, by modality and kind" src="$lengths">
$tables
</body></html>
""")


def render_page(
    statistics: CorpusStatistics, chosen: Mapping[str, Sequence[Example]], title: str, sheet: bytes, lengths: bytes
) -> str:
    """The page. sheet, lengths : the two figures' PNG bytes."""
    shown = [*all_tables(statistics), labels(statistics), _examples(chosen)]
    missing = statistics.build.missing
    return PAGE.substitute(
        title=escape(title), style=STYLE, summary=escape(summary(statistics)), seed=statistics.seed,
        recipe=escape(statistics.recipe), version=escape(statistics.version),
        missing=escape(f" Not in the folder, so not counted: {', '.join(missing)}." if missing else ""),
        sheet=_data_uri(sheet), lengths=_data_uri(lengths),
        tables="\n".join(_as_html(table) for table in shown if table.rows),
    )


def _examples(chosen: Mapping[str, Sequence[Example]]) -> Table:
    rows = tuple((example.uid, modality, example.split, example.labels or "–", example.caption)
                 for modality, examples in chosen.items() for example in examples)
    return Table("The pairs on the contact sheet", ("pair", "modality", "split", "labels", "first caption"), rows,
                 texts=frozenset(range(5)))


def _as_html(table: Table) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=text' if column in table.texts else ''}>{escape(cell)}</{tag}>"
                       for column, cell in enumerate(row))

    rows = "\n".join(f"<tr{' class=sum' if row[0] == 'all' else ''}>{cells(row, 'td')}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    head = f"<thead><tr>{cells(table.header, 'th')}</tr></thead>"
    return (f"<h2>{escape(table.title)}</h2>{note}<div class=scroll><table>\n{head}\n"
            f"<tbody>{rows}</tbody></table></div>")


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
