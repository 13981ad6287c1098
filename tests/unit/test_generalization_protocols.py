"""The published protocols of generalization: files that hold together, and readers of their layouts."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from autoseg.data.volume import read_image, read_labels
from autoseg.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from generalization_protocols import (  # noqa: E402
    GeneralizationProtocol,
    generalization_names,
    load_generalization,
    open_published_domain,
    split_domain,
)
from generalization_report import PUBLISHED  # noqa: E402

NAMES = ("abdomen-slaug", "cardiac-slaug", "fundus-riga", "prostate-six-sites")


@pytest.fixture(params=NAMES)
def protocol(request: pytest.FixtureRequest) -> GeneralizationProtocol:
    return load_generalization(request.param)


def test_the_protocols_are_packaged() -> None:
    assert tuple(generalization_names()) == NAMES
    with pytest.raises(UserError, match="Known: abdomen-slaug"):
        load_generalization("pancreas")


def test_a_protocol_holds_together(protocol: GeneralizationProtocol) -> None:
    assert load_generalization(protocol.name) == protocol
    assert sorted(protocol.labels.values()) == list(range(1, len(protocol.labels) + 1))
    for one in protocol.directions:
        assert one.source not in one.targets
        assert set(one.dice) == set(one.targets)
    if protocol.masks is not None:
        assert {*protocol.masks.values, protocol.masks.others} == set(protocol.labels)


def test_the_table_shows_the_protocols_figures() -> None:
    found = {f"{one.source}-{target}": one.dice[target] for name in ("abdomen-slaug", "cardiac-slaug")
             for one in load_generalization(name).directions for target in one.targets}
    assert found == PUBLISHED


def test_abdominal_shares_give_the_published_numbers_of_cases(tmp_path: Path) -> None:
    protocol = load_generalization("abdomen-slaug")
    for domain, sizes in (("ct", (21, 3, 6, 30)), ("mr", (14, 2, 4, 20))):
        count = protocol.domains[domain].cases
        assert isinstance(count, int)
        split = split_domain(protocol, domain, [f"case_{number:02}" for number in range(count)], tmp_path)
        assert tuple(map(len, (split.train, split.validation, split.held_out, split.tested))) == sizes
        assert not set(split.train) & {*split.validation, *split.held_out}


def test_cardiac_cases_go_by_their_numbers(tmp_path: Path) -> None:
    protocol = load_generalization("cardiac-slaug")
    split = split_domain(protocol, "bssfp", ["MSCMR_C0_05", "MSCMR_C0_36", "MSCMR_C0_35"], tmp_path)
    assert (split.train, split.validation) == (("MSCMR_C0_05", "MSCMR_C0_35"), ("MSCMR_C0_36",))
    split = split_domain(protocol, "lge", ["MSCMR_subject5_LGE", "patient6"], tmp_path)
    assert (split.train, split.tested) == (("patient6",), ("MSCMR_subject5_LGE", "patient6"))


# ---------------------------------------------------------------- layouts
@pytest.mark.parametrize(("folder", "ending"), [("ISBI_1.5", "segmentation"), ("BMC", "Segmentation")])
def test_a_prostate_site_is_read_whatever_its_copy_calls_it(tmp_path: Path, folder: str, ending: str) -> None:
    (site := tmp_path / folder).mkdir()
    for number in range(3):
        mask = np.zeros((6, 5, 4), np.uint8)
        mask[1, 1, 1], mask[2, 2, 2] = 1, 2  # two zones
        nib.save(nib.Nifti1Image(mask.astype(np.float32) + number, np.eye(4)), site / f"Case{number:02}.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), site / f"Case{number:02}_{ending}.nii.gz")
    dataset = open_published_domain(load_generalization("prostate-six-sites"), "isbi_1.5", tmp_path, tmp_path / "view")
    assert [case.id for case in dataset.cases] == ["Case00", "Case01", "Case02"]
    assert dataset.labels == {"background": 0, "prostate": 1}
    for number, case in enumerate(dataset.cases):
        assert case.label is not None
        labels, image = read_labels(case.label).voxels[0], read_image(case.images, 1).voxels[0]
        np.testing.assert_array_equal(labels, image > number)
        assert set(np.unique(labels)) == {0, 1}
    (site / f"Case01_{ending}.nii.gz").unlink()
    with pytest.raises(UserError, match=r"Case01\.nii\.gz: has no mask"):
        open_published_domain(load_generalization("prostate-six-sites"), "isbi_1.5", tmp_path, tmp_path / "view")


def a_fundus_folder(root: Path) -> None:
    """Two tables of one clinic, pictures and masks in the published values."""
    for side, names in (("train", ("image1", "image2")), ("test", ("image3",))):
        rows = ["image,mask"]
        for name in names:
            image, mask = f"RIGA/MESSIDOR/{name}.tif", f"RIGA-mask/MESSIDOR/{name}-1.tif"
            drawn = np.zeros((12, 10), np.uint8)
            drawn[2:9, 2:9], drawn[4:6, 4:6] = 255, 128
            for path, pixels in ((image, np.stack([drawn] * 3, -1)), (mask, drawn)):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / path)
            rows.append(f"{image},{mask}")
        (root / f"MESSIDOR_Base1_{side}.csv").write_text("\n".join(rows) + "\n")


def test_a_fundus_clinic_is_read_from_its_tables(tmp_path: Path) -> None:
    a_fundus_folder(tmp_path)
    protocol = load_generalization("fundus-riga")
    dataset = open_published_domain(protocol, "base1", tmp_path, tmp_path / "view")
    ids = [case.id for case in dataset.cases]
    assert ids == [f"RIGA_MESSIDOR_image{number}" for number in (1, 2, 3)]
    split = split_domain(protocol, "base1", ids, tmp_path)
    assert (split.train, split.tested) == (tuple(ids[:2]), (ids[2],))
    label = dataset.cases[0].label
    assert label is not None
    labels = read_labels(label).voxels[0, 0]
    assert (labels[4:6, 4:6] == protocol.labels["cup"]).all()
    assert (labels == protocol.labels["disc_rim"]).sum() == 7 * 7 - 4
    assert read_image(dataset.cases[0].images, 3).voxels.shape == (3, 1, 12, 10)


def test_what_a_clinic_lacks_is_named(tmp_path: Path) -> None:
    protocol = load_generalization("fundus-riga")
    with pytest.raises(UserError, match=r"none of the tables MESSIDOR_Base1_train\.csv"):
        open_published_domain(protocol, "base1", tmp_path, tmp_path / "view")
    a_fundus_folder(tmp_path)
    (tmp_path / "RIGA-mask" / "MESSIDOR" / "image2-1.tif").unlink()
    with pytest.raises(UserError, match="image2-1"):
        open_published_domain(protocol, "base1", tmp_path, tmp_path / "view")
    (tmp_path / "MESSIDOR_Base1_test.csv").write_text("name\nimage1\n")
    with pytest.raises(UserError, match="image"):
        open_published_domain(protocol, "base1", tmp_path, tmp_path / "view")
