"""Tables become rows: every role of a layout, both formats, and what is wrong with a row or a file."""

import csv
import gzip
import io
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from vlm.corpus.readers import read_source
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Caption, SourceCard


def card_with(modalities: Sequence[str] = ("X-ray",), **layout: Any) -> SourceCard:
    return SourceCard.model_validate({
        "name": "tables", "title": "t", "modalities": list(modalities), "access": "open", "licence": "l",
        "citation": "c", "obtain": "o", "folder": "tables", "anatomy": "chest",
        "layouts": [{"name": "published", "reader": "table", "index": ["a.csv"], **layout}],
    })


def read(folder: Path, modalities: Sequence[str] = ("X-ray",), **layout: Any) -> list[SourceRow | Reject]:
    card = card_with(modalities, **layout)
    return list(read_source(card, card.layouts[0], folder))


def write(path: Path, rows: Sequence[Mapping[str, object]], delimiter: str = ",") -> None:
    """As CSV, or as JSON lines where the name says so; compressed where it ends in .gz."""
    if ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


ALL = {"image": "file", "slice": "slice", "label": "label", "labels": "more", "caption": "caption", "report": "report",
       "patient": "who", "article": "paper", "split": "part", "modality": "device", "anatomy": "organ", "view": "view",
       "id": "key"}
FULL = {"file": "s1/1", "slice": "4", "label": "mass", "more": "edema| mass |cyst", "caption": "A mass.",
        "report": "Lungs: a mass.", "who": "case 17 of 20", "paper": "PMC12_f1", "part": "dev", "device": "MR",
        "organ": "brain", "view": "axial", "key": "k1"}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz"])
def test_every_role_is_read_alike_from_every_format(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [FULL], "\t" if name == "a.tsv" else ",")
    (row,) = read(tmp_path, index=[name], delimiter="\t" if name == "a.tsv" else ",", columns=ALL,
                  label_separator="|", image_suffix=".png", patient_pattern=r"case (\d+)", article_pattern=r"(PMC\d+)",
                  splits={"dev": "val"}, rename={"cyst": "lung cyst"}, caption_prefix="See: ")
    assert row == SourceRow(
        row=0, image="s1/1.png", modality="MRI",
        captions=(Caption(text="See: A mass.", kind="native", origin="column caption"),
                  Caption(text="See: Lungs: a mass.", kind="report", origin="column report")),
        labels=("mass", "edema", "lung cyst"), anatomy="brain", view="axial", patient="17", article="PMC12",
        split="val", source_id="k1", slice_index=4)


texts = st.text(alphabet=string.printable + "äé–", max_size=20)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_csv_and_json_lines_of_equal_content_give_equal_rows(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("equal")
    rows = [{"file": f"{number}.png", "label": label, "text": text} for number, (label, text) in enumerate(cells)]
    columns = {"image": "file", "label": "label", "caption": "text"}
    write(folder / "a.csv", rows)
    write(folder / "a.jsonl", rows)
    from_csv, from_json = (read(folder, index=[name], columns=columns) for name in ("a.csv", "a.jsonl"))
    assert from_csv == from_json
    assert [row.row for row in from_csv] == list(range(len(cells)))


def test_findings_are_present_absent_uncertain_or_unknown(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [
        {"file": "1.png", "Edema": "1.0", "Mass": "0", "Fracture": "-1", "Devices": ""},
        {"file": "2.png", "Edema": "", "Mass": "", "Fracture": "", "Devices": ""},
        {"file": "3.png", "Edema": "yes", "Mass": "", "Fracture": "", "Devices": ""},
    ])
    first, second, third = read(tmp_path, columns={"image": "file"}, findings=["Edema", "Mass", "Fracture", "Devices"],
                                rename={"Mass": "lung mass"})
    assert isinstance(first, SourceRow)
    assert (first.labels, first.absent, first.uncertain) == (("Edema",), ("lung mass",), ("Fracture",))
    assert isinstance(second, Reject) and "no label and no caption" in second.reason
    assert isinstance(third, Reject) and "Edema is 'yes'" in third.reason


def test_an_empty_caption_keeps_the_row_if_it_has_a_label(tmp_path: Path) -> None:
    said = [("mass", " "), ("", "A mass."), ("", ""), ("nan", "NaN"), ("todo", "")]
    write(tmp_path / "a.csv", [{"file": "1.png", "label": label, "caption": caption} for label, caption in said])
    rows = read(tmp_path, columns={"image": "file", "label": "label", "caption": "caption"}, rename={"todo": ""})
    assert [(row.row, type(row)) for row in rows] == [(0, SourceRow), (1, SourceRow), (2, Reject), (3, Reject)], \
        "a row whose only label the card drops is left out; one that says nothing is rejected"


@pytest.mark.parametrize("image", ["../1.png", "/etc/passwd", "a/../../b.png", "C:\\b.png", "..\\b.png"])
def test_a_path_that_leaves_the_root_is_rejected_by_name(tmp_path: Path, image: str) -> None:
    write(tmp_path / "a.csv", [{"file": image, "label": "mass"}, {"file": "1.png", "label": "mass"}])
    bad, good = read(tmp_path, columns={"image": "file", "label": "label"})
    assert isinstance(bad, Reject) and bad.image == image and "leaves" in bad.reason
    assert isinstance(good, SourceRow) and good.row == 1


def test_other_rows_are_left_out_and_do_not_move_the_rest(tmp_path: Path) -> None:
    first, second, third = ({"file": f"{number}.png", "label": "x", "kind": kind} for number, kind in enumerate("CXX"))
    write(tmp_path / "a.csv", [first, second])
    write(tmp_path / "b.csv", [third])
    rows = read(tmp_path, index=["a.csv", "b.csv"], columns={"image": "file", "label": "label"}, where={"kind": "X"})
    assert [(row.row, row.image) for row in rows] == [(1, "1.png"), (2, "2.png")]


def test_splits_are_those_of_the_card_and_another_value_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"file": f"{part}.png", "label": "x", "part": part} for part in ("1", "0", "2", "")])
    columns = {"image": "file", "label": "label", "split": "part"}
    rows = read(tmp_path, columns=columns, splits={"1": "train", "0": ""})
    assert [(row.row, getattr(row, "split", "rejected")) for row in rows] == [(0, "train"), (2, "rejected"), (3, None)]
    write(tmp_path / "b.csv", [{"file": "1.png", "label": "x", "part": part} for part in ("train", "val", "test", "x")])
    assert [getattr(row, "split", "rejected") for row in read(tmp_path, index=["b.csv"], columns=columns)] == [
        "train", "val", "test", "rejected"], "without names of its own the card means ours"
    assert all(isinstance(row, Reject) for row in read(tmp_path, index=["b.csv"], columns=columns, splits={"1": "val"}))
    assert {row.split for row in read(tmp_path, columns={"image": "file", "label": "label"}, split="test")
            if isinstance(row, SourceRow)} == {"test"}


