"""Records written as TOML by a person: parsed, checked, and refused with the file's name."""

from pathlib import Path
from typing import TypeVar

from autoseg.errors import UserError
from autoseg.records import Record, parse_toml

AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_toml(kind: type[AnyRecord], path: Path, what: str) -> AnyRecord:
    """The record in a user's TOML file. UserError, also where there is no such text. what : is expected there."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {what} in TOML was expected.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; {what[0].lower()}{what[1:]} in TOML (UTF-8) was expected.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    return parse_toml(kind, text, path)
