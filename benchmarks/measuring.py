"""Run a command as a child process: wall seconds, processor seconds, peak memory of its whole process tree."""

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SAMPLE_SECONDS = 0.02
SAMPLING_SHARE = 0.1
"""Of one core: where summing up a large process takes long, samples are further apart."""
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "Unable to allocate", "DefaultCPUAllocator", "out of memory",
                 "OutOfMemory", "bad_alloc")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """seconds: wall clock; processor_seconds: user + system of the tree; peak_mib: largest sum of proportional
    set sizes (PSS: shared pages counted once) over the tree, sampled every 20 ms."""

    seconds: float
    processor_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Limits:
    """Of a child. memory_gib : address space of each of its processes, and memory (PSS) of all of them together;
    on a GPU only the latter, as CUDA reserves addresses freely. seconds : wall clock.
    """

    memory_gib: float | None = None
    seconds: float | None = None
    limits_addresses: bool = True


UNLIMITED = Limits()


class LimitReached(RuntimeError):
    """A child that died of a limit. `str` says of which; `measured`: what it had used until then."""

    def __init__(self, reason: str, measured: Measurement) -> None:
        super().__init__(reason)
        self.measured = measured


def measure_command(
    command: Sequence[str], environment: Mapping[str, str] | None = None, limits: Limits = UNLIMITED
) -> Measurement:
    """Run a command to its end; RuntimeError with its last output when it fails, LimitReached at a limit."""
    before = os.times()
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _limit_addresses(process.pid, limits)
            peak, reached = _watch(process, limits, start)
        except BaseException:
            _end(process)
            raise
        seconds = time.perf_counter() - start
        after = os.times()
        used = (after.children_user - before.children_user) + (after.children_system - before.children_system)
        measured = Measurement(round(seconds, 3), round(used, 3), round(peak, 1))
        if process.returncode:
            output.seek(0)
            said = output.read()
            if reached is None and limits.memory_gib is not None and any(word in said for word in OUT_OF_MEMORY):
                reached = _memory_reason(limits)
            if reached is not None:
                raise LimitReached(reached, measured)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said[-3000:]}")
    return measured


def _watch(process: subprocess.Popen, limits: Limits, start: float) -> tuple[float, str | None]:
    """Wait for the end, or end it at a limit: the peak in MiB, and which limit."""
    peak = 0.0
    while process.poll() is None:
        begun = time.perf_counter()
        peak = max(peak, _tree_pss_mib(process.pid))
        cost = time.perf_counter() - begun
        reached = None
        if limits.memory_gib is not None and peak > 1024 * limits.memory_gib:
            reached = _memory_reason(limits)
        elif limits.seconds is not None and begun - start > limits.seconds:
            reached = f"not done after {limits.seconds:g} s"
        if reached is not None:
            _end(process)
            return peak, reached
        time.sleep(max(SAMPLE_SECONDS, cost / SAMPLING_SHARE))
    return peak, None


def _memory_reason(limits: Limits) -> str:
    return f"out of memory at {limits.memory_gib:g} GiB"


def _limit_addresses(pid: int, limits: Limits) -> None:
    """Of a child that has just begun; its own children inherit it."""
    if limits.memory_gib is not None and limits.limits_addresses:
        size = int(limits.memory_gib * 2**30)
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))


def _end(process: subprocess.Popen) -> None:
    """Kill what we started, with all its processes: they are a session of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tree_pss_mib(root: int) -> float:
    total, waiting = 0.0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text().split())
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
        except (OSError, ValueError):
            continue
    return total


def bootstrap_mean(changes: np.ndarray) -> tuple[float, float, float]:
    """The mean of changes per case and its 95 % interval, from 10,000 draws of as many cases (seed 0)."""
    means = np.random.default_rng(0).choice(changes, (10_000, len(changes))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(changes.mean()), float(low), float(high)


def machine() -> dict[str, object]:
    """What the figures were measured on, and with what."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    packages = ("autoseg", "nnunetv2", "torch", "numpy", "scipy")
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "platform": platform.platform(),
            "python": platform.python_version(), "versions": {name: _version(name) for name in packages},
            "commit": _commit(), "memory_gib": _memory_gib(), "date": datetime.now(UTC).date().isoformat()}


def _commit() -> str:
    """Of the checkout, "+changes" where autoseg itself differs from it; empty without git or history."""
    if shutil.which("git") is None:
        return ""
    here = ["git", "-C", str(Path(__file__).parent)]
    done = subprocess.run([*here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*here, "status", "--porcelain", "--", "../autoseg"], capture_output=True, text=True,
                             check=False)
    return done.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def _memory_gib() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _version(package: str) -> str:
    """Of an installed package; a borrowed machine may run the checkout as it is, without the peers."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def device_name(device: "torch.device") -> str:
    """The card's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write_results(name: str, results: Mapping[str, object], folder: Path = RESULTS) -> Path:
    """<name>.json in benchmarks/results or another folder, with the machine beside the figures."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    sys.stdout.write(f"{path.parent.name}/{path.name} written\n")
    return path
