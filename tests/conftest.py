"""Shapes and types in signatures are enforced while tests run (jaxtyping + beartype)."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# The same examples everywhere, and no deadline: continuous integration runs on busy machines.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

install_import_hook("autoseg", "beartype.beartype")



def pytest_configure(config: pytest.Config) -> None:
    """Processes that share a machine (pytest -n) take one thread each: threads that wait for each other are slow."""
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "seg"


def real_dataset(name: str) -> Path:
    """The folder of a real dataset, or a skip that says what is missing."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real dataset {name} is not on this machine")
    return folder
