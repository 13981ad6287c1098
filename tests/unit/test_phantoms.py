"""Phantoms and synthetic logits for measuring speed: every label is there, the geometry is what was asked for."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from performance_data import ORGANS, NoData, dataset, phantom_name  # noqa: E402
from phantoms import make_phantom, write_phantoms  # noqa: E402
from synthetic_logits import SyntheticLogits, coarser_shape  # noqa: E402

from autoseg.data.dataset import open_dataset  # noqa: E402


@pytest.mark.parametrize(("shape", "count"), [((20, 64, 64), 2), ((64, 96, 96), 117), ((30, 80, 100), 24)])
def test_every_label_is_there_inside_a_body_in_air(shape, count):
    phantom = make_phantom(shape, count, np.random.default_rng(0))
    assert phantom.image.shape == phantom.labels.shape == shape
    assert np.unique(phantom.labels).tolist() == list(range(count + 1))
    assert phantom.image[phantom.labels > 0].min() > -200
    assert phantom.image[:, 0].max() < -900


def test_no_two_organs_touch():
    labels = make_phantom((40, 64, 64), 24, np.random.default_rng(1)).labels
    for axis in range(3):
        one, other = (np.take(labels, range(*span), axis) for span in ((0, labels.shape[axis] - 1),
                                                                       (1, labels.shape[axis])))
        assert not ((one != other) & (one > 0) & (other > 0)).any()


def test_organs_that_find_no_room_are_refused():
    with pytest.raises(ValueError, match="117 organs find no room"):
        make_phantom((6, 20, 20), 117, np.random.default_rng(0))


def test_a_written_dataset_has_the_spacing_that_was_asked_for_and_is_one_for_autoseg(tmp_path):
    spacings = ((2.0, 0.7, 0.8), (2.5, 0.9, 1.0))
    folder = write_phantoms(tmp_path / "phantoms", (20, 64, 48), 5, spacings)
    assert [case.id for case in open_dataset(folder).cases] == ["phantom_00", "phantom_01"]
    for case, spacing in zip(("phantom_00", "phantom_01"), spacings, strict=True):
        image = SimpleITK.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
        assert image.GetSize() == (48, 64, 20)
        assert image.GetSpacing() == pytest.approx(spacing[::-1])
    written = (folder / "dataset.json").stat().st_mtime_ns
    write_phantoms(folder, (20, 64, 48), 5, spacings)
    assert (folder / "dataset.json").stat().st_mtime_ns == written


def test_a_phantom_is_made_by_its_name(tmp_path):
    folder = dataset(phantom_name(48, 40, 20, 7), tmp_path, tmp_path)
    assert len(json.loads((folder / "dataset.json").read_text())["labels"]) == 8
    mask = SimpleITK.ReadImage(str(folder / "labelsTr" / "phantom_00.nii.gz"))
    assert mask.GetSize() == (48, 40, 20)


def test_real_data_that_are_not_here_are_named(tmp_path):
    with pytest.raises(NoData, match="AbdCT_SABS is not here"):
        dataset(ORGANS, tmp_path, tmp_path)


@pytest.mark.parametrize("kind", ["organs", "ragged"])
def test_pieces_of_synthetic_logits_are_the_whole(kind):
    logits = SyntheticLogits(9, (37, 30, 32), kind)
    pieces = [(start, planes.copy()) for start, planes in logits.pieces()]
    assert pieces[0][0] == 0
    assert all(start + planes.shape[1] == after for (start, planes), (after, _) in pairwise(pieces))
    whole = np.concatenate([planes for _, planes in pieces], axis=1)
    assert whole.shape == logits.shape
    assert whole.dtype == np.float32
    for index in range(9):
        assert np.array_equal(whole[index], logits.planes(index, 0, 37))
    assert np.unique(whole.argmax(axis=0)).tolist() == list(range(9))


def test_a_coarser_grid():
    assert coarser_shape((128, 96, 3), 1.5) == (85, 64, 2)
