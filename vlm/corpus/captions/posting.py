"""POST of JSON over HTTP: bounded tries, no redirects, and errors that a user can act upon."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from ssl import SSLCertVerificationError
from typing import IO

from autoseg.errors import UserError

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Answers after which the same request may work: time-outs, too many requests, errors and overload of the server."""
LONGEST_PAUSE_SECONDS = 60.0
"""A server may ask (Retry-After) for more; a person at the terminal would take that for a hang."""
LARGEST_ANSWER = 4 * 2**20
"""Bytes. Some hundred captions are far below 1 MiB; beyond 4 MiB it is not an answer to us."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    timeout_seconds : without a byte from the server (a long answer may take longer in total). tries : of one request,
    the first included. pause : sleeps between two tries, 1, 2, 4 … seconds or as long as the server asks for.
    """

    timeout_seconds: float = 120.0
    tries: int = 5
    pause: Callable[[float], None] = time.sleep


class Refused(Exception):
    """The server answered, and will answer the same again. status : of HTTP. said : the start of its answer."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}: {said}")
        self.status, self.said = status, said


class _Unreached(Exception):
    """One try failed in a way that another may not. wait_seconds : asked for by the server."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and would take the key to another server."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message,
                         newurl: str) -> None:
        return None


def post_json(url: str, body: bytes, key: str | None, patience: Patience) -> bytes:
    """The body of the answer to a POST of JSON; `url` is http or https.

    The key goes into the request's header. Servers repeat a wrong key in what they answer: where it stands in an
    answer or a message, "(key)" is put.

    Raises
    ------
    Refused : the server refused this request, and not for the moment only.
    UserError : no answer after all tries; the reason of the last one is told.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=body, headers=headers)
    reason = ""
    for number in range(1, patience.tries + 1):
        try:
            return _post_once(request, key, patience.timeout_seconds)
        except _Unreached as failure:
            reason = str(failure)
            if number < patience.tries:
                wait = failure.wait_seconds if failure.wait_seconds is not None else 2.0 ** (number - 1)
                patience.pause(min(wait, LONGEST_PAUSE_SECONDS))
    raise UserError(f"{url} gave no answer in {patience.tries} tries: {reason}.\n"
                    "Check that the server runs and is reached from this machine, or mend --endpoint.")


def shortened(text: str, longest: int = 200) -> str:
    """The start of what a server or model said, on one line and printable."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _post_once(request: urllib.request.Request, key: str | None, timeout_seconds: float) -> bytes:
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            return _without(key, _whole(response))
    except urllib.error.HTTPError as error:
        with error:
            raise _judged(error, key) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, SSLCertVerificationError):
            raise UserError(f"{request.full_url}: its certificate is not trusted: {error.reason.verify_message}.\n"
                            "Use the name the certificate was made for, or install the certificate of its issuer."
                            ) from None
        raise _Unreached(_in_words(error.reason, timeout_seconds)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Unreached(_in_words(error, timeout_seconds)) from None


def _whole(response: http.client.HTTPResponse) -> bytes:
    content = response.read(LARGEST_ANSWER + 1)
    if len(content) > LARGEST_ANSWER:
        raise Refused(response.status, f"an answer of more than {LARGEST_ANSWER // 2**20} MiB")
    if response.length:  # `read` with a limit does not notice a connection that ends early
        raise http.client.IncompleteRead(content, response.length)
    return content


def _without(key: str | None, content: bytes) -> bytes:
    return content if key is None else content.replace(key.encode(), b"(key)")


def _judged(error: urllib.error.HTTPError, key: str | None) -> Exception:
    try:
        said = shortened(_without(key, error.read(LARGEST_ANSWER)).decode(errors="replace"), 500)
    except (OSError, http.client.HTTPException):
        said = ""
    if error.code in TRANSIENT:
        return _Unreached(f"HTTP {error.code} {error.reason}: {said}", _seconds(error.headers.get("Retry-After")))
    if 300 <= error.code < 400:
        goal = _without(key, (error.headers.get("Location") or "nowhere").encode(errors="replace")).decode()
        said = f"a redirect to {shortened(goal)}"
    return Refused(error.code, said or str(error.reason))


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None where it is absent or a date."""
    return float(header) if header is not None and header.strip().isdecimal() else None


def _in_words(reason: object, timeout_seconds: float) -> str:
    if isinstance(reason, TimeoutError):
        return f"silence for {timeout_seconds:g} s"
    if isinstance(reason, http.client.IncompleteRead):
        return "the connection ended before the answer did"
    if isinstance(reason, http.client.BadStatusLine) and not isinstance(reason, ConnectionError):
        return "what answers there does not speak HTTP"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return shortened(str(reason)) or type(reason).__name__
