"""Prompts to a chat model behind an OpenAI-compatible address, and its answers.

vLLM, Ollama, llama.cpp and hosted services speak this protocol. Every prompt is one user message.
Answers are kept on disk (`answer_cache`), so a second run asks only for what is missing; a
failure is never kept, and is listed with its reason instead of an answer.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from interp.data.answer_cache import AnswerCache, make_key
from interp.data.chat_requests import Connection, Reply
from interp.data.http_client import is_this_machine

Check = Callable[[int, str], str | None]
"""Given a prompt's index and its answer: why the answer is none, in one sentence, or None."""

NUM_FIRST = 3
"""If so many first prompts meet the same 403 or 404, it is the endpoint that is wrong."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Chat model behind an OpenAI-compatible address, and how it is asked.

    Attributes:
        url: the base address, such as `http://localhost:8000/v1`; `/chat/completions` is added.
        model: the model's name there.
        api_key_env: the environment variable that holds the API key; none is sent if None.
        temperature: the sampling temperature; 0 is greedy.
        max_tokens: the longest answer, in tokens.
        timeout: seconds that a request may take in all, after which it has failed.
        num_retries: how often a request is repeated that met no server, a busy or a broken one.
        requests_per_minute: at most so many requests a minute, evenly spaced; no limit if None.
        num_workers: requests in flight at once.
    """

    url: str
    model: str
    api_key_env: str | None = None
    temperature: float = 0.0
    max_tokens: int = 2048
    timeout: float = 120.0
    num_retries: int = 4
    requests_per_minute: float | None = None
    num_workers: int = 4

    def __post_init__(self) -> None:
        """Refuse values that no endpoint can have.

        Raises:
            ValueError: the first bad value, named.
        """
        _check_url(self.url)
        if not self.model.strip():
            raise ValueError("model is empty; give the model's name at the endpoint")
        # A key given by mistake must not be printed, so the value is not named.
        if self.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env must be the name of an environment variable in capital letters, such "
                "as OPENAI_API_KEY, and not the key itself"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a number from 0, not {self.temperature}")
        for name in ("timeout", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0, not {value}")
        for name, least in (("max_tokens", 1), ("num_retries", 0), ("num_workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Answer to one prompt, or the reason why there is none.

    Attributes:
        text: the answer, None if there is none.
        reason: why there is none, in one sentence; None if there is one.
    """

    text: str | None = None
    reason: str | None = None


def complete(
    prompts: Sequence[str],
    endpoint: Endpoint,
    *,
    cache: str | os.PathLike[str],
    check: Check | None = None,
    progress: bool = True,
) -> list[Completion]:
    """Return the model's answers to many prompts.

    What the cache holds is not asked again, and equal prompts are asked once. The key of an answer
    is the model's name, the prompt, the temperature and `max_tokens`, and not the address: the
    same model may move. Requests that meet no server, a timeout, 429 or 5xx are repeated, after a
    wait that doubles or that the server asks for (`Retry-After`), a minute at most. Other errors,
    malformed, empty and cut-off answers fail at once. What is in `<think>` at the very beginning of
    an answer is not part of it; a thought that does not end is no answer.

    An interruption (Ctrl-C) ends all requests at once; what was answered until then is kept.

    Args:
        prompts: each one user message.
        endpoint: the model and how it is asked.
        cache: the file that keeps the answers (JSON Lines).
        check: refuses answers; a refused one is a failure, so it is not kept and is asked again
            the next time.
        progress: show a progress bar on standard error if it takes more than two seconds.

    Returns:
        One completion per prompt, in the prompts' order.

    Raises:
        ConnectionError: the endpoint cannot be reached, and has not answered any prompt yet.
        ValueError: its first requests are refused (401; or 403 or 404 for the first three), the
            API key's environment variable is not set, the environment names a proxy that cannot
            be used, or the cache is not one.
    """
    answers = AnswerCache(cache)
    keys = [
        make_key(
            kind="completion",
            model=endpoint.model,
            prompt=prompt,
            temperature=float(endpoint.temperature),
            max_tokens=endpoint.max_tokens,
        )
        for prompt in prompts
    ]
    completions: dict[str, Completion] = {}
    missing: dict[str, int] = {}
    for index, key in enumerate(keys):
        text = answers.get(key)
        if text is None or (check is not None and check(index, text)):
            missing.setdefault(key, index)
        else:
            completions[key] = Completion(text=text)
    if not missing:
        return [completions[key] for key in keys]

    def keep(key: str, reply: Reply) -> None:
        reason = reply.reason
        if reply.text is not None and check is not None:
            reason = check(missing[key], reply.text)
        if reply.text is None or reason:
            completions[key] = Completion(reason=reason)
        else:
            answers.put(key, reply.text)
            completions[key] = Completion(text=reply.text)

    unanswered = {key: prompts[index] for key, index in missing.items()}
    requests = _Requests(unanswered, endpoint, progress=progress)
    try:
        for key, reply in requests:
            keep(key, reply)
    except KeyboardInterrupt:
        requests.close()
        for key, reply in list(requests.replies.items()):
            if key not in completions:
                keep(key, reply)
        raise
    finally:
        requests.close()
    return [completions[key] for key in keys]


class _Requests:
    """Prompts that are asked in threads which nothing waits for, neither an error nor the end.

    Attributes:
        replies: those that have come in, by the key of the prompt.
    """

    def __init__(self, prompts: Mapping[str, str], endpoint: Endpoint, *, progress: bool) -> None:
        self.replies: dict[str, Reply] = {}
        self._endpoint = endpoint
        self._connection = _connect(endpoint)
        self._waiting = deque(prompts.items())
        self._num_prompts = len(prompts)
        self._answered: SimpleQueue[str | None] = SimpleQueue()
        self._bar = tqdm(
            total=len(prompts), desc=endpoint.model, unit="prompt", delay=2, disable=not progress
        )

    def __iter__(self) -> Iterator[tuple[str, Reply]]:
        """Ask, and yield the key of every prompt with its reply, as they come in."""
        for number in range(min(self._endpoint.num_workers, self._num_prompts)):
            try:
                threading.Thread(target=self._ask_one_by_one, daemon=True).start()
            except RuntimeError:
                # Where the system has no room for so many threads, fewer do the work.
                if not number:
                    raise
                break
        first: list[int | None] = []
        is_answered = False
        for _ in range(self._num_prompts):
            key = self._answered.get()
            if key is None:
                raise RuntimeError("a thread that asks the endpoint failed; its error stands above")
            reply = self.replies[key]
            is_answered = is_answered or reply.text is not None
            if not is_answered:
                first.append(reply.status)
                _stop_if_hopeless(reply, first, self._endpoint)
            yield key, reply
            self._bar.update()

    def close(self) -> None:
        """End all requests at once."""
        self._connection.close()
        self._bar.close()

    def _ask_one_by_one(self) -> None:
        try:
            while not self._connection.stop.is_set():
                try:
                    key, prompt = self._waiting.popleft()
                except IndexError:
                    return
                self.replies[key] = self._connection.ask(prompt)
                self._answered.put(key)
        except BaseException:
            self._answered.put(None)
            raise


def _connect(endpoint: Endpoint) -> Connection:
    api_key = _read_api_key(endpoint)
    parts = urlsplit(endpoint.url)
    host = parts.hostname or ""
    if api_key is not None and parts.scheme == "http" and not is_this_machine(host):
        _warn_of_plain_http(host)
    return Connection(
        endpoint.url.rstrip("/") + "/chat/completions",
        {
            "model": endpoint.model,
            "temperature": float(endpoint.temperature),
            "max_tokens": endpoint.max_tokens,
        },
        api_key=api_key,
        timeout=endpoint.timeout,
        num_retries=endpoint.num_retries,
        requests_per_minute=endpoint.requests_per_minute,
    )


@functools.cache
def _warn_of_plain_http(host: str) -> None:
    """Warn, once, of an API key in the clear."""
    warnings.warn(
        f"the API key is sent to {host} over http, where anybody on the way can read it: use an "
        "https address",
        stacklevel=5,
    )


def _stop_if_hopeless(reply: Reply, first: list[int | None], endpoint: Endpoint) -> None:
    if reply.unreachable:
        raise ConnectionError(
            f"the endpoint {endpoint.url} cannot be reached: {reply.reason}; check that its server "
            "runs and that the address is right"
        )
    if reply.status == 401 or first == [403] * NUM_FIRST:
        key = (
            "a request without an API key; name its environment variable in api_key_env"
            if endpoint.api_key_env is None
            else f"the API key in {endpoint.api_key_env}"
        )
        raise ValueError(f"the endpoint {endpoint.url} refuses {key}: {reply.reason}")
    if first == [404] * NUM_FIRST:
        raise ValueError(
            f"the endpoint {endpoint.url} does not know this address or the model "
            f"{endpoint.model!r}: {reply.reason}"
        )


def _read_api_key(endpoint: Endpoint) -> str | None:
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not re.fullmatch("[!-~]+", key):
        raise ValueError(
            f"the environment variable {endpoint.api_key_env} holds no API key: set it to the key, "
            "in ASCII and without spaces"
        )
    return key


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_more = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        is_more = "@" in url
    # A password or a key in it must not be printed.
    if is_more:
        raise ValueError(
            "url must be the base address alone, such as http://localhost:8000/v1, without a user, "
            "a password or parameters; name the API key's environment variable in api_key_env"
        )
    if not _is_base_address(url):
        raise ValueError(
            "url must be the base address of an OpenAI-compatible endpoint, such as "
            f"http://localhost:8000/v1, not {url!r}"
        )


def _is_base_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # A port that is none raises an error, and so does a name of a host that is too long.
        is_host = bool(parts.hostname) and parts.port != 0 and bool(parts.hostname.encode("idna"))
    except ValueError:
        return False
    return (
        is_host
        and parts.scheme in ("http", "https")
        and re.fullmatch("[!-~]+", url) is not None
        and not parts.path.rstrip("/").endswith("/completions")
    )
