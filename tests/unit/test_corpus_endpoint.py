"""The endpoint's writer against a scripted server: good answers, refusals, nonsense, silence, and a key kept secret."""

import logging
import socket
import threading

import pytest
from corpus_endpoint import Answer, captions, error, free_url, said, serving

from autoseg.errors import UserError
from vlm.corpus.captions.endpoint import EndpointWriter, completions_url, read_key
from vlm.corpus.captions.posting import LARGEST_ANSWER, Patience
from vlm.corpus.captions.prompting import ANSWER_SCHEMA
from vlm.corpus.rows import LabelSet

PNEUMONIA = LabelSet("X-ray", present=("pneumonia",), anatomy="chest")
GOOD = ("Chest X-ray showing pneumonia in the lungs.", "Findings of pneumonia on a radiograph of the chest.",
        "This chest radiograph demonstrates pneumonia.", "Pneumonia is visible on the chest X-ray.")
KEY = "sk-very-secret-0123456789"


class Pauses(list):
    """In place of sleeping."""

    def __call__(self, seconds):
        self.append(seconds)


def impatient(pauses=None, tries=4, timeout_seconds=5.0):
    return Patience(timeout_seconds=timeout_seconds, tries=tries, pause=Pauses() if pauses is None else pauses)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    return path


def test_good_answers_become_generated_captions():
    with serving(captions(*GOOD)) as server:
        written = EndpointWriter(server.url, "big-model", patience=impatient()).compose(PNEUMONIA, None, 4)
    assert tuple(caption.text for caption in written.captions) == GOOD
    assert {(caption.kind, caption.origin) for caption in written.captions} == {("generated", "endpoint big-model")}
    assert written.rejected == ()
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions" and asked.body["model"] == "big-model"
    assert asked.body["response_format"]["json_schema"]["schema"] == ANSWER_SCHEMA
    assert all(word in asked.text for word in ("X-ray", "pneumonia", "chest", "4 captions"))
    assert "Authorization" not in asked.headers


def test_more_captions_than_wanted_are_cut():
    with serving(captions(*GOOD)) as server:
        written = EndpointWriter(server.url, "m", patience=impatient()).write(PNEUMONIA, None, 2)
    assert tuple(caption.text for caption in written) == GOOD[:2]


@pytest.mark.parametrize(("headers", "expected"), [({}, [1.0, 2.0]), ({"Retry-After": "7"}, [7.0, 7.0]),
                                                   ({"Retry-After": "86400"}, [60.0, 60.0]),
                                                   ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, [1.0, 2.0])])
def test_a_busy_server_is_asked_again_after_a_pause(headers, expected):
    pauses = Pauses()
    with serving(error(429, "slow down", **headers), error(503, "starting", **headers), captions(*GOOD)) as server:
        written = EndpointWriter(server.url, "m", patience=impatient(pauses)).write(PNEUMONIA, None, 4)
    assert len(written) == 4 and pauses == expected
    assert server.asked[0] == server.asked[-1]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_tries_are_bounded(status):
    pauses = Pauses()
    with serving(error(status, "quota exceeded")) as server, pytest.raises(UserError) as raised:
        EndpointWriter(server.url, "m", patience=impatient(pauses, tries=3)).write(PNEUMONIA, None, 2)
    assert len(server.asked) == 3 and pauses == [1.0, 2.0]
    assert all(part in str(raised.value) for part in (server.url, "quota exceeded", str(status)))


@pytest.mark.parametrize("status", [400, 422, 501])
def test_a_server_without_response_format_gets_the_schema_in_the_prompt(status):
    with serving(error(status, "unknown field response_format"), captions(*GOOD)) as server:
        writer = EndpointWriter(server.url, "m", patience=impatient())
        written = [writer.write(PNEUMONIA, None, 4) for _ in range(2)]
    assert {caption.origin for captions in written for caption in captions} == {"endpoint m, schema in the prompt"}
    refused, *plain = server.asked
    assert "response_format" in refused.body and '"additionalProperties"' not in refused.text
    assert len(plain) == 2  # what was refused once is not asked for again
    for asked in plain:
        assert "response_format" not in asked.body and '"additionalProperties"' in asked.text


