"""Arrays on the disk hold what is written into them and leave nothing behind, even of a process that is killed."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from autoseg.data import disk_arrays
from autoseg.data.disk_arrays import reserved_array


def test_it_is_zero_at_first_and_keeps_what_is_written(tmp_path):
    array = reserved_array(tmp_path, (3, 40, 50))
    assert array.dtype == np.float32 and array.shape == (3, 40, 50) and not array.any()
    values = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    array[:] = values
    other = reserved_array(tmp_path, (2, 2))
    np.testing.assert_array_equal(array, values)
    assert not other.any()


def test_no_name_is_left_while_it_is_held_or_when_its_process_is_killed(tmp_path):
    held = reserved_array(tmp_path, (10, 10))
    held[:] = 1
    assert not list(tmp_path.iterdir())
    code = ("import sys, time; from pathlib import Path; from autoseg.data.disk_arrays import reserved_array\n"
            "array = reserved_array(Path(sys.argv[1]), (1 << 20,)); array[:] = 1\n"
            "print('ready', flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space")
def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_arrays.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        reserved_array(tmp_path, (10,))
    assert not list(tmp_path.iterdir())


def test_an_absent_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        reserved_array(tmp_path / "absent", (10,))
