"""Servers of this package on loopback, in a thread."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from mlx_speech.server.app import ServerOptions, build_app
from mlx_speech.server.engine import Engine
from mlx_speech.server.models import ModelStore
from mlx_speech.server.run import Server


@contextmanager
def serving(loader, names=("tiny",), *, keep_alive=None, engine=None, **options) -> Iterator[str]:
    """The address of one, with models that `loader` gives.

    engine: further arguments of the engine; options: of the server.
    """
    store = ModelStore(list(names), keep_alive, loader)
    app = build_app(Engine(store, **(engine or {})), ServerOptions(**options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def client_of(url: str, **options) -> openai.OpenAI:
    """OpenAI's client, which never tries twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return openai.OpenAI(
            base_url=f"{url}/v1", **({"api_key": "none", "max_retries": 0} | options)
        )
