"""The store gives back what was written, keeps half precision honest and leaves nothing half-written."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data import store as store_module
from autoseg.data.store import (
    BLOCK_BYTES,
    CHUNK_VOXELS,
    FOREGROUND_VOXELS_PER_LABEL,
    array_bytes,
    chunks_and_blocks,
    in_memory,
    is_stored,
    loses_nothing_in_half,
    lost_cases,
    open_case,
    open_store,
    remove_leftovers,
    sample_foreground,
    store_folder,
    write_case,
)
from autoseg.errors import UserError
from autoseg.records import content_hash, write_record
from autoseg.schema import ChannelNormalization, IntensityStatistics, StoredCase, StoreRecord

NOTHING = IntensityStatistics(
    mean=0.0, median=0.0, std=1.0, min=0.0, max=1.0, percentile_00_5=0.0, percentile_99_5=1.0
)
RECORD = StoreRecord(
    axes=(0, 1, 2),
    spacing=(1.0, 1.0, 1.0),
    normalization=(ChannelNormalization(scheme="zscore", within_nonzero=False, statistics=NOTHING),),
    labels={"background": 0, "organ": 1, "tumor": 2},
)
INPUTS = (("case_0000.nii.gz", 123, 456), ("case.nii.gz", 12, 34))


def stored_case(case_id, labels, foreground_offsets, class_counts):
    return StoredCase(
        id=case_id, shape=labels.shape, original_shape=labels.shape, crop=tuple((0, n) for n in labels.shape),
        original_spacing=(1.0, 1.0, 1.0), spacing=(1.0, 1.0, 1.0), class_counts=class_counts,
        foreground_offsets=foreground_offsets, inputs=INPUTS,
    )  # fmt: skip


def put(folder: Path, case_id: str, image: np.ndarray, labels: np.ndarray) -> StoredCase:
    foreground, offsets, counts = sample_foreground(labels, 3, case_id)
    info = stored_case(case_id, labels, offsets, counts)
    write_case(folder, image, labels, foreground, info, in_slices=False)
    return info


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    labels = np.zeros((30, 41, 37), np.uint8)
    labels[5:12, 8:30, 9:20] = 1
    labels[14:16, 8:11, 9:12] = 2
    return rng.normal(size=(2, *labels.shape)).astype(np.float32), labels


def test_what_is_written_comes_back(tmp_path, arrays):
    image, labels = arrays
    info = put(tmp_path, "case_01.5", image, labels)
    write_record(RECORD, tmp_path / "store.json")
    store = open_store(tmp_path)
    assert store.record == RECORD and store.cases == {"case_01.5": info}
    mapped = open_case(store, "case_01.5")
    loaded = in_memory(mapped)
    patch = (slice(3, 20), slice(0, 41), slice(30, 37))
    np.testing.assert_array_equal(mapped.image[(slice(None), *patch)], loaded.image[(slice(None), *patch)])
    np.testing.assert_array_equal(mapped.labels[patch], labels[patch])
    np.testing.assert_allclose(loaded.image, image, atol=2e-3)
    assert loaded.image.dtype == np.float16 and loaded.labels.dtype == np.uint8
    assert isinstance(mapped.foreground, np.memmap) and mapped.foreground.dtype == np.int32
    for label in (1, 2):
        rows = loaded.foreground[info.foreground_offsets[label - 1] : info.foreground_offsets[label]]
        assert len(rows) == info.class_counts[label] == (labels == label).sum()
        assert np.all(labels[tuple(rows.T)] == label)
    assert array_bytes(mapped) == labels.size * (2 * 2 + 1)
    assert not list(tmp_path.glob(".*"))


def test_a_case_without_foreground(tmp_path, arrays):
    image, labels = arrays
    info = put(tmp_path, "empty", image, np.zeros_like(labels))
    write_record(RECORD, tmp_path / "store.json")
    assert info.foreground_offsets == (0, 0, 0) and info.class_counts == (labels.size, 0, 0)
    assert open_case(open_store(tmp_path), "empty").foreground.shape == (0, 3)


def test_foreground_is_a_fixed_sample_of_each_label():
    labels = np.zeros((60, 60, 60), np.int16)
    labels[:40], labels[50:, :3, :3] = 1, 2
    first, offsets, counts = sample_foreground(labels, 4, "a")
    again, _, _ = sample_foreground(labels, 4, "a")
    other, _, _ = sample_foreground(labels, 4, "b")
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert counts == (labels.size - 40 * 3600 - 90, 40 * 3600, 90, 0)
    assert offsets == (0, FOREGROUND_VOXELS_PER_LABEL, FOREGROUND_VOXELS_PER_LABEL + 90, offsets[2])
    assert len(np.unique(first, axis=0)) == len(first), "drawn without replacement"
    drawn = first[: offsets[1]]
    assert np.all(drawn.min(axis=0) < 2) and np.all(drawn.max(axis=0) > [37, 57, 57]), "drawn from everywhere"


@given(spread=st.floats(1e-3, 1e3), offset=st.floats(-1e5, 1e5), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_half_precision_is_taken_only_where_rounding_stays_small(spread, offset, seed):
    image = (offset + spread * np.random.default_rng(seed).normal(size=(1, 4, 9, 9))).astype(np.float32)
    if loses_nothing_in_half(image):
        error = image.astype(np.float16).astype(np.float64) - image
        assert np.sqrt(np.mean(error**2)) <= 1.001e-3 * image.std(dtype=np.float64)
        assert np.abs(error).max() <= 1.001e-2 * image.std(dtype=np.float64)


def test_half_precision_on_plain_cases():
    rng = np.random.default_rng(1)
    standard = rng.normal(size=(1, 8, 20, 20)).astype(np.float32)
    assert loses_nothing_in_half(standard)
    assert loses_nothing_in_half(np.where(standard > 3, 25, standard).astype(np.float32))
    assert loses_nothing_in_half(np.zeros((1, 8, 20, 20), np.float32))
    assert not loses_nothing_in_half(30_000 + standard)
    assert not loses_nothing_in_half(1e6 * standard), "beyond the range of float16"
    assert not loses_nothing_in_half(np.concatenate([standard, 1000 + standard])), (
        "one channel decides for all"
    )


@given(
    shape=st.tuples(st.integers(1, 600), st.integers(1, 900), st.integers(1, 900)),
    item_bytes=st.sampled_from([1, 2, 4]),
    in_slices=st.booleans(),
)
def test_chunks_fit_the_array_and_blocks_the_cache(shape, item_bytes, in_slices):
    chunks, blocks = chunks_and_blocks((2, *shape), item_bytes, in_slices=in_slices)
    assert chunks[0] == blocks[0] == 1
    assert all(1 <= b <= c <= n for b, c, n in zip(blocks[1:], chunks[1:], shape, strict=True))
    assert np.prod(blocks) * item_bytes <= BLOCK_BYTES
    assert np.prod(chunks) <= CHUNK_VOXELS
    if in_slices:
        assert chunks[1] == 1
    elif min(shape) >= 64:
        assert chunks == (1, 64, 64, 64)


def test_a_kill_while_writing_leaves_no_case(tmp_path, arrays, monkeypatch):
    image, labels = arrays
    put(tmp_path, "a", image, labels)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "write_record", killed)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, "a", image + 1, labels)
    assert not is_stored(tmp_path, "a", INPUTS), "old record and new arrays must not be taken together"


def test_is_stored(tmp_path, arrays):
    assert not is_stored(tmp_path, "a", INPUTS)
    put(tmp_path, "a", *arrays)
    assert is_stored(tmp_path, "a", INPUTS)
    assert not is_stored(tmp_path, "a", (("case_0000.nii.gz", 124, 456), INPUTS[1]))
    (tmp_path / "a.json").write_text("{")
    assert not is_stored(tmp_path, "a", INPUTS)


def test_leftovers_and_cases_of_before_are_removed(tmp_path, arrays):
    put(tmp_path, "kept", *arrays)
    put(tmp_path, "gone", *arrays)
    write_record(RECORD, tmp_path / "store.json")
    old, new = tmp_path / ".kept-12ab34cd.b2nd", (".kept-12ab34ce.b2nd", ".new-12ab34cf.json")
    for path in (old, *(tmp_path / name for name in new)):
        path.write_bytes(b"half")
    two_hours_ago = old.stat().st_mtime - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    assert lost_cases(tmp_path, ["kept"]) == ("gone",)
    remove_leftovers(tmp_path, ["kept"])
    names = {"kept.json", "kept.b2nd", "kept.labels.b2nd", "kept.foreground.npy", "store.json", *new}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_disk_full(tmp_path, arrays, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="disk is full"):
        put(tmp_path, "a", *arrays)
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_not_finished(tmp_path, arrays):
    put(tmp_path, "a", *arrays)
    with pytest.raises(UserError, match=r"store\.json does not exist[\s\S]*Run `autoseg plan` again"):
        open_store(tmp_path)


def test_unknown_and_damaged_cases(tmp_path, arrays):
    put(tmp_path, "a", *arrays)
    write_record(RECORD, tmp_path / "store.json")
    store = open_store(tmp_path)
    with pytest.raises(UserError, match="case 'b' is not among the 1 preprocessed cases"):
        open_case(store, "b")
    (tmp_path / "a.b2nd").write_bytes(b"no array at all" * 10)
    with pytest.raises(UserError, match=r"a\.b2nd cannot be read"):
        open_case(store, "a")
    (tmp_path / "a.b2nd").unlink()
    with pytest.raises(UserError, match=r"a\.b2nd cannot be read"):
        open_case(store, "a")


def test_the_folder_is_named_by_what_shaped_the_store():
    folder = store_folder(Path("run"), "3d_fullres", RECORD)
    facts = RECORD.model_dump(mode="json", exclude={"ignore"})  # where there is none, stores keep their names
    assert folder == Path("run/preprocessed/3d_fullres") / content_hash(facts)
    assert store_folder(Path("run"), "3d_fullres", RECORD.model_copy(update={"axes": (1, 0, 2)})) != folder
