"""Each open set's card reads a file that lies and is named as the set's own files are."""

from pathlib import Path

import pytest

from vlm.corpus.readers import read_source
from vlm.corpus.readers.opening import first_group
from vlm.corpus.registry import choose_layout, load_cards
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import SourceCard

FOLDERS: dict[str, dict[str, tuple[str, str | None, str | None]]] = {
    "kermany_cxr": {
        "chest_xray/train/NORMAL/NORMAL2-IM-0439-0001.jpeg": ("normal", "train/NORMAL/NORMAL2-IM-0439", "train"),
        "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg": ("viral pneumonia", "test/PNEUMONIA/person1", "test"),
        "chest_xray/val/PNEUMONIA/person9_bacteria_1.jpeg": ("bacterial pneumonia", "val/PNEUMONIA/person9", "val"),
    },
    "brain_tumor_mri": {
        "Training/notumor/Tr-no_0010.jpg": ("no tumor", None, "train"),
        "Testing/pituitary/Te-pi_0010.jpg": ("pituitary tumor", None, "test"),
        "Testing/glioma/Te-gl_0010.jpg": ("glioma", None, "test"),
    },
    "busi": {f"Dataset_BUSI_with_GT/{name}/{name} (1).png": (label, None, None)
             for name, label in (("benign", "benign breast tumor"), ("malignant", "malignant breast tumor"),
                                 ("normal", "normal breast tissue"))},
    "lc25000": {
        "lung_colon_image_set/lung_image_sets/lung_scc/lungscc1.jpeg": ("lung squamous cell carcinoma", None, "train"),
        "lung_colon_image_set/colon_image_sets/colon_n/colonn1.jpeg": ("benign colonic tissue", None, "train"),
    },
    "iq_oth_nccd": {f"The IQ-OTHNCCD lung cancer dataset/{name} cases/{name} case (1).jpg": (label, None, None)
                    for name, label in (("Bengin", "benign lung nodule"), ("Malignant", "malignant lung cancer"),
                                        ("Normal", "normal lung"))},
    "covid_ct": {
        "Images-processed/CT_COVID/2020.02.10.20021584-p6-52%0.png": ("COVID-19", None, None),
        "Images-processed/CT_NonCOVID/71%0.jpg": ("non-COVID-19", None, None),
    },
    "breakhis": {"BreaKHis_v1/histology_slides/breast/benign/SOB/tubular_adenoma/SOB_B_TA_14-4659/40X/"
                 "SOB_B_TA-14-4659-40-001.png": ("tubular adenoma of the breast", "14-4659", None)},
    "bracs_roi": {
        "BRACS_RoI/train/0_N/BRACS_281_N_1.png": ("normal breast tissue", "BRACS_281", "train"),
        "BRACS_RoI/val/1_PB/BRACS_265_PB_2.png": ("pathological benign breast tissue", "BRACS_265", "val"),
        "BRACS_RoI/test/0_N/BRACS_264_N_3.png": ("normal breast tissue", "BRACS_264", "test"),
    },
    "shenzhen_cxr": {
        "ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png": ("normal", "CHNCXR_0001", None),
        "ChinaSet_AllFiles/CXR_png/CHNCXR_0327_1.png": ("tuberculosis", "CHNCXR_0327", None),
    },
    "montgomery_cxr": {"MontgomerySet/CXR_png/MCUCXR_0104_1.png": ("tuberculosis", "MCUCXR_0104", None)},
    "knee_osteoarthritis": {
        f"KneeXrayData/ClsKLData/kneeKL224/{split}/4/9900761R.png": (
            "severe knee osteoarthritis (Kellgren-Lawrence grade 4)", "9900761", split)
        for split in ("train", "val", "test")
    },
    "mura": {
        "MURA-v1.1/train/XR_ELBOW/patient01321/study1_positive/image5.png": (
            "musculoskeletal abnormality", "patient01321", "train"),
        "MURA-v1.1/valid/XR_WRIST/patient11185/study1_negative/image1.png": (
            "no musculoskeletal abnormality", "patient11185", "val"),
    },
}
"""source → file → (label, patient, split)."""

MASKS = {
    "busi": "Dataset_BUSI_with_GT/benign/benign (1)_mask.png",
    "covid19_radiography": "COVID-19_Radiography_Dataset/COVID/masks/COVID-1.png",
    "covid_qu_ex": "Lung Segmentation Data/Train/COVID-19/lung masks/covid_1.png",
    "knee_osteoarthritis": "KneeXrayData/ClsKLData/kneeKL224/auto_test/4/9900761R.png",
}
"""source → a file that is no image of it."""


@pytest.fixture
def cards() -> dict[str, SourceCard]:
    return load_cards()


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def read(card: SourceCard, folder: Path) -> list[SourceRow | Reject]:
    layout = choose_layout(card, folder)
    assert layout.name == "published"
    return list(read_source(card, layout, folder))


