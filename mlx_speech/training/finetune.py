"""Fine-tuning with mlx-lm's trainer: validated, saved as it goes on, and resumed exactly."""

import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..files import HIDDEN
from ..signals import handled
from .adapter_folder import write_adapter
from .batches import RecordingDataset, iterate_batches
from .options import FineTuneOptions
from .ranks import Ranks
from .reports import FineTuneCallback, FineTuneResult, TrainLossReport
from .state import STATE_FILE, Progress, is_finite, load_state, save_state
from .trainable import Trainable, loss, loss_inputs, restored_layers
from .validation import Validator


def finetune(
    model: Any,
    processor: Any,
    train: RecordingDataset,
    valid: RecordingDataset | None,
    options: FineTuneOptions,
    *,
    callback: FineTuneCallback | None = None,
    stop: Callable[[], bool] | None = None,
    ranks: Ranks | None = None,
) -> FineTuneResult:
    """Fine-tune a speech model.

    What is written to `adapter_path`, every `save_every` steps and at the end, is what the last
    step left, as with mlx-lm, and not what validated best: an adapter that `load(model,
    adapter=PATH)` reads, and `training_state.safetensors`, from which `resume` goes on.

    Ctrl-C, or `stop`, ends it as soon as the optimizer has made its next update; all is saved then.
    A second Ctrl-C raises `KeyboardInterrupt` at once.

    Several ranks have a share of each batch each, and make the same steps, those that one process
    would make: their gradients are weighted by the labels they are of. All validate, and the first
    alone writes. If one is to end, all do. All have to call this, and get the same result.

    Args:
        model: as its checkpoint is. It is trained in place, and left in evaluation mode with what
            was trained in it, which is on whatever a call says: load the adapter to use it.
        processor: of the model.
        train, valid: see `load_data`; without the latter nothing is validated.
        options: see there.
        callback: told how it goes.
        stop: asked after each step whether to end.
        ranks: that train together; by default those that this process was launched with.

    Raises:
        DistributedError: a rank is lost, or trains otherwise. What was saved stays.
        InputError: an option does not fit the model or the training that is to be resumed, there is
            training in the folder already, or the loss is not finite any more.
        UnsupportedOptionError: models of this family are not fine-tuned, or an adapter is over this
            one that is not its checkpoint's own.
        CheckpointError: what is to be resumed is damaged.
        OSError: the folder cannot be written to.
    """
    ranks = Ranks.of_launch() if ranks is None else ranks
    ranks.check_options(options)
    folder = Path(options.adapter_path)
    if ranks.first and not options.resume and (folder / STATE_FILE).exists():
        message = "{adapter_path} {folder} has training in it already; {resume} goes on with it"
        raise InputError.about(message, option="adapter_path", folder=str(folder))
    mx.random.seed(options.seed)
    trainable = Trainable(model, options)
    if ranks.size > 1:  # dropout is another on each
        seeds = np.random.SeedSequence([options.seed, ranks.rank])
        mx.random.seed(int(seeds.generate_state(1, np.uint64)[0]))
    with _interrupts() as interrupted, ranks:
        run = _Run(
            trainable,
            processor,
            (train, valid),
            callback or FineTuneCallback(),
            lambda: ranks.any(interrupted() or (stop is not None and stop())),
            ranks,
        )
        return run()