def test_modality_is_the_columns_else_the_cards_only_one_else_mixed(tmp_path: Path) -> None:
    devices = ("US", "fundus", "", "TV")
    write(tmp_path / "a.csv", [{"file": "1.png", "label": "x", "device": device} for device in devices])
    columns = {"image": "file", "label": "label"}
    told = read(tmp_path, ("CT", "MRI"), columns={**columns, "modality": "device"})
    assert [getattr(row, "modality", "rejected") for row in told] == ["Ultrasound", "Fundus", "mixed", "rejected"]
    assert {row.modality for row in read(tmp_path, ("CT",), columns=columns) if isinstance(row, SourceRow)} == {"CT"}


def test_a_row_of_another_width_is_rejected_but_trailing_delimiters_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\n1.png,x,,\n2.png\n3.png,x,y\n4.png,x\n", encoding="utf-8")
    rows = read(tmp_path, columns={"image": "file", "label": "label"})
    assert [type(row) for row in rows] == [SourceRow, Reject, Reject, SourceRow]
    assert [row.row for row in rows] == [0, 1, 2, 3]


def test_lines_that_are_no_json_are_rejected_and_lists_are_lists(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"file": "1.png", "tags": ["mass", "edema"], "texts": ["One.", "", "Two."]}\n{broken\n'
        '{"file": "2.png", "texts": null, "tags": []}\n\n{"file": "3.png", "tags": ["mass"]}\n', encoding="utf-8")
    rows = read(tmp_path, index=["a.jsonl"], columns={"image": "file", "labels": "tags", "captions": "texts"})
    assert [type(row) for row in rows] == [SourceRow, Reject, Reject, SourceRow]
    assert isinstance(rows[0], SourceRow)
    assert rows[0].labels == ("mass", "edema") and [caption.text for caption in rows[0].captions] == ["One.", "Two."]


def test_reports_may_be_files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "1.txt").write_text(" Clear lungs.\n", encoding="utf-8")
    (tmp_path / "texts" / "2.txt").write_bytes("café".encode("latin-1"))
    names = ("1.txt", "2.txt", "../a.csv", "9.txt")
    write(tmp_path / "a.csv", [{"file": "1.png", "label": "x", "text": name} for name in names])
    rows = read(tmp_path, columns={"image": "file", "label": "label", "report": "text"}, text_root="texts")
    assert [type(row) for row in rows] == [SourceRow, Reject, Reject, SourceRow]
    assert isinstance(rows[0], SourceRow) and isinstance(rows[3], SourceRow)
    assert [caption.text for caption in rows[0].captions] == ["Clear lungs."] and rows[3].captions == ()


def test_columns_may_be_named_by_position(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"x": "1.png", "y": "mass"}])
    assert [row.image for row in read(tmp_path, columns={"image": 0, "label": 1})] == ["1.png"]


def test_what_concerns_the_whole_file_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"path": "1.png", "label": "x"}])
    with pytest.raises(UserError, match=r"no column file, text.*\n.*path, label"):
        read(tmp_path, columns={"image": "file", "label": "label", "caption": "text"})
    write(tmp_path / "a.csv", [{"file": "1.png", "label": "x"}], ";")
    with pytest.raises(UserError, match="separated by a semicolon, not by a comma"):
        read(tmp_path, columns={"image": "file", "label": "label"})
    write(tmp_path / "a.jsonl", [{"path": "1.png"}])
    with pytest.raises(UserError, match=r"no key file in its first 1 lines.*\n.*path"):
        read(tmp_path, index=["a.jsonl"], columns={"image": "file"})
    (tmp_path / "list.json").write_text('[{"file": "1.png"}]', encoding="utf-8")
    with pytest.raises(UserError, match="one JSON object per line"):
        read(tmp_path, index=["list.json"], columns={"image": "file"})
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read(tmp_path, columns={"image": "file"})
    with pytest.raises(UserError, match="knows no role sex"):
        read(tmp_path, columns={"image": "file", "sex": "sex"})


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    """The first row is there before the file's end is read: a byte that is not UTF-8 lies far behind it."""
    (tmp_path / "a.csv").write_bytes(b"file,label\n" + b"1.png,mass\n" * 100_000 + b"2.png,\xff\n")
    card = card_with(columns={"image": "file", "label": "label"})
    rows = read_source(card, card.layouts[0], tmp_path)
    assert isinstance(next(rows), SourceRow)
    with pytest.raises(UserError, match="line 100002"):
        list(rows)
