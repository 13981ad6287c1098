"""Folders of images become rows: the label is a folder's name, or what a pattern finds in the path."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from autoseg.errors import UserError
from vlm.corpus.readers import read_source
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import SourceCard


def card_with(**layout: Any) -> SourceCard:
    return SourceCard.model_validate({
        "name": "folders", "title": "t", "modalities": ["X-ray"], "access": "open", "licence": "l", "citation": "c",
        "obtain": "o", "folder": "folders", "anatomy": "chest", "view": "frontal",
        "layouts": [{"name": "published", "reader": "image_folders", **layout}],
    })


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def read(folder: Path, **layout: Any) -> list[SourceRow | Reject]:
    card = card_with(**layout)
    return list(read_source(card, card.layouts[0], folder))


def test_each_image_becomes_one_row_with_its_folder_as_label(tmp_path: Path) -> None:
    names = [f"images/{label}/deep/er/{number}.{ending}" for label in ("normal", "mass")
             for number, ending in enumerate(("png", "JPG", "nii.gz", "dcm"))]
    shuffled = random.Random(0).sample(names, len(names))
    lay(tmp_path, *shuffled, "images/normal/list.txt", "images/.hidden.png", "images/mass/._1.png",
        "images/__MACOSX/normal/1.png")
    rows = read(tmp_path, image_root="images", rename={"mass": "lung mass"})
    assert all(isinstance(row, SourceRow) for row in rows)
    assert [row.image for row in rows] == sorted(name.removeprefix("images/") for name in names)
    assert [row.row for row in rows] == list(range(8))
    assert Counter(row.labels for row in rows if isinstance(row, SourceRow)) == {("lung mass",): 4, ("normal",): 4}
    assert {(row.anatomy, row.view, row.modality, row.split) for row in rows if isinstance(row, SourceRow)} == {
        ("chest", "frontal", "X-ray", None)}


def test_the_order_is_not_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, *(f"{label}/{number}.png" for label in "abc" for number in range(3)))
    first, walk = read(tmp_path), os.walk

    def backwards(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, files in walk(root):
            folders.sort(reverse=True)
            files.sort(reverse=True)
            yield parent, folders, files

    monkeypatch.setattr(os, "walk", backwards)
    assert read(tmp_path) == first


def test_top_folders_are_splits_where_the_card_says_so(tmp_path: Path) -> None:
    lay(tmp_path, "Training/a/1.png", "Testing/a/2.png", "Validation/b/3.png", "extra/b/4.png", "auto/b/5.png")
    rows = read(tmp_path, splits={"Training": "train", "Testing": "test", "Validation": "val", "auto": ""})
    found = {row.image: (row.split, row.labels) for row in rows if isinstance(row, SourceRow)}
    assert found == {"Training/a/1.png": ("train", ("a",)), "Testing/a/2.png": ("test", ("a",)),
                     "Validation/b/3.png": ("val", ("b",))}
    (rejected,) = (row for row in rows if isinstance(row, Reject))
    assert rejected.image == "extra/b/4.png" and "Testing" in rejected.reason
    assert {row.row for row in rows} == {0, 1, 2, 4}, "a row that is left out does not move the others"


def test_a_pattern_finds_label_and_patient_in_the_path(tmp_path: Path) -> None:
    lay(tmp_path, "train/NORMAL/IM-0001-0001.jpeg", "train/PNEUMONIA/person7_virus_1.jpeg",
        "train/PNEUMONIA/person7_bacteria_2.jpeg", "train/PNEUMONIA/unknown.jpeg")
    rows = read(tmp_path, splits={"train": "train"}, label_pattern="(NORMAL(?=/)|bacteria|virus)",
                patient_pattern=r"(person\d+|IM-\d+)", rename={"virus": "viral pneumonia"})
    found = {row.image.split("/")[-1]: (row.labels, row.patient) for row in rows if isinstance(row, SourceRow)}
    assert found == {
        "IM-0001-0001.jpeg": (("NORMAL",), "IM-0001"),
        "person7_virus_1.jpeg": (("viral pneumonia",), "person7"),
        "person7_bacteria_2.jpeg": (("bacteria",), "person7"),
    }
    assert [row.image for row in rows if isinstance(row, Reject)] == ["train/PNEUMONIA/unknown.jpeg"]


def test_masks_and_dropped_classes_are_left_out(tmp_path: Path) -> None:
    lay(tmp_path, "benign/benign (1).png", "benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png", "empty/1.png")
    rows = read(tmp_path, image_pattern="^(?!.*_mask).*", rename={"empty": ""})
    assert [row.image for row in rows] == ["benign/benign (1).png"]


def test_an_image_in_no_folder_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    lay(tmp_path, "0.png", "normal/1.png")
    rows = read(tmp_path)
    assert [(type(row), row.image) for row in rows] == [(Reject, "0.png"), (SourceRow, "normal/1.png")]


def test_a_missing_or_empty_root_is_an_error_of_the_whole_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path, image_root="images")
    (tmp_path / "images" / "normal").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        read(tmp_path, image_root="images")


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    lay(tmp_path, "outside/1.png", "root/normal/2.png")
    (tmp_path / "root" / "stolen").symlink_to(tmp_path / "outside")
    assert [row.image for row in read(tmp_path, image_root="root")] == ["normal/2.png"]


@pytest.mark.parametrize("field", ["label_pattern", "image_pattern", "patient_pattern"])
def test_a_pattern_that_is_none_is_refused_with_the_card(field: str) -> None:
    with pytest.raises(ValidationError, match="not a regular expression"):
        card_with(**{field: "(a"})
