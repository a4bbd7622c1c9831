"""The server around the application, until a signal ends it."""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from ..signals import handled
from .realtime import WEBSOCKET_OPTIONS

_HEAD_SECONDS = 60  # that a client may take for the head of a request
_OPEN_FILES = 4096  # that clients may need; macOS allows 256 if nobody asks for more


class _Connection(H11Protocol):
    """Ends if there comes no request, for which uvicorn would wait for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _watch_head(self) -> None:
        # a WebSocket has another protocol from there on
        waits = self.conn.their_state is h11.IDLE and self.transport.get_protocol() is self
        if not waits:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Ctrl-C and SIGTERM end it when what is being worked on is done, which is no error; another
    one ends the process at once.

    Args:
        ready: is called when clients can connect.
        stopping: is called when the first signal has come.
        failed: whether nothing works any more, which ends it as well.
    """

    def __init__(
        self,
        app: ASGIApp,
        ready: Callable[[], None] = lambda: None,
        stopping: Callable[[], None] = lambda: None,
        failed: Callable[[], bool] = lambda: False,
    ):
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            log_level="error",  # a client's errors, too, are warnings
            access_log=False,  # what becomes of requests is told by the application
            http=_Connection,
            **WEBSOCKET_OPTIONS,
        )
        super().__init__(config)
        self._ready, self._stopping, self._failed = ready, stopping, failed

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As in the base, which sends them on afterwards."""
        with handled({signal.SIGINT: self.handle_exit, signal.SIGTERM: self.handle_exit}):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # threads that compute could not be interrupted
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._failed()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self._failed():
            self._stopping()
        await super().shutdown(sockets)


def allow_open_files() -> None:
    """Let the process open more files, as far as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to before a server listens on it.

    Args:
        port: 0: any that is free.

    Raises:
        InputError: there is no such address, or it is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a host"
        raise InputError(f"cannot serve at {host!r}, port {port}: {why}") from None
    return bound


def address_of(listener: socket.socket, scheme: str = "http") -> str:
    """What to type into a browser, or tell another client."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
