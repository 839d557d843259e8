"""One prompt to an OpenAI-compatible address: the request, its repetitions and their pace."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from interp.data.http_client import LONGEST_REPLY, ExchangeError, HttpClient, HttpReply

LEAST_SECRET = 8
"""Characters; a shorter API key is a placeholder for a server that asks for any, and no secret."""

FIRST_WAIT = 1.0
"""Seconds before the first repetition; each further wait is twice as long."""

LONGEST_WAIT = 60.0
"""Seconds; the cap of every wait, also of one that the server asks for."""

_LONGEST_MESSAGE = 10_000
"""Characters of a server's message that are looked at."""

_THOUGHT = ("<think>", "</think>")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Outcome of a request.

    Attributes:
        text: the answer, None if there is none.
        reason: why there is none, in words.
        status: the HTTP status, None if the server sent none.
        unreachable: no connection could be made.
        passing: the same request may fare better later.
        wait: seconds that the server wants us to wait, if it says so.
    """

    text: str | None = None
    reason: str | None = None
    status: int | None = None
    unreachable: bool = False
    passing: bool = False
    wait: float | None = None


class Pace:
    """Gives requests of many threads their times, evenly spaced."""

    def __init__(self, requests_per_minute: float | None, stop: threading.Event) -> None:
        """Begin now; `stop` ends every wait."""
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = -math.inf
        self._lock = threading.Lock()
        self._stop = stop

    def take_turn(self) -> None:
        """Wait until the next request may be sent."""
        with self._lock:
            now = _get_time()
            turn = max(now, self._next)
            self._next = turn + self._interval
        _sleep(turn - now, self._stop)

    def hold(self, seconds: float) -> None:
        """Let no request take a turn for a while."""
        with self._lock:
            self._next = max(self._next, _get_time() + seconds)


class Connection:
    """Settings, pace and key of requests to one address. Threads may share it."""

    def __init__(
        self,
        url: str,
        settings: Mapping[str, str | float],
        *,
        api_key: str | None,
        timeout: float,
        num_retries: int,
        requests_per_minute: float | None,
    ) -> None:
        """Prepare requests; nothing is sent yet.

        Args:
            url: the full address.
            settings: what the body says beside the prompt: model, temperature, max_tokens.
            api_key: sent as a bearer token, and blotted out wherever a server repeats it.
            timeout: seconds that a request may take in all.
            num_retries: how often a request is repeated.
            requests_per_minute: no limit if None.

        Raises:
            ValueError: the environment names a proxy that cannot be used.
        """
        self.url = url
        self.stop = threading.Event()
        self._settings = dict(settings)
        self._api_key = api_key
        self._num_retries = num_retries
        self._pace = Pace(requests_per_minute, self.stop)
        self._client = HttpClient(url, timeout=timeout)

    def close(self) -> None:
        """End all requests and waits at once; further prompts are not sent."""
        self.stop.set()
        self._client.close()

    def ask(self, prompt: str) -> Reply:
        """Send a prompt, repeat it as often as needed and allowed, and return the reply."""
        reply = Reply(reason="stopped before it was sent")
        for attempt in range(self._num_retries + 1):
            if self.stop.is_set():
                return reply
            self._pace.take_turn()
            reply = self._request(prompt)
            if not reply.passing or self.stop.is_set():
                return reply
            if attempt == self._num_retries:
                break
            if reply.wait is None:
                _sleep(min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT), self.stop)
            else:
                self._pace.hold(reply.wait)
        tries = f"{self._num_retries + 1} tries" if self._num_retries else "1 try"
        return replace(reply, reason=f"{reply.reason} (after {tries})")

    def _request(self, prompt: str) -> Reply:
        body = self._settings | {"messages": [{"role": "user", "content": prompt}]}
        # Some hosts turn away what urllib calls itself.
        headers = {"Content-Type": "application/json", "User-Agent": "interp"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        try:
            return self._client.post(json.dumps(body).encode("ascii"), headers, self._read)
        except ExchangeError as error:
            reason = self._clean(str(error))
            return Reply(reason=reason, unreachable=error.unreachable, passing=True)

    def _read(self, reply: HttpReply) -> Reply:
        if 200 <= reply.status < 300:
            return self._read_answer(reply)
        message = self._read_message(reply.body)
        return Reply(
            reason=f"the endpoint answers {reply.status}" + (f" ({message})" if message else ""),
            status=reply.status,
            passing=reply.status == 429 or reply.status >= 500,
            wait=_parse_retry_after(reply.headers) if reply.status in (429, 503) else None,
        )

    def _read_answer(self, reply: HttpReply) -> Reply:
        def failed(reason: str) -> Reply:
            return Reply(reason=reason, status=reply.status)

        if not reply.is_whole:
            return failed(f"the endpoint's answer is longer than {LONGEST_REPLY // 2**20} MiB")
        try:
            body = json.loads(reply.body)
        except (ValueError, RecursionError):
            return failed("the endpoint's answer is not valid JSON")
        try:
            choice = body["choices"][0]
            text = choice["message"]["content"]
            end = choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            message = self._read_message(reply.body)
            return failed(
                "the endpoint's answer holds no choice" + (f" ({message})" if message else "")
            )
        if end == "length":
            limit = self._settings["max_tokens"]
            return failed(f"the answer was cut off at {limit} tokens; raise max_tokens")
        if end == "content_filter":
            return failed("the endpoint withheld the answer (content_filter)")
        if text is not None and not isinstance(text, str):
            return failed(f"the endpoint's answer is not text but {type(text).__name__}")
        text = remove_thoughts(text or "")
        if text is None:
            return failed("the answer is a thought that does not end (<think> without </think>)")
        if not text:
            return failed("the answer is empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return failed("the answer holds half of a surrogate pair")
        # An answer is kept on disk.
        if len(self._api_key or "") >= LEAST_SECRET and str(self._api_key) in text:
            return failed("the answer repeats the API key")
        return Reply(text=text, status=reply.status)

    def _read_message(self, raw: bytes) -> str:
        """Return the server's message about an error, from JSON in one of the usual shapes."""
        try:
            message: Any = json.loads(raw)
        except (ValueError, RecursionError):
            return self._clean(raw.decode("utf-8", errors="replace"))
        for key in ("error", "message", "detail"):
            if isinstance(message, dict) and message.get(key):
                message = message[key]
        return self._clean(message) if isinstance(message, str) else ""

    def _clean(self, message: str) -> str:
        if self._api_key is not None:
            message = message.replace(self._api_key, "[API key]")
        message = message[:_LONGEST_MESSAGE]
        message = " ".join("".join(char if char.isprintable() else " " for char in message).split())
        return message if len(message) <= 200 else message[:200] + "…"


def remove_thoughts(text: str) -> str | None:
    """Remove what a model thought before its answer, in `<think>` blocks at the very beginning.

    A block further on is part of the answer.

    Returns:
        The answer without spaces around it; None if a thought does not end, so that there is none.
    """
    opening, closing = _THOUGHT
    start = _skip_spaces(text, 0)
    while text.startswith(opening, start):
        end = text.find(closing, start + len(opening))
        if end < 0:
            return None
        start = _skip_spaces(text, end + len(closing))
    return text[start:].rstrip()


def _skip_spaces(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _parse_retry_after(headers: Message) -> float | None:
    """Seconds from a Retry-After header, which gives them or a date; None if it does neither."""
    written = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(written)
    except ValueError:
        try:
            until = parsedate_to_datetime(written)
        except (ValueError, OverflowError, LookupError, TypeError):
            return None
        # A date with the zone -0000 comes without one, and means UTC.
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _get_time() -> float:
    return time.monotonic()


def _sleep(seconds: float, stop: threading.Event) -> None:
    if seconds > 0:
        stop.wait(min(seconds, threading.TIMEOUT_MAX))
