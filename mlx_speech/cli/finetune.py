"""Command line: `python -m mlx_speech.finetune [options] --data DATA`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..training.options import FineTuneOptions
from ..training.reports import FineTuneCallback, TrainLossReport, ValLossReport
from . import common
from .console import Console, display_name
from .finetune_options import Settings, build_parser, read_settings
from .progress import SECONDS_BETWEEN_LINES, clock
from .ranks import start_group
from .streams import need_standard_output

if TYPE_CHECKING:
    from ..training.data import TrainingData
    from ..training.ranks import Ranks

_TEXT_TRAINER = "mlx_lm.lora --train trains text models on that"
_INTERRUPTED = 130  #: exit status after Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return common.run_command(build_parser(), check_usage, run, argv, distributed=True)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what makes no sense, before a file or a model is read for it."""
    if args.data is None and args.config is None:
        parser.error("--data names the recordings to train on; give it")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with what --overwrite replaces; choose one")
    FineTuneOptions(**common.explicit_options(args, FineTuneOptions.__dataclass_fields__))


def run(args: argparse.Namespace, console: Console, usage: None) -> int:
    """Train, and print the folder of the result."""
    need_standard_output()
    settings = read_settings(args)
    options = settings.options
    from ..training.data import check_data
    from ..training.ranks import Ranks
    from ..training.target import check_target, clear_target

    check_data(Path(settings.data))
    ranks = Ranks(start_group(console))
    ranks.check_options(options)
    folder = Path(options.adapter_path)
    if ranks.first:
        check_target(folder, resume=options.resume, overwrite=settings.overwrite)
    _check_model(settings, console)

    from ..checkpoint.card import write_card
    from ..training.card import adapter_card
    from ..training.finetune import finetune
    from ..training.rows import DataError

    chosen = {name: getattr(settings, name) for name in ("model", "revision", "dtype")}
    named = argparse.Namespace(**chosen, adapter=None)
    model, processor = common.load_named(named, console)
    progress = _Progress(console, shown=ranks.first)
    try:
        data = _load_data(settings, model, processor, console, progress, ranks)
    except DataError:
        if ranks.first:
            raise
        return 0  # the first tells it of all
    for split in filter(None, (data.train, data.valid)):
        split.fill_cache(progress.counting("encoding"))
    progress.clear()
    if data.valid is None:
        console.warn("there is no data to validate with; nobody can tell how good the result is")
    if settings.overwrite and ranks.first:
        clear_target(folder)
    sets = data.train, data.valid
    result = finetune(model, processor, *sets, options, callback=progress, ranks=ranks)
    if not ranks.first:
        return 0
    progress.clear()
    if result.stopped and not result.steps:
        console.say("interrupted before the first step; nothing is saved")
        return _INTERRUPTED
    card = adapter_card(folder, model, Path(settings.data), data, options, result)
    write_card(folder, card)
    if result.stopped:
        again = f"{display_name(folder)}; --resume goes on from there"
        console.say(f"interrupted: step {result.steps} of {options.iters} is saved in {again}")
    print(folder, flush=True)
    return _INTERRUPTED if result.stopped else 0


def _check_model(settings: Settings, console: Console) -> None:
    """Refuse a model that is not fine-tuned here, before gigabytes of it are fetched."""
    from ..checkpoint.folder import read_json
    from ..checkpoint.hub import resolve_checkpoint
    from ..training.trainable import check_trainable

    folder = resolve_checkpoint(
        settings.model, revision=settings.revision, weights=False, progress=not console.quiet
    )
    check_trainable(str(read_json(folder).get("model_type")))


def _load_data(
    settings: Settings,
    model: Any,
    processor: Any,
    console: Console,
    progress: _Progress,
    ranks: Ranks,
) -> TrainingData:
    """The data, what is wrong with rows being told a line each."""
    from ..training.data import load_data
    from ..training.rows import NO_AUDIO, DataError

    given = model, processor, settings.options, progress.counting("checking")
    try:
        data = load_data(settings.data, *given, ranks=ranks)
    except DataError as error:
        if not ranks.first:
            raise
        progress.clear()
        if all(problem.endswith(NO_AUDIO) for problem in error.problems):
            raise InputError(f"{settings.data} has no recordings in it; {_TEXT_TRAINER}") from None
        for problem in error.problems:
            console.say(problem)
        raise
    progress.clear()
    for problem in data.left_out:
        console.warn(f"left out: {problem}")
    return data


class _Progress(FineTuneCallback):
    """How far it is: on a terminal a line that is replaced, and lines that stay; else lines."""

    def __init__(self, console: Console, *, shown: bool = True):
        self._console = console
        self._replaced = shown and sys.stderr.isatty() and not console.quiet
        self._told = time.monotonic()

    def counting(self, doing: str) -> Callable[[int, int], None]:
        """What to call with how many recordings are done, and of how many."""

        def show(done: int, total: int) -> None:
            line = f"{doing} recordings: {done} of {total}"
            if self._replaced:
                self._console.status(line)
            elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
                self._told = time.monotonic()
                self._console.note(line)

        return show

    def on_train_loss_report(self, report: TrainLossReport) -> None:
        line = (
            f"step {report.step}/{report.iters}: loss {report.loss:.4f}, "
            f"{report.tokens_per_second:,.0f} tokens/s, {clock(report.seconds_left)} left, "
            f"peak memory {report.peak_memory / 1e9:.2f} GB"
        )
        if self._replaced:
            self._console.status(line)
        else:
            self._console.note(line)

    def on_val_progress(self, done: int, total: int) -> None:
        if self._replaced:
            self._console.status(f"validating: batch {done} of {total}")

    def on_val_loss_report(self, report: ValLossReport) -> None:
        self.clear()
        self._console.note(
            f"step {report.step}: validation loss {report.loss:.4f}, "
            f"word error rate {report.word_error_rate:.1f} % of {report.words} words"
        )

    def on_save(self, step: int, folder: Path) -> None:
        self.clear()
        self._console.detail(f"step {step}: saved in {display_name(folder)}")

    def clear(self) -> None:
        """Leave the line empty for what is said next."""
        if self._replaced:
            self._console.status("")