class _Run:
    """One run of training, from step `progress.step` on.

    mlx-lm's trainer asks for a batch before each step: that is when this validates, saves and ends.
    """

    def __init__(
        self,
        trainable: Trainable,
        processor: Any,
        datasets: tuple[RecordingDataset, RecordingDataset | None],
        callback: FineTuneCallback,
        stop: Callable[[], bool],
        ranks: Ranks,
    ):
        self._trainable, self._options, self._ranks = trainable, trainable.options, ranks
        self._train, valid = datasets
        self._callback, self._stop = callback, stop
        self._validator = None
        if valid and self._options.val_batches:
            self._validator = Validator(trainable, processor, valid, ranks)
        self._folder = Path(self._options.adapter_path)
        self._optimizer = make_optimizer(self._options)
        self._progress = Progress()
        if self._options.resume:
            args = self._folder, trainable, self._optimizer, len(self._train), ranks
            self._progress = load_state(*args)
        self._saved = self._progress.step
        every = self._options.grad_accumulation_steps
        self._iters = self._options.iters // every * every
        if self._saved >= self._iters:
            raise InputError.must_be(
                "iters", self._options.iters, f"at least {self._saved + every}"
            )
        self._stopped = False
        self._losses: Any = _Losses(self._saved, self._iters, self._options, callback)

    def __call__(self) -> FineTuneResult:
        from mlx_lm.tuner import trainer

        options, began = self._options, time.perf_counter()
        mx.reset_peak_memory()
        if self._ranks.first:
            self._folder.mkdir(parents=True, exist_ok=True)
        with (
            # where its first rank writes at the end what is written already
            tempfile.TemporaryDirectory(
                dir=self._folder if self._ranks.first else None, prefix=HIDDEN
            ) as unused,
            _silent(trainer),
            _uncompiled_on_cpu(),
            restored_layers(self._trainable),
        ):
            args = trainer.TrainingArgs(
                batch_size=options.batch_size,
                iters=self._iters - self._progress.step,
                steps_per_report=1,
                steps_per_save=self._iters + 1,
                max_seq_length=options.max_seq_length,
                adapter_file=str(Path(unused) / "adapters.safetensors"),
                grad_checkpoint=options.grad_checkpoint,
                grad_accumulation_steps=options.grad_accumulation_steps,
                clear_cache_threshold=options.clear_cache_threshold,
            )
            trainer.train(
                self._trainable,
                self._optimizer,
                self._train,
                args=args,
                loss=loss,
                iterate_batches=self._asked_for_batches,
                training_callback=self._losses,
            )
        if not self._stopped:
            self._between_steps()
        self._trainable.eval()
        return FineTuneResult(
            steps=self._progress.step,
            stopped=self._stopped,
            train_loss=self._losses.last,
            validations=self._progress.validations,
            trained_parameters=sum(a.size for a in self._trainable.weights().values()),
            seconds=time.perf_counter() - began,
            adapter_path=self._folder,
        )

    def _asked_for_batches(self, **asked: Any) -> Iterator[tuple[mx.array, ...]]:
        start = self._progress.step
        for batch in iterate_batches(**asked, seed=self._options.seed, start=start):
            if self._between_steps():
                return
            inputs = loss_inputs(batch, self._ranks)
            self._ranks.expect()
            yield inputs

    def _between_steps(self) -> bool:
        """Validate and save where that is due; whether training is to end here."""
        options, step = self._options, self._losses.step
        self._progress = replace(self._progress, step=step)
        ends = step == self._iters
        if ends or step % options.steps_per_eval == 0:
            self._validate()
        # in between, gradients are waiting that no file has
        if step % options.grad_accumulation_steps == 0:
            self._stopped = not ends and self._stop()
            due = step // options.save_every > self._saved // options.save_every
            if (ends or due or self._stopped) and step > self._saved:
                self._save()
        return self._stopped

    def _validate(self) -> None:
        done = self._progress.validations
        if self._validator is None or (done and done[-1].step == self._progress.step):
            return
        given = self._progress.step, self._callback.on_val_progress, self._stop
        report = self._validator(*given)
        self._trainable.train()
        if report is not None:
            self._progress = replace(self._progress, validations=(*done, report))
            self._callback.on_val_loss_report(report)

    def _save(self) -> None:
        trainable, options = self._trainable, self._options
        if not is_finite(list(trainable.weights().values())):
            raise self._losses.not_finite()
        args = self._folder, trainable, self._optimizer, self._progress, len(self._train)
        save_state(*args, self._ranks)
        if self._ranks.first:
            write_adapter(
                self._folder,
                trainable.model,
                lora=trainable.low_rank_terms(),
                rank=options.lora_rank,
                scale=options.lora_scale,
                dropout=options.lora_dropout,
                saved=trainable.trained.whole,
                base_model=trainable.model.name_or_path,
                revision=_revision(trainable.model),
            )
        self._saved = self._losses.saved = self._progress.step
        if self._ranks.first:
            self._callback.on_save(self._saved, self._folder)


