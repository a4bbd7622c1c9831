"""Command line: `python -m mlx_speech.serve [options]`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DistributedError, InputError
from . import common
from .console import Console, as_option
from .ranks import end, folder_facts, start_group

if TYPE_CHECKING:
    from ..distributed.bus import Bus
    from ..server.dispatcher import Dispatcher
    from ..server.models import ModelStore

_ANSWER_SECONDS = 2  # for clients to be told that a rank is silent


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return common.run_command(build_parser(), check_usage, run, argv, distributed=True)


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = common.Parser(
        prog="python -m mlx_speech.serve",
        usage="%(prog)s [options]",
        description="Serve transcription, translation and chat to OpenAI's clients, and a page to "
        "try them at http://HOST:PORT/.",
        epilog="Exit status: 0 after Ctrl-C or SIGTERM, once what is being worked on is done; 1 if "
        "the server cannot start or go on, 2 for wrong usage.",
    )
    group, add = parser.add_argument_group, common.add_table
    text = "folder or Hugging Face repository, may be given several times: the first is loaded at "
    text += "once, others when they are asked for "
    text += f"(default: $MLX_SPEECH_MODEL, else {common.SPEECH_MODEL})"
    models = group("models")
    add(models, {"--model MODEL": {"help": text, "action": "append", "dest": "models"}})
    common.add_options(models, "--revision", "--adapter", "--dtype", "--tensor-parallel")
    keep = "give a model up that nobody has used for so many seconds (default: never)"
    add(models, {"--keep-alive S": keep})
    network = {
        "--host HOST": {"help": "address to serve at (default: 127.0.0.1)", "default": "127.0.0.1"},
        "--port N": {"help": "port (default: 8000)", "default": 8000},
        "--wyoming N": "port for Home Assistant, by the Wyoming protocol, which knows no key "
        "(default: none)",
        "--api-key KEY": {
            "help": "what clients have to show (default: $MLX_SPEECH_API_KEY, else nothing)",
            "default": os.environ.get("MLX_SPEECH_API_KEY") or None,
        },
        "--cors-origin URL": {
            "help": "origin of web pages that may use the server, or *; may be given several times",
            "action": "append",
            "default": [],
            "dest": "origins",
        },
    }
    add(group("network"), network)
    limits = {
        "--max-upload N": {"help": "MB of a request (default: 1024)", "default": 1024},
        "--max-requests N": {"help": "at the same time (default: 64)", "default": 64},
        "--batch-size N": {"help": "segments decoded together (default: 8)", "default": 8},
        "--timeout S": "seconds that a request may take (default: any)",
    }
    add(group("limits"), limits)
    common.add_console_options(parser)
    common.add_about_options(parser)
    return parser


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """Refuse what makes no sense; returns the models by what clients call them."""
    for name in ("max_upload", "max_requests", "batch_size"):
        if getattr(args, name) < 1:
            raise InputError.must_be(name, getattr(args, name), "at least 1")
    for name, least in (("keep_alive", 0), ("timeout", 0.001)):
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise InputError.must_be(name, value, f"a number of seconds, at least {least}")
    for name in ("port", "wyoming"):
        if not 0 <= (getattr(args, name) or 0) < 1 << 16:
            raise InputError.must_be(name, getattr(args, name), "from 0, which takes any, to 65535")
    if args.api_key is not None and not re.fullmatch("[!-~]+", args.api_key):
        raise InputError("--api-key must be of letters, digits and the like, without spaces")
    models: dict[str, str] = {}
    for given in args.models or [os.environ.get("MLX_SPEECH_MODEL") or common.SPEECH_MODEL]:
        # where a folder lies is nobody's business
        name = Path(given).resolve().name if Path(given).is_dir() else given
        if name in models:
            raise InputError(f"--model: there would be two called {name!r}")
        models[name] = given
    if args.adapter is not None and len(models) > 1:
        raise InputError("--adapter is for one model; leave it out, or all --model but one")
    return models


def run(args: argparse.Namespace, console: Console, models: dict[str, str]) -> int:
    """Serve until a signal ends it; of several ranks, rank 0."""
    try:
        from ..server.run import allow_open_files
    except ImportError as error:
        wanted = "the server needs {name}: pip install 'mlx-speech[server]'"
        raise InputError(wanted.format(name=error.name)) from None
    from ..server.models import ModelStore

    def loader(name: str) -> tuple[Any, Any]:
        return common.load_named(args, console, models[name])

    _show_log(console.verbose)
    allow_open_files()
    store = ModelStore(list(models), args.keep_alive, loader)
    group = None if args.tensor_parallel else start_group(console)
    if group is None:
        return _serve(args, console, models, store)
    from ..distributed.bus import exchanging

    with exchanging(group) as bus:
        if group.rank == 0:
            return _serve(args, console, models, store, bus)
        return _follow(args, models, store, bus)


def _check_others(args: argparse.Namespace, others: list[str]) -> None:
    """Raises `CheckpointError` for what can be no model, though it is loaded later, if at all."""
    from ..checkpoint.folder import read_json
    from ..checkpoint.hub import local_folder

    for given in others:
        _, folder = local_folder(given, {"revision": args.revision}, "a model")
        if folder is not None:
            read_json(folder)


def _serve(
    args: argparse.Namespace,
    console: Console,
    models: dict[str, str],
    store: ModelStore,
    bus: Bus | None = None,
) -> int:
    """Speak HTTP, with other ranks to compute as well, if there are some."""
    from ..server.app import ServerOptions, build_app
    from ..server.dispatcher import Dispatcher
    from ..server.engine import Engine
    from ..server.run import Server, address_of, bound_socket

    if args.wyoming is not None:
        try:
            from ..server.wyoming import wyoming
        except ImportError:
            raise InputError("--wyoming needs wyoming: pip install 'mlx-speech[wyoming]'") from None
    dispatcher = None if bus is None else Dispatcher(bus)
    limits = {"batch_size": args.batch_size, "max_requests": args.max_requests}
    engine = Engine(store, **limits, dispatcher=dispatcher)
    options = ServerOptions(
        api_key=args.api_key,
        origins=args.origins,
        max_upload_bytes=args.max_upload * 1_000_000,
        time_limit=args.timeout,
    )
    with ExitStack() as sockets:
        listener = sockets.enter_context(bound_socket(args.host, args.port))
        where, beside = [f"serving {', '.join(store.names)} at {address_of(listener)}"], None
        if args.wyoming is not None:
            other = sockets.enter_context(bound_socket(args.host, args.wyoming))
            where.append(f"serving Home Assistant at {address_of(other, 'tcp')}")
            beside = wyoming(engine, other)
        _check_others(args, list(models.values())[1:])
        store.load(store.names[0])  # before the engine's thread, which Ctrl-C could not end
        if dispatcher is not None:
            dispatcher.bus.check_same(_facts(args, models, store))
            dispatcher.bus.group.on_silence = partial(_lose, dispatcher, console)
        stopping = "finishing what is being worked on; Ctrl-C again ends at once"
        app = build_app(engine, options, beside)

        def ready() -> None:
            for line in where:
                console.say(line)

        server = Server(app, ready, partial(console.note, stopping), lambda: engine.failed)
        server.run(sockets=[listener])
    if dispatcher is not None and dispatcher.error is not None:
        raise dispatcher.error
    return int(engine.failed)


def _follow(args: argparse.Namespace, models: dict[str, str], store: ModelStore, bus: Bus) -> int:
    """Work for rank 0 until it ends."""
    from ..server.engine import Engine
    from ..server.worker import Worker, ended_by_rank_0

    store.load(store.names[0])
    with ended_by_rank_0():
        bus.check_same(_facts(args, models, store))
        Worker(bus, Engine(store, batch_size=args.batch_size)).run()
    return 0


def _lose(dispatcher: Dispatcher, console: Console, message: str) -> None:
    """Another rank is silent, and the thread that waits for it can do nothing any more."""
    dispatcher.lose(DistributedError(message))
    time.sleep(_ANSWER_SECONDS)
    end(console, message)


def _facts(args: argparse.Namespace, models: dict[str, str], store: ModelStore) -> dict[str, str]:
    """What has to be the same on all ranks, see `Group.check_same`. Models of the Hub that are not
    loaded yet are known by their names alone."""
    from ..checkpoint.hub import resolve_adapter
    from ..distributed.digests import version_facts

    facts = {**version_facts(), "--model": ", ".join(models)}
    facts |= {as_option(name): str(getattr(args, name)) for name in ("revision", "dtype")}
    for name, given in models.items():
        loaded = store.loaded(name)
        folder = Path(given) if loaded is None else loaded[0].folder
        if folder.is_dir():
            facts |= folder_facts(name, folder)
    if args.adapter is not None:
        facts |= folder_facts(args.adapter, resolve_adapter(args.adapter, progress=False))
    return facts


def _show_log(verbose: bool) -> None:
    """On standard error: failures of the server, and with `verbose` each request."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("mlx_speech.server").setLevel(logging.INFO if verbose else logging.WARNING)
