"""Options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

DEFAULT_RUN = Path("autoseg_run")
DEFAULT_SEED = 12345

RunOption = Annotated[Path, Parameter(name="--run", help="The run folder: everything of one dataset lives there.")]
DeviceName = Literal["auto", "cpu", "cuda"]
DeviceOption = Annotated[DeviceName, Parameter(name="--device", help="`auto` takes a GPU where there is one.")]
_SEEDS = validators.Number(gte=0, lt=2**32)
SeedOption = Annotated[int, Parameter(name="--seed", help="Every random draw is a function of it.", validator=_SEEDS)]
JsonOption = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")]
WorkersOption = Annotated[int | None, Parameter(name="--workers", help="Processes; by default one per core.")]
