"""A store is filled once, resumed after a kill, renewed where inputs changed, equal for any workers."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg.data import parallel, preprocessing
from autoseg.data.dataset import open_dataset
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.store import in_memory, open_case, open_store
from autoseg.errors import UserError
from autoseg.schema import ChannelNormalization, IntensityStatistics, StoreRecord

STATISTICS = IntensityStatistics(
    mean=0.0, median=0.0, std=1.0, min=0.0, max=1.0, percentile_00_5=0.0, percentile_99_5=1.0
)
KILLED = 9


def store_record(scheme="zscore"):
    return StoreRecord(
        axes=(0, 1, 2),
        spacing=(2.0, 1.0, 1.0),
        normalization=(ChannelNormalization(scheme=scheme, within_nonzero=False, statistics=STATISTICS),),
        labels={"background": 0, "organ": 1},
    )


def write_nifti(array, path):
    nibabel.save(nibabel.Nifti1Image(array.T, np.diag([1.2, 1.2, 3.0, 1.0])), path)


def write_case(folder, case_id, seed):
    image = np.random.default_rng(seed).normal(100, 20, (8, 20, 22)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[2:5, 5:12, 6:15] = 1
    write_nifti(image, folder / "imagesTr" / f"{case_id}_0000.nii.gz")
    write_nifti(labels, folder / "labelsTr" / f"{case_id}.nii.gz")


def write_manifest(folder, count):
    manifest = {
        "channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1},
        "numTraining": count, "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "Dataset001_Test"
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for seed in range(6):
        write_case(root, f"case_{seed}", seed)
    write_manifest(root, 6)
    return root


@pytest.fixture
def written(monkeypatch):
    """Identifiers of the cases that are written, in this process, from now on."""
    ids = []
    original = preprocessing.write_case

    def counting(folder, image, labels, foreground, info, **how):
        ids.append(info.id)
        original(folder, image, labels, foreground, info, **how)

    monkeypatch.setattr(preprocessing, "write_case", counting)
    return ids


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_store_for_any_number_of_workers(folder, tmp_path, monkeypatch):
    dataset = open_dataset(folder)
    alone = preprocess_dataset(dataset, store_record(), tmp_path / "alone", workers=1)
    monkeypatch.setattr(parallel, "pool_pays", lambda seconds, left, workers: workers > 1)
    together = preprocess_dataset(dataset, store_record(), tmp_path / "together", workers=2)
    assert contents(alone) == contents(together)
    store = open_store(alone)
    assert sorted(store.cases) == [f"case_{seed}" for seed in range(6)]
    arrays = in_memory(open_case(store, "case_3"))
    assert arrays.image.shape == (1, 12, 24, 26) and abs(float(arrays.image.mean())) < 0.1


def test_a_second_run_does_nothing(folder, tmp_path, written):
    dataset = open_dataset(folder)
    preprocess_dataset(dataset, store_record(), tmp_path / "store", workers=1)
    assert len(written) == 6
    preprocess_dataset(dataset, store_record(), tmp_path / "store", workers=1)
    assert len(written) == 6


def test_a_complete_store_is_not_touched(folder, tmp_path, monkeypatch):
    store = preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "store", workers=1)
    (store / ".case_9-12ab34cd.b2nd").write_bytes(b"of another process")
    os.utime(store / ".case_9-12ab34cd.b2nd", (1, 1))
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (store, *store.iterdir())}

    def refuse(*_, **__):
        raise AssertionError("a complete store was changed")

    for name in ("unlink", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)
    assert before == {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (store, *store.iterdir())}


def test_two_processes_that_fill_one_store(folder, tmp_path, monkeypatch):
    """While one reads case_2, another finishes everything: the first neither damages nor repeats its work."""
    store, other = tmp_path / "store", []
    original = preprocessing.load_case

    def interrupted(case, dataset):
        if case.id == "case_2" and True not in other:
            other.append(True)
            preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)
        other.append(case.id)
        return original(case, dataset)

    monkeypatch.setattr(preprocessing, "load_case", interrupted)
    preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)
    assert sorted(one for one in other if one is not True) == [f"case_{seed}" for seed in (0, 1, 2, 2, 3, 4, 5)]
    assert sorted(open_store(store).cases) == [f"case_{seed}" for seed in range(6)]


def test_a_store_that_cannot_be_opened_again(folder, tmp_path, monkeypatch):
    store = preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "store", workers=1)
    (store / "case_1.json").unlink()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match="cannot be written: Read-only"):
        preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)


def test_voxels_in_a_second_file_are_inputs_too(folder, tmp_path, written):
    for path in [*folder.glob("*/*.nii.gz")]:
        nibabel.save(nibabel.load(path), path.with_name(path.name.replace(".nii.gz", ".hdr")))
        path.unlink()
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**manifest, "file_ending": ".hdr"}))
    preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "store", workers=1)
    written.clear()
    voxels = folder / "labelsTr" / "case_1.img"
    os.utime(voxels, ns=(1, voxels.stat().st_mtime_ns + 1))
    preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "store", workers=1)
    assert written == ["case_1"]


def test_a_killed_run_is_resumed(folder, tmp_path, written):
    script = f"""