@pytest.mark.parametrize("name", FOLDERS)
def test_label_patient_and_split_are_told_by_the_path(
    name: str, tmp_path: Path, cards: dict[str, SourceCard]
) -> None:
    lay(tmp_path, *FOLDERS[name], *([MASKS[name]] if name in MASKS else []))
    rows = read(cards[name], tmp_path)
    root = choose_layout(cards[name], tmp_path).image_root
    found = {str(Path(root) / row.image): (row.labels, row.patient, row.split) for row in rows
             if isinstance(row, SourceRow)}
    assert len(rows) == len(found)
    assert found == {file: ((label,), patient, split) for file, (label, patient, split) in FOLDERS[name].items()}


def test_every_folder_that_a_card_names_gives_its_label(tmp_path: Path, cards: dict[str, SourceCard]) -> None:
    """Sets with one folder per class and nothing else: each folder of the card is read, and masks beside are not."""
    plain = [card for card in cards.values() if card.layouts[0].reader == "image_folders" and card.layouts[0].rename
             and card.layouts[0].label_pattern is None and card.modalities != ("Fundus",)]
    assert len(plain) > 10
    for card in plain:
        layout = card.layouts[0]
        folder, below = tmp_path / card.name, "images/" if layout.image_pattern == "/images/" else ""
        tops = [name for name, split in layout.splits.items() if split] or ["."]
        lay(folder, *(f"{layout.image_root}/{top}/{name}/{below}1.png" for top in tops for name in layout.rename))
        if card.name in MASKS:
            lay(folder, MASKS[card.name])
        rows = read(card, folder)
        assert {label for row in rows if isinstance(row, SourceRow) for label in row.labels} == {
            label for label in layout.rename.values() if label}, card.name
        assert len(rows) == len(tops) * sum(1 for label in layout.rename.values() if label), card.name


@pytest.mark.parametrize(("name", "images", "groups"), [
    ("covid_ct", ("CT_COVID/2020.02.10.20021584-p6-52%0.png", "CT_COVID/2020.02.10.20021584-p7-9.png",
                  "CT_COVID/PIIS0140673620303603%8.png", "CT_NonCOVID/5%4.jpg", "CT_NonCOVID/5%1.jpg",
                  "CT_NonCOVID/1058.png"),
     ["2020.02.10.20021584", "2020.02.10.20021584", "PIIS0140673620303603", "CT_NonCOVID/5", "CT_NonCOVID/5",
      "CT_NonCOVID/1058"]),
    ("histopathology_atlas", ("images/BS1-HE1.jpg", "images/BS1-PASD.jpg", "images/exostosis-2.jpg",
                              "images/hacettepe-com-case-19.jpg", "images/GBD1.jpg"),
     ["BS1", "BS1", "exostosis", "hacettepe-com-case-19", "GBD1"]),
])
def test_what_comes_from_one_place_goes_into_one_split(
    name: str, images: tuple[str, ...], groups: list[str], cards: dict[str, SourceCard]
) -> None:
    pattern = cards[name].layouts[0].article_pattern
    assert [first_group(pattern, image) for image in images] == groups


TABLES = {
    "mhist": ("annotations.csv", "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),"
              "Partition\nMHIST_aaa.png,SSA,6,train\n",
              ("MHIST_aaa.png", "sessile serrated adenoma of the colon", None, "train")),
    "fetal_planes": ("FETAL_PLANES_ZENODO/FETAL_PLANES_DB_data.csv",
                     "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
                     "Patient00001_Plane1_1_of_2;1;Other;Not A Brain;Other;Aloka;1\n"
                     "Patient00002_Plane3_1_of_1;2;Fetal brain;Trans-thalamic;Op. 1;Voluson E6;0\n",
                     ("Patient00002_Plane3_1_of_1.png", "fetal brain", "2", "test")),
    "bus_bra": ("BUSBRA/bus_data.csv", "ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX\n"
                'bus_0001-l,1,Fibroadenoma,benign,2,GE,400,300,left,"[1,2,3,4]"\n',
                ("bus_0001-l.png", "benign breast tumor", "1", None)),
    "covid_chest_xray": ("metadata.csv", "patientid,finding,view,modality,filename,doi,clinical_notes\n"
                         "2,Pneumonia/Viral/COVID-19,PA,X-ray,a.jpg,10.1/x,Cough.\n3,todo,Axial,CT,b.jpg,,\n",
                         ("a.jpg", "COVID-19 pneumonia", "2", None)),
}
"""source → (index file, its text, (image, label, patient, split) of its only pair)."""


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_with_the_sets_own_columns(name: str, tmp_path: Path, cards: dict[str, SourceCard]) -> None:
    file, text, expected = TABLES[name]
    lay(tmp_path, file)
    (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / cards[name].layouts[0].image_root).mkdir(parents=True, exist_ok=True)
    (row,) = read(cards[name], tmp_path)
    assert isinstance(row, SourceRow)
    assert (row.image, *row.labels, row.patient, row.split) == expected
