"""Fixtures of UniMed's 13 parts: small, with the file names, columns and paths of the sources; sentences invented."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from autoseg.records import parse_toml
from vlm.corpus.readers import read_source
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, SourceCard

CARDS = Path(__file__).parents[1] / "presets" / "vlm" / "sources"
CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]
DICOM = "02aa804e-bde0afdd-112c0b34-7bc16630-4e38401"
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // evaluate

 FINDINGS:

 The lungs are clear.  There is no effusion.
 Size: the heart is normal.

 IMPRESSION:

 No acute process.
"""


def cards() -> dict[str, SourceCard]:
    return {path.stem: parse_toml(SourceCard, path.read_text(encoding="utf-8"), path)
            for path in sorted(CARDS.glob("*.toml"))}


def layout_of(card: SourceCard, name: str) -> Layout:
    return next(layout for layout in card.layouts if layout.name == name)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())  # no two pictures of a source look alike
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    large = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    large.save(path, "PNG" if path.suffix == ".png" else "JPEG")


def table(path: Path, header: Sequence[str], *rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def lists(path: Path, *rows: Sequence[object]) -> None:
    """A prepared table of UniMed: lists written into cells, a header nobody has published."""
    width = max(len(row) for row in rows)
    table(path, [f"column {at}" for at in range(width)], *[[str(cell) for cell in row] for row in rows])


SAID = ["A frontal view in which the heart is large", "The film shows an enlarged heart."]


def chexpert_published(root: Path) -> None:
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]
    base = "CheXpert-v1.0-small/train/patient00001/study1"
    table(root / "train.csv", header,
          [f"{base}/view1_frontal.jpg", "Female", 68, "Frontal", "AP", "", "", "1.0", "-1.0", *[""] * 5, "0.0",
           *[""] * 3, "1.0"],
          [f"{base}/view2_lateral.jpg", "Female", 68, "Lateral", "", "1.0", *[""] * 13])
    picture(root / "train/patient00001/study1/view1_frontal.jpg")


def chexpert_unimed(root: Path) -> None:
    image = "train/patient00002/study3/view1_frontal.jpg"
    lists(root / "chexpert_with_captions_only_frontal_view.csv", (["CheXpert-v1.0-small/" + image], ["Edema"], SAID))
    picture(root / image)


def nih_published(root: Path) -> None:
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
              "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", ""]
    table(root / "Data_Entry_2017.csv", header,
          ["00000001_001.png", "Cardiomegaly|Emphysema", 1, 1, 58, "M", "PA", 2894, 2729, 0.143, 0.143, ""],
          ["00000002_000.png", "No Finding", 0, 2, 81, "M", "PA", 2500, 2048, 0.171, 0.171, ""])
    for name in ("00000001_001.png", "00000002_000.png"):
        picture(root / "images" / name)


def nih_unimed(root: Path) -> None:
    lists(root / "Chest-Xray8_with_captions.csv", (["00000001_001.png"], ["Cardiomegaly"], SAID))
    picture(root / "images/00000001_001.png")


def radimagenet_published(root: Path) -> None:
    names = ["radiology_ai/CT/abd/normal/0001.png", "radiology_ai/MR/knee/acl_tear/0002.png",
             "radiology_ai/US/gallbladder/0003.png"]
    table(root / "RadiologyAI_train.csv", ["filename", "label"], *[[name, "a_label"] for name in names])
    for name in names:
        picture(root / name)


def radimagenet_unimed(root: Path) -> None:
    lists(root / "radiology_ai/radimagenet_with_captions_training_set.csv",
          (["radiology_ai/US/gallbladder/0003.png"], ["gallbladder"], SAID))
    picture(root / "radiology_ai/US/gallbladder/0003.png")


def mimic_unimed(root: Path) -> None:
    base = "p10/p10000032/s50414267/"
    lists(root / "2.0.0/files/mimic_cxr_with_captions_and_reports_only_frontal_view.csv",
          ([base + "a.jpg"], ["Edema"], SAID, "The lungs are wet."), (["files/" + base + "b.jpg"], [], SAID, "nan"),
          ([base + "c.jpg"], [], SAID, ""))
    for name in "abc":
        picture(root / "2.0.0/files" / base / f"{name}.jpg")


