"""What the command line does with conversions: check them, write their cards, upload them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_speech.checkpoint.card import write_card
from mlx_speech.checkpoint.hub import repo_id_problem, resolve_checkpoint
from mlx_speech.cli.console import Console, as_option
from mlx_speech.errors import HubError, InputError, MlxSpeechError

if TYPE_CHECKING:
    from .check import CheckReport
    from .plan import Conversion

#: word error rate, in per cent, above which a conversion is not what it was made from
MAX_WER = 10.0


def add_publish_options(parser: argparse.ArgumentParser) -> None:
    """`--check`, `--upload-repo` and what belongs to them."""
    group = parser.add_argument_group("checking and uploading")
    add = group.add_argument
    text = (
        "compare with the original over these recordings (default: a few short English ones that "
        "come with the package)"
    )
    add("--check", nargs="*", metavar="AUDIO", help=text)
    text = (
        "with --check: above this word error rate, in per cent, the exit status is 1 and nothing "
        f"is uploaded (default: {MAX_WER:g})"
    )
    add("--max-wer", type=_percentage, metavar="P", help=text)
    text = (
        "upload to this Hugging Face repository, which is created if there is none; with several "
        "numbers of bits it gets -4bit, -8bit and so on at its end"
    )
    add("--upload-repo", metavar="OWNER/NAME", help=text)
    add("--private", action="store_true", help="create the repository as a private one")


def _percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage")
    return value


def check_publish_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what contradicts itself, before anything is read."""
    for option in ("check", "upload_repo"):
        if args.dry_run and getattr(args, option) is not None:
            parser.error(f"{as_option(option)} does not go with --dry-run, which writes nothing")
    if args.max_wer is not None and args.check is None:
        parser.error("--max-wer is for --check")
    if args.private and args.upload_repo is None:
        parser.error("--private is for --upload-repo")
    if args.upload_repo is None:
        return
    for bits in args.q_bits or (None,):
        if problem := repo_id_problem(repository(args, bits)):
            parser.error(f"--upload-repo: {problem}")
    if args.upload_repo == args.model:
        parser.error("--upload-repo is what is converted; give the result another name")


def repository(args: argparse.Namespace, bits: int | None) -> str:
    """Where a result goes; as with the folders, several are told apart by their bits."""
    several = args.q_bits is not None and len(args.q_bits) > 1
    return f"{args.upload_repo}-{bits}bit" if several else args.upload_repo


def prepare(args: argparse.Namespace, console: Console) -> None:
    """Find out now what would stop the end of a long conversion.

    Raises:
        AudioError, UnsupportedOptionError: it cannot be checked.
        HubError: there is no valid access token.
    """
    if args.check is not None:
        from .check import check_recordings

        check_recordings(args.model, args.check, args.revision)
    if args.upload_repo is not None:
        from mlx_speech.checkpoint.upload import check_token

        console.detail(f"uploading as {check_token()}")


def publish(args: argparse.Namespace, console: Console, results: list[Conversion]) -> int:
    """Check, describe and upload, as far as asked; returns the exit status."""
    from .card import model_card

    if args.check is None and args.upload_repo is None:
        return 0
    reports: Sequence[CheckReport | None] = [None] * len(results)
    if args.check is not None:
        from .check import check

        folders = [result.folder for result in results]
        options = {"revision": args.revision, "adapter": args.adapter}
        reports = check(args.model, folders, args.check, **options, progress=console.detail)
    source = resolve_checkpoint(
        args.model, revision=args.revision, weights=False, also=("README.md",), progress=False
    )
    status = 0
    for result, report in zip(results, reports, strict=True):
        repo_id = args.upload_repo and repository(args, result.bits)
        write_card(result.folder, model_card(result, source, name=repo_id, report=report))
        try:
            if report is not None:
                _judge(args, result, report)
            if repo_id is not None:
                _upload(args, result, repo_id)
        except MlxSpeechError as error:
            status = console.error(error)
    return status


def _judge(args: argparse.Namespace, result: Conversion, report: CheckReport) -> None:
    """Show what a check found; raises `InputError` where that is too much."""
    from .report import check_table

    print(f"\n{args.model} -> {result.folder}\n{check_table(report)}\n", flush=True)
    limit = MAX_WER if args.max_wer is None else args.max_wer
    kept = "" if args.upload_repo is None else ", and it was not uploaded"
    if not report.total.words:
        found = "the original writes no word of these recordings, which checks nothing"
        raise InputError(f"{result.folder}: {found}{kept}: give --check some with speech")
    if report.total.wer > limit:
        found = f"a word error rate of {report.total.wer:.1f} %"
        raise InputError(f"{result.folder}: {found} is above --max-wer {limit:g}{kept}")


def _upload(args: argparse.Namespace, result: Conversion, repo_id: str) -> None:
    """Upload, and print where it is; tells how to go on where that fails."""
    from mlx_speech.checkpoint.upload import upload

    try:
        how = {"private": args.private, "progress": not args.quiet}
        message = "MLX weights, converted by mlx_speech"
        commit = upload(result.folder, repo_id, commit_message=message, **how)
    except HubError as error:
        again = f"`hf upload {repo_id} {result.folder}` goes on where this ended"
        raise HubError(f"{error}; the model is in {result.folder}, and {again}") from error
    print(commit.repo_url, flush=True)
