"""Resident, streamed and resumed sources give the same batches; workers end cleanly and fail loudly."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.data.free_memory import available_memory_bytes
from autoseg.data.store import in_memory, open_case, open_store, sample_foreground, write_case
from autoseg.errors import UserError
from autoseg.planning.optimizers import RECIPES
from autoseg.records import write_record
from autoseg.schema import (
    ChannelNormalization,
    IntensityStatistics,
    NetworkPlan,
    StoredCase,
    StoreRecord,
    Topology,
)
from autoseg.training import spatial, streaming
from autoseg.training.batches import BatchForm, finish, stage
from autoseg.training.draws import DrawSettings
from autoseg.training.patches import RawSample, patch_center
from autoseg.training.streaming import open_patches

CPU = torch.device("cpu")
RESIDENT, STREAMED = 1 << 40, 0
SETTINGS = DrawSettings(seed=5, mirror_axes=(0, 1))


def network(patch_shape, batch_size=3):
    axes = len(patch_shape)
    topology = Topology(strides=((1,) * axes,), kernel_sizes=((3,) * axes,), features=(8,), encoder_blocks=(1,),
                        decoder_blocks=())
    return NetworkPlan(patch_shape=patch_shape, batch_size=batch_size, topology=topology, batch_dice=False,
                       optimizer=RECIPES["sgd"], memory_gib=1.0, reasons=())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four two-channel cases of different shapes; one has no foreground."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    zeros = IntensityStatistics(mean=0, median=0, std=1, min=0, max=1, percentile_00_5=0, percentile_99_5=1)
    channels = tuple(ChannelNormalization(scheme="zscore", within_nonzero=masked, statistics=zeros)
                     for masked in (False, True))
    write_record(StoreRecord(axes=(0, 1, 2), spacing=(1.0, 1.0, 1.0), normalization=channels,
                             labels={"background": 0, "one": 1, "two": 2}), folder / "store.json")
    for number, shape in enumerate([(14, 18, 16), (9, 22, 13), (20, 12, 19), (12, 12, 12)]):
        labels = np.zeros(shape, np.uint8)
        if number < 3:
            labels[3:7, 2:9, 4:8] = 1
            labels[6:8, 9:11, 3:12] = 2
        foreground, offsets, counts = sample_foreground(labels, 3, f"case{number}")
        info = StoredCase(id=f"case{number}", shape=shape, original_shape=shape, spacing=(1, 1, 1), inputs=(),
                          original_spacing=(1, 1, 1), crop=tuple((0, n) for n in shape), class_counts=counts,
                          foreground_offsets=offsets)
        write_case(folder, rng.normal(size=(2, *shape)).astype(np.float32), labels, foreground, info,
                   in_slices=False)
    return open_store(folder)


def batches(store, steps, budget, settings=SETTINGS, patch_shape=(10, 12, 8), workers=2):
    with open_patches(store, tuple(store.cases), network(patch_shape), settings, CPU, budget, workers) as source:
        return [source.batch(step) for step in steps]


def assert_same(ours, others):
    for one, other in zip(ours, others, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.labels, other.labels)
        assert one.case_ids == other.case_ids


def assert_nothing_left():
    assert multiprocessing.active_children() == []
    # tqdm's monitor is left by an oracle of another test; it is not ours.
    assert [thread for thread in threading.enumerate() if thread.name != "tqdm_monitor" and
            type(thread).__name__ != "TMonitor"] == [threading.main_thread()]


@pytest.mark.parametrize("patch_shape", [(10, 12, 8), (3, 12, 10), (12, 16)])
@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, is_validation=True, augment=False)])
def test_resident_and_streamed_give_the_same_batches(store, patch_shape, settings):
    resident = batches(store, range(6), RESIDENT, settings, patch_shape)
    assert resident[0].image.shape == (3, 2, *patch_shape)
    assert resident[0].labels.shape == (3, *patch_shape)
    assert (resident[0].image.dtype, resident[0].labels.dtype) == (torch.float32, torch.uint8)
    assert any(not torch.equal(resident[0].image, other.image) for other in resident[1:])
    assert_same(resident, batches(store, range(6), STREAMED, settings, patch_shape))
    assert_nothing_left()


@pytest.mark.parametrize("budget", [RESIDENT, STREAMED])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_source_goes_on_as_a_continuous_one(store, budget, workers):
    continuous = batches(store, range(20), RESIDENT)
    assert_same(continuous[17:], batches(store, range(17, 20), budget, workers=workers))


def test_steps_out_of_order(store):
    assert_same([batches(store, [4], RESIDENT)[0]] * 2, batches(store, [4, 9, 4], STREAMED)[::2])
    assert_nothing_left()


def test_the_background_thread_changes_nothing(store, monkeypatch):
    """On CUDA a thread reads ahead; here the same code runs for the CPU."""
    expected = batches(store, [0, 1, 2, 7, 8], RESIDENT)
    form = BatchForm(patch_shape=(10, 12, 8), channels=2, label_dtype=torch.uint8, masked_channels=(1,), device=CPU)
    with open_patches(store, tuple(store.cases), network((10, 12, 8)), SETTINGS, CPU, STREAMED, 2) as plain, \
            streaming.ThreadPoolExecutor(1) as thread:
        ahead = streaming.PatchSource(plain._read, form, thread)
        assert_same(expected, [ahead.batch(step) for step in (0, 1, 2, 7, 8)])
    assert_nothing_left()


def test_training_and_validation_of_one_seed_differ(store):
    one, other = (batches(store, [0], RESIDENT, replace(SETTINGS, augment=False, is_validation=validation))
                  for validation in (False, True))
    assert not torch.equal(one[0].image, other[0].image)


def test_a_turned_sample_is_the_whole_image_turned_around_the_patch(store):
    """Reading only what the draw covers is as good as reading the whole case."""
    case = in_memory(open_case(store, "case0"))
    form = BatchForm(patch_shape=(10, 12, 8), channels=2, label_dtype=torch.uint8, masked_channels=(), device=CPU)
    with open_patches(store, ("case0",), network((10, 12, 8)), replace(SETTINGS, mirror_axes=()), CPU, RESIDENT,
                      1) as source:
        turned = [sample for step in range(12) for sample in source._read(step) if sample.draw.matrix is not None]
    assert len(turned) > 5
    for sample in turned:
        plain = replace(sample, draw=replace(sample.draw, intensity=None))
        batch = finish(stage([plain], form), form)
        center = patch_center(sample.draw, form.patch_shape)
        where = spatial.sample_coordinates(sample.draw.matrix, center, form.patch_shape, CPU)
        whole = spatial.resample_image(torch.from_numpy(case.image.astype(np.float32)), where)
        labels = spatial.resample_labels(torch.from_numpy(case.labels)[None], where)
        torch.testing.assert_close(batch.image[0], whole, atol=1e-4, rtol=1e-4)
        assert (batch.labels == labels).float().mean() > 0.999


def test_mirroring_takes_image_and_labels_along(store):
    plain = batches(store, range(8), RESIDENT, replace(SETTINGS, augment=False))
    form = BatchForm(patch_shape=(10, 12, 8), channels=2, label_dtype=torch.uint8, masked_channels=(), device=CPU)
    with open_patches(store, tuple(store.cases), network((10, 12, 8)), replace(SETTINGS, augment=False), CPU,
                      RESIDENT, 1) as source:
        for step, batch in enumerate(plain):
            flipped = [RawSample(replace(s.draw, mirror=(0, 2)), s.case_id, s.image, s.labels, s.origin)
                       for s in source._read(step)]
            mirrored = finish(stage(flipped, form), form)
            assert torch.equal(mirrored.image, batch.image.flip(2, 4))
            assert torch.equal(mirrored.labels, batch.labels.flip(1, 3))


# ---------------------------------------------------------------- failures
def test_no_cases_is_an_error(store):
    with pytest.raises(UserError, match="no cases"), \
            open_patches(store, (), network((8, 8, 8)), SETTINGS, CPU, RESIDENT, 1):
        pass


def test_a_file_that_vanishes_while_training_is_an_error(store, tmp_path):
    """Not a hang: the worker's reason arrives."""
    for path in store.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = open_store(tmp_path)
    with open_patches(copy, tuple(copy.cases), network((8, 8, 8)), SETTINGS, CPU, STREAMED, 2) as source:
        source.batch(0)
        for path in tmp_path.glob("*.b2nd"):
            path.unlink()
        with pytest.raises(UserError, match="could not be read.*b2nd"):
            for step in range(1, 40):
                source.batch(step)
    assert_nothing_left()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # batchgenerators' own thread
