"""Command line: `python -m mlx_speech.convert [options] --model MODEL`."""

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Sequence

from mlx_speech.checkpoint.quantization import MODES, RECIPES
from mlx_speech.cli.common import (
    Parser,
    add_about_options,
    add_console_options,
    add_options,
    explicit_options,
    run_command,
)
from mlx_speech.cli.console import Console, as_option

from .methods import METHODS, check_options
from .plan import Conversion, size
from .publish import add_publish_options, check_publish_usage, prepare, publish


def build_parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them, so that --help answers at once."""
    parser = Parser(
        prog=f"python -m {__package__}",
        usage="%(prog)s [options] --model MODEL",
        description="Convert a Hugging Face checkpoint to MLX, quantized or not.",
        epilog="What was written goes to standard output; everything else goes to standard error. "
        "Exit status: 0 if all went well, 1 if not, 2 for wrong usage.",
    )
    add = parser.add_argument
    text = "folder or Hugging Face repository"
    add("--hf-path", "--model", dest="model", metavar="MODEL", required=True, help=text)
    add_options(parser, "--revision")
    text = (
        "folder to write; with several numbers of bits it gets -4bit, -8bit and so on at its end "
        "(default: mlx_model)"
    )
    add("--mlx-path", default="mlx_model", metavar="FOLDER", help=text)
    add("--overwrite", action="store_true", help="replace a conversion that is there already")
    text = "only tell what would be written: each module, its bits and bytes. Fetches no weights"
    add("--dry-run", action="store_true", help=text)
    group = parser.add_argument_group("quantization")
    add = group.add_argument
    add("-q", "--quantize", action="store_true", help="quantize")
    text = (
        "2, 3, 4, 5, 6 or 8 bits a weight, or several of them (default: what --q-mode has, else "
        "4). For a speech model that is for the decoder; its encoder and projector get 8, and "
        "all of it if there is no decoder"
    )
    add("--q-bits", type=_bits, metavar="N[,N...]", help=text)
    text = "weights that share a scale (default: 64, or what --q-mode has)"
    add("--q-group-size", type=int, choices=(32, 64, 128), help=text)
    add("--q-mode", choices=MODES, default="affine", help="how they are stored (default: affine)")
    recipes = (f"{name} {'-'.join(map(str, vars(r).values()))}" for name, r in RECIPES.items())
    text = (
        "bits of encoder, projector, decoder and what is sensitive in the decoder: "
        f"{', '.join(recipes)} (default: speech_4bit for a speech model and all_4bit for a text "
        "model, or the same with --q-bits)"
    )
    add("--quant-predicate", choices=RECIPES, metavar="RECIPE", help=text)
    text = "undo the quantization of a model; with -q, quantize it anew"
    add("-d", "--dequantize", action="store_true", help=text)
    text = "store in this type what is not quantized (default: as it is)"
    add_options(group, "--dtype", help=text)
    text = (
        "add the LoRA adapter to the weights, before they are quantized: for transcription only, "
        "the model cannot chat without it any more"
    )
    add("--fuse-adapter", action="store_true", help=text)
    text = "folder or repository of a further adapter, in peft's format, for --fuse-adapter"
    add("--adapter", metavar="PATH", help=text)
    add_learning_options(parser)
    add_publish_options(parser)
    add_console_options(parser)
    add_about_options(parser)
    return parser


def add_learning_options(parser: argparse.ArgumentParser) -> None:
    """`--method` and what belongs to it."""
    group = parser.add_argument_group("quantization that learns, of Granite Speech's decoder")
    add = group.add_argument
    text = (
        "rtn rounds to nearest; awq scales weights before; gptq makes up for what each "
        "column loses; dwq learns the scales; dynamic chooses each layer's bits, --q-bits or 8, in "
        "the encoder and the projector as well (default: rtn)"
    )
    add("--method", choices=METHODS, default="rtn", help=text)
    text = (
        "recordings to learn from, with texts that the original makes of them; not those of "
        "--check (default: a few short English ones that come with the package)"
    )
    add("--calibration", nargs="+", metavar="AUDIO", default=(), help=text)
    text = "bits a weight that dynamic may use, in all (default: as many as rtn)"
    add("--target-bpw", type=float, metavar="B", help=text)


def _bits(text: str) -> tuple[int, ...]:
    """What --q-bits names."""
    bits = sorted(MODES["affine"][1])
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) != len(found) or not set(found) <= set(bits):
        able = ", ".join(map(str, bits))
        raise argparse.ArgumentTypeError(f"{text!r} is not one or several of {able}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), check_usage, run, argv)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what contradicts itself, before anything is read."""
    if not args.quantize:
        for option in ("q_bits", "q_group_size", "quant_predicate"):
            if getattr(args, option) is not None:
                parser.error(f"{as_option(option)} goes with -q")
        if args.q_mode != "affine":
            parser.error("--q-mode goes with -q")
    if args.q_bits is not None and args.quant_predicate is not None:
        parser.error("--quant-predicate says how many bits; leave out --q-bits")
    if args.adapter is not None and not args.fuse_adapter:
        parser.error("--adapter goes with --fuse-adapter, which adds it to the weights")
    names = tuple(inspect.signature(check_options).parameters)
    check_options(**explicit_options(args, names))
    check_publish_usage(parser, args)


def run(args: argparse.Namespace, console: Console, usage: None) -> int:
    """Convert; returns the exit status."""
    from .conversion import convert

    if not args.dry_run:
        prepare(args, console)
    if args.check is not None and args.method != "rtn" and is_known(args.check, args.calibration):
        console.warn("--check is over recordings that --method learns from; others say more")
    start = time.perf_counter()
    # the options have the library's names for them
    options = explicit_options(args, tuple(inspect.signature(convert).parameters))
    options |= {"progress": not console.quiet, "progress_callback": _progress(console)}
    options["learning_callback"] = console.status if _shows(console) else console.detail
    results = convert(args.model, **options)
    console.detail(f"{results[0].source}: converted in {time.perf_counter() - start:.1f} s")
    for result in results:
        tell(result, console, args.dry_run)
    return 0 if args.dry_run else publish(args, console, results)


def is_known(checked: Sequence[str], calibration: Sequence[str]) -> bool:
    """Whether a check is over recordings that were learned from; both may be the bundled ones."""
    return bool({*checked} & {*calibration}) or not (checked or calibration)


def tell(result: Conversion, console: Console, dry_run: bool) -> None:
    """Say what was done: on standard output the plan or the folder, the rest beside it."""
    if dry_run:
        print(*result.plan.lines(), sep="\n")
    how = f"in {result.dtype}"
    if result.recipe is not None:
        bits = {name: part.bits() for name, part in result.plan.parts().items()}
        told = [f"{n} {' and '.join(map(str, found)) or 'none'}" for n, found in bits.items()]
        how = f"{result.recipe} (bits: {', '.join(told)}), {how} what is not quantized"
    before, after = size(result.plan.before), size(result.plan.after)
    console.note(f"{result.folder}: {how}; {before} -> {after}")
    if not dry_run:
        if result.learned is not None:
            console.note(f"  {result.learned}")
        for note in result.plan.notes:
            console.note(f"  {note}")
        print(result.folder)


def _shows(console: Console) -> bool:
    return not console.quiet and sys.stderr.isatty()


def _progress(console: Console) -> Callable[[int, int], None] | None:
    """What shows on a terminal how far a conversion is."""
    if not _shows(console):
        return None

    def show(done: int, total: int) -> None:
        console.status(f"{size(done)} of {size(total)}" if done < total else "")

    return show


if __name__ == "__main__":
    sys.exit(main())
