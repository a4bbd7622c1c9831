"""What stands before all routes."""

import asyncio
import hmac
import ipaddress
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, error_response

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/health"})  #: what needs no key
#: how browsers, which can give a WebSocket no headers, show the key
KEY_SUBPROTOCOL = "openai-insecure-api-key."

_IDLE_SECONDS = 60  # for which a client may send nothing of its request


class _Gate(ABC):
    """Turns away who may not ask, by HTTP and by WebSocket."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_ask(HTTPConnection(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # as status 403
        else:
            raise self._refusal()

    @abstractmethod
    def _may_ask(self, connection: HTTPConnection) -> bool:
        """Whether a client may."""

    @abstractmethod
    def _refusal(self) -> RequestError:
        """What one is told that may not."""


class KeyMiddleware(_Gate):
    """Turns away who does not show the key."""

    def __init__(self, app: ASGIApp, api_key: str):
        super().__init__(app)
        self._key = api_key.encode()

    def _refusal(self) -> RequestError:
        message = "the API key is missing or wrong: send Authorization: Bearer KEY"
        return RequestError(message, 401, code="invalid_api_key")

    def _may_ask(self, connection: HTTPConnection) -> bool:
        if connection.scope["path"] in OPEN_PATHS:
            return True
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        shown = [key] if scheme.lower() == "bearer" else []
        if connection.scope["type"] == "websocket":
            protocols = [protocol.strip() for protocol in connection.scope["subprotocols"]]
            shown += [
                protocol.removeprefix(KEY_SUBPROTOCOL)
                for protocol in protocols
                if protocol.startswith(KEY_SUBPROTOCOL)
            ]
        return any(hmac.compare_digest(key.strip().encode("latin-1"), self._key) for key in shown)


class OriginMiddleware(_Gate):
    """Turns away what web pages of other origins send. Browsers let any page open a WebSocket, and
    send a form; all that such a page cannot do is read the answer to the latter. Where a key is to
    be shown, it needs none of this: no browser adds that by itself.

    A page is ours if its address is the one that it connects to; but not if that is a name of this
    machine's own, loopback addresses that is none: who owns the name can have it point here (DNS
    rebinding).

    Args:
        origins: of pages that may ask all the same, or "*".
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]):
        super().__init__(app)
        self._origins = origins

    def _refusal(self) -> RequestError:
        message = "a web page of another origin may not ask: see --cors-origin"
        return RequestError(message, 403, code="origin_not_allowed")

    def _may_ask(self, connection: HTTPConnection) -> bool:
        origin = connection.headers.get("origin")
        if origin is None or not {origin, "*"}.isdisjoint(self._origins):
            return True
        host = connection.headers.get("host", "")
        if origin not in (f"http://{host}", f"https://{host}"):
            return False
        server = (connection.scope.get("server") or ("",))[0]
        return _is_loopback(urlsplit(origin).hostname) or not _is_loopback(server)


def _is_loopback(host: str | None) -> bool:
    """Whether nobody else can have the name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class _Body:
    """A request's body, no more of which is read than is allowed.

    Args:
        receive: what it comes from.
        limit: bytes that it may have.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int):
        length = HTTPConnection(scope).headers.get("content-length", "")
        self._announced = int(length) if length.isdecimal() else 0
        self._receive, self._limit = receive, limit
        self._bytes = 0
        self._ended = asyncio.Event()

    async def receive(self) -> Message:
        """The next message of a client, as ASGI has it.

        Raises:
            RequestError: it sends too much, or nothing for too long.
        """
        if self._ended.is_set():
            return await self._receive()
        self._check(self._announced)
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise RequestError("the rest of the request did not come", 408) from None
        self._bytes += len(message.get("body", b""))
        self._check(self._bytes)
        if not message.get("more_body", False):
            self._ended.set()
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            message = f"a request may have {self._limit} bytes at most"
            raise RequestError(message, 413, "file", "request_too_large")

    async def client_gone(self) -> None:
        """Returns when the client has gone away, or has its answer."""
        await self._ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class RequestMiddleware:
    """Around each request: limits its size, gives it up when its client goes away, turns errors
    into answers, and tells of it. WebSockets it tells of.

    Args:
        max_bytes: that a request may have.
        report: is told the request's scope, the status of its answer, and how many seconds it took;
            499 is that of a client that went away.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, report: Callable[[Scope, int, float], None]):
        self._app, self._max_bytes, self._report = app, max_bytes, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, answer = time.perf_counter(), _Answer(send)
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, answer)
            case "websocket":
                await self._app(scope, receive, answer.send)
            case _:
                await self._app(scope, receive, send)
                return
        self._report(scope, answer.status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        body = _Body(scope, receive, self._max_bytes)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(body, answer))
                await self._respond(scope, body, answer)
                watch.cancel()
        except* ClientDisconnect:
            answer.status = 499

    async def _respond(self, scope: Scope, body: _Body, answer: "_Answer") -> None:
        try:
            await self._app(scope, body.receive, answer.send)
        except ClientDisconnect:
            raise
        except Exception as error:
            if answer.status:
                logger.error("an answer broke off", exc_info=error)
                return
            response = await error_response(Request(scope), error)
            await response(scope, body.receive, answer.send)


class _Answer:
    """Notes how the answer begins, and whether it has ended.

    status: 0 before it has begun; that of a WebSocket which is accepted is 101.
    """

    def __init__(self, send: Send):
        self._send = send
        self.status = 0
        self.ended = False

    async def send(self, message: Message) -> None:
        if message["type"].endswith("http.response.start"):  # also of a refused WebSocket
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.close":
            self.status = self.status or 403
        await self._send(message)


async def _watch(body: _Body, answer: _Answer) -> None:
    """Raises `ClientDisconnect` when the client goes away before it has its answer."""
    await body.client_gone()
    if not answer.ended:
        raise ClientDisconnect