def mimic_published(root: Path) -> None:
    table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *CHEXPERT],
          [10000032, 50414267, "", "", "1.0", "-1.0", *[""] * 5, "0.0", *[""] * 4])
    header = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    table(root / "mimic-cxr-2.0.0-metadata.csv.gz", header,
          [DICOM + "4", 10000032, 50414267, "CHEST (PA AND LAT)", "PA", 3056],
          [DICOM + "5", 10000032, 50414267, "CHEST (PA AND LAT)", "LATERAL", 3056],
          [DICOM + "6", 10000764, 57375967, "CHEST (PORTABLE AP)", "AP", 3056])
    table(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"],
          [DICOM + "4", 50414267, 10000032, "train"], [DICOM + "6", 57375967, 10000764, "validate"])
    write(root / "files/p10/p10000032/s50414267.txt", REPORT)
    write(root / "files/p10/p10000764/s57375967.txt", REPORT.replace("clear", "hyperinflated"))
    picture(root / f"files/p10/p10000032/s50414267/{DICOM}4.jpg")
    picture(root / f"files/p10/p10000764/s57375967/{DICOM}6.jpg")


def openi_unimed(root: Path) -> None:
    write(root / "filter_cap.json", {"annotations": [{"image_id": "CXR1_1_IM-0001-3001", "caption": "Heart normal."},
                                                     {"image_id": "CXR2_IM-0652-1001", "caption": "Lungs are clear."}]})
    write(root / "openai_refined_concepts.json", {"refined_captions": [
        ["The heart is of normal size.", "No enlarged heart.", "Normal heart."], ["Clear lungs.", "Clear lungs.", ""]]})
    for name in ("CXR1_1_IM-0001-3001", "CXR2_IM-0652-1001"):
        picture(root / f"image/{name}.png")


def openi_xml(number: int, *images: str, findings: str = "The lungs are clear.", impression: str = "Normal.") -> str:
    parents = "".join(f'<parentImage id="{name}"><figureId>F1</figureId><caption>PA</caption></parentImage>'
                      for name in images)
    return (f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><MedlineCitation><Article>'
            '<Abstract><AbstractText Label="COMPARISON">None.</AbstractText>'
            '<AbstractText Label="INDICATION">Cough</AbstractText>'
            f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
            f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract></Article></MedlineCitation>'
            f"<MeSH><major>normal</major></MeSH>{parents}</eCitation>")


def openi_published(root: Path) -> None:
    write(root / "ecgen-radiology/10.xml", openi_xml(10, "CXR10_IM-0002-1001", "CXR10_IM-0002-2001"))
    write(root / "ecgen-radiology/2.xml", openi_xml(2, "CXR2_IM-0652-1001"))
    for name in ("CXR10_IM-0002-1001", "CXR10_IM-0002-2001", "CXR2_IM-0652-1001"):
        picture(root / f"image/{name}.png")


def pmc_published(root: Path) -> None:
    name = "PMC212319_Fig3_4.jpg"
    write(root / "pmc_oa.jsonl", json.dumps({"image": name, "caption": "A. Invented cells under a microscope.",
                                             "alignment_type": "paired", "alignment_scores": [0.9, 1.1]}) + "\n")
    picture(root / "caption_T060_filtered_top4_sep_v0_subfigures" / name)


def roco_published(root: Path) -> None:
    for split in ("train", "valid", "test"):
        table(root / f"{split}_captions.csv", ["ID", "Caption"], [f"ROCOv2_2023_{split}_000001", f"A CT, {split}."])
        picture(root / f"{split}/ROCOv2_2023_{split}_000001.jpg")
    table(root / "license_information.csv", ["ID", "PMCID", "Attribution", "Link"],
          ["ROCOv2_2023_train_000001", "PMC212319", "CC BY [somebody]", "a link"],
          ["ROCOv2_2023_test_000001", "PMC4", "CC BY [somebody]", "a link"])


def roco_unimed(root: Path) -> None:
    table(root / "train_captions.csv", ["ID", "Caption"], ["ROCOv2_2023_train_000001", "A CT of the head."])
    picture(root / "train/ROCOv2_2023_train_000001.jpg")


URL = {"pair_id": "28104940_F2", "pmc_tar_url": "https://example.org/oa_package/b8/2b/PMC5201076.tar.gz",
       "image_file_path": "PMC5201076/IJRI-26-469-g002.jpg"}


