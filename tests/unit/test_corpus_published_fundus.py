"""The fundus collections' own layouts: what their cards say about folders and columns hangs together."""

from pathlib import Path

import pytest
from corpus_published_layouts import cards, layout_of, picture, table

from vlm.corpus.readers import read_source
from vlm.corpus.registry import choose_layout
from vlm.corpus.rows import SourceRow

FOLDERS = {
    "paraguay": {"5. Very Severe NPDR/a.jpg": ("severe nonproliferative diabetic retinopathy", None)},
    "aria": {"aria_a_markups/a.tif": ("age-related macular degeneration", None)},
    "agar300": {"img/a.jpg": ("microaneurysms", None)},
    "fund_oct": {"OD/Glaucoma/p1/left/1_Color.jpg": ("glaucoma", "OD/Glaucoma/p1"),
                 "Macula/ci-DME/p2/right/x Color 2.jpg": ("diabetic macular edema", "Macula/ci-DME/p2")},
    "e_ophta": {"e_optha_EX/EX/E0000404/C0001273.jpg": ("hard exudates", "E0000404"),
                "e_optha_MA/healthy/E0000043/C1.jpg": ("normal", "E0000043")},
    "hrf": {"01_dr.JPG": ("diabetic retinopathy", None), "02_g.jpg": ("glaucoma", None), "03_h.jpg": ("normal", None)},
    "dr1_2": {"Red Lesions/a.jpg": ("red lesions", None)},
    "cataract": {"2_cataract/a.png": ("cataract", None)},
    "scardat": {"train/positive/a.png": ("laser scars", None), "val/negative/b.png": ("no laser scars", None)},
    "lag": {"suspicious_glaucoma/image/a.jpg": ("glaucoma", None)},
}
MASKS = {"aria": "aria_a_markup_vessel/a_BDP.tif", "agar300": "masks/a.jpg",
         "e_ophta": "e_optha_EX/Annotation_EX/E1/m.png", "lag": "suspicious_glaucoma/attention_map/a.jpg",
         "fund_oct": "OD/Glaucoma/p1/left/1_OCT.jpg", "scardat": "test/test80/c.png"}
TABLES = sorted(card.name for card in cards().values() if card.folder == "Retina-Datasets"
                for layout in card.layouts if layout.name == "published" and layout.reader == "table")


@pytest.mark.parametrize("source", sorted(FOLDERS))
def test_folders_become_labels(source: str, tmp_path: Path) -> None:
    card = cards()[source]
    layout = layout_of(card, "published")
    for image in (*FOLDERS[source], MASKS.get(source)):
        if image is not None:
            picture(tmp_path / layout.image_root / image)
    if layout.label_pattern is None:
        for folder in (layout.splits or layout.rename):
            (tmp_path / layout.image_root / folder).mkdir(exist_ok=True)

    assert choose_layout(card, tmp_path) == layout
    rows = [row for row in read_source(card, layout, tmp_path) if isinstance(row, SourceRow)]

    assert {row.image: (row.labels[0], row.patient) for row in rows} == FOLDERS[source]
    assert {row.split for row in rows} == ({"train", "val"} if source == "scardat" else {None})


@pytest.mark.parametrize("source", TABLES)
def test_values_of_tables_become_labels(source: str, tmp_path: Path) -> None:
    """Every value that the card renames is found again as a label, and findings as labels or as absent."""
    card = cards()[source]
    layout = layout_of(card, "published")
    values = [value for value in layout.rename if value not in layout.findings]
    columns = layout.columns
    header = list(dict.fromkeys(str(column) for column in (*columns.values(), *layout.findings)))
    for at in range(len(values)):
        picture(tmp_path / layout.image_root / f"{at}_left{layout.image_suffix or '.jpg'}")
    cells = [{columns["image"]: f"{at}_left{'' if layout.image_suffix else '.jpg'}", columns["label"]: value}
             for at, value in enumerate(values)]
    table(tmp_path / layout.index[0], header,
          *[[row.get(column, 1 if column in layout.findings[:1] else 0) for column in header] for row in cells])

    assert choose_layout(card, tmp_path) == layout
    rows = [row for row in read_source(card, layout, tmp_path) if isinstance(row, SourceRow)]

    first = tuple(layout.rename.get(name, name) for name in layout.findings[:1])
    named = [layout.rename[value] for value in values]
    assert [row.labels for row in rows] == [
        (*([label] if label else []), *first) for label in named if label or first]
    assert all(len(row.absent) == max(len(layout.findings) - 1, 0) for row in rows)
    assert [row.image for row in rows if not (tmp_path / layout.image_root / row.image).is_file()] == []


def test_there_are_all_collections_of_the_published_table() -> None:
    """27 in the list (06_DEN among them) and 39_MM_Retinal; three more are passed over by the published script."""
    fundus = [card for card in cards().values() if card.folder == "Retina-Datasets"]
    listed = [card for card in fundus if card.part is not None and card.name != "unimed_retina_part1"]

    assert len(listed) == 28
    assert {card.name for card in fundus if card.part is None} == {"eyepacs", "lag", "oia_ddr"}
