"""A chat endpoint on 127.0.0.1 that gives scripted answers and remembers what it was asked: for tests of captions."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What the server does with one request. hangs : it says nothing until the test ends."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclass
class ScriptedServer:
    """Answers in the order of the script; the last one again and again."""

    url: str
    script: list[Answer]
    asked: list[Asked] = field(default_factory=list)


def said(text, status=200, **headers) -> Answer:
    """A chat completion in which the model says `text`."""
    body = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Answer(json.dumps(body).encode(), status, headers)


def captions(*texts) -> Answer:
    """A chat completion that holds captions."""
    return said(json.dumps({"captions": texts}))


def error(status, message, **headers) -> Answer:
    """An error as OpenAI's servers word it."""
    return Answer(json.dumps({"error": {"message": message}}).encode(), status, headers)


@contextmanager
def serving(*script: Answer) -> Iterator[ScriptedServer]:
    """The server, stopped and all its sockets closed at the end."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = server.script[min(len(server.asked), len(server.script) - 1)]
            server.asked.append(Asked(self.path, dict(self.headers), json.loads(body)))
            if answer.hangs:
                over.wait(30)
                return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = False  # so that closing waits for the handlers, which close their sockets
    server = ScriptedServer(f"http://127.0.0.1:{listener.server_address[1]}/v1", list(script))
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        over.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


def free_url() -> str:
    """The URL of a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
