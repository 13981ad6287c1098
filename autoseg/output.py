"""What a command writes on standard output: a readable result or one JSON object; all else is stderr."""

import json
import sys
from collections.abc import Mapping


def write_stdout(text: str) -> None:
    """Write `text` and a line end on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write_json_object(content: Mapping[str, object]) -> None:
    """Write one JSON object on one line of standard output (`--json`); NaN and infinity are refused."""
    write_stdout(json.dumps(content, allow_nan=False))
