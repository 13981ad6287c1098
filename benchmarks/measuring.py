"""Run a command as a child process: wall seconds, processor seconds, peak memory of its whole process tree."""

import json
import os
import platform
import shutil
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
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """seconds: wall clock; processor_seconds: user + system of the tree; peak_mib: largest sum of proportional
    set sizes (PSS: shared pages counted once) over the tree, sampled every 20 ms."""

    seconds: float
    processor_seconds: float
    peak_mib: float


def measure_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measurement:
    """Run a command to its end; RuntimeError with its last output when it fails."""
    before = os.times()
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=output,
                                   stderr=subprocess.STDOUT)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _tree_pss_mib(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
        after = os.times()
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-3000:]}")
    used = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return Measurement(round(seconds, 3), round(used, 3), round(peak, 1))


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
            "commit": _commit(), "date": datetime.now(UTC).date().isoformat()}


def _commit() -> str:
    """Of the checkout; empty where it travelled without its history or there is no git."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


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


def write_results(name: str, results: Mapping[str, object]) -> Path:
    """benchmarks/results/<name>.json, with the machine beside the figures."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    sys.stdout.write(f"results/{path.name} written\n")
    return path
