"""The routes of the server, and what stands before them all."""

import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .engine import Engine
from .errors import RequestError, error_response
from .models import ModelStore

_OPEN = {"/", "/health"}  #: what needs no key


@dataclass(frozen=True)
class ServerOptions:
    """How the server is run.

    api_key: what clients have to show; None: nothing.
    origins: of web pages that may ask, or "*".
    max_upload_bytes: of a request's body.
    time_limit: seconds that a request may take; None: any.
    """

    api_key: str | None = None
    origins: Sequence[str] = ()
    max_upload_bytes: int = 1 << 30
    time_limit: float | None = None


def build_app(engine: Engine, options: ServerOptions = ServerOptions()) -> Starlette:
    """The application; it starts and stops the engine."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.stop()

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]
    middleware = [
        Middleware(
            CORSMiddleware, allow_origins=options.origins, allow_methods=["*"], allow_headers=["*"]
        ),
        Middleware(KeyMiddleware, api_key=options.api_key),
    ]
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={Exception: error_response},
        lifespan=lifespan,
    )
    app.state.engine, app.state.options = engine, options
    return app


class KeyMiddleware:
    """Turns away who does not show the key; the page and the health of the server are open."""

    def __init__(self, app: ASGIApp, api_key: str | None):
        self._app, self._key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and scope["type"] == "http" and scope["path"] not in _OPEN:
            shown = HTTPConnection(scope).headers.get("authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Bearer {self._key}".encode()):
                message = "the API key is missing or wrong: send Authorization: Bearer KEY"
                error = RequestError(message, 401, code="invalid_api_key")
                response = await error_response(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def page(request: Request) -> Response:
    """The page that shows what the server does."""
    return HTMLResponse(files(__package__).joinpath("page", "index.html").read_text())


async def health(request: Request) -> Response:
    """Whether the server works, and on how much."""
    engine: Engine = request.app.state.engine
    states = {name: engine.models.state(name) for name in engine.models.names}
    loading, busy = "loading" in states.values(), engine.requests > 0
    status = "loading" if loading else "busy" if busy else "ready"
    return JSONResponse({"status": status, "requests": engine.requests, "models": states})


async def models(request: Request) -> Response:
    """All models."""
    store: ModelStore = request.app.state.engine.models
    return JSONResponse({"object": "list", "data": [_model(store, n) for n in store.names]})


async def model(request: Request) -> Response:
    """One of them."""
    store: ModelStore = request.app.state.engine.models
    return JSONResponse(_model(store, store.resolve(request.path_params["name"])))


def _model(store: ModelStore, name: str) -> dict:
    return {
        "id": name,
        "object": "model",
        "created": store.created(name),
        "owned_by": name.partition("/")[0] if name.count("/") == 1 else "local",
    }
