"""Each of UniMed's 13 parts, in the layout in which it is published: every row is read, with what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from corpus_published_layouts import (
    CASES,
    CHEXPERT,
    SAID,
    cards,
    chexpert_published,
    layout_of,
    lists,
    mimic_published,
    mimic_unimed,
    nih_published,
    openi_published,
    openi_unimed,
    openi_xml,
    radimagenet_published,
    rows_of,
    sound,
    table,
    write,
)

from autoseg.errors import UserError
from vlm.corpus.evaluation_sets import load_evaluation_cards
from vlm.corpus.readers import READERS, read_source
from vlm.corpus.readers.mimic import report_text
from vlm.corpus.readers.openi import read_openi_xml
from vlm.corpus.registry import choose_layout
from vlm.corpus.rows import Reject, SourceRow

PARTS = {
    "radimagenet_webdataset", "chexpert_webdataset", "openi_webdataset", "chest_xray8_webdataset", "mimic_cxr",
    "roco_webdataset", "pmc_clip_webdataset", "llava_med_alignment_set_webdataset", "llava_med_hq_60k_set_webdataset",
    "quilt_webdataset", "retina_part1_webdataset", "retina_part2_webdataset", "retina_part3_webdataset",
}


def named(value: object) -> str:
    """The same in every process: a function's own name, not its address."""
    return str(getattr(value, "__name__", value))[:30]


@pytest.mark.parametrize(("source", "layout", "make", "count"), CASES, ids=named)
def test_a_published_layout_is_read_completely(
    source: str, layout: str, make: Callable[[Path], None], count: int, tmp_path: Path
) -> None:
    card = cards()[source]
    rows = sound(rows_of(source, layout, make, tmp_path))

    root = tmp_path / layout_of(card, layout).image_root
    assert [row.image for row in rows if not (root / row.image).is_file()] == []
    assert len(rows) == count == len({row.row for row in rows})
    assert [row.image for row in rows if not (row.captions or row.labels or row.absent)] == []
    assert {row.modality for row in rows} <= {*card.modalities, "mixed"}
    assert choose_layout(card, tmp_path).name == layout or "articles" in choose_layout(card, tmp_path).name


def test_the_cases_are_all_thirteen_parts() -> None:
    loaded = cards()

    assert {loaded[source].part for source, *_ in CASES} == PARTS


def test_every_part_has_a_card_and_shards_of_it_can_be_read() -> None:
    of_unimed = [card for card in cards().values() if card.part is not None]
    assert [name for name, card in cards().items() if card.name != name] == []

    assert {card.part for card in of_unimed} == PARTS
    with_shards = [card for card in of_unimed if "shards" in {layout.name for layout in card.layouts}]
    assert {card.part for card in with_shards} == PARTS
    assert sum(card.pairs_expected or 0 for card in of_unimed) == 5_282_000


def test_cards_name_known_readers_and_evaluation_sets() -> None:
    known = set(load_evaluation_cards())
    named = {overlap.evaluation for card in cards().values() if card.part for overlap in card.overlaps}

    assert named <= known
    assert {layout.reader for card in cards().values() for layout in card.layouts} <= set(READERS)


def test_chexpert_tells_uncertain_and_absent_and_the_patient(tmp_path: Path) -> None:
    [row] = sound(rows_of("chexpert", "published", chexpert_published, tmp_path))

    assert (row.labels, row.uncertain, row.absent) == (
        ("Cardiomegaly", "Support Devices"), ("Lung Opacity",), ("Pneumothorax",))
    assert (row.patient, row.row, row.view) == ("patient00001", 0, "frontal")


def test_nih_splits_findings_and_knows_patients(tmp_path: Path) -> None:
    first, second = sound(rows_of("chest_xray8", "published", nih_published, tmp_path))

    assert first.labels == ("Cardiomegaly", "Emphysema")
    assert second.labels in (("No Finding",), ("normal",))
    assert (first.patient, second.patient) == ("1", "2")


def test_radimagenet_knows_modality_and_anatomy_from_the_path(tmp_path: Path) -> None:
    rows = sound(rows_of("radimagenet", "published", radimagenet_published, tmp_path))

    assert [(row.modality, row.anatomy) for row in rows] == [
        ("CT", "abdomen and pelvis"), ("MRI", "knee"), ("Ultrasound", None)]


def test_prepared_list_gives_labels_captions_and_report(tmp_path: Path) -> None:
    wet, none, empty = sound(rows_of("mimic_cxr", "unimed", mimic_unimed, tmp_path))

    assert [caption.kind for caption in wet.captions] == ["template", "template", "report"]
    assert wet.labels == ("Edema",) and wet.patient == "10000032"
    assert [caption.text for caption in none.captions] == SAID == [caption.text for caption in empty.captions]
    assert none.image == "p10/p10000032/s50414267/b.jpg"


