"""Command line: `python -m mlx_speech.generate [options] --prompt TEXT`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import InputError
from . import common
from .console import Console
from .streams import need_standard_output, read_text

if TYPE_CHECKING:
    from ..generation.text import Prompt


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = common.Parser(
        prog="python -m mlx_speech.generate",
        usage="%(prog)s [options] --prompt TEXT",
        description="Answer a prompt with a language model, or with a speech model's.",
        epilog="The answer goes to standard output as it comes; everything else goes to standard "
        "error. Exit status: 0 if there is an answer, 1 if it failed, 2 for wrong usage.",
    )
    add, group = common.add_options, parser.add_argument_group
    common.add_model_options(parser, common.CHAT_MODEL)
    add(group("prompt"), "--prompt", "--system-prompt", "--ignore-chat-template")
    answer = group("answer")
    add(answer, "--max-tokens", help="limit (default: 200)")
    add(answer, "--stop", "--temperature", "--top-p", "--top-k", "--min-p", "--seed")
    add(answer, "--repetition-penalty", "--num-beams", "--draft-model", "--num-draft-tokens")
    memory = group("memory")
    add(memory, "--max-kv-size", "--kv-bits", "--kv-group-size", "--quantized-kv-start")
    add(memory, "--prefill-step-size", "--dtype", "--tensor-parallel")
    common.add_console_options(parser)
    common.add_about_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return common.run_command(build_parser(), check_usage, run, argv, distributed=True)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what no model could do, before one is loaded for it."""
    common.need_tensor_parallel(parser, args)
    if args.prompt is None and sys.stdin.isatty():
        parser.error("give --prompt TEXT, or a text on standard input")
    if args.system_prompt is not None and args.ignore_chat_template:
        parser.error("--system-prompt needs the chat template; leave out --ignore-chat-template")
    if args.draft_model is None:
        if args.num_draft_tokens is not None:
            parser.error("--num-draft-tokens goes with --draft-model")
    elif args.temperature or args.max_kv_size or (args.num_beams or 1) > 1:
        parser.error("--draft-model does not go with --temperature, --num-beams and --max-kv-size")
    if args.prefill_step_size is not None:
        from ..fields import fitted
        from ..generation.config import Count

        fitted("prefill_step_size", args.prefill_step_size, Count)
    common.check_generation(args)


def run(args: argparse.Namespace, console: Console, usage: None) -> int:
    """Read the prompt, load the model, print the answer."""
    need_standard_output()
    text = args.prompt
    if text in (None, "-"):
        # an editor or `echo` ends it with a newline, which is not part of what was asked
        text = read_text().rstrip("\r\n")
    if not text:
        raise InputError("the prompt is empty")
    model, processor = common.load_named(args, console)
    names = (*common.GENERATION, *common.CACHE, "prefill_step_size")
    options = common.explicit_options(args, names) | console.prompt_progress()
    if args.draft_model is not None:
        from ..loading import load_model

        options["draft_model"] = load_model(args.draft_model, dtype=model.dtype)

    from ..generation.text import generate_response, stream_generate

    prompt = as_prompt(args, processor, text)
    if options.get("num_beams", 1) > 1:
        # known only at the end
        response = generate_response(model, processor, prompt, **options)
        print(response.text, flush=True)
    else:
        response = common.print_replies(stream_generate(model, processor, prompt, **options))
    if response.finish_reason == "length":
        console.warn("the text was cut off; raise --max-tokens")
    console.speed(response)
    return 0


def as_prompt(args: argparse.Namespace, processor: object, text: str) -> Prompt:
    """Messages for the checkpoint's chat template, or else the text as it is.

    Raises:
        InputError: there is a system prompt, but no template to put it into.
    """
    from ..generation.text import text_tokenizer

    template = getattr(text_tokenizer(processor), "chat_template", None)
    system = [] if args.system_prompt is None else [("system", args.system_prompt)]
    if template is not None and not args.ignore_chat_template:
        return [{"role": role, "content": said} for role, said in (*system, ("user", text))]
    if system:
        raise InputError(f"{args.model} has no chat template; leave out --system-prompt")
    return text
