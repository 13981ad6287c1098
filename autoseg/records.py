"""Frozen records in JSON and TOML: files we own refuse unknown keys, foreign ones ignore them; writes are atomic."""

import errno
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from autoseg.errors import UserError


class Record(BaseModel):
    """A file format of ours: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ForeignRecord(BaseModel):
    """A file written by somebody else: immutable, unknown keys ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def read_json(path: Path, hint: str = "") -> object:
    """The parsed content of a JSON file; UserError when it is absent, unreadable or not JSON."""
    hint = f"\n{hint}" if hint else ""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.{hint}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.{hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; a JSON file in UTF-8 was expected.{hint}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}.{hint}"
        ) from None


def read_record(kind: type[AnyRecord], path: Path, hint: str = "") -> AnyRecord:
    """The record in a JSON file; UserError listing every key that is missing, unknown or ill-typed."""
    return parse_record(kind, read_json(path, hint), path, hint)


def parse_record(kind: type[AnyRecord], content: object, path: Path, hint: str = "") -> AnyRecord:
    """As `read_record`, for content that is parsed already; `path` only appears in the message."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [
            f"  - {'.'.join(str(part) for part in detail['loc']) or 'the file'}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_input=False)
        ]
        message = "\n".join([f"{path} does not hold what was expected:", *problems])
        raise UserError(f"{message}\n{hint}".rstrip()) from None


def parse_toml(kind: type[AnyRecord], text: str, path: Path, hint: str = "") -> AnyRecord:
    """The record in TOML text; UserError with `path`, every key that is missing, unknown or ill-typed, and `hint`."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.\nCorrect the file. {hint}".rstrip()) from None
    return parse_record(kind, content, path, hint or "Correct the file.")


def write_record(record: BaseModel, path: Path) -> None:
    """Write a record as indented JSON, atomically."""
    write_json(record.model_dump(mode="json"), path)


def write_json(content: object, path: Path) -> None:
    """Write JSON under a temporary name, then rename."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` (same suffixes) that becomes `path` when the block ends well.

    When the block fails, the temporary file is removed and what stood at `path` is untouched.
    A full disk or a folder that is not writable becomes a UserError.
    """
    suffix = "".join(path.suffixes[-2:])
    temporary = path.with_name(f".{path.name.removesuffix(suffix)}-{uuid4().hex[:8]}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        with suppress(OSError):  # no folder there, or one that cannot be written: the block's own error matters
            temporary.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
STORAGE_ERRORS = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS)


def storage_error(error: OSError, path: Path) -> UserError:
    """What a failing write means to the user."""
    if error.errno in FULL:
        return UserError(f"{path}: the disk is full. Free space there or choose another folder; "
                         "nothing half-written was left.")
    if error.errno in REFUSED:
        return UserError(f"{path} cannot be written: {error.strerror}. Choose a folder that you may write to.")
    return UserError(f"{path} cannot be written: {error.strerror or error}. Check the folder and its disk.")


def content_hash(content: object) -> str:
    """Eight hexadecimal digits of the SHA-256 of canonical JSON: the same content, the same hash."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