def test_a_killed_worker_is_an_error(store):
    with open_patches(store, tuple(store.cases), network((8, 8, 8)), SETTINGS, CPU, STREAMED, 2) as source:
        source.batch(0)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match="signal 9"):
            for step in range(1, 40):
                source.batch(step)
                time.sleep(0.01)
    assert_nothing_left()


KILLED = """
import multiprocessing, os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_streaming import SETTINGS, network
from autoseg.data.store import open_store
from autoseg.training.streaming import open_patches
store = open_store(Path(sys.argv[1]))
with open_patches(store, tuple(store.cases), network((8, 8, 8)), SETTINGS, torch.device("cpu"), 0, 2) as source:
    source.batch(0)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(store):
    run = subprocess.run([sys.executable, "-c", KILLED, str(store.folder), str(Path(__file__).parent)],
                         capture_output=True, text=True, check=False, timeout=120)
    workers = [int(word) for word in run.stdout.split()]
    assert (run.returncode, len(workers)) == (-signal.SIGKILL, 2), run.stderr
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(is_running(worker) for worker in workers):
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


def is_running(pid):
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_an_error_of_the_caller_ends_the_workers(store):
    with pytest.raises(ZeroDivisionError), \
            open_patches(store, tuple(store.cases), network((8, 8, 8)), SETTINGS, CPU, STREAMED, 2) as source:
        source.batch(0)
        raise ZeroDivisionError
    assert_nothing_left()


def test_memory_budget_is_a_share_of_what_is_available():
    assert 0 < streaming.default_memory_budget() < available_memory_bytes()
