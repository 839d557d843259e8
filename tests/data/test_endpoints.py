"""Prompts to a server on this machine that is busy, broken, slow, hostile, and at last answers."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.data import chat_requests
from interp.data.answer_cache import AnswerCache, make_key
from interp.data.endpoints import Completion, Endpoint, complete

KEY = "sk-Vm9uIGVpbmVyIFRlc3RkYXRlaQ"


def answer(text, *, end="stop"):
    """Return a response as a server gives it: status, headers, body."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}
    return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice]})


def refusal(status, message="", **headers):
    body = json.dumps({"error": {"message": message}})
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


class Server(ThreadingHTTPServer):
    """Answers `reply(prompt, how often it was asked before)`; "hang" and "drop" are no answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.reply = lambda prompt, again: answer(f"re: {prompt}")
        self.requests = []
        self.asked = Counter()
        self.lock = threading.Lock()
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            again = self.server.asked[prompt]
            self.server.asked[prompt] += 1
        reply = self.server.reply(prompt, again)
        if reply == "hang":
            self.server.over.wait(10)
        if isinstance(reply, str):
            self.close_connection = True
            return
        status, headers, written = reply
        raw = written if isinstance(written, bytes) else written.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(raw))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self):
        self.time = 1000.0
        self.waits = []

    def now(self):
        return self.time

    def sleep(self, seconds, stop):
        if seconds > 0:
            self.waits.append(round(seconds, 6))
            self.time += seconds


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.over.set()
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(chat_requests, "_get_time", found.now)
    monkeypatch.setattr(chat_requests, "_sleep", found.sleep)
    return found


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "made" / "answers.jsonl"


def to(server, **settings):
    defaults = {"url": server.url, "model": "tiny", "timeout": 5.0, "num_workers": 1}
    return Endpoint(**(defaults | settings))


def texts(found):
    return [completion.text for completion in found]


def only(found):
    assert len(found) == 1
    return found[0]


def test_what_is_sent(server, cache):
    endpoint = to(server, url=server.url + "/", temperature=0.5, max_tokens=9)
    assert texts(complete(["Größe?"], endpoint, cache=cache)) == ["re: Größe?"]
    path, headers, body = only(server.requests)
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "tiny",
        "temperature": 0.5,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Größe?"}],
    }
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers


def test_answers_keep_the_order_of_the_prompts_and_equal_prompts_are_asked_once(server, cache):
    # The first prompts are answered last.
    def reply(prompt, again):
        time.sleep(0.05 if prompt in ("p0", "p1") else 0)
        return answer(f"re: {prompt}")

    server.reply = reply
    prompts = [f"p{number % 10}" for number in range(20)]
    found = complete(prompts, to(server, num_workers=4), cache=cache)
    assert texts(found) == [f"re: {prompt}" for prompt in prompts]
    assert server.asked == dict.fromkeys(prompts, 1)
    complete([*prompts, "new"], to(server, num_workers=4), cache=cache)
    assert server.asked == dict.fromkeys([*prompts, "new"], 1)


def test_requests_are_in_flight_together(server, cache):
    together = threading.Barrier(3, timeout=5)

    def reply(prompt, again):
        together.wait()
        return answer("yes")

    server.reply = reply
    found = complete(["a", "b", "c"], to(server, num_workers=3), cache=cache)
    assert texts(found) == ["yes"] * 3


@pytest.mark.parametrize(
    ("change", "asked_again"),
    [
        ({"model": "other"}, True),
        ({"temperature": 0.1}, True),
        ({"max_tokens": 7}, True),
        ({"timeout": 3.0, "num_retries": 1, "num_workers": 2, "requests_per_minute": 1e6}, False),
        ({"temperature": 0}, False),
    ],
)
def test_what_determines_an_answer(server, cache, change, asked_again):
    complete(["p"], to(server), cache=cache)
    complete(["p"], to(server, **change), cache=cache)
    assert server.asked["p"] == 1 + asked_again


def test_another_address_of_the_same_model_is_not_asked_again(server, cache):
    complete(["p"], to(server), cache=cache)
    nowhere = Endpoint(url="http://127.0.0.1:9/v1", model="tiny")
    assert texts(complete(["p"], nowhere, cache=cache)) == ["re: p"]


def test_everything_goes_wrong_before_it_goes_right(server, cache, clock):
    troubles = ["hang", "drop", refusal(429, Retry_After="7"), refusal(500), refusal(503)]

    def reply(prompt, again):
        return [*troubles, answer("at last")][again]

    server.reply = reply
    found = complete(["p"], to(server, timeout=0.6, num_retries=5), cache=cache)
    assert texts(found) == ["at last"]
    assert server.asked["p"] == 6
    # Doubling from one second; the server's seven take the place of the third wait.
    assert clock.waits == [1, 2, 7, 8, 16]


def test_waits_are_capped(server, cache, clock):
    server.reply = lambda prompt, again: refusal(500)
    only(complete(["p"], to(server, num_retries=8), cache=cache))
    assert clock.waits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("12", 12),
        ("0.5", 0.5),
        ("86400", 60),
        ("inf", 60),
        ("-3", 0),
        (datetime.now(UTC) + timedelta(days=1), 60),
        (datetime.now(UTC) - timedelta(days=1), 0),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after(written, seconds):
    from email.message import Message

    headers = Message()
    date = isinstance(written, datetime)
    headers["Retry-After"] = format_datetime(written, usegmt=True) if date else written
    assert chat_requests._parse_retry_after(headers) == seconds


def test_retry_after_as_a_date_counts_from_now():
    from email.message import Message

    headers = Message()
    headers["Retry-After"] = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    assert chat_requests._parse_retry_after(headers) == pytest.approx(39.5, abs=1.5)


def test_a_busy_server_holds_every_worker(clock):
    pace = chat_requests.Pace(None, threading.Event())
    pace.take_turn()
    pace.hold(30)
    pace.take_turn()
    pace.take_turn()
    assert clock.waits == [30]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (refusal(400, "too long"), "the endpoint answers 400 (too long)"),
        ((400, {}, '{"detail": "too long"}'), "the endpoint answers 400 (too long)"),
        ((418, {}, "a\nteapot"), "the endpoint answers 418 (a teapot)"),
        (refusal(403, "moderated"), "the endpoint answers 403 (moderated)"),
        ((200, {}, "<html>"), "the endpoint's answer is not valid JSON"),
        ((200, {}, b"\xff\xfe\xfa"), "the endpoint's answer is not valid JSON"),
        ((200, {}, "[" * 9**5), "the endpoint's answer is not valid JSON"),
        ((200, {}, '{"choices": []}'), "the endpoint's answer holds no choice"),
        ((200, {}, "[]"), "the endpoint's answer holds no choice"),
        ((200, {}, '{"choices": [7]}'), "the endpoint's answer holds no choice"),
        (
            (200, {}, '{"error": {"message": "no credit"}}'),
            "the endpoint's answer holds no choice (no credit)",
        ),
        (answer(None), "the answer is empty"),
        (answer(" \n"), "the answer is empty"),
        (answer("<think>Hm.</think>\n"), "the answer is empty"),
        (answer([{"text": "a"}]), "the endpoint's answer is not text but list"),
        (answer("a \ud83d"), "the answer holds half of a surrogate pair"),
        (answer("a", end="length"), "the answer was cut off at 2048 tokens; raise max_tokens"),
        (answer("", end="content_filter"), "the endpoint withheld the answer (content_filter)"),
    ],
)
def test_what_fails_at_once_and_is_not_kept(server, cache, clock, reply, reason):
    server.reply = lambda prompt, again: reply if prompt == "bad" else answer("good")
    for times in (1, 2):
        found = complete(["bad", "p", "q"], to(server), cache=cache)
        assert found == [
            Completion(text=None, reason=reason),
            Completion(text="good"),
            Completion(text="good"),
        ]
        assert server.asked == {"bad": times, "p": 1, "q": 1}
    assert clock.waits == []
    server.reply = lambda prompt, again: answer("now")
    assert texts(complete(["bad", "p"], to(server), cache=cache)) == ["now", "good"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("hang", "no answer within 0.4 seconds (after 3 tries)"),
        ("drop", "the connection broke off (.*) \\(after 3 tries\\)"),
        (refusal(500, "oom"), "the endpoint answers 500 (oom) (after 3 tries)"),
        (refusal(429), "the endpoint answers 429 (after 3 tries)"),
        ((200, {"Content-Length": "99"}, "{"), "the connection broke off (.*) \\(after 3 tries\\)"),
    ],
)
def test_what_fails_after_all_tries_stops_no_other_prompt(server, cache, clock, reply, reason):
    server.reply = lambda prompt, again: reply if prompt == "bad" else answer("good")
    found = complete(["bad", "p"], to(server, num_retries=2, timeout=0.4), cache=cache)
    assert texts(found) == [None, "good"]
    said = str(found[0].reason)
    assert re.fullmatch(reason, said) if ".*" in reason else said == reason
    assert server.asked == {"bad": 3, "p": 1}


def test_a_thought_is_no_part_of_the_answer(server, cache):
    server.reply = lambda prompt, again: answer("<think>\nHm, </b>.\n</think>\n\nA <think> tag.\n")
    assert texts(complete(["p"], to(server), cache=cache)) == ["A <think> tag."]


def test_an_unreachable_endpoint_is_one_error(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waits = []

    def sleep(seconds, stop):
        if seconds > 0:
            waits.append(seconds)
            stop.wait(0.1)

    monkeypatch.setattr(chat_requests, "_sleep", sleep)
    # Nothing listens on a port that was just given back.
    server = Server()
    server.server_close()
    prompts = [f"p{number}" for number in range(1000)]
    with pytest.raises(ConnectionError, match=r"cannot be reached: no connection .*after 2 tries"):
        complete(prompts, to(server, num_retries=1), cache=cache)
    # Further prompts are begun only until the error is noticed.
    assert waits[0] == 1
    assert len(waits) < 20
    assert not cache.exists()


@pytest.mark.parametrize(
    ("status", "most", "said"),
    [
        (401, 1, "refuses the API key in A_KEY"),
        (403, 3, "refuses the API key in A_KEY"),
        (404, 3, "does not know this address or the model 'tiny'"),
    ],
)
def test_a_refused_key_or_model_is_one_error(server, cache, monkeypatch, status, most, said):
    monkeypatch.setenv("A_KEY", KEY)

    def reply(prompt, again):
        server.over.wait(0.5 if len(server.requests) > most else 0)
        return refusal(status, f"bad key {KEY}!")

    server.reply = reply
    prompts = [f"p{number}" for number in range(1000)]
    with pytest.raises(ValueError, match=said) as caught:
        complete(prompts, to(server, api_key_env="A_KEY"), cache=cache)
    assert KEY not in str(caught.value)
    assert "bad key [API key]!" in str(caught.value)
    # One more may be on its way when the error is noticed.
    assert most <= len(server.requests) <= most + 1


def test_a_refusal_after_an_answer_is_one_failure(server, cache):
    server.reply = lambda prompt, again: refusal(401, "no") if prompt == "q" else answer("yes")
    assert texts(complete(["p", "q", "r"], to(server), cache=cache)) == ["yes", None, "yes"]


def test_a_missing_key_is_asked_for(server, cache):
    server.reply = lambda prompt, again: refusal(401)
    with pytest.raises(ValueError, match="a request without an API key; name its environment"):
        complete(["p"], to(server), cache=cache)


def test_the_key_is_sent_and_stands_nowhere_else(server, cache, monkeypatch):
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    server.reply = lambda prompt, again: (
        refusal(400, f"Authorization: Bearer {KEY}") if prompt == "bad" else answer("good")
    )
    endpoint = to(server, api_key_env="A_KEY")
    found = complete(["bad", "p"], endpoint, cache=cache)
    assert {headers["Authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
    assert found[0].reason == "the endpoint answers 400 (Authorization: Bearer [API key])"
    assert KEY not in f"{endpoint} {found}"
    for path in cache.parent.iterdir():
        assert KEY.encode() not in path.read_bytes()
    # Another key makes no other answer.
    monkeypatch.setenv("A_KEY", "another")
    complete(["p"], endpoint, cache=cache)
    assert server.asked["p"] == 1


def test_a_redirect_does_not_carry_the_key_away(server, cache, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    server.reply = lambda prompt, again: (302, {"Location": f"{server.url}/elsewhere"}, "")
    found = complete(["p"], to(server, api_key_env="A_KEY"), cache=cache)
    assert found == [Completion(reason="the endpoint answers 302")]
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", [None, "", "two words", "schlüssel"])
def test_an_environment_variable_without_a_key(server, cache, monkeypatch, value):
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with pytest.raises(ValueError, match="the environment variable A_KEY holds no API key") as told:
        complete(["p"], to(server, api_key_env="A_KEY"), cache=cache)
    assert not value or value not in str(told.value)
    assert server.requests == []


def test_requests_are_spaced_evenly(server, cache, clock):
    prompts = [f"p{number}" for number in range(7)]
    complete(prompts, to(server, requests_per_minute=30), cache=cache)
    assert clock.waits == [2.0] * 6


def test_repetitions_count_as_requests(server, cache, clock):
    server.reply = lambda prompt, again: answer("yes") if again else refusal(429, Retry_After="0")
    complete(["p", "q"], to(server, requests_per_minute=6), cache=cache)
    assert clock.waits == [10.0] * 3


@given(st.lists(st.floats(0, 100), min_size=2, max_size=40), st.integers(1, 600))
def test_no_minute_has_more_requests_than_allowed(idle, limit):
    clock, turns = Clock(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_requests, "_get_time", clock.now)
        patch.setattr(chat_requests, "_sleep", clock.sleep)
        pace = chat_requests.Pace(limit, threading.Event())
        for seconds in idle:
            clock.time += seconds
            pace.take_turn()
            turns.append(clock.time)
    for turn in turns:
        assert sum(turn <= other < turn + 60 - 1e-6 for other in turns) <= limit


def test_refused_answers_are_failures_and_asked_again(server, cache):
    def check(index, text):
        assert prompts[index] in text
        return None if "yes" in text else f"{text!r} is no yes"

    prompts = ["p", "q"]
    server.reply = lambda prompt, again: answer(f"{prompt}: {'yes' if again else 'perhaps'}")
    found = complete(prompts, to(server), cache=cache, check=check)
    assert found == [Completion(reason=f"'{prompt}: perhaps' is no yes") for prompt in prompts]
    assert texts(complete(prompts, to(server), cache=cache, check=check)) == ["p: yes", "q: yes"]
    # A kept answer that a later, stricter check refuses is asked again too.
    complete(prompts, to(server), cache=cache, check=lambda index, text: "no" * (index == 1))
    assert server.asked == {"p": 2, "q": 3}


def test_no_prompts_are_no_answers(server, cache):
    assert complete([], to(server), cache=cache) == []
    assert server.requests == []


def test_a_short_run_shows_no_bar(server, cache, capsys):
    complete(["p"], to(server), cache=cache)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000/v1"}, "not 'localhost:8000/v1'"),
        ({"url": "ftp://host/v1"}, "not 'ftp://host/v1'"),
        ({"url": "http:///v1"}, "not 'http:///v1'"),
        ({"url": "http://host/a b"}, "not 'http://host/a b'"),
        ({"url": "http://host/v1/chat/completions"}, "must be the base address"),
        ({"model": " "}, "model is empty"),
        ({"api_key_env": ""}, "in capital letters, such as OPENAI_API_KEY"),
        ({"temperature": -0.1}, "temperature must be a number from 0, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number from 0, not nan"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"timeout": 0.0}, "timeout must be a number above 0, not 0.0"),
        ({"num_retries": -1}, "num_retries must be at least 0, not -1"),
        ({"requests_per_minute": 0}, "requests_per_minute must be a number above 0, not 0"),
        ({"num_workers": 0}, "num_workers must be at least 1, not 0"),
    ],
)
def test_an_endpoint_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        replace(Endpoint(url="http://host/v1", model="tiny"), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": KEY},
        {"url": f"https://user:{KEY}@host/v1"},
        {"url": f"https://host/v1?key={KEY}"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_without_printing_it(settings):
    with pytest.raises(ValueError, match="api_key_env") as caught:
        Endpoint(**({"url": "http://host/v1", "model": "tiny"} | settings))
    assert KEY not in str(caught.value)


# The cache itself.


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_the_cache_gives_back_what_it_was_given(texts_by_name):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        path = Path(directory) / "answers.jsonl"
        cache = AnswerCache(path)
        for name, text in texts_by_name.items():
            cache.put(make_key(name=name), "old")
            cache.put(make_key(name=name), text)
        for found in (cache, AnswerCache(path)):
            assert found.get(make_key(name="none", of=1)) is None
            for name, text in texts_by_name.items():
                assert found.get(make_key(name=name)) == text


def test_a_killed_run_loses_only_the_answer_in_work(server, cache):
    prompts = ["p", "q", "Größe"]
    complete(prompts, to(server), cache=cache)
    whole = cache.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    # Cut anywhere in the last line: between the bytes of a letter, before the line break.
    for end in range(last, len(whole)):
        cache.write_bytes(whole[:end])
        server.asked.clear()
        assert texts(complete(prompts, to(server), cache=cache)) == [f"re: {p}" for p in prompts]
        assert server.asked == {"Größe": 1}
        assert cache.read_bytes() == whole


def test_a_long_broken_line_is_cut_off_whole(cache):
    AnswerCache(cache).put("a", "first")
    with cache.open("ab") as file:
        file.write(b'{"key": "b", "text": "' + b"x" * 200_000)
    AnswerCache(cache).put("c", "third")
    rows = [json.loads(line) for line in cache.read_text().splitlines()]
    assert [(row["key"], row["text"]) for row in rows] == [("a", "first"), ("c", "third")]


def test_a_killed_process_leaves_a_cache_that_goes_on(cache):
    program = (
        "import sys; from interp.data.answer_cache import AnswerCache\n"
        "cache = AnswerCache(sys.argv[1])\n"
        "for number in range(10**6):\n"
        "    cache.put(f'{number:064}', 'x' * 5000)\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(cache)], stdout=subprocess.PIPE, text=True
    ) as process:
        while int(process.stdout.readline()) < 20:
            pass
        process.kill()
        told = process.stdout.read().split()
    found = AnswerCache(cache)
    for number in range(int(told[-1]) if told else 20):
        assert found.get(f"{number:064}") == "x" * 5000
    found.put("next", "y")
    assert AnswerCache(cache).get("next") == "y"


def test_two_processes_append_at_once(cache):
    program = (
        "import sys; from interp.data.answer_cache import AnswerCache\n"
        "cache = AnswerCache(sys.argv[1])\n"
        "for number in range(100):\n"
        "    cache.put(f'{sys.argv[2]}{number}', sys.argv[2] * 20_000)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(cache), name]) for name in ("a", "b")
    ]
    assert [process.wait() for process in both] == [0, 0]
    found = AnswerCache(cache)
    assert len(cache.read_bytes().splitlines()) == 200
    for name in ("a", "b"):
        assert all(found.get(f"{name}{number}") == name * 20_000 for number in range(100))


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("An article.\n", 1),
        ("An article without a line break", 1),
        ('{"id": 1}', 1),
        ('{"key": "a", "text": "b"}\n{"key": "a"}\n', 2),
        ('{"key": "a", "text": null}\n', 1),
        ('{"key": "a", "text": "b"}\n[]\n', 2),
    ],
)
def test_another_file_is_refused_and_left_alone(server, tmp_path, written, line):
    path = tmp_path / "articles.jsonl"
    path.write_text(written)
    with pytest.raises(ValueError, match=f"articles.jsonl, line {line}: not .*give another file"):
        complete(["p"], to(server), cache=path)
    assert path.read_text() == written
    assert server.requests == []


def test_a_file_that_changed_meanwhile_is_not_cut(cache):
    found = AnswerCache(cache)
    found.put("a", "b")
    cache.write_text("An article")
    with pytest.raises(ValueError, match="last line: not the beginning of a cached answer"):
        found.put("c", "d")
    assert cache.read_text() == "An article"


def test_a_directory_or_an_unwritable_place_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match="is a directory; give a file's path"):
        complete(["p"], to(server), cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        complete(["p"], to(server), cache=tmp_path / "file" / "answers.jsonl")


def test_keys_differ_where_anything_differs():
    found = {
        make_key(a="b", c="d"),
        make_key(a="b", c=""),
        make_key(a="b"),
        make_key(a=None),
        make_key(a=1),
        make_key(a="1"),
    }
    assert len(found) == 6
    assert make_key(a="b", c="d") == make_key(c="d", a="b")
    assert re.fullmatch("[0-9a-f]{64}", make_key(a="ü"))


def test_importing_loads_nothing_heavy():
    program = (
        "import sys, experiments.cross_lingual.rewriting\n"
        "print(*sorted({'torch', 'transformers', 'httpx', 'httpx2'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.stdout, done.stderr) == ("\n", "")