def alignment(root: Path) -> None:
    domain = dict.fromkeys(("chest_xray", "mri", "histology", "gross"), False)
    write(root / "llava_med_alignment_500k_filtered.json", [
        {"id": "28104940_F2", "image": "28104940_F2.jpg", "domain": {**domain, "ct_scan": True}, "conversations": [
            {"from": "human", "value": "<image>\nWhat is seen?"}, {"from": "gpt", "value": "A CT of the head."}]},
        {"id": "1_F1", "image": "1_F1.jpg", "domain": {**domain, "mri": True, "ct_scan": True}, "conversations": [
            {"from": "human", "value": "What is seen?"}, {"from": "gpt", "value": "Two images of the head."}]}])
    write(root / "llava_med_image_urls.jsonl", json.dumps(URL) + "\n")
    picture(root / "images/28104940_F2.jpg")
    picture(root / "images/1_F1.jpg")


def instruct(root: Path) -> None:
    write(root / "llava_med_instruct_fig_captions.json", {
        "chest_xray": [{"pair_id": "1_F1", "pmid": "1", "fig_caption": "A radiograph.", "in_text_mention": []}],
        "mri": [{"pair_id": "28104940_F2", "pmid": "28104940", "fig_caption": "An MRI of the knee.",
                 "in_text_mention": [{"tokens": "Figure 2 shows the knee .", "entities": []}, {"tokens": "Again."}]}]})
    write(root / "llava_med_image_urls.jsonl", json.dumps(URL) + "\n")
    picture(root / "images/28104940_F2.jpg")
    picture(root / "images/1_F1.jpg")


def quilt(root: Path) -> None:
    header = ["", "caption", "image_path", "subset", "split", "pathology", "roi_text", "noisy_text", "corrected_text",
              "med_umls_ids", "magnification", "height", "width"]
    table(root / "quilt_1M_lookup.csv", header,
          [0, "Nuclei, drawn by nobody.", "abc_image_1.jpg", "quilt", "train", *[""] * 6, 8, 8])
    picture(root / "quilt_1m/abc_image_1.jpg")


def retina(root: Path) -> None:
    image = "03_IDRID/B. Disease Grading/1. Original Images/a. Training Set/IDRiD_001.jpg"
    table(root / "Retina-Annotations/03_IDRID_revised.csv", ["filename", "captions", "sentence_level_captions"],
          [image, str([f"A fundus image, told the {number}. time." for number in range(10)]), "All in one sentence."])
    picture(root / image)


def den(root: Path) -> None:
    table(root / "Retina-Annotations/06_DEN.csv", ["", "image", "atributes", "categories"],
          [0, "06_DEN/train_set/a.jpg", "[]", "['drusen', '28-year-old man', 'Drusen at the macula', '//OD 1999']"],
          [1, "06_DEN/train_set/b.jpg", "[]", "['45 year old woman']"])
    picture(root / "06_DEN/train_set/a.jpg")


def mm_retinal(root: Path) -> None:
    table(root / "Retina-Annotations/39_MM_Retinal_dataset.csv", ["", "image", "caption"],
          [0, "39_MM_Retinal_dataset/a.png", "A disc that somebody has drawn."])
    picture(root / "39_MM_Retinal_dataset/a.png")


CASES: list[tuple[str, str, Callable[[Path], None], int]] = [
    ("radimagenet", "published", radimagenet_published, 3), ("radimagenet", "unimed", radimagenet_unimed, 1),
    ("chexpert", "published", chexpert_published, 1), ("chexpert", "unimed", chexpert_unimed, 1),
    ("openi", "published", openi_published, 3), ("openi", "unimed", openi_unimed, 2),
    ("chest_xray8", "published", nih_published, 2), ("chest_xray8", "unimed", nih_unimed, 1),
    ("mimic_cxr", "published", mimic_published, 2), ("mimic_cxr", "unimed", mimic_unimed, 3),
    ("roco", "published", roco_published, 3), ("roco", "unimed", roco_unimed, 1),
    ("pmc_oa", "published", pmc_published, 1), ("llava_med_alignment", "unimed_with_articles", alignment, 2),
    ("llava_med_alignment", "unimed", alignment, 2), ("llava_med_instruct", "published_with_articles", instruct, 2),
    ("llava_med_instruct", "published", instruct, 2), ("quilt", "published", quilt, 1),
    ("idrid", "unimed", retina, 1), ("deepeyenet", "unimed", den, 1), ("mm_retinal", "unimed", mm_retinal, 1),
]


def rows_of(source: str, layout: str, make: Callable[[Path], None], root: Path) -> list[SourceRow | Reject]:
    make(root)
    card = cards()[source]
    return list(read_source(card, layout_of(card, layout), root))


def sound(rows: Sequence[SourceRow | Reject]) -> list[SourceRow]:
    return [row for row in rows if isinstance(row, SourceRow)]
