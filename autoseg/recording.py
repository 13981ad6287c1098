"""run.json: what was run, with which versions, on what, for how long, and how it ended."""

import importlib.metadata
import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from autoseg import __version__
from autoseg.errors import UserError
from autoseg.launch import launched
from autoseg.records import Record, read_record, write_record

RECORDED_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "blosc2", "batchgenerators")
KEPT_EARLIER_RECORDS = 200

logger = logging.getLogger("autoseg")


class CommandRecord(Record):
    """One finished command."""

    command: str
    arguments: tuple[str, ...]
    started: str
    seconds: float
    exit_status: int
    message: str | None
    device: str | None
    seed: int | None
    versions: dict[str, str]
    inputs: dict[str, str]
    results: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class RunRecord(CommandRecord):
    """run.json: the latest command, and those before it in the same folder, oldest first."""

    earlier: tuple[CommandRecord, ...] = ()


@dataclass
class Recording:
    """Filled in while a command runs. `inputs`: name → hash or path; `results`: the main figures."""

    device: str | None = None
    exit_status: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    results: dict[str, str | int | float | bool | None] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Versions of python, autoseg and the packages that shape results; imports nothing heavy."""
    found = {"python": platform.python_version(), "autoseg": __version__, "platform": platform.platform()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


@contextmanager
def recorded(command: str, folder: Path, seed: int | None = None) -> Iterator[Recording]:
    """Write `folder`/run.json when the block ends, well or not; earlier records are kept inside it.

    A failed command leaves a record only where the folder exists already: it creates nothing. Of several processes
    that train together the first one writes.
    """
    recording = Recording()
    started, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    message: str | None = None
    try:
        yield recording
    except UserError as error:
        recording.exit_status, message = 2, str(error)
        raise
    except BaseException as error:
        recording.exit_status, message = 1, f"{type(error).__name__}: {error}"
        raise
    finally:
        record = CommandRecord(
            command=command, arguments=tuple(sys.argv[1:]), started=started,
            seconds=round(time.perf_counter() - start, 3), exit_status=recording.exit_status, message=message,
            device=recording.device, seed=seed, versions=versions(), inputs=recording.inputs,
            results=recording.results,
        )
        if launched().is_first and (message is None or folder.is_dir()):
            _append_quietly(record, folder / "run.json")


def append_record(record: CommandRecord, path: Path) -> None:
    """Make `record` the latest of the run.json at `path`."""
    earlier: tuple[CommandRecord, ...] = ()
    if path.exists():
        latest = read_record(RunRecord, path, "Move this file away; it only records what was run.")
        earlier = (*latest.earlier, CommandRecord(**latest.model_dump(exclude={"earlier"})))
    write_record(RunRecord(**record.model_dump(), earlier=earlier[-KEPT_EARLIER_RECORDS:]), path)


def _append_quietly(record: CommandRecord, path: Path) -> None:
    # What the command did, or why it failed, matters more than its record.
    try:
        append_record(record, path)
    except UserError as error:
        logger.warning("the command was not recorded: %s", error)
