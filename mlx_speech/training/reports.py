"""What is told of training while it goes on, and at its end."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainLossReport:
    """Of the steps since the last one.

    step: number of the last step, of `iters`.
    loss: their mean.
    learning_rate: of the last.
    tokens_per_second: labels that count, in the time of the steps alone.
    seconds_left: until the end, without validations.
    peak_memory: bytes that MLX had in use at once since training began.
    """

    step: int
    iters: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float
    peak_memory: int


@dataclass(frozen=True)
class ValLossReport:
    """Of a validation, after `step` steps, 0 before the first.

    loss: as in training, a mean over labels.
    word_error_rate: in per cent, of what greedy decoding writes (see `word_errors`).
    words: of the texts.
    seconds: that it took.
    """

    step: int
    loss: float
    word_error_rate: float
    words: int
    seconds: float


class FineTuneCallback:
    """Who is told, as by mlx-lm to its `TrainingCallback`; what is not overridden says nothing."""

    def on_train_loss_report(self, report: TrainLossReport) -> None:
        """Every `steps_per_report` steps, and at the end."""

    def on_val_progress(self, done: int, total: int) -> None:
        """While validation goes on: batches that are done, and all of them; (0, total) first."""

    def on_val_loss_report(self, report: ValLossReport) -> None:
        """Before the first step, every `steps_per_eval` steps, and at the end."""

    def on_save(self, step: int, folder: Path) -> None:
        """The adapter and what is needed to go on are written."""


@dataclass(frozen=True)
class FineTuneResult:
    """What became of it.

    steps: that are done, those before it was resumed included.
    stopped: whether that was before the end.
    train_loss: mean of the last `steps_per_report` steps; None if there were none.
    validations: all of them, those before it was resumed included.
    trained_parameters: how many numbers are trained.
    seconds: of this run.
    adapter_path: folder of the result.
    """

    steps: int
    stopped: bool
    train_loss: float | None
    validations: tuple[ValLossReport, ...]
    trained_parameters: int
    seconds: float
    adapter_path: Path
