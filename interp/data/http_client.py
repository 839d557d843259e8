"""HTTP requests that end in time, whatever a server does.

Plain HTTP from the standard library, so that it needs nothing.

1. A thread of its own sends a request, reads the reply and makes of it what is wanted.
2. Who asked waits no longer than the time-out, in all: a server that sends a byte a second fails,
   too. Then the socket is shut down, which ends the thread.
3. Whatever the thread raises is the failure of this one request (`ExchangeError`).

Redirects are not followed: they would carry the API key to another server. A server on this
machine is asked without a proxy, others as the environment says (`http_proxy`, `https_proxy`,
`all_proxy`, `no_proxy`).
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Generic, TypeVar
from urllib.error import URLError
from urllib.parse import urlsplit

LONGEST_REPLY = 16 * 2**20
"""Bytes; what comes after them is not read."""

LONGEST_TIMEOUT = 2e6
"""Seconds, 23 days; a socket takes no more."""

_PORTION = 2**16

T = TypeVar("T")


class ExchangeError(Exception):
    """Failure of one request, in words.

    Attributes:
        unreachable: no connection could be made.
    """

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


@dataclass(frozen=True, kw_only=True)
class HttpReply:
    """Reply of a server.

    Attributes:
        status: the HTTP status.
        headers: the HTTP headers.
        body: the first `LONGEST_REPLY` bytes.
        is_whole: whether these are all.
    """

    status: int
    headers: Message
    body: bytes
    is_whole: bool = True


class HttpClient:
    """Client of one address. Threads may share it."""

    def __init__(self, url: str, *, timeout: float) -> None:
        """Prepare requests; nothing is sent yet.

        Args:
            url: the full address.
            timeout: seconds that a request may take in all.

        Raises:
            ValueError: the environment names a proxy that cannot be used.
        """
        self._url = url
        self._timeout = min(timeout, LONGEST_TIMEOUT)
        self._opener = urllib.request.OpenerDirector()
        for handler in (_make_proxy_handler(url), _HttpHandler(), _HttpsHandler()):
            self._opener.add_handler(handler)
        self._exchanges: set[_Exchange[Any]] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def post(self, body: bytes, headers: Mapping[str, str], read: Callable[[HttpReply], T]) -> T:
        """Send a request and return what `read` makes of the reply, whatever its status is.

        Raises:
            ExchangeError: it did not come to that in time.
        """
        exchange = _Exchange(_Request(self._url, body, dict(headers)), read)
        with self._lock:
            if self._is_closed:
                raise ExchangeError("stopped before it was sent")
            self._exchanges.add(exchange)
        try:
            return exchange.run(self._opener, self._timeout)
        finally:
            with self._lock:
                self._exchanges.discard(exchange)

    def close(self) -> None:
        """End all requests at once; further ones are not sent."""
        with self._lock:
            self._is_closed = True
            exchanges = list(self._exchanges)
        for exchange in exchanges:
            exchange.stop()


class _Exchange(Generic[T]):
    """Request that a thread of its own sends."""

    def __init__(self, request: _Request, read: Callable[[HttpReply], T]) -> None:
        self._request, self._read = request, read
        request.watch = self._watch
        self._socket: socket.socket | None = None
        self._is_over = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._results: list[T] = []
        self._error = ExchangeError("stopped before it was answered")

    def run(self, opener: urllib.request.OpenerDirector, timeout: float) -> T:
        """Return what was made of the reply, or raise ExchangeError."""
        thread = threading.Thread(target=self._exchange, args=(opener, timeout), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise ExchangeError(f"the system has no room for it ({error})") from error
        try:
            in_time = self._done.wait(timeout)
        finally:
            self._shut_down()
        if not in_time:
            raise self._make_timeout_error(timeout)
        if not self._results:
            raise self._error
        return self._results[0]

    def stop(self) -> None:
        """Wait no longer."""
        self._shut_down()
        self._done.set()

    def _exchange(self, opener: urllib.request.OpenerDirector, timeout: float) -> None:
        try:
            with opener.open(self._request, timeout=timeout) as response:
                reply = _read_reply(response)
            self._results.append(self._read(reply))
        # Nobody can list what a broken or hostile server makes the standard library raise.
        except Exception as error:  # noqa: BLE001
            self._error = self._explain(error, timeout)
        finally:
            self._done.set()

    def _explain(self, error: Exception, timeout: float) -> ExchangeError:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            return self._make_timeout_error(timeout)
        reason = str(cause) or type(cause).__name__
        if self._socket is None:
            return ExchangeError(f"no connection ({reason})", unreachable=True)
        if isinstance(error, OSError | http.client.HTTPException):
            return ExchangeError(f"the connection broke off ({reason})")
        return ExchangeError(f"the reply cannot be read ({type(error).__name__}: {reason})")

    def _make_timeout_error(self, timeout: float) -> ExchangeError:
        if self._socket is None:
            return ExchangeError(f"no connection within {timeout:g} seconds", unreachable=True)
        return ExchangeError(f"no answer within {timeout:g} seconds")

    def _watch(self, connected: socket.socket) -> None:
        """Shut down a new socket when, or if already, nobody waits any longer."""
        with self._lock:
            self._socket = connected
            is_over = self._is_over
        if is_over:
            self._shut_down()

    def _shut_down(self) -> None:
        with self._lock:
            self._is_over = True
            connected = self._socket
        if connected is not None:
            # Of a socket that was closed it raises an error. That of TLS forgets its keys first,
            # while the thread is reading with them.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _Request(urllib.request.Request):
    """Request that says which socket it is sent by."""

    watch: Callable[[socket.socket], None]


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, *args: Any, watch: Callable[[socket.socket], None], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._watch = watch

    def connect(self) -> None:
        """Connect, and let the socket be watched."""
        super().connect()
        self._watch(self.sock)


class _HttpsConnection(_HttpConnection, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> http.client.HTTPResponse:
        """Send a request."""
        return self.do_open(partial(_HttpConnection, watch=req.watch), req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> http.client.HTTPResponse:
        """Send a request."""
        return self.do_open(partial(_HttpsConnection, watch=req.watch), req)


def is_this_machine(host: str) -> bool:
    """Return whether a host's name or address is one of the machine itself."""
    host = host.lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = _parse_address(host)
    except (ValueError, OSError):
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    # A connection to 0.0.0.0 is one to this machine.
    return address.is_loopback or address.is_unspecified


