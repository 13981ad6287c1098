"""Python lists that somebody wrote into the cells of a table, read without running anything."""

import ast

LONGEST_LIST = 1 << 18
"""Characters of a cell that is parsed. Ten captions and a report have some thousand; parsing a hostile cell of this
length still ends at once."""


class NotAList(Exception):
    """A cell that is no list of texts. Its text is the reason."""


def listed_texts(cell: str) -> list[str]:
    """The texts in a cell such as "['a', 'b']"; a cell without brackets is one text, an empty one is none.

    Numbers become their text. NotAList: brackets that do not close, something that is neither text nor number, or more
    than 262 144 characters.
    """
    plain = cell.strip()
    if not plain or plain.lower() == "nan":
        return []
    if len(plain) > LONGEST_LIST:
        raise NotAList(f"the list has {len(plain)} characters; at most {LONGEST_LIST} are read")
    if plain[0] != "[":
        return [plain]
    try:
        found = ast.literal_eval(plain)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise NotAList(f"{plain[:40]!r} is not a list of texts") from None
    items = found if isinstance(found, list) else [found]
    if any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
        raise NotAList(f"{plain[:40]!r} holds more than texts")
    return [str(item).strip() for item in items if str(item).strip()]
