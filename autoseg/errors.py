"""The one error that a user can mend."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend: what is wrong (path and value first), what was expected, what to do.

    Commands print the message without a traceback and exit with status 2. Of several processes that train together
    the first one's message is enough where an error is `in_all`: raised in every one of them.
    """

    in_all = False


def all_of(problems: Sequence[str], heading: str, remedy: str, shown: int = 20) -> UserError:
    """One error that reports every problem of a kind together.

    Parameters
    ----------
    problems : one line each, path and value first.
    heading : what was being checked, e.g. "3 problems in /data/Dataset004".
    remedy : the next step for the user.
    shown : at most this many lines are printed; the rest is counted.
    """
    lines = [heading, *(f"  - {problem}" for problem in problems[:shown])]
    if len(problems) > shown:
        lines.append(f"  … and {len(problems) - shown} more")
    return UserError("\n".join([*lines, remedy]))