def test_a_request_that_is_refused_without_response_format_too_is_told_and_not_repeated():
    with serving(error(400, "model is an embedding model")) as server, pytest.raises(UserError) as raised:
        EndpointWriter(server.url, "bert", patience=impatient()).write(PNEUMONIA, None, 4)
    assert len(server.asked) == 2
    assert all(word in str(raised.value) for word in (server.url, "bert", "400", "embedding model"))


@pytest.mark.parametrize(("status", "advice"), [(401, "--key-file"), (403, "--key-file"), (404, "--endpoint")])
def test_refusals_say_what_to_do(status, advice):
    with serving(error(status, "go away")) as server, pytest.raises(UserError, match=advice) as raised:
        EndpointWriter(server.url, "m", patience=impatient()).write(PNEUMONIA, None, 4)
    assert len(server.asked) == 1 and "go away" in str(raised.value)


NONSENSE = [said("I am sorry, I cannot help with that."), said(""), said(None), Answer(b"<html>Welcome</html>"),
            Answer(b"\xff\xfe\x00"), Answer(b'{"captions": ["Chest X-ray with pneumonia."]}'),
            Answer(b'{"choices": []}'),
            captions(), captions("A dog on a lawn in the park.", "A cat.", ""), said('{"captions": "Chest X-ray"}'),
            said('{"a":' * 50_000), captions("\ud800 X-ray pneumonia \udfff"), captions(*GOOD[:3], *GOOD[:3])]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_asked_again_and_then_reported(nonsense):
    with serving(nonsense) as server, pytest.raises(UserError) as raised:
        EndpointWriter(server.url, "m", patience=impatient(), asks=3).write(PNEUMONIA, None, 4)
    assert len(server.asked) == 3
    message = str(raised.value)
    assert "3 times" in message and "pneumonia" in message and "--captions grammar" in message
    assert len(message) < 1500 and all(line.isprintable() for line in message.split("\n"))


def test_the_report_shows_what_was_answered_in_short():
    with serving(said("As a language model " * 1000)) as server, pytest.raises(UserError) as raised:
        EndpointWriter(server.url, "m", patience=impatient()).write(PNEUMONIA, None, 4)
    assert "As a language model As a" in str(raised.value) and len(str(raised.value)) < 1000


