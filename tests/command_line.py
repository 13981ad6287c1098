"""Running a command in this process."""

import sys

from autoseg.cli import app
from autoseg.errors import UserError


def run_command(*arguments: object) -> tuple[int, str]:
    """The exit status and what a UserError said, which goes to stderr too, as in `autoseg.__main__`."""
    try:
        return int(app([str(one) for one in arguments], result_action="return_value")), ""
    except UserError as error:
        sys.stderr.write(str(error))
        return 2, str(error)
    except SystemExit as leaving:
        return int(leaving.code or 0), ""
