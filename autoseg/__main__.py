"""`python -m autoseg` and the console script `autoseg`: run a command, turn its outcome into an exit status."""

import sys

from autoseg.cli import app
from autoseg.errors import UserError
from autoseg.progress import start_logging


def main() -> None:
    """Exit 0 done, 1 a bug of ours (traceback), 2 something the user can mend, 3 done but some cases failed."""
    start_logging()
    try:
        status = app(result_action="return_value")
    except UserError as error:
        sys.stderr.write(f"\nautoseg: {error}\n")
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
