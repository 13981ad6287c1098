"""Small evaluation sets in the layouts in which the 21 published sets lie, and an embedder with vectors set by hand.

Every picture is of one color, which stands for a number; the embedder looks the number's vector up. So scores, and with
them every metric, are known before anything is measured.
"""

import csv

import numpy as np
import torch
from PIL import Image

STEP = 16
"""Between colors of neighboring numbers; JPEG moves a uniform color by less than half of it."""


def picture(path, number):
    """Write the picture that stands for a number from 0 to 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (number // STEP * STEP + STEP // 2, number % STEP * STEP + STEP // 2, 100)
    Image.new("RGB", (24, 20), color).save(path)


class FakeEmbedder:
    """vectors : number → unit vector. sentences : sentence → unit vector, else a vector of zeros."""

    def __init__(self, vectors, sentences, identity="f" * 64, name="fake"):
        self.vectors, self.sentences = vectors, sentences
        self.identity, self.name, self.record, self.embedded = identity, name, None, 0
        self.architecture = "01234567"

    def transform(self, image):
        red, green, _ = np.asarray(image.convert("RGB"), float).mean((0, 1))
        return torch.full((3, 1, 1), float(int(red) // STEP * STEP + int(green) // STEP))

    def embed_pixels(self, pixels):
        self.embedded += len(pixels)
        return torch.tensor(np.stack([self.vectors[int(one)] for one in pixels[:, 0, 0, 0]]), dtype=torch.float32)

    def encode_texts(self, texts):
        nothing = np.zeros_like(next(iter(self.vectors.values())))
        return torch.tensor(np.stack([self.sentences.get(text, nothing) for text in texts]), dtype=torch.float32)

    def count_truncated(self, texts):
        return sum(len(text) > 77 for text in texts)


def table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


def write_set(name, root, items):
    """Write a set below `root`. items : (position of the class, number of the picture) of its test images."""
    LAYOUTS[name](root, items)


FOLDERS = {
    "lc25000_lung": ("lung_aca", "lung_n", "lung_scc"), "lc25000_colon": ("colon_aca", "colon_n"),
    "nck_crc": ("ADI", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
    "bach": ("Benign", "InSitu", "Invasive", "Normal"),
}
SKIN = ("nontumor_skin_necrosis_necrosis", "nontumor_skin_muscle_skeletal", "nontumor_skin_sweatglands_sweatglands",
        "nontumor_skin_vessel_vessel", "nontumor_skin_elastosis_elastosis",
        "nontumor_skin_chondraltissue_chondraltissue", "nontumor_skin_hairfollicle_hairfollicle",
        "nontumor_skin_epidermis_epidermis", "nontumor_skin_nerves_nerves", "nontumor_skin_subcutis_subcutis",
        "nontumor_skin_dermis_dermis", "nontumor_skin_sebaceousglands_sebaceousglands",
        "tumor_skin_epithelial_sqcc", "tumor_skin_melanoma_melanoma", "tumor_skin_epithelial_bcc",
        "tumor_skin_naevus_naevus")
CHEXPERT = ("No Finding", "Cardiomegaly", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pleural Effusion")
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def _chexpert(root, items):
    rows = []
    for place, (kind, number) in enumerate(items):
        image = f"CheXpert-v1.0-small/train/patient{38000 + number // 2}/study{number}/view1_frontal.jpg"
        picture(root / "chexpert_5x200" / image, number)
        hot = ["1.0" if finding == FINDINGS[kind] else "0.0" for finding in CHEXPERT]
        rows.append([place, image, "Male", 26, *hot, "a report,\nof two lines"])
    table(root / "chexpert_5x200/chexpert-5x200.csv", ["", "imgpath", "Sex", "Age", *CHEXPERT, "Report Impression"],
          rows)


def _rsna(root, items):
    rows = [[place, f"images/{number}.png", kind] for place, (kind, number) in enumerate(items)]
    for _, number in items:
        picture(root / f"rsna_pneumonia/images/{number}.png", number)
    table(root / "rsna_pneumonia/RSNA_pneumonia_balanced_testfile.csv", ["", "path", "label"], rows)


def _paths_and_labels(folder, index, labels):
    def write(root, items):
        for _, number in items:
            picture(root / folder / f"images/{number}.png", number)
        table(root / folder / index, ["img_dir", "label"],
              [[f"images/{number}.png", labels[kind]] for kind, number in items])
    return write


def _medimeta(folder, task, extra):
    """`annotations.csv` as MedIMeta writes it: filepath, split, tasks, then what the original said."""
    def write(root, items):
        rows = [["images/900000.tiff", "val", 0, "x/volume-1.nii", *["7"] * len(extra)]]
        for kind, number in items:
            for split, name, group in (("test", f"{number:06d}", number // 3), ("train", f"8{number:05d}", 800)):
                picture(root / f"medimeta/{folder}/images/{name}.tiff", number)
                rows.append([f"images/{name}.tiff", split, kind, f"x/volume-{group}.nii", *[str(group)] * len(extra)])
        table(root / f"medimeta/{folder}/annotations.csv",
              ["filepath", "split", f"tasks/{task}", "original_filepath", *extra], rows)
    return write


def _retina(folder, index, labels, image):
    def write(root, items):
        rows = []
        for place, (kind, number) in enumerate(items):
            name = image.format(number)
            picture(root / folder / name, number)
            rows.append([place, name, "[]", f"['{labels[kind]}']"])
        table(root / folder / index, ["", "image", "atributes", "categories"], rows)
    return write


def _class_folders(name, folder, suffix, decoy=None):
    def write(root, items):
        for kind, number in items:
            picture(root / folder / FOLDERS[name][kind] / f"{number}{suffix}", number)
        if decoy is not None:
            picture(root / folder / decoy / f"0{suffix}", 0)
    return write


def _pcam(root, items):
    for kind, number in items:
        picture(root / f"pcam/PCam_Test_preprocessed/{number}_{kind}.png", number)


def _skin(index, labels):
    def write(root, items):
        rows = [[0, "data/tiles/other.jpg", labels[0], "Train"]]
        for place, (kind, number) in enumerate(items, 1):
            picture(root / f"skin_tumor/data/tiles/{number}.jpg", number)
            rows.append([place, f"data/tiles/{number}.jpg", labels[kind], "Test"])
        table(root / "skin_tumor" / index, ["", "file", "class", "set"], rows)
    return write


LAYOUTS = {
    "chexpert_5x200": _chexpert, "rsna_pneumonia": _rsna,
    "thyroid_us": _paths_and_labels("thyroid_us", "thyroid_test_fold1.csv", ("benign", "malignant")),
    "breast_us": _paths_and_labels("breast_us", "breast_test_fold1.csv", ("benign", "malignant")),
    "acl_mri": _paths_and_labels("acl_mri", "test_fold1.csv", ("no", "yes")),
    "meniscal_mri": _paths_and_labels("meniscal_mri", "meniscus_test_fold1.csv", ("n", "p")),
    "ct_axial": _medimeta("organs_axial", "organ label", ["organ_name"]),
    "ct_coronal": _medimeta("organs_coronal", "organ label", ["organ_name"]),
    "ct_sagittal": _medimeta("organs_sagittal", "organ label", ["organ_name"]),
    "dr_regular": _medimeta("dr_regular", "DR level", ["patient_id"]),
    "refuge_retina": _retina("refuge_retina", "25_REFUGE.csv", ("no glaucoma", "glaucoma"),
                             "REFUGE-Training400/g{:04d}.jpg"),
    "five_retina": _retina("five_retina", "13_FIVES.csv", ("age related macular degeneration", "diabetic retinopathy",
                                                           "glaucoma", "normal"), "fives_retina/train/Original/{}.png"),
    "odir_retina": _retina("odir_retina", "08_ODIR200x3.csv", ("normal", "pathologic myopia", "cataract"),
                           "08_ODIR-5K/preprocessed_images/{}_right.jpg"),
    "lc25000_lung": _class_folders("lc25000_lung", "lc25000", ".jpeg"),
    "lc25000_colon": _class_folders("lc25000_colon", "lc25000", ".jpeg"),
    "pcam": _pcam, "nck_crc": _class_folders("nck_crc", "nck_crc/CRC-VAL-HE-7K", ".tif", "BACK"),
    "bach": _class_folders("bach", "bach", ".tif"),
    "osteo": _paths_and_labels("osteo", "annotations_final.csv", ("Non-Tumor", "Non-Viable-Tumor", "Viable")),
    "skin_cancer": _skin("data/tiles-v2.csv", SKIN), "skin_tumor": _skin("data/SkinTumorSubset.csv", SKIN[12:]),
}


def random_items(classes, seed, most=4):
    """(class, number) of a set with one to `most` images per class, in no order."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in range(classes) for _ in range(int(rng.integers(1, most + 1)))]
    order = rng.permutation(len(kinds))
    return [(kinds[place], number) for number, place in enumerate(order.tolist())]


def random_vectors(items, classes, seed):
    """Number → unit vector with one component per class, so that the cosines are the components."""
    rng = np.random.default_rng(seed)
    vectors = {}
    for kind, number in items:
        raw = rng.normal(size=classes) + 0.8 * (np.arange(classes) == kind)
        vectors[number] = raw / np.linalg.norm(raw)
    return vectors


def class_sentences(plan):
    """Sentence → the unit vector of its class."""
    return {sentence: np.eye(len(plan.classes))[place] for place, name in enumerate(plan.classes)
            for sentence in plan.prompts[name]}