import os, pathlib
from autoseg.data import store
from autoseg.data.dataset import open_dataset
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.schema import StoreRecord
original = pathlib.Path.write_bytes
def dying(self, data):
    last = "case_3-" in self.name and ".labels" in self.name
    original(self, data[: len(data) // 2] if last else data)
    if last:
        os._exit({KILLED})
pathlib.Path.write_bytes = dying
record = StoreRecord.model_validate_json({store_record().model_dump_json()!r})
dataset = open_dataset(pathlib.Path({str(folder)!r}))
preprocess_dataset(dataset, record, pathlib.Path({str(tmp_path / "store")!r}), 1)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == KILLED
    store = tmp_path / "store"
    assert list(store.glob(".*")), "the kill left a half-written file"
    with pytest.raises(UserError, match="has not finished"):
        open_store(store)
    for leftover in store.glob(".*"):  # younger ones may belong to a process that is alive
        os.utime(leftover, (1, 1))
    preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)
    assert written == ["case_3", "case_4", "case_5"]
    assert not list(store.glob(".*"))
    whole = preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "whole", workers=1)
    assert contents(store) == contents(whole)


def test_changed_added_and_removed_cases(folder, tmp_path, written):
    store = tmp_path / "store"
    preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)
    written.clear()
    label = folder / "labelsTr" / "case_1.nii.gz"
    os.utime(label, ns=(1, label.stat().st_mtime_ns + 1))
    write_case(folder, "case_7", 7)
    (folder / "imagesTr" / "case_0_0000.nii.gz").unlink()
    (folder / "labelsTr" / "case_0.nii.gz").unlink()
    preprocess_dataset(open_dataset(folder), store_record(), store, workers=1)
    assert written == ["case_1", "case_7"]
    assert sorted(open_store(store).cases) == [f"case_{seed}" for seed in (1, 2, 3, 4, 5, 7)]


def test_problems_of_several_cases_are_reported_together_and_sound_cases_kept(folder, tmp_path, written):
    for case_id in ("case_1", "case_4"):
        (folder / "imagesTr" / f"{case_id}_0000.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)case_1_0000.*case_4_0000"):
        preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "store", workers=1)
    assert written == ["case_0", "case_2", "case_3", "case_5"]
    with pytest.raises(UserError, match="has not finished"):
        open_store(tmp_path / "store")


def test_intensities_that_are_no_bytes(folder, tmp_path):
    write_nifti(np.full((8, 20, 22), 300, np.float32), folder / "imagesTr" / "case_2_0000.nii.gz")
    with pytest.raises(
        UserError, match=r"case_2_0000\.nii\.gz: A channel declared as RGB holds values"
    ):
        preprocess_dataset(open_dataset(folder), store_record("rgb_to_0_1"), tmp_path / "store", workers=1)


def test_a_folder_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        preprocess_dataset(open_dataset(folder), store_record(), tmp_path / "file" / "store", workers=1)