def test_mimic_joins_labels_reports_and_split(tmp_path: Path) -> None:
    first, second = sound(rows_of("mimic_cxr", "published", mimic_published, tmp_path))

    assert (first.labels, first.uncertain, first.absent) == (("Cardiomegaly",), ("Lung Opacity",), ("Pneumothorax",))
    assert (first.split, second.split) == ("train", "val")
    assert (first.row, second.row) == (0, 2)
    assert [caption.text for caption in first.captions] == [
        "The lungs are clear. There is no effusion. Size: the heart is normal. No acute process."]
    assert first.captions[0].kind == "report" and "hyperinflated" in second.captions[0].text
    assert second.labels == second.absent == ()


def test_mimic_study_without_report_keeps_its_labels(tmp_path: Path) -> None:
    mimic_published(tmp_path)
    for path in tmp_path.glob("files/p10/*/*.txt"):
        path.unlink()
    card = cards()["mimic_cxr"]

    first, second = read_source(card, layout_of(card, "published"), tmp_path)

    assert isinstance(first, SourceRow) and first.labels == ("Cardiomegaly",) and first.captions == ()
    assert isinstance(second, Reject) and "neither labels nor a report" in second.reason


def test_mimic_rows_and_reports_that_cannot_be_right_are_named(tmp_path: Path) -> None:
    mimic_published(tmp_path)
    table(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", ["dicom_id", "subject_id", "study_id", "ViewPosition"],
          ["../../x", 10000032, 50414267, "PA"], ["a", "²", 50414267, "PA"], ["b", 10000032, "9" * 40, "AP"], ["c"],
          ["d", 10000032, 50414267, "AP"])
    (tmp_path / "files/p10/p10000032/s50414267.txt").write_bytes(b"FINDINGS: caf\xe9")
    card = cards()["mimic_cxr"]

    rows = list(read_source(card, layout_of(card, "published"), tmp_path))

    assert [row.row for row in rows if isinstance(row, Reject)] == [0, 1, 2, 3, 4]
    assert isinstance(rows[-1], Reject) and "UTF-8" in rows[-1].reason


@pytest.mark.parametrize(("text", "expected"), [
    (" FINDINGS AND IMPRESSION:\n One line.\n", "One line."), ("IMPRESSION: Same.\n FINDINGS: Same.", "Same."),
    (" INDICATION: Cough.\n TECHNIQUE: PA.", ""), ("", ""), (" CONCLUSION: Worse.\n NOTIFICATION: Phoned.", "Worse."),
])
def test_report_sections(text: str, expected: str) -> None:
    assert report_text(text) == expected


def test_openi_original_and_refined(tmp_path: Path) -> None:
    first, second = sound(rows_of("openi", "unimed", openi_unimed, tmp_path))

    assert [caption.kind for caption in first.captions] == ["report", "refined", "refined", "refined"]
    assert [caption.text for caption in second.captions] == ["Lungs are clear.", "Clear lungs."]
    assert first.patient == "CXR1"


def test_an_openi_caption_that_is_no_text_is_none(tmp_path: Path) -> None:
    openi_unimed(tmp_path)
    write(tmp_path / "filter_cap.json", {"annotations": [{"image_id": "a", "caption": {"text": "An object."}}, 3]})
    card = cards()["openi"]

    row, reject = read_source(card, layout_of(card, "unimed"), tmp_path)

    assert isinstance(row, SourceRow) and {caption.kind for caption in row.captions} == {"refined"}
    assert isinstance(reject, Reject)


def test_openi_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    openi_unimed(tmp_path)
    write(tmp_path / "openai_refined_concepts.json", {"refined_captions": [["One."]]})
    card = cards()["openi"]

    with pytest.raises(UserError, match=r"2 annotations .* 1 refined"):
        list(read_source(card, layout_of(card, "unimed"), tmp_path))
    write(tmp_path / "openai_refined_concepts.json", {"captions": []})
    with pytest.raises(UserError, match=r"'refined_captions' was expected; the file has captions"):
        list(read_source(card, layout_of(card, "unimed"), tmp_path))


def test_openi_reports_are_read_by_number_and_shared_by_their_images(tmp_path: Path) -> None:
    rows = sound(rows_of("openi", "published", openi_published, tmp_path))

    assert [row.image for row in rows] == [
        "CXR2_IM-0652-1001.png", "CXR10_IM-0002-1001.png", "CXR10_IM-0002-2001.png"]
    assert {row.captions[0].text for row in rows} == {"The lungs are clear. Normal."}
    assert rows[1].patient == rows[2].patient == "CXR10"


def test_openi_reports_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of this machine")
    folder = tmp_path / "ecgen-radiology"
    write(folder / "1.xml", "<eCitation><broken>")
    write(folder / "2.xml", openi_xml(2))
    write(folder / "3.xml", openi_xml(3, "CXR3_a", findings="", impression=""))
    write(folder / "4.xml", f'<!DOCTYPE x [<!ENTITY s SYSTEM "file://{secret}">]>' + openi_xml(
        4, "CXR4_a", findings="&s;").split("?>")[1])
    write(folder / "5.xml", openi_xml(5, "CXR5_a"))
    write(folder / "6.xml", openi_xml(6, "../../etc/passwd"))
    card = cards()["openi"]

    rows = list(read_source(card, layout_of(card, "published"), tmp_path))

    reasons = [row.reason for row in rows if isinstance(row, Reject)]
    assert [row.image for row in sound(rows)] == ["CXR5_a.png"]
    expected = ("cannot be read", "names no image", "neither", "entities", "leaves")
    for told, reason in zip(expected, reasons, strict=True):
        assert told in reason
    assert "secret of" not in str(rows)
    with pytest.raises(UserError, match=r"no \.xml report"):
        list(read_openi_xml(card, layout_of(card, "published"), tmp_path / "elsewhere"))


