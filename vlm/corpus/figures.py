"""Pictures of a corpus: a contact sheet of its images with their captions, and how long its captions are."""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.errors import UserError
from autoseg.records import replacing
from vlm.corpus.examples import Example
from vlm.corpus.statistics import describe_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

TILE = 300
"""Pixels of an image's longer side."""

GAP = 24
CAPTION_LINES = 7
TEXT_SIZE, MODALITY_SIZE, TITLE_SIZE, LINE_HEIGHT = 17, 34, 36, 22
Line = tuple[str, str, bool]
"""Text, color, whether it is bold."""

WIDEST = 3000
"""Pixels: a wider page cannot be read on a screen without scrolling sideways."""

MOST_COLUMNS = (WIDEST - GAP) // (TILE + GAP)
BLACK, GRAY, BLUE, FRAME = "#111111", "#666666", "#1f4e9c", "#e4e4e4"
NO_GLYPH = "□"
KIND_COLORS = {"native": "#1f77b4", "report": "#9467bd", "refined": "#2ca02c", "template": "#ff7f0e",
               "generated": "#d62728"}

WORD_EDGES = np.unique(np.round(np.geomspace(1, 2048, 34)).astype(int))
"""Borders of the histogram's bins, in words: whole numbers, evenly spread over the logarithm as far as they can be,
since captions have from one word (a label) to hundreds (a report)."""

WORD_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def draw_contact_sheet(
    chosen: Mapping[str, Sequence[Example]], images: Mapping[str, bytes], title: str, path: Path
) -> None:
    """A PNG with a block of tiles for each modality: image, source, split and labels, first caption.

    chosen : modality → examples, in the order in which they are drawn. images : uid → bytes of a JPEG or PNG.
    UserError: an image cannot be decoded, or the file cannot be written.
    """
    from PIL import Image, ImageDraw

    columns = max(1, min(MOST_COLUMNS, max(len(examples) for examples in chosen.values())))
    width = GAP + columns * (TILE + GAP)
    blocks = [(modality, [[(example, _lines_beneath(example)) for example in examples[start : start + columns]]
                          for start in range(0, len(examples), columns)]) for modality, examples in chosen.items()]
    heading = wrapped(drawable(title), width - 2 * GAP, _font(TITLE_SIZE, bold=True), 3)
    top = GAP + len(heading) * TITLE_SIZE * 3 // 2
    height = top + sum(MODALITY_SIZE * 2 + sum(map(_row_height, rows)) for _, rows in blocks)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((GAP, GAP + number * TITLE_SIZE * 3 // 2), line, BLACK, _font(TITLE_SIZE, bold=True))
    for modality, rows in blocks:
        draw.text((GAP, top), modality, BLUE, _font(MODALITY_SIZE, bold=True))
        top += MODALITY_SIZE * 2
        for row in rows:
            for column, (example, lines) in enumerate(row):
                left = GAP + column * (TILE + GAP)
                sheet.paste(_thumbnail(images[example.uid], example), (left, top))
                for number, (text, color, bold) in enumerate(lines):
                    below = top + TILE + LINE_HEIGHT // 4 + number * LINE_HEIGHT
                    draw.text((left, below), text, color, _font(TEXT_SIZE, bold=bold))
            top += _row_height(row)
    with replacing(path) as temporary:
        sheet.save(temporary, optimize=True)


def draw_caption_lengths(caption_words: Mapping[str, Mapping[str, Mapping[str, int]]], path: Path) -> None:
    """A PNG with histograms of words per caption: one field for each modality, one color for each kind of caption.

    caption_words : modality → kind → words → captions. UserError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(caption_words) > 1 else 1
    rows = -(-len(caption_words) // columns)
    figure = Figure(figsize=(7 * columns, 2.9 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    longest = max(int(words) for kinds in caption_words.values() for lengths in kinds.values() for words in lengths)
    right = min(edge for edge in WORD_EDGES if edge > longest)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, (modality, kinds) in zip(grid, caption_words.items(), strict=False):
        _draw_lengths(axes, modality, kinds, int(right))
    for axes in grid[len(caption_words) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(caption_words) - columns) : len(caption_words)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("words in a caption")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def drawable(text: str) -> str:
    """The text on one line, with □ for what the font cannot show (it has Latin, Greek and Cyrillic letters)."""
    known = _letters()
    return "".join(letter if ord(letter) in known else NO_GLYPH for letter in " ".join(text.split()))


def wrapped(text: str, width: float, font: "FreeTypeFont", most_lines: int) -> list[str]:
    """Lines no wider than `width` pixels; words that are wider are cut; "…" where lines are left out."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if font.getlength(joined) <= width:
            line = joined
            continue
        lines += [line] if line else []
        line = word
        while font.getlength(line) > width:
            fits = len(line) - 1
            while fits > 1 and font.getlength(line[:fits]) > width:
                fits -= 1
            lines.append(line[:fits])
            line = line[fits:]
        if len(lines) > most_lines:
            break
    lines += [line] if line else []
    if len(lines) <= most_lines:
        return lines
    last = lines[most_lines - 1]
    while last and font.getlength(f"{last} …") > width:
        last = last[:-1]
    return [*lines[: most_lines - 1], f"{last.rstrip()} …"]


def _thumbnail(data: bytes, example: Example) -> "Image":
    from PIL import Image, ImageOps

    tile = Image.new("RGB", (TILE, TILE), FRAME)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (TILE, TILE))
            small = ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.LANCZOS)
    except Exception as error:  # Pillow's decoders raise nearly every kind of error on damaged files
        raise UserError(f"{example.shard}: the image of {example.uid} cannot be decoded ({error}).\n"
                        "`vlm corpus-stats CORPUS --verify` lists everything that is wrong.") from None
    tile.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    return tile