def _parse_address(host: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(host)
    except ValueError:
        # 127.1 and 0x7f000001 are addresses, too.
        return IPv4Address(socket.inet_aton(host))


def _make_proxy_handler(url: str) -> urllib.request.ProxyHandler:
    """Make the handler that chooses the proxy for an address, if there is one."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if (
        proxy is None
        or is_this_machine(parts.hostname or "")
        or urllib.request.proxy_bypass(parts.netloc)
    ):
        return urllib.request.ProxyHandler({})
    # A proxy may have a password, so it is not named.
    if not _is_proxy(proxy):
        raise ValueError(
            f"the proxy that {parts.scheme}_proxy or all_proxy names for {parts.hostname} must be "
            "an address such as http://host:3128; give one, or name the host in no_proxy"
        )
    return urllib.request.ProxyHandler({parts.scheme: proxy})


def _is_proxy(proxy: str) -> bool:
    if "://" not in proxy:
        if ":/" in proxy:
            return False
        proxy = f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _read_reply(response: http.client.HTTPResponse) -> HttpReply:
    """Read a reply, portion by portion: a size that a server announces is not to be believed."""
    body = bytearray()
    while len(body) <= LONGEST_REPLY and (portion := response.read1(_PORTION)):
        body += portion
    if len(body) <= LONGEST_REPLY and response.length:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return HttpReply(
        status=response.status,
        headers=response.headers,
        body=bytes(body[:LONGEST_REPLY]),
        is_whole=len(body) <= LONGEST_REPLY,
    )
