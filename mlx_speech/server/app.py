"""The routes of the server."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPMethod
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Scope

from . import metrics, transcriptions
from .capabilities import capabilities
from .chat import Chat
from .engine import Engine
from .errors import error_response
from .middleware import KeyMiddleware, OriginMiddleware, RequestMiddleware
from .models import ModelStore
from .realtime import realtime

logger = logging.getLogger(__name__)

ROUTES: list[BaseRoute] = [
    Route("/v1/audio/transcriptions", transcriptions.transcriptions, methods=["POST"]),
    Route("/v1/audio/translations", transcriptions.translations, methods=["POST"]),
    WebSocketRoute("/v1/realtime", realtime),
]


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


def build_app(
    engine: Engine,
    options: ServerOptions = ServerOptions(),
    beside: AbstractAsyncContextManager | None = None,
) -> Starlette:
    """The application; it starts and stops the engine.

    Args:
        beside: is open while it runs, for what else uses the engine.
    """
    counts = metrics.Metrics()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        async with beside or nullcontext():
            yield
        await engine.stop()

    def report(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope.get("method", "WEBSOCKET")
        if method not in (*HTTPMethod.__members__, "WEBSOCKET"):
            method = "other"  # anything may be sent as one, and each is kept
        counts.add_request(route, method, status, seconds)
        # as its client wrote it, line breaks and all
        logger.info("%s %r %d, %.3f s", method, scope["path"], status, seconds)

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/metrics", prometheus),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", Chat().completions, methods=["POST"]),
        *ROUTES,
    ]
    middleware = [
        Middleware(
            CORSMiddleware, allow_origins=options.origins, allow_methods=["*"], allow_headers=["*"]
        ),
        Middleware(RequestMiddleware, max_bytes=options.max_upload_bytes, report=report),
        Middleware(OriginMiddleware, origins=options.origins)
        if options.api_key is None
        else Middleware(KeyMiddleware, api_key=options.api_key),
    ]
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: error_response},
        lifespan=lifespan,
    )
    app.state.engine, app.state.options, app.state.metrics = engine, options, counts
    return app


async def page(request: Request) -> Response:
    """The page that shows what the server does."""
    html = files(__package__).joinpath("page", "index.html").read_text(encoding="utf-8")
    return HTMLResponse(html)


async def health(request: Request) -> Response:
    """Whether the server works, and on how much."""
    engine: Engine = request.app.state.engine
    states = {name: engine.models.state(name) for name in engine.models.names}
    loading, busy = "loading" in states.values(), engine.requests > 0
    status = "loading" if loading else "busy" if busy else "ready"
    if engine.failed:
        status = "failed"
    told = {"status": status, "requests": engine.requests, "models": states}
    if engine.dispatcher is not None:
        told["ranks"] = len(engine.dispatcher.seconds)
    return JSONResponse(told, 503 if engine.failed else 200)


async def prometheus(request: Request) -> Response:
    """Numbers of what it has done."""
    text = request.app.state.metrics.text(request.app.state.engine)
    return PlainTextResponse(text, media_type=metrics.MEDIA_TYPE)


async def models(request: Request) -> Response:
    """All models."""
    store: ModelStore = request.app.state.engine.models
    return JSONResponse({"object": "list", "data": [_model(store, n) for n in store.names]})


async def model(request: Request) -> Response:
    """One of them."""
    store: ModelStore = request.app.state.engine.models
    return JSONResponse(_model(store, store.resolve(request.path_params["name"])))


def _model(store: ModelStore, name: str) -> dict[str, Any]:
    """What can be asked of it is known while it is loaded."""
    loaded = store.loaded(name)
    return {
        "id": name,
        "object": "model",
        "created": store.created(name),
        "owned_by": name.partition("/")[0] if name.count("/") == 1 else "local",
        "capabilities": loaded and capabilities(*loaded),
    }