@pytest.mark.parametrize("cell", [
    "__import__('os').system('true')", "[1, [2]]", "[" * 500, "['a'", "[" + "'a'," * 90000, "[True]",
])
def test_a_cell_that_is_no_list_is_rejected_not_run(cell: str, tmp_path: Path) -> None:
    lists(tmp_path / "Chest-Xray8_with_captions.csv", (["00000001_001.png"], ["Edema"], SAID),
          (["00000001_002.png"], cell if cell.startswith("[") else "[" + cell + "]", SAID))
    card = cards()["chest_xray8"]

    first, second = read_source(card, layout_of(card, "unimed"), tmp_path)

    assert isinstance(first, SourceRow) and isinstance(second, Reject)


def test_prepared_table_without_header_or_column(tmp_path: Path) -> None:
    path = tmp_path / "Chest-Xray8_with_captions.csv"
    card = cards()["chest_xray8"]
    table(path, ["['00000001_001.png']", "['Edema']", "['One sentence.']"], ["['00000001_002.png']", "['Edema']"])

    first, second = read_source(card, layout_of(card, "unimed"), tmp_path)

    assert isinstance(first, SourceRow) and first.image == "00000001_001.png"
    assert isinstance(second, Reject) and "2 columns" in second.reason
    table(path, ["image", "label"], ["['00000001_002.png']", "['Edema']"])
    with pytest.raises(UserError, match=r"2 columns \(image, label\)"):
        list(read_source(card, layout_of(card, "unimed"), tmp_path))


@pytest.mark.parametrize(("source", "layout", "make", "count"), CASES, ids=named)
def test_a_missing_index_is_refused_by_name(
    source: str, layout: str, make: Callable[[Path], None], count: int, tmp_path: Path
) -> None:
    card = cards()[source]
    chosen = layout_of(card, layout)
    make(tmp_path)
    names = chosen.index or tuple(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.xml"))
    for name in names:
        (tmp_path / name).unlink()

    with pytest.raises(UserError) as refused:
        list(read_source(card, chosen, tmp_path))

    assert any(Path(name).name in str(refused.value) for name in names) or not chosen.index


@pytest.mark.parametrize(("source", "layout", "file", "columns", "lacks"), [
    ("idrid", "unimed", "Retina-Annotations/03_IDRID_revised.csv", "filename,caption", "captions, sentence_level"),
    ("deepeyenet", "unimed", "Retina-Annotations/06_DEN.csv", "image,categories,attributes", "atributes"),
    ("roco", "published", "license_information.csv", "ID,License", "PMCID"),
    ("mimic_cxr", "published", "mimic-cxr-2.0.0-metadata.csv.gz", "dicom_id,subject_id,study_id,View", "ViewPosition"),
    ("mimic_cxr", "published", "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,split", "subject_id"),
    ("quilt", "published", "quilt_1M_lookup.csv", ",caption,image", "image_path"),
])
def test_a_missing_column_is_told_with_those_that_exist(
    source: str, layout: str, file: str, columns: str, lacks: str, tmp_path: Path
) -> None:
    make = next(make for name, chosen, make, _ in CASES if (name, chosen) == (source, layout))
    make(tmp_path)
    table(tmp_path / file, columns.split(","), ["1"] * len(columns.split(",")))
    card = cards()[source]

    with pytest.raises(UserError) as refused:
        list(read_source(card, layout_of(card, layout), tmp_path))

    assert lacks in str(refused.value) and columns.replace(",", ", ") in str(refused.value)


@pytest.mark.parametrize(("file", "row", "told"), [
    ("mimic-cxr-2.0.0-chexpert.csv.gz", [1, "s5", *["2"] * 14], "'s5' is no number"),
    ("mimic-cxr-2.0.0-chexpert.csv.gz", [1, 5, "2.0", *[""] * 13], "'2.0' is not a label"),
    ("mimic-cxr-2.0.0-split.csv.gz", ["a", 5, 1, "holdout"], "'holdout' is not known"),
])
def test_values_of_mimic_that_cannot_be_right_are_refused(
    file: str, row: list[object], told: str, tmp_path: Path
) -> None:
    mimic_published(tmp_path)
    split = ["dicom_id", "study_id", "subject_id", "split"]
    table(tmp_path / file, split if "split" in file else ["subject_id", "study_id", *CHEXPERT], row)
    card = cards()["mimic_cxr"]

    with pytest.raises(UserError, match=told):
        list(read_source(card, layout_of(card, "published"), tmp_path))
