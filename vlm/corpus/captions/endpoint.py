"""Captions from a chat-completions endpoint, as OpenAI's, vLLM, llama.cpp, Ollama and others offer it."""

import json
import logging
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from autoseg.errors import UserError
from autoseg.records import ForeignRecord
from vlm.corpus.captions.asking import AskingWriter, Reply
from vlm.corpus.captions.posting import Patience, Refused, post_json, shortened
from vlm.corpus.captions.prompting import ANSWER_SCHEMA, Messages, NoCaptions, with_schema

logger = logging.getLogger("autoseg")

PATH = "/chat/completions"
FORMAT_REFUSALS = (400, 422, 501)
"""Answers with which servers refuse a `response_format` that they do not know: OpenAI's, FastAPI's, llama.cpp's."""
LARGEST_KEY = 16384
"""Bytes. Tokens of identity services are long, but not longer; a larger file is another file."""
WITH_SCHEMA_IN_PROMPT = "schema in the prompt"


class ChatMessageOut(ForeignRecord):
    """What the model said; None where it refused or called a tool."""

    content: str | None = None


class ChatChoice(ForeignRecord):
    """One answer of several."""

    message: ChatMessageOut


class ChatCompletion(ForeignRecord):
    """The part of an endpoint's answer that we read."""

    choices: tuple[ChatChoice, ...] = Field(min_length=1)


class EndpointWriter(AskingWriter):
    """Asks an endpoint, with the answer's structure enforced by the server (`response_format`) where it can.

    A server that refuses `response_format` is asked without it, with the schema in the prompt; the captions' origin
    then says so. Temperature and length are the server's own: some models refuse a request that names them.

    Parameters
    ----------
    url : base of the endpoint ("http://localhost:8000/v1"); /chat/completions is added.
    model : its name at the endpoint.
    key_file : a file that holds the key and nothing else. The key is sent to `url` only, and is in no message or file.
    """

    def __init__(
        self, url: str, model: str, key_file: Path | None = None, *, patience: Patience | None = None, asks: int = 3
    ) -> None:
        super().__init__(f"endpoint {model}", asks)
        if not model.strip() or not model.isprintable():
            raise UserError(f"--caption-model {model!r}: the name of a model at the endpoint was expected.")
        self._url = completions_url(url)
        self._model = model
        self._key = None if key_file is None else read_key(key_file)
        self._patience = patience or Patience()
        self._schema_refused = False
        if self._key is not None and not _is_private(self._url):
            logger.warning("%s is not encrypted: anybody on the way can read the key. Use https.", self._url)

    def chat(self, messages: Messages) -> Reply:
        """The model's answer.

        Raises
        ------
        NoCaptions : what came back is no chat completion, or one without text.
        UserError : the endpoint is down or refuses the request.
        """
        if not self._schema_refused:
            try:
                return Reply(self._complete(messages, structured=True), self.name)
            except Refused as refusal:
                if refusal.status not in FORMAT_REFUSALS:
                    raise self._explained(refusal) from None
        try:
            text = self._complete(with_schema(messages), structured=False)
        except Refused as refusal:
            raise self._explained(refusal) from None
        if not self._schema_refused:
            logger.info("%s refuses response_format: the answer's schema is put into the prompt", self._url)
        self._schema_refused = True
        return Reply(text, f"{self.name}, {WITH_SCHEMA_IN_PROMPT}")

    def _complete(self, messages: Messages, *, structured: bool) -> str:
        request: dict[str, object] = {"model": self._model, "messages": messages}
        if structured:
            schema = {"name": "captions", "strict": True, "schema": ANSWER_SCHEMA}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        answer = post_json(self._url, json.dumps(request).encode(), self._key, self._patience)
        try:
            completion = ChatCompletion.model_validate_json(answer)
        except ValidationError:
            raise NoCaptions("the endpoint's answer is not a chat completion",
                             answer.decode(errors="replace")) from None
        text = completion.choices[0].message.content
        if not text:
            raise NoCaptions("the endpoint's answer holds no text", "")
        return text

    def _explained(self, refusal: Refused) -> UserError:
        advice = "The request was not understood: is --caption-model the name of a chat model there?"
        if refusal.status in (401, 403):
            advice = "Give the file that holds a valid key with --key-file."
        elif refusal.status in (404, 405) or 300 <= refusal.status < 400:
            advice = "Check --endpoint (it ends in /v1 with most servers) and --caption-model."
        return UserError(f"{self._url} refused the request for {self._model}: HTTP {refusal.status}: "
                         f"{refusal.said}\n{advice}")


def completions_url(url: str) -> str:
    """The URL to post to, from a base URL or the full one. UserError where it is no plain http(s) URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0 or not url.isascii() or any(
            letter.isspace() or not letter.isprintable() for letter in url):
        raise UserError(f"--endpoint {shortened(url)}: an http:// or https:// URL was expected, "
                        "such as http://localhost:8000/v1.")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError("--endpoint: a URL without user name, password, ? and # was expected, as it is shown in "
                        "messages.\nPut the key into a file and give it with --key-file.")
    return url if parts.path.endswith(PATH) else url.rstrip("/") + PATH


def read_key(path: Path) -> str:
    """The key in a file, without white space around it. UserError, without the content, where it holds no key."""
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_KEY + 1)
    except OSError as error:
        raise UserError(f"--key-file {path} cannot be read: {error.strerror}. Name the key's file.") from None
    key = content.decode("ascii", errors="replace").strip()
    if not key or len(content) > LARGEST_KEY or not all("!" <= letter <= "~" for letter in key):
        raise UserError(f"--key-file {path} does not hold a key: one line of printable ASCII without spaces was "
                        "expected, and nothing else.")
    return key


def _is_private(url: str) -> bool:
    """Encrypted, or on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        return parts.scheme == "https" or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
