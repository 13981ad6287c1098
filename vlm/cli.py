"""The `vlm` command line: its commands by name, imported only when they run."""

import sys

from cyclopts import App

from autoseg import __version__
from autoseg.errors import UserError

HELP = """The vision-language side of autoseg.

No command is offered yet: corpus building, training, evaluation and text banks arrive one by one,
each listed here from the day it works. To segment images, see `autoseg --help`.
"""

app = App(name="vlm", help=HELP, version=__version__, help_format="markdown")


def main() -> None:
    """Exit 0 done, 1 a bug of ours (traceback), 2 something the user can mend."""
    try:
        status = app(sys.argv[1:], result_action="return_value")
    except UserError as error:
        sys.stderr.write(f"\nvlm: {error}\n")
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