def test_only_missing_captions_are_asked_for_again():
    bad = "A photograph of a dog on a lawn."
    with serving(captions(*GOOD[:2], bad), said("hm"), captions(GOOD[0], GOOD[2], GOOD[3])) as server:
        written = EndpointWriter(server.url, "m", patience=impatient()).compose(PNEUMONIA, None, 4)
    assert tuple(caption.text for caption in written.captions) == GOOD
    assert [text.text for text in written.rejected] == [bad]
    assert written.rejected[0].reason
    _, second, third = server.asked
    roles = [message["role"] for message in third.body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert third.body["messages"][2]["content"] == "hm"
    assert all(text in second.text for text in (*GOOD[:2], bad)) and "2 more" in second.text


def test_silence_ends_after_the_time_out():
    with serving(Answer(hangs=True)) as server, pytest.raises(UserError, match=r"silence for 0\.2 s"):
        EndpointWriter(server.url, "m", patience=impatient(tries=2, timeout_seconds=0.2)).write(PNEUMONIA, None, 2)
    assert len(server.asked) == 2


def test_an_endpoint_that_is_down_is_named():
    url, pauses = free_url(), Pauses()
    with pytest.raises(UserError, match="refused") as raised:
        EndpointWriter(url, "m", patience=impatient(pauses)).write(PNEUMONIA, None, 2)
    assert url in str(raised.value) and "--endpoint" in str(raised.value) and pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("sent", "told"), [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "ended before"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n{", "ended before"),
    (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"), (b"", ""),
])
def test_a_connection_that_breaks_is_tried_again_and_told(sent, told):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer():
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(sent)
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=f"2 tries: .*{told}"):
            EndpointWriter(url, "m", patience=impatient(tries=2)).write(PNEUMONIA, None, 2)
        thread.join()


def test_an_endless_answer_is_refused():
    with serving(Answer(b" " * (LARGEST_ANSWER + 1))) as server, pytest.raises(UserError, match="4 MiB"):
        EndpointWriter(server.url, "m", patience=impatient()).write(PNEUMONIA, None, 2)


def test_the_key_is_sent_and_shown_nowhere(key_file, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(error(401, f"Incorrect API key provided: {KEY}")) as server, pytest.raises(UserError) as refused:
        EndpointWriter(server.url, "m", key_file, patience=impatient()).write(PNEUMONIA, None, 2)
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    with serving(error(500, f"trace: {KEY}")) as server, pytest.raises(UserError) as broken:
        EndpointWriter(server.url, "m", key_file, patience=impatient()).write(PNEUMONIA, None, 2)
    with serving(Answer(f"<html>{KEY}".encode())) as server, pytest.raises(UserError) as nonsense:
        EndpointWriter(server.url, "m", key_file, patience=impatient()).write(PNEUMONIA, None, 2)
    for shown in (str(refused.value), str(broken.value), str(nonsense.value), caplog.text):
        assert KEY not in shown
    assert "(key)" in str(refused.value) and "(key)" in str(broken.value) and "(key)" in str(nonsense.value)


@pytest.mark.parametrize("status", [401, 500])
@pytest.mark.parametrize("before", range(470, 520, 7))
def test_no_part_of_the_key_is_left_where_a_message_is_cut(status, before, key_file):
    with serving(error(status, "x" * before + KEY)) as server, pytest.raises(UserError) as raised:
        EndpointWriter(server.url, "m", key_file, patience=impatient(tries=1)).write(PNEUMONIA, None, 2)
    assert KEY[:4] not in str(raised.value)


def test_a_key_in_a_model_s_answer_is_not_kept(key_file):
    with serving(captions(f"A chest X-ray with pneumonia and {KEY}.", KEY, *GOOD)) as server:
        written = EndpointWriter(server.url, "m", key_file, patience=impatient()).compose(PNEUMONIA, None, 4)
    assert KEY not in repr(written) and "(key)" in repr(written)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_key_elsewhere(status, key_file):
    with serving(captions(*GOOD)) as other, serving(Answer(status=status, headers={"Location": other.url})) as server:
        with pytest.raises(UserError, match="redirect to http://127"):
            EndpointWriter(server.url, "m", key_file, patience=impatient()).write(PNEUMONIA, None, 2)
        assert other.asked == [] and len(server.asked) == 1


def test_a_key_over_an_open_line_is_warned_of(key_file, caplog):
    EndpointWriter("http://127.0.0.1:1/v1", "m", key_file)
    EndpointWriter("https://example.org/v1", "m", key_file)
    EndpointWriter("http://example.org/v1", "m")
    assert caplog.text == ""
    EndpointWriter("http://example.org/v1", "m", key_file)
    assert "not encrypted" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize(("url", "full"), [
    ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
    ("https://example.org/v1/", "https://example.org/v1/chat/completions"),
    ("https://example.org/v1/chat/completions", "https://example.org/v1/chat/completions"),
    ("http://[::1]:80", "http://[::1]:80/chat/completions"),
])
def test_base_and_full_urls_mean_the_same(url, full):
    assert completions_url(url) == full


@pytest.mark.parametrize("url", [
    "", "localhost:8000", "ftp://example.org", "file:///etc/passwd", "http://", "http:///v1", "http://host:port/v1",
    "http://host:99999/v1", "http://[::1/v1", "http://exämple.org", "http://a b/v1", "http://host/v1\r\nX: 1",
    "https://user:word@example.org/v1", "https://example.org/v1?key=1", "https://example.org/#v1",
])
def test_other_urls_are_refused(url):
    with pytest.raises(UserError, match="--endpoint") as raised:
        completions_url(url)
    assert "word@" not in str(raised.value) and "key=1" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"qqq words", b"qqq\nlines", b"qqq\xff\xfe", b"q" * 20_000,
                                     "qqqüssel".encode(), b"qqq\tthere"])
def test_files_without_a_key_are_refused_without_showing_them(content, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not hold a key") as raised:
        read_key(path)
    assert "qqq" not in str(raised.value)


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        read_key(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        read_key(tmp_path)


@pytest.mark.parametrize("model", ["", "  ", "a\nb"])
def test_a_model_needs_a_name(model):
    with pytest.raises(UserError, match="--caption-model"):
        EndpointWriter("http://localhost/v1", model)


def test_letters_beyond_ascii_reach_the_model():
    with serving(captions(*GOOD)) as server:
        labels = LabelSet("X-ray", ("pneumonia",), view="seitlich, Übersicht")
        EndpointWriter(server.url, "m", patience=impatient()).write(labels, None, 2)
    assert "seitlich, Übersicht" in server.asked[0].text
