"""`python -m autoseg` and the console script `autoseg`: run a command, turn its outcome into an exit status."""

import sys
from pathlib import Path

from autoseg.cli import app
from autoseg.errors import UserError
from autoseg.progress import start_logging
from autoseg.records import STORAGE_ERRORS, storage_error


def main() -> None:
    """Exit 0 done, 1 a bug of ours (traceback), 2 something the user can mend, 3 done but some cases failed."""
    start_logging()
    try:
        status = app(sys.argv[1:], result_action="return_value")
    except UserError as error:
        sys.stderr.write(f"\nautoseg: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        sys.stderr.write(f"\nautoseg: {storage_error(error, Path(error.filename or '.'))}\n")
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