def _lines_beneath(example: Example) -> list[Line]:
    """Source, split and labels, caption."""
    about = f"{example.split} · {example.labels or 'no labels'}"
    parts = ((example.source, 1, BLACK, True), (about, 2, GRAY, False), (example.caption, CAPTION_LINES, BLACK, False))
    return [(line, color, bold) for text, most_lines, color, bold in parts
            for line in wrapped(drawable(text), TILE, _font(TEXT_SIZE, bold=bold), most_lines)]


def _row_height(row: Sequence[tuple[Example, list[Line]]]) -> int:
    return TILE + max(len(lines) for _, lines in row) * LINE_HEIGHT + 2 * GAP


@lru_cache
def _font(size: int, *, bold: bool) -> "FreeTypeFont":
    """DejaVu Sans as it comes with matplotlib: the same on every machine."""
    from PIL import ImageFont

    # Basic layout: whether the other one (raqm) is there differs between machines.
    return ImageFont.truetype(str(_font_file(bold)), size, layout_engine=ImageFont.Layout.BASIC)


def _font_file(bold: bool) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@lru_cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    plain, bold = (frozenset(FT2Font(str(_font_file(bold))).get_charmap()) for bold in (False, True))
    return plain & bold


def _draw_lengths(axes: "Axes", modality: str, kinds: Mapping[str, Mapping[str, int]], right: int) -> None:
    """Of each kind, the share of captions in each bin: rare kinds stay visible beside frequent ones.

    right : where the axis ends, in words.
    """
    for kind in (kind for kind in KIND_COLORS if kind in kinds):
        lengths = {int(words): count for words, count in kinds[kind].items()}
        total = sum(lengths.values())
        # A caption of spaces has no word; the logarithm has no place for it but the first bin.
        counts, _ = np.histogram(np.maximum(list(lengths), 1), WORD_EDGES, weights=list(lengths.values()))
        shares, median = 100 * counts / total, describe_words(lengths).median
        axes.stairs(shares, WORD_EDGES, fill=True, color=KIND_COLORS[kind], alpha=0.35)
        axes.stairs(np.where(counts, shares, np.nan), WORD_EDGES, color=KIND_COLORS[kind],
                    label=f"{kind}: {total:,} captions, median {median}")
        axes.axvline(max(1, median), color=KIND_COLORS[kind], linewidth=1.2, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(WORD_TICKS, [str(tick) for tick in WORD_TICKS])
    axes.set_xlim(1, right)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the kind")
    axes.set_title(modality, fontsize=11, fontweight="bold", loc="left")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
