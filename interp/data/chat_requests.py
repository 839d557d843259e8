"""One prompt to an OpenAI-compatible address: the request, its repetitions and their pace.

Plain HTTP from the standard library, so that it needs nothing. Redirects are not followed: they
would carry the API key to another server.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.error import HTTPError, URLError

LONGEST_REPLY = 16 * 2**20
"""Bytes; what comes after them is not read, and the reply is no JSON then."""

LEAST_SECRET = 8
"""Characters; a shorter API key is a placeholder for a server that asks for any, and no secret."""

FIRST_WAIT = 1.0
"""Seconds before the first repetition; each further wait is twice as long."""

LONGEST_WAIT = 60.0
"""Seconds; the cap of every wait, also of one that the server asks for."""

_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


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
            timeout: seconds.
            num_retries: how often a request is repeated.
            requests_per_minute: no limit if None.
        """
        self.url = url
        self.stop = threading.Event()
        self._settings = dict(settings)
        self._api_key = api_key
        self._timeout = timeout
        self._num_retries = num_retries
        self._pace = Pace(requests_per_minute, self.stop)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, prompt: str) -> Reply:
        """Send a prompt, repeat it as often as needed and allowed, and return the reply."""
        reply = Reply(reason="stopped before it was sent")
        for attempt in range(self._num_retries + 1):
            if self.stop.is_set():
                return reply
            self._pace.take_turn()
            reply = self._request(prompt)
            if not reply.passing:
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
        request = urllib.request.Request(self.url, json.dumps(body).encode("ascii"), headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                raw = response.read(LONGEST_REPLY)
                # Of a reply that broke off this raises the error.
                return self._read(raw if len(raw) == LONGEST_REPLY else raw + response.read())
        except HTTPError as error:
            with error:
                return self._read_error(error)
        except URLError as error:
            reason = self._clean(str(error.reason))
            return Reply(reason=f"no connection ({reason})", unreachable=True, passing=True)
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} seconds"
            return Reply(reason=reason, passing=True)
        except (OSError, http.client.HTTPException) as error:
            reason = self._clean(str(error) or type(error).__name__)
            return Reply(reason=f"the connection broke off ({reason})", passing=True)

    def _read_error(self, error: HTTPError) -> Reply:
        try:
            message = self._read_message(error.read(LONGEST_REPLY))
        except (OSError, http.client.HTTPException):
            message = ""
        return Reply(
            reason=f"the endpoint answers {error.code}" + (f" ({message})" if message else ""),
            status=error.code,
            passing=error.code == 429 or error.code >= 500,
            wait=_parse_retry_after(error.headers) if error.code in (429, 503) else None,
        )

    def _read(self, raw: bytes) -> Reply:
        def failed(reason: str) -> Reply:
            return Reply(reason=reason, status=200)

        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return failed("the endpoint's answer is not valid JSON")
        try:
            choice = body["choices"][0]
            text = choice["message"]["content"]
            end = choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            message = self._read_message(raw)
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
        text = _THOUGHT.sub("", text or "", count=1).strip()
        if not text:
            return failed("the answer is empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return failed("the answer holds half of a surrogate pair")
        # An answer is kept on disk.
        if len(self._api_key or "") >= LEAST_SECRET and str(self._api_key) in text:
            return failed("the answer repeats the API key")
        return Reply(text=text, status=200)

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
        message = " ".join("".join(char if char.isprintable() else " " for char in message).split())
        return message if len(message) <= 200 else message[:200] + "…"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_keywords: Any) -> None:
        """No request: the redirect is an error like others."""
        return


def _parse_retry_after(headers: Message) -> float | None:
    """Seconds from a Retry-After header, which gives them or a date; None if it does neither."""
    written = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(written)
    except ValueError:
        try:
            until = parsedate_to_datetime(written)
        except ValueError:
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
        stop.wait(seconds)
