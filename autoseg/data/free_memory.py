"""How much memory this process may still take."""

import os
from pathlib import Path


def available_memory_bytes() -> int:
    """Memory that this process may still take: what the machine has left, within the container's limit."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        available = _numbers(meminfo.read_text())["MemAvailable:"] * 1024
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        reclaimable = _numbers((group / "memory.stat").read_text())["inactive_file"]
        used = int((group / "memory.current").read_text()) - reclaimable
        available = min(available, max(int(text) - used, 0))
    return available


def reachable_memory_bytes() -> int:
    """What is available and what this process holds: more than that it can never have.

    Memory of freed tensors stays with the process (`keep_freed_memory`) and is not available, but is used again.
    """
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0
    return available_memory_bytes() + resident


def _numbers(text: str) -> dict[str, int]:
    """Lines "name number …" as a dictionary."""
    return {words[0]: int(words[1]) for line in text.splitlines() if len(words := line.split()) >= 2}
