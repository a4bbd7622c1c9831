"""Command line: `python -m mlx_speech.serve [options]`."""

from __future__ import annotations

import argparse
import os
from functools import partial

from ..errors import InputError
from . import common
from .console import Console


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return common.run_command(build_parser(), check_usage, run, argv)


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = common.Parser(
        prog="python -m mlx_speech.serve",
        usage="%(prog)s [options]",
        description="Serve transcription, translation and chat to OpenAI's clients, and a page to "
        "try them at http://HOST:PORT/.",
        epilog="Exit status: 0 after Ctrl-C or SIGTERM, once what is being worked on is done; 1 if "
        "the server cannot start, 2 for wrong usage.",
    )
    group, add = parser.add_argument_group, common.add_table
    default = os.environ.get("MLX_SPEECH_MODEL") or common.SPEECH_MODEL
    name = f"folder or Hugging Face repository; may be given several times (default: {default})"
    models = group("models")
    add(models, {"--model MODEL": {"help": name, "action": "append", "dest": "models"}})
    common.add_options(models, "--revision", "--dtype")
    keep = "give a model up that nobody has used for so many seconds (default: never)"
    add(models, {"--keep-alive S": keep})
    network = {
        "--host HOST": {"help": "address to serve at (default: 127.0.0.1)", "default": "127.0.0.1"},
        "--port N": {"help": "port (default: 8000)", "default": 8000},
        "--api-key KEY": {
            "help": "what clients have to show (default: $MLX_SPEECH_API_KEY, else nothing)",
            "default": os.environ.get("MLX_SPEECH_API_KEY"),
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


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what makes no sense."""
    for name in ("max_upload", "max_requests", "batch_size"):
        if getattr(args, name) < 1:
            raise InputError.must_be(name, getattr(args, name), "at least 1")


def run(args: argparse.Namespace, console: Console, usage: None) -> int:
    """Serve until a signal ends it."""
    try:
        import uvicorn

        from ..server.app import ServerOptions, build_app
    except ImportError as error:
        raise InputError(
            f"the server needs {error.name}: pip install 'mlx-speech[server]'"
        ) from None
    from ..loading import load
    from ..server.engine import Engine
    from ..server.models import ModelStore

    names = args.models or [os.environ.get("MLX_SPEECH_MODEL") or common.SPEECH_MODEL]
    loader = partial(load, revision=args.revision, dtype=args.dtype, progress=not console.quiet)
    store = ModelStore(names, args.keep_alive, loader)
    engine = Engine(store, batch_size=args.batch_size, max_requests=args.max_requests)
    options = ServerOptions(
        api_key=args.api_key or None,
        origins=args.origins,
        max_upload_bytes=args.max_upload * 1_000_000,
        time_limit=args.timeout,
    )
    config = uvicorn.Config(
        build_app(engine, options), args.host, args.port, log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    console.say(f"serving {', '.join(store.names)} at http://{args.host}:{args.port}")
    server.run()
    return 0
