"""`python -m autoseg` and the console script `autoseg`: run a command, turn its outcome into an exit status."""

import atexit
import contextlib
import gc
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from cyclopts import CycloptsError

from autoseg.cli import app
from autoseg.errors import UserError
from autoseg.launch import Launch, launched
from autoseg.progress import start_logging
from autoseg.records import STORAGE_ERRORS, storage_error

SPREAD_COMMANDS = ("train",)
"""What several processes can do together."""
FIRST_SPEAKS_SECONDS = 5.0
"""So long another process than the first keeps its error to itself: where the first has it too, torchrun ends all."""

# At its end the interpreter looks for cycles among all objects, several times: with torch, most of a second.
atexit.register(gc.freeze)


def main() -> None:
    """Exit 0 done, 1 a bug of ours (traceback), 2 something the user can mend, 3 done but some cases failed."""
    start_logging()
    launch = launched()
    try:
        status = _run(sys.argv[1:], launch)
    except UserError as error:
        _fail(error, launch)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        _fail(storage_error(error, Path(error.filename or ".")), launch)
    sys.exit(status if isinstance(status, int) else 0)


def _run(arguments: list[str], launch: Launch) -> object:
    """Run the command; of several processes only the first writes on standard output."""
    if launch.world == 1:
        return app(arguments, result_action="return_value")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in SPREAD_COMMANDS:
        raise UserError(f"torchrun started {launch.world} processes of `autoseg {arguments[0]}`; only "
                        f"{', '.join(SPREAD_COMMANDS)} can be shared by several.\nRun it without torchrun.")
    if launch.is_first:
        return app(arguments, result_action="return_value")
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            return app(arguments, result_action="return_value", exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise UserError(str(error)) from error


def _fail(error: UserError, launch: Launch) -> NoReturn:
    """Tell the user and end with status 2."""
    if not launch.is_first:
        time.sleep(FIRST_SPEAKS_SECONDS)
        if error.in_all:
            sys.exit(2)
    who = "autoseg" if launch.is_first else f"autoseg (process {launch.rank})"
    sys.stderr.write(f"\n{who}: {error}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
