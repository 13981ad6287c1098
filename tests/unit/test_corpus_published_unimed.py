"""UniMed's shards and joined captions: nothing is lost, whatever the marker."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.errors import UserError
from vlm.corpus.readers.markers import MARKERS, find_marker, marked_captions
from vlm.corpus.readers.unimed import read_unimed_csv, read_unimed_shards
from vlm.corpus.rows import Reject, SourceRow
from vlm.schema import Layout, Modality, SourceCard

TEN = [f"A chest radiograph in which finding number {number} is seen." for number in range(10)]


def card(*modalities: Modality) -> SourceCard:
    layout = Layout(name="shards", reader="unimed_shards", index=("dataset-000001.tar",))
    return SourceCard(name="invented", title="t", modalities=modalities or ("X-ray",), access="open", licence="none",
                      citation="none", obtain="made in a test", folder="invented", layouts=(layout,))


def texts(joined: str) -> list[str]:
    return [caption.text for caption in marked_captions(joined)]


def kinds(joined: str) -> list[str]:
    return [caption.kind for caption in marked_captions(joined)]


@pytest.mark.parametrize("name", ["_radimagenet_", "_chexpert_", "_chestxray8_", "_all_retina_merged_"])
@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("trails", [True, False])
def test_templates_come_back_as_they_were_written(name: str, strips: bool, trails: bool) -> None:
    """Some scripts take the last period off before the marker (which has one), others double it."""
    written = [text.removesuffix(".") for text in TEN] if strips else TEN
    joined = f".{name}".join(written) + (f".{name}" if trails else "." * strips)

    assert texts(joined) == TEN
    assert set(kinds(joined)) == {"template"}
    assert {caption.origin for caption in marked_captions(joined)} == {f"marker {name}"}


def test_more_than_ten_are_kept() -> None:
    eleven = [*TEN, "Taken as a whole, the radiograph shows ten findings."]

    assert texts("._all_retina_merged_".join(eleven)) == eleven


def test_openi_keeps_the_original_and_the_refined() -> None:
    joined = "Heart size is normal.._openi_The heart is not enlarged._openi_Normal heart._openi_No enlargement"

    assert texts(joined) == ["Heart size is normal.", "The heart is not enlarged.", "Normal heart.", "No enlargement"]
    assert kinds(joined) == ["report", "refined", "refined", "refined"]


@pytest.mark.parametrize("gap", ["._mimiccxr_._mimiccxr_", "._mimiccxr__mimiccxr_", "._mimiccxr_"])
@pytest.mark.parametrize("count", [10, 4])
def test_mimic_report_is_told_from_templates(gap: str, count: int) -> None:
    report = "The lungs are clear. No pneumothorax."
    joined = "._mimiccxr_".join(TEN[:count]) + gap + report

    assert texts(joined) == [*TEN[:count], report]
    assert kinds(joined) == ["template"] * count + ["report"]


@pytest.mark.parametrize("nothing", ["noreportpresent", "noreportpresent.", "nan", ""])
def test_mimic_without_report(nothing: str) -> None:
    joined = "._mimiccxr_".join(TEN) + "._mimiccxr_._mimiccxr_" + nothing

    assert texts(joined) == TEN
    assert set(kinds(joined)) == {"template"}


def test_fifteen_grade_captions() -> None:
    fifteen = [f"Fundus image of grade {number} of the disease" for number in range(15)]

    assert texts("_dr_".join(fifteen)) == fifteen
    assert kinds("_dr_".join(fifteen) + "_dr_") == ["template"] * 15
    lower = [text.lower() for text in fifteen]
    assert texts("_dr_".join(lower)) == lower


@pytest.mark.parametrize("mention", ["Figure 2 shows the same lesion.", "nothingpresent"])
def test_medicat_mention(mention: str) -> None:
    found = texts(f"An axial image of the liver._medicat_{mention}")

    assert found == ["An axial image of the liver."] + ([] if mention == "nothingpresent" else [mention])


@pytest.mark.parametrize("native", [
    "The file scan_dr_02.png shows the macula.", "Output of model_dr_v2 and of model_dr_v3 for one eye.",
    "We call the score_chexpert_ here; no marker is meant.", "An ordinary caption... with an ellipsis.",
])
def test_text_that_only_looks_marked_is_whole(native: str) -> None:
    assert find_marker(native) is None
    assert texts(native) == [native]
    assert kinds(native) == ["native"]


def test_there_are_eight_markers() -> None:
    assert len({marker.name for marker in MARKERS}) == 8


@pytest.mark.parametrize("text", ["", "   ", "._radimagenet_", "nan", "nothingpresent_medicat_nothingpresent"])
def test_nothing_is_no_caption(text: str) -> None:
    assert texts(text) == []


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def published(folder: Path, counts: tuple[int, ...]) -> None:
    """Shards as UniMed writes them: numbers go on over the shards, PNG bytes are named .jpg."""
    number = 0
    for tar, count in enumerate(counts, start=1):
        members = []
        for _ in range(count):
            members += [(f"{number:06d}.jpg", png(number)),
                        (f"{number:06d}.txt", "._chexpert_".join(TEN).encode())]
            number += 1
        shard(folder / f"dataset-{tar:06d}.tar", members)


def layout(**changes: object) -> Layout:
    return Layout.model_validate({"name": "shards", "reader": "unimed_shards", "index": ("dataset-000001.tar",),
                                  **changes})


def test_every_pair_of_every_shard_is_read(tmp_path: Path) -> None:
    published(tmp_path, (3, 2))

    rows = list(read_unimed_shards(card(), layout(), tmp_path))

    assert [row.row for row in rows] == list(range(5))
    assert [row.image for row in rows] == [
        *(f"dataset-000001.tar!{number:06d}.jpg" for number in range(3)),
        *(f"dataset-000002.tar!{number:06d}.jpg" for number in (3, 4)),
    ]
    for row in rows:
        assert isinstance(row, SourceRow)
        assert [caption.text for caption in row.captions] == TEN
        tar, member = row.image.split("!")
        with tarfile.open(tmp_path / tar) as opened:
            assert opened.extractfile(member) is not None


def test_shards_below_the_image_root(tmp_path: Path) -> None:
    published(tmp_path / "chexpert_webdataset", (1,))
    below = layout(index=("chexpert_webdataset/dataset-*.tar",), image_root="chexpert_webdataset")

    assert [row.image for row in read_unimed_shards(card(), below, tmp_path)] == ["dataset-000001.tar!000000.jpg"]


def test_half_pairs_and_bad_texts_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "dataset-000001.tar", [
        ("000000.jpg", png(0)), ("000001.txt", b"No image stands beside this."), ("000002.jpg", png(2)),
        ("000002.txt", b"\xff\xfe latin"), ("000003.jpg", png(3)), ("000003.txt", b"  "),
        ("000004.txt", b"The text may come first."), ("000004.jpg", png(4)),
    ])

    rows = list(read_unimed_shards(card(), layout(), tmp_path))

    assert [row.row for row in rows] == list(range(5))
    reasons = [row.reason for row in rows if isinstance(row, Reject)]
    assert [key for key in ("no text", "no image", "UTF-8", "empty")
            if not any(key in reason for reason in reasons)] == []
    assert len(reasons) == 4
    assert isinstance(rows[-1], SourceRow) and rows[-1].captions[0].text == "The text may come first."


def test_a_cut_off_shard_does_not_stop_the_next(tmp_path: Path) -> None:
    published(tmp_path, (3, 2))
    first = tmp_path / "dataset-000001.tar"
    first.write_bytes(first.read_bytes()[:2300])

    rows = list(read_unimed_shards(card(), layout(), tmp_path))

    assert [row.row for row in rows] == list(range(len(rows)))
    assert [row.reason for row in rows if isinstance(row, Reject) and "damaged" in row.reason]
    assert sum("dataset-000002" in row.image for row in rows if isinstance(row, SourceRow)) == 2


def test_no_shard_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset-000001\.tar"):
        list(read_unimed_shards(card(), layout(), tmp_path))


def test_table_with_markers(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text(
        "filepath,caption\na.png," + "._radimagenet_".join(TEN) + "\n../b.png,An image of the knee.\nc.png,\n"
        "US/d.png,An ultrasound image of the knee.\n"
    )
    by_name = layout(reader="unimed_csv", index=("all.csv",), columns={"image": "filepath", "caption": "caption"})

    first, outside, empty, native = read_unimed_csv(card("X-ray", "Ultrasound"), by_name, tmp_path)

    assert isinstance(first, SourceRow) and len(first.captions) == 10 and first.modality == "mixed"
    assert isinstance(outside, Reject) and "leaves" in outside.reason
    assert isinstance(empty, Reject) and "no caption" in empty.reason
    assert isinstance(native, SourceRow) and native.captions[0].kind == "native" and native.modality == "Ultrasound"


def test_table_without_the_column_says_which_exist(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("filepath,text\na.png,b\n")

    with pytest.raises(UserError, match=r"(?s)image, caption.*filepath, text"):
        list(read_unimed_csv(card(), layout(reader="unimed_csv", index=("all.csv",)), tmp_path))