class _Losses:
    """What mlx-lm's trainer calls after each step; adds up what is reported.

    Args:
        step: number of those that are done.
        iters: that there will be.
    """

    def __init__(self, step: int, iters: int, options: FineTuneOptions, callback: FineTuneCallback):
        self.step = self.saved = self._first = step
        self.last: float | None = None
        self._iters, self._options, self._callback = iters, options, callback
        self._sum = self._seconds = self._all_seconds = 0.0
        self._steps = self._tokens = self._tokens_before = 0

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """See mlx-lm's `TrainingCallback`."""
        self.step += 1
        if not math.isfinite(info["train_loss"]):
            raise self.not_finite()
        seconds = 1 / info["iterations_per_second"]
        self._seconds += seconds
        self._all_seconds += seconds
        self._sum += info["train_loss"]
        self._steps += 1
        self._tokens += info["trained_tokens"] - self._tokens_before
        self._tokens_before = info["trained_tokens"]
        if self.step % self._options.steps_per_report and self.step != self._iters:
            return
        self.last = self._sum / self._steps
        each = self._all_seconds / (self.step - self._first)
        self._callback.on_train_loss_report(
            TrainLossReport(
                step=self.step,
                iters=self._iters,
                loss=self.last,
                learning_rate=info["learning_rate"],
                tokens_per_second=self._tokens / self._seconds,
                seconds_left=each * (self._iters - self.step),
                peak_memory=mx.get_peak_memory(),
            )
        )
        self._sum = self._seconds = 0.0
        self._steps = self._tokens = 0

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        """It validates nothing."""

    def not_finite(self) -> InputError:
        """What ends training that went wrong."""
        kept = f"what step {self.saved} left is saved in {self._options.adapter_path}"
        message = "the loss is not finite at step {step}: lower {learning_rate}; {kept}"
        kept = kept if self.saved else "nothing is saved"
        return InputError.about(message, option="learning_rate", step=self.step, kept=kept)


def make_optimizer(options: FineTuneOptions) -> Any:
    """As `mlx_lm.lora` makes it, but Adam corrects the bias of its averages, as its authors and
    torch do: without, steps are up to three times as large in the first hundreds, which is all
    that there are for few recordings.

    Raises:
        InputError: it has no such configuration or schedule.
    """
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.utils import build_schedule

    kinds = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon", "sgd": "SGD"}
    kind = getattr(optimizers, kinds.get(options.optimizer, "Adafactor"))
    schedule, rate = options.lr_schedule, options.learning_rate
    try:
        learning_rate = rate if schedule is None else build_schedule(schedule)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        rule = "a name and arguments of a schedule of mlx.optimizers, as in mlx_lm.lora"
        raise InputError.must_be("lr_schedule", schedule, f"{rule} ({error})") from error
    usual = {"bias_correction": True} if options.optimizer in ("adam", "adamw") else {}
    try:
        return kind(learning_rate=learning_rate, **usual | options.optimizer_config)
    except (TypeError, ValueError) as error:
        rule = f"arguments of mlx.optimizers.{kind.__name__} ({error})"
        raise InputError.must_be("optimizer_config", options.optimizer_config, rule) from error


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within it, in the main thread, the first Ctrl-C only makes what it gives say so."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    with handled({signal.SIGINT: note}):
        yield asked.is_set


@contextmanager
def _silent(trainer: Any) -> Iterator[None]:
    """Within it, mlx-lm's trainer draws nothing."""
    drawn = trainer.TrainUI
    trainer.TrainUI = _NoUI
    try:
        yield
    finally:
        trainer.TrainUI = drawn


@contextmanager
def _uncompiled_on_cpu() -> Iterator[None]:
    """Within it, MLX compiles nothing on a CPU: there the system's C++ compiler does that, for
    minutes before the first step."""
    traced: list[mx.array] = []
    probe = mx.compile(traced.append)
    for _ in range(2):
        probe(mx.array(0))
    compiles = len(traced) == 1
    if not compiles or mx.default_device().type != mx.DeviceType.cpu:
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


class _NoUI:
    """What mlx-lm's trainer needs to draw nothing with."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> "_NoUI":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def advance(self) -> None:
        """Nothing."""

    def report_train(self, *_: Any) -> None:
        """Nothing."""


def _revision(model: Any) -> str | None:
    """Which one of a repository a model was loaded from, as the Hub's cache names folders."""
    folder = model.folder
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None
