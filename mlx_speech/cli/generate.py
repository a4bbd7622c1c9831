"""Command line: `python -m mlx_speech.generate [options] --prompt TEXT`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import InputError
from .common import (
    CACHE,
    CHAT_MODEL,
    GENERATION,
    add_about_options,
    add_console_options,
    add_model_options,
    add_options,
    check_cache,
    check_generation,
    decode_utf8,
    explicit_options,
    load_named,
    need_standard_output,
    run_command,
)
from .console import Console

if TYPE_CHECKING:
    from ..generation.text import GenerationResponse, Prompt


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_speech.generate",
        usage="%(prog)s [options] --prompt TEXT",
        description="Answer a prompt with a language model, or with a speech model's.",
        epilog="The answer goes to standard output as it comes; everything else goes to standard "
        "error. Exit status: 0 if there is an answer, 1 if it failed, 2 for wrong usage.",
    )
    add_model_options(parser, CHAT_MODEL)
    prompt = parser.add_argument_group("prompt")
    add = prompt.add_argument
    add(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="what to answer; - or nothing reads it from standard input",
    )
    add_options(prompt, "--system-prompt")
    add(
        "--ignore-chat-template",
        action="store_true",
        help="continue the text itself, instead of answering it as a message",
    )
    answer = parser.add_argument_group("answer")
    add = answer.add_argument
    add_options(answer, "--max-tokens", help="limit (default: 200)")
    add(
        "--stop",
        dest="stop_strings",
        action="append",
        metavar="STRING",
        help="end before this text; may be given several times",
    )
    add_options(answer, "--temperature", "--top-p", "--top-k", "--min-p", "--seed")
    add(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1: make tokens that occurred less likely",
    )
    add_options(answer, "--num-beams")
    add(
        "--draft-model",
        metavar="MODEL",
        help="a smaller model of the same tokenizer that proposes tokens: the same answer, faster",
    )
    add(
        "--num-draft-tokens",
        type=int,
        metavar="N",
        help="how many it proposes at a time (default: 3)",
    )
    memory = parser.add_argument_group("memory")
    add_options(memory, "--max-kv-size", "--kv-bits", "--kv-group-size", "--quantized-kv-start")
    memory.add_argument(
        "--prefill-step-size",
        type=int,
        metavar="N",
        help="tokens of a prompt that are read at once (default: 2048)",
    )
    add_options(memory, "--dtype")
    add_console_options(parser)
    add_about_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), check_usage, run, argv)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what no model could do, before one is loaded for it."""
    if args.prompt is None and sys.stdin.isatty():
        parser.error("give --prompt TEXT, or a text on standard input")
    if args.system_prompt is not None and args.ignore_chat_template:
        parser.error("--system-prompt needs the chat template; leave out --ignore-chat-template")
    if args.draft_model is None:
        if args.num_draft_tokens is not None:
            parser.error("--num-draft-tokens goes with --draft-model")
    elif args.temperature or args.max_kv_size or (args.num_beams or 1) > 1:
        parser.error("--draft-model does not go with --temperature, --num-beams and --max-kv-size")
    if args.prefill_step_size is not None and args.prefill_step_size < 1:
        parser.error(f"--prefill-step-size is {args.prefill_step_size}, but must be at least 1")
    check_generation(parser, args)
    check_cache(parser, args)


def run(args: argparse.Namespace, console: Console, usage: None) -> int:
    """Read the prompt, load the model, print the answer."""
    need_standard_output()
    text = args.prompt
    if text in (None, "-"):
        # an editor or `echo` ends it with a newline, which is not part of what was asked
        text = decode_utf8(sys.stdin.buffer.read()).rstrip("\r\n")
    if not text:
        raise InputError("the prompt is empty")
    model, processor = load_named(args, console)
    options = explicit_options(args, (*GENERATION, *CACHE, "prefill_step_size"))
    if args.draft_model is not None:
        from ..loading import load_model

        options["draft_model"] = load_model(args.draft_model, dtype=model.dtype)
    prompt = as_prompt(args, processor, text)
    response = answer(model, processor, prompt, **options, **console.prompt_progress())
    if response.finish_reason == "length":
        console.warn("the text was cut off; raise --max-tokens")
    console.speed(response)
    return 0


def as_prompt(args: argparse.Namespace, processor, text: str) -> Prompt:
    """Messages for the checkpoint's chat template, or else the text as it is.

    Raises:
        InputError: there is a system prompt, but no template to put it into.
    """
    from ..generation.text import text_tokenizer

    template = getattr(text_tokenizer(processor), "chat_template", None)
    if template is not None and not args.ignore_chat_template:
        message = {"role": "user", "content": text}
        if args.system_prompt is None:
            return [message]
        return [{"role": "system", "content": args.system_prompt}, message]
    if args.system_prompt is not None:
        raise InputError(f"{args.model} has no chat template; leave out --system-prompt")
    return text


def answer(model, processor, prompt: Prompt, **options) -> GenerationResponse:
    """Print the answer as it comes, or whole where beams search for it; its last response."""
    from ..generation.text import generate_response, stream_generate

    if options.get("num_beams", 1) > 1:
        response = generate_response(model, processor, prompt, **options)
        print(response.text, flush=True)
        return response
    responses = stream_generate(model, processor, prompt, **options)
    try:
        for response in responses:
            print(response.text, end="", flush=True)
    finally:
        print(flush=True)
    return response
