"""LLaVA-Med's figures: the alignment set, and the set with inline mentions. Both files are streamed."""

from collections.abc import Iterator
from pathlib import Path

from autoseg.errors import UserError
from vlm.corpus.readers.articles import ArticleMap, leading_number, llava_articles
from vlm.corpus.readers.json_streams import streamed_objects
from vlm.corpus.readers.markers import captions_of
from vlm.corpus.readers.places import article_of, bad_path, image_path, patient_of
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Caption, Layout, Modality, SourceCard

DOMAINS: dict[str, Modality] = {
    "chest_xray": "X-ray", "ct_scan": "CT", "mri": "MRI", "histology": "Pathology", "gross": "mixed",
}
"""LLaVA-Med's names; "gross" are photographs of specimens, for which there is no modality of ours."""

JPG = ".jpg"
"""What UniMed puts behind a pair_id."""


def read_alignment(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """A list of {image, conversations, domain}: what the model is made to answer is the figure's caption.

    layout.index : the list, then (optional) LLaVA-Med's list of image addresses, which tells the articles.
    UserError: a file is absent or breaks off.
    """
    articles = _articles(layout, folder)
    for row, (_, entry) in enumerate(streamed_objects(folder / layout.index[0])):
        if not isinstance(entry, dict):
            yield Reject(card.name, row, "", "the entry is no object")
            continue
        captions = captions_of([(_answer(entry.get("conversations")), "native")], "conversations answer")
        yield _row(card, layout, row, _text(entry.get("image")), captions, _domain(entry.get("domain")), articles)


def read_instruct(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """Lists of {pair_id, fig_caption, in_text_mention} by domain: the caption and the first mention, on one row.

    Columnar files ({"pair_id": […], "fig_caption": […], …}) are not read. layout.index : as for `read_alignment`.
    UserError: a file is absent or breaks off.
    """
    articles = _articles(layout, folder)
    for row, (key, entry) in enumerate(streamed_objects(folder / layout.index[0])):
        if not isinstance(entry, dict):
            yield Reject(card.name, row, "", f"the entry of {key or 'the list'} is no object with a pair_id")
            continue
        name = _text(entry.get("pair_id"))
        caption = captions_of([(_text(entry.get("fig_caption")), "native")], "fig_caption")
        mention = captions_of([(_mention(entry.get("in_text_mention")), "native")], "in_text_mention")
        known = {one.text for one in caption}
        captions = caption + tuple(one for one in mention if one.text not in known)
        cell = f"{name}{JPG}" if name and not layout.image_suffix else name
        yield _row(card, layout, row, cell, captions, DOMAINS.get(key) or _domain(entry.get("domain")), articles)


def _articles(layout: Layout, folder: Path) -> ArticleMap | None:
    if not layout.index:
        raise UserError(f"the layout {layout.name} names no index file; LLaVA-Med's annotations were expected.")
    return llava_articles(folder / layout.index[1]) if len(layout.index) > 1 else None


def _row(  # noqa: PLR0913 - what a row is made of
    card: SourceCard, layout: Layout, row: int, cell: str, captions: tuple[Caption, ...], modality: Modality,
    articles: ArticleMap | None,
) -> SourceRow | Reject:
    image = image_path(cell, layout)
    if image is None:
        return bad_path(card, row, cell)
    if not captions:
        return Reject(card.name, row, image, "it has no caption")
    name = image.rsplit("/", 1)[-1]
    number = leading_number(name)
    article = articles.get(number) if articles is not None and number is not None else None
    return SourceRow(row, image, modality, captions, anatomy=card.anatomy, view=card.view,
                     patient=patient_of(layout, image), article=article or article_of(layout, name),
                     split=layout.split, source_id=name.rsplit(".", 1)[0])


def _answer(conversations: object) -> str:
    """What the turn of "gpt" says; the second turn where none is named so."""
    turns = [turn for turn in conversations if isinstance(turn, dict)] if isinstance(conversations, list) else []
    spoken = [turn for turn in turns if turn.get("from") == "gpt"] or turns[1:2]
    return _text(spoken[0].get("value")) if spoken else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mention(mentions: object) -> str:
    first = mentions[0] if isinstance(mentions, list) and mentions else None
    tokens = first.get("tokens") if isinstance(first, dict) else None
    return " ".join(map(str, tokens)) if isinstance(tokens, list) else _text(tokens)


def _domain(domain: object) -> Modality:
    """The modality where exactly one domain is true (or named); else `mixed`."""
    if isinstance(domain, str):
        return DOMAINS.get(domain, "mixed")
    named = [name for name, here in domain.items() if here is True] if isinstance(domain, dict) else []
    return DOMAINS.get(named[0], "mixed") if len(named) == 1 else "mixed"
