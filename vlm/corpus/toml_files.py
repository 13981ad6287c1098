"""Records written as TOML by a person: parsed, checked, and refused with the file's name."""

import tomllib
from pathlib import Path
from typing import TypeVar

from autoseg.errors import UserError
from autoseg.records import Record, parse_record

AnyRecord = TypeVar("AnyRecord", bound=Record)


def parse_toml(kind: type[AnyRecord], text: str, path: Path) -> AnyRecord:
    """The record in TOML text; UserError with `path` and every key that is missing, unknown or ill-typed."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.\nCorrect the file.") from None
    return parse_record(kind, content, path, "Correct the file.")
