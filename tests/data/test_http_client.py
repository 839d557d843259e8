"""Requests to servers that send what no server should, slowly, without end, or not at all."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from interp.data import endpoints
from interp.data.answer_cache import AnswerCache
from interp.data.chat_requests import Connection, remove_thoughts
from interp.data.endpoints import Completion, Endpoint, complete
from interp.data.http_client import LONGEST_REPLY, _make_proxy_handler, is_this_machine
from tests.helpers import ROOT

KEY = "sk-Vm9uIGVpbmVyIFRlc3RkYXRlaQ"
OK = b"HTTP/1.1 200 OK\r\n"


def body_of(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def whole(text):
    body = body_of(text)
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*chunks):
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


class RawServer:
    """Sends the bytes that `reply` gives for a prompt, piece by piece, and hangs up."""

    def __init__(self, reply):
        self.reply = reply
        self.requests = []
        self.is_over = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection, contextlib.suppress(OSError):
            head, body = b"", b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(2**16)
            head, body = head.split(b"\r\n\r\n", 1)
            size = int(re.search(rb"content-length: (\d+)", head.lower())[1])
            while len(body) < size:
                body += connection.recv(2**16)
            self.requests.append((head.decode(), json.loads(body)))
            pieces = self.reply(json.loads(body)["messages"][0]["content"])
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                connection.sendall(piece)

    def close(self):
        self.is_over.set()
        self.socket.close()


@pytest.fixture
def serve():
    servers = []

    def start(reply):
        servers.append(RawServer(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def ask(server, prompts, cache, **settings):
    defaults = {"model": "tiny", "timeout": 5.0, "num_retries": 0, "num_workers": 1}
    endpoint = Endpoint(url=server.url, **(defaults | settings))
    return complete(prompts, endpoint, cache=cache, progress=False)


# Of each: what a server sends, and what the reason says.
HOSTILE = {
    "nothing": (b"", "the connection broke off"),
    "no HTTP": (b"\x00\xff\xfe\r\n\r\n", "the connection broke off"),
    "a status that is no number": (b"HTTP/1.1 abc OK\r\n\r\n", "the connection broke off"),
    "a status of six digits": (b"HTTP/1.1 200000 OK\r\n\r\n", "the connection broke off"),
    "a status line without end": (b"HTTP/1.1 200 " + b"a" * 70_000, "the connection broke off"),
    "a thousand headers": (OK + b"A: b\r\n" * 1000 + b"\r\n", "the connection broke off"),
    "a header that is too long": (OK + b"A: " + b"b" * 70_000, "the connection broke off"),
    "a chunk size that is none": (chunked(b"zz\r\n"), "the connection broke off"),
    "a negative chunk size": (chunked(b"-5\r\n", b"abc"), "the connection broke off"),
    "a chunk of minus one": (chunked(b"-1\r\n", b"abc"), "the connection broke off"),
    "a chunk beyond all memory": (chunked(b"f" * 40 + b"\r\n", b"{}"), "the re|the connection"),
    "a chunk that is cut off": (chunked(b"9\r\n", b"{"), "the connection broke off"),
    "a length that lies": (OK + b"Content-Length: 99\r\n\r\n{", "the connection broke off"),
    "a length beyond all memory": (
        OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{",
        "the connection broke off",
    ),
    "a length that is none": (OK + b"Content-Length: x\r\n\r\n{", "is not valid JSON"),
    "another encoding": (OK + b"\r\n\xe9\xff\x00", "is not valid JSON"),
    "deep JSON": (OK + b"\r\n" + b"[" * 10**5, "is not valid JSON"),
    "deep objects": (OK + b"\r\n" + b'{"a":' * 10**5, "is not valid JSON"),
    "a huge number": (OK + b"\r\n" + b"9" * 10**5, "is not valid JSON"),
    "choices that are no list": (OK + b'\r\n{"choices": {"0": 1}}', "holds no choice"),
    "a message that is a list": (OK + b'\r\n{"choices": [{"message": []}]}', "holds no choice"),
    "null": (OK + b"\r\nnull", "holds no choice"),
    "a redirect to a bad port": (
        b"HTTP/1.1 302 Found\r\nLocation: http://host:port/\r\n\r\n",
        "the endpoint answers 302",
    ),
    "a redirect to no address": (
        b"HTTP/1.1 307 Found\r\nLocation: http://[::1\r\n\r\n",
        "the endpoint answers 307",
    ),
    "a redirect to a file": (
        b"HTTP/1.1 301 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        "the endpoint answers 301",
    ),
    "a date that is none": (
        b"HTTP/1.1 429 Busy\r\nRetry-After: Wed, 21 Oct 99999999999 07:28:00 GMT\r\n\r\n",
        "the endpoint answers 429",
    ),
    "a date in no zone": (
        b"HTTP/1.1 503 Busy\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 +99999999999\r\n\r\n",
        "the endpoint answers 503",
    ),
    "a wait of many digits": (
        b"HTTP/1.1 429 Busy\r\nRetry-After: " + b"9" * 5000 + b"\r\n\r\n",
        "the endpoint answers 429",
    ),
    "an error that is cut off": (
        b"HTTP/1.1 500 Broken\r\nContent-Length: 99\r\n\r\nab",
        "the connection broke off|the endpoint answers 500",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_reply_is_the_failure_of_one_prompt(serve, cache, kind):
    sent, reason = HOSTILE[kind]
    server = serve(lambda prompt: sent if prompt == "bad" else whole("good"))
    for _ in range(2):
        bad, good = ask(server, ["bad", "p"], cache)
        assert (bad.text, good) == (None, Completion(text="good"))
        assert re.search(reason, str(bad.reason)), bad.reason
        assert "\n" not in str(bad.reason)
    # It is asked again, the other is kept.
    assert [request["messages"][0]["content"] for _, request in server.requests].count("bad") == 2
    assert len(AnswerCache(cache)._texts) == 1


def test_whatever_is_raised_by_a_reply_is_a_failure(serve, cache, monkeypatch):
    """Errors that nobody foresaw, too: the list above is not what the code goes by."""
    server = serve(lambda prompt: whole("good"))
    read = Connection._read_answer
    for error in (AttributeError("x"), MemoryError(), RecursionError(), AssertionError("y")):

        def fail(self, reply, error=error):
            if len(server.requests) == 1:
                raise error
            return read(self, reply)

        server.requests.clear()
        monkeypatch.setattr(Connection, "_read_answer", fail)
        found = ask(server, [f"{error!r} 1", f"{error!r} 2"], cache)
        assert found[1].text == "good"
        assert str(found[0].reason).startswith(
            f"the reply cannot be read ({type(error).__name__}: "
        )


def test_a_body_without_end_is_cut_off(serve, cache):
    def reply(prompt):
        yield OK + b"\r\n"
        while not server.is_over.is_set():
            yield b" " * 2**20

    server = serve(reply)
    started = time.monotonic()
    found = ask(server, ["p"], cache, timeout=60)
    assert found == [
        Completion(reason=f"the endpoint's answer is longer than {LONGEST_REPLY // 2**20} MiB")
    ]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("at", ["the status", "the headers", "the body", "the chunks"])
def test_the_time_out_is_for_the_whole_request(serve, cache, at):
    starts = {
        "the status": b"",
        "the headers": OK,
        "the body": OK + b"\r\n",
        "the chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n",
    }
    ended = threading.Event()

    def reply(prompt):
        yield starts[at]
        with contextlib.suppress(GeneratorExit):
            for _ in range(200):
                time.sleep(0.05)
                yield b"a"
            return
        ended.set()

    server = serve(reply)
    started = time.monotonic()
    found = ask(server, ["p"], cache, timeout=0.5)
    took = time.monotonic() - started
    assert found == [Completion(reason="no answer within 0.5 seconds (after 1 try)")]
    assert 0.45 < took < 3
    # The socket was shut down, so that the server cannot go on and no thread reads on.
    assert ended.wait(5)
    for thread in threading.enumerate():
        if "_exchange" in thread.name:
            thread.join(5)
            assert not thread.is_alive()


def test_the_time_out_is_for_finding_the_host_and_connecting_too(cache, monkeypatch):
    is_over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **settings: is_over.wait(10))
    endpoint = Endpoint(url="http://localhost:1/v1", model="m", timeout=0.3, num_retries=0)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no connection within 0.3 seconds \(after 1 try\)"):
        complete(["p"], endpoint, cache=cache)
    assert time.monotonic() - started < 3
    is_over.set()


def test_a_redirect_carries_nothing_anywhere(serve, cache, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    other = serve(lambda prompt: whole("stolen"))
    codes = [301, 302, 303, 307, 308]

    def reply(prompt):
        where = f"http://127.0.0.1:{other.port}/" if prompt != "loop" else f"{server.url}/loop"
        return f"HTTP/1.1 {prompt.split()[0]} Moved\r\nLocation: {where}\r\n\r\n".encode()

    server = serve(reply)
    prompts = [f"{code} {number}" for number in range(2) for code in codes]
    found = ask(server, prompts, cache, api_key_env="A_KEY", num_workers=3)
    assert [one.reason for one in found] == [f"the endpoint answers {p[:3]}" for p in prompts]
    assert len(server.requests) == len(prompts)
    assert other.requests == []


# Proxies.


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0.0.0.0"])
def test_this_machine_is_asked_without_a_proxy(serve, cache, monkeypatch, name, host):
    proxy = serve(lambda prompt: whole("of the proxy"))
    server = serve(lambda prompt: whole("of the server"))
    monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    server.url = f"http://{host}:{server.port}/v1"
    assert ask(server, ["p"], cache)[0].text == "of the server"
    assert proxy.requests == []


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_others_are_asked_as_the_environment_says(serve, cache, monkeypatch, name):
    proxy = serve(lambda prompt: whole("of the proxy"))
    monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    proxy.url = "http://host.invalid/v1"
    assert ask(proxy, ["p"], cache)[0].text == "of the proxy"
    assert proxy.requests[0][0].startswith("POST http://host.invalid/v1/chat/completions HTTP/1.1")
    monkeypatch.setenv("no_proxy", "host.invalid")
    with pytest.raises(ConnectionError, match="no connection"):
        ask(proxy, ["q"], cache)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_the_proxy_of_https(monkeypatch, name):
    monkeypatch.setenv(name, "http://proxy.invalid:3128")
    chosen = {"https": "http://proxy.invalid:3128"}
    assert _make_proxy_handler("https://host.invalid/v1").proxies == chosen
    for host in ("localhost", "127.0.0.1", "[::1]:8000", "[::ffff:127.0.0.1]"):
        assert _make_proxy_handler(f"https://{host}/v1").proxies == {}
    # Another scheme's proxy is not taken.
    other = {"http": chosen["https"]} if name == "ALL_PROXY" else {}
    assert _make_proxy_handler("http://host.invalid/v1").proxies == other
    monkeypatch.setenv("NO_PROXY", "invalid")
    assert _make_proxy_handler("https://host.invalid/v1").proxies == {}


@pytest.mark.parametrize(
    "proxy", ["socks5://user:secret@host:1080", "http://", "http:/user:secret@host", "http://h:x"]
)
def test_a_proxy_that_cannot_be_used_is_one_sentence(cache, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    endpoint = Endpoint(url="https://host.invalid/v1", model="m", num_retries=0)
    with pytest.raises(ValueError, match="the proxy that https_proxy or all_proxy names") as caught:
        complete(["p"], endpoint, cache=cache)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("127.1", True),
        ("0x7f000001", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("128.0.0.1", False),
        ("192.168.0.1", False),
        ("::2", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine(host, is_one):
    assert is_this_machine(host) is is_one


# Keys in the clear.


@pytest.mark.parametrize("key", ["k", KEY])
def test_a_key_over_http_is_warned_of_once(serve, cache, monkeypatch, key):
    endpoints._warn_of_plain_http.cache_clear()
    proxy = serve(lambda prompt: whole("yes"))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("A_KEY", key)
    proxy.url = "http://host.invalid/v1"
    with pytest.warns(UserWarning, match="key is sent to host.invalid over http, ") as caught:
        ask(proxy, ["p"], cache, api_key_env="A_KEY")
    # Warnings are errors here, so there is no second one.
    assert ask(proxy, ["q"], cache, api_key_env="A_KEY")[0].text == "yes"
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert KEY not in str(caught[0].message)


def test_a_key_on_this_machine_or_no_key_is_not_warned_of(serve, cache, monkeypatch):
    """Warnings are errors here."""
    endpoints._warn_of_plain_http.cache_clear()
    proxy = serve(lambda prompt: whole("yes"))
    monkeypatch.setenv("A_KEY", KEY)
    assert ask(proxy, ["p"], cache, api_key_env="A_KEY")[0].text == "yes"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    proxy.url = "http://host.invalid/v1"
    assert ask(proxy, ["q"], cache)[0].text == "yes"
    monkeypatch.delenv("http_proxy")
    endpoint = Endpoint(
        url="https://host.invalid/v1", model="m", api_key_env="A_KEY", num_retries=0
    )
    with pytest.raises(ConnectionError, match="no connection"):
        complete(["r"], endpoint, cache=cache)


@pytest.mark.parametrize(
    "url", ["http://host:99999/v1", "http://host:x/v1", "http://[::1/v1", f"http://{'a' * 64}/v1"]
)
def test_an_address_that_cannot_be_is_refused_at_once(url):
    with pytest.raises(ValueError, match="url must be the base address of an OpenAI-compatible"):
        Endpoint(url=url, model="m")


def test_waits_beyond_all_clocks_are_waited(serve, cache):
    server = serve(lambda prompt: whole("yes"))
    assert ask(server, ["p"], cache, timeout=1e300)[0].text == "yes"
    connection = Connection(
        server.url, {}, api_key=None, timeout=1.0, num_retries=0, requests_per_minute=1e-300
    )
    assert connection.ask("p").text == "yes"
    threading.Timer(0.2, connection.close).start()
    assert connection.ask("q").reason == "stopped before it was sent"


# Thoughts.


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Cairo", "Cairo"),
        ("<think>Hm.</think>Cairo", "Cairo"),
        (" \n<think>\nHm.\n</think>\n\n Cairo\n", "Cairo"),
        ("<think></think>", ""),
        ("<think>a</think> <think>b</think> c", "c"),
        ("Cairo <think>Hm.</think> it is", "Cairo <think>Hm.</think> it is"),
        ("Hm.</think>Cairo", "Hm.</think>Cairo"),
        ("<think>a<think>b</think>c</think>", "c</think>"),
        ("<think>Hm. Cairo", None),
        ("<think>a</think><think>b", None),
        ("<thinking>Cairo", "<thinking>Cairo"),
        ("", ""),
    ],
)
def test_thoughts_stand_at_the_very_beginning(text, answer):
    assert remove_thoughts(text) == answer


@pytest.mark.parametrize(
    "text",
    [" " * 10**6, "<think>" * 10**5, "<think></think>" * 10**5, " <think>" * 10**5 + "</think>"],
)
def test_thoughts_take_no_time(text):
    started = time.process_time()
    remove_thoughts(text + "a")
    assert time.process_time() - started < 2


def test_a_thought_without_end_is_no_answer(serve, cache):
    server = serve(lambda prompt: whole("<think>Hm. " * 1000))
    reason = "the answer is a thought that does not end (<think> without </think>)"
    assert ask(server, ["p"], cache) == [Completion(reason=reason)]


# Interruptions.

PROGRAM = """\
import sys
from interp.cli import report_errors_and_exit
from interp.data.endpoints import Endpoint, complete
with report_errors_and_exit("interp"):
    endpoint = Endpoint(url=sys.argv[1], model="tiny", timeout=600, num_workers=3)
    complete([f"p{number}" for number in range(40)], endpoint, cache=sys.argv[2], progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("begun", [b"", OK + b"Content-Length: 99\r\n\r\n{"])
def test_one_interruption_ends_all_at_once_and_keeps_what_was_answered(serve, cache, begun):
    counter = itertools.count()
    hanging = threading.Semaphore(0)

    def reply(prompt):
        if next(counter) < 5:
            yield whole(f"re: {prompt}")
            return
        yield begun
        hanging.release()
        server.is_over.wait(60)

    server = serve(reply)
    command = [sys.executable, "-c", PROGRAM, server.url, str(cache)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(3):
                assert hanging.acquire(timeout=60)
            time.sleep(0.2)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert time.monotonic() - started < 5
    assert process.returncode == 130
    assert told == "interp: stopped; the same command goes on where it was\n"
    assert sorted(AnswerCache(cache)._texts.values()) == sorted(
        f"re: {request['messages'][0]['content']}" for _, request in server.requests[:5]
    )


def test_what_came_in_while_it_was_interrupted_is_kept(serve, cache):
    """Three answers are there when the first is looked at, and that is when Ctrl-C is pressed."""
    server = serve(lambda prompt: whole("yes"))

    def check(index, text):
        if not checked:
            deadline = time.monotonic() + 10
            while len(server.requests) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            checked.append(index)
            raise KeyboardInterrupt

    checked = []
    endpoint = Endpoint(url=server.url, model="tiny", num_workers=3)
    with pytest.raises(KeyboardInterrupt):
        complete(["a", "b", "c"], endpoint, cache=cache, check=check, progress=False)
    assert list(AnswerCache(cache)._texts.values()) == ["yes"] * 3


def test_an_error_waits_for_no_request(serve, cache):
    def reply(prompt):
        if prompt == "p0":
            yield b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
        server.is_over.wait(60)

    server = serve(reply)
    started = time.monotonic()
    with pytest.raises(ValueError, match="refuses a request without an API key"):
        ask(server, [f"p{number}" for number in range(9)], cache, num_workers=4, timeout=60)
    assert time.monotonic() - started < 5
