"""Indiana University's chest X-rays (Open-i): UniMed's two JSON files, and the collection's own XML reports."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from autoseg.errors import UserError
from autoseg.records import read_json
from vlm.corpus.readers.markers import captions_of, tidy
from vlm.corpus.readers.places import bad_path, image_path, modality_of, patient_of
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Caption, CaptionKind, Layout, SourceCard

SECTIONS = ("FINDINGS", "IMPRESSION")
"""What a radiologist saw and concluded; comparison and indication tell of other images and of the patient."""

LARGEST_REPORT = 1 << 20
"""Bytes. A report of the collection has some thousand."""


def read_openi(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """`annotations` of the first index file (image_id, caption), with the second's `refined_captions` by position.

    Both files are small (7 thousand images) and held in memory.
    UserError: a file is absent or not JSON, a key is missing, or the two lists have different lengths, in which case
    captions would belong to other images.
    """
    if len(layout.index) != 2:  # noqa: PLR2004
        raise UserError(f"the layout {layout.name} names {len(layout.index)} files; two were expected: the annotations "
                        "and the refined captions.")
    first, second = (folder / index for index in layout.index)
    annotations, refined = _list_at(first, "annotations"), _list_at(second, "refined_captions")
    if len(annotations) != len(refined):
        raise UserError(
            f"{first} has {len(annotations)} annotations and {second} has {len(refined)} refined captions; they belong "
            "together by position, so as many were expected.\nGet both files from one place again."
        )
    for row, (annotation, texts) in enumerate(zip(annotations, refined, strict=True)):
        yield _json_row(card, layout, row, annotation, texts)


def read_openi_xml(card: SourceCard, layout: Layout, folder: Path) -> Iterator[SourceRow | Reject]:
    """One row per image that a report names (parentImage); its findings and impression are the caption.

    layout.text_root : folder of the reports, one .xml each, read in the order of their numbers. Entities are refused,
    so no report can name another file. UserError: the folder has no report.
    """
    root = folder / (layout.text_root or ".")
    files = sorted(root.rglob("*.xml"), key=lambda path: (len(path.name), path.as_posix()))
    if not files:
        raise UserError(f"{root} has no .xml report; the folder of Open-i's reports (ecgen-radiology) was expected.")
    row = 0
    for path in files:
        for found in _report_rows(card, layout, row, path):
            yield found
            row += 1


def _list_at(path: Path, key: str) -> list[object]:
    content = read_json(path)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        keys = ", ".join(sorted(content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: a list {key!r} was expected; the file has {keys or 'nothing'}.")
    return found


def _json_row(card: SourceCard, layout: Layout, row: int, annotation: object, texts: object) -> SourceRow | Reject:
    if not isinstance(annotation, dict) or not isinstance(texts, list):
        return Reject(card.name, row, "", "the annotation is not an object, or its refined captions are no list")
    cell = str(annotation.get("image_id") or "")
    image = image_path(cell, layout)
    if image is None:
        return bad_path(card, row, cell)
    said: list[tuple[str, CaptionKind]] = [(text, "refined") for text in texts if isinstance(text, str)]
    told = annotation.get("caption")
    captions = captions_of([(told if isinstance(told, str) else "", "report")], "annotations caption")
    known = {caption.text for caption in captions}
    captions += tuple(one for one in captions_of(said, "refined_captions") if one.text not in known)
    if not captions:
        return Reject(card.name, row, image, "it has no caption")
    return _row(card, layout, row, image, captions)


def _report_rows(card: SourceCard, layout: Layout, row: int, path: Path) -> list[SourceRow | Reject]:
    """The rows of one report; a single reject where it cannot be read, says nothing, or names no image."""
    try:
        report = _parsed(path)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        return [Reject(card.name, row, path.name, f"the report cannot be read: {error}")]
    sections = {str(node.get("Label")).upper(): tidy("".join(node.itertext())) for node in report.iter("AbstractText")}
    text = " ".join(sections[name] for name in SECTIONS if sections.get(name))
    images = [str(node.get("id") or "") for node in report.iter("parentImage")]
    captions = captions_of([(text, "report")], "report findings and impression")
    if not images:
        return [Reject(card.name, row, path.name, "the report names no image")]
    found: list[SourceRow | Reject] = []
    for at, cell in enumerate(images, start=row):
        image = image_path(cell, layout)
        if image is None:
            found.append(bad_path(card, at, cell))
        elif not captions:
            found.append(Reject(card.name, at, image, "the report has neither findings nor an impression"))
        else:
            found.append(_row(card, layout, at, image, captions))
    return found


def _parsed(path: Path) -> ElementTree.Element:
    content = path.read_bytes()
    if len(content) > LARGEST_REPORT:
        raise ValueError(f"it has {len(content)} bytes; at most {LARGEST_REPORT} are read")
    text = content.decode("utf-8-sig")
    if "<!ENTITY" in text:
        raise ValueError("it declares entities, which no report does")
    return ElementTree.fromstring(text.encode())  # bytes: a str must not declare its encoding


def _row(card: SourceCard, layout: Layout, row: int, image: str, captions: tuple[Caption, ...]) -> SourceRow:
    return SourceRow(row, image, modality_of(card, image), captions, anatomy=card.anatomy, view=card.view,
                     patient=patient_of(layout, image), split=layout.split, source_id=image.rsplit("/", 1)[-1])
