"""How good a model is on recordings that it is not trained on: loss and word errors."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.loss import IGNORED
from ..transcription.word_errors import word_error_rate, word_errors
from .batches import Batch, RecordingDataset, iterate_batches
from .ranks import Ranks
from .reports import ValLossReport
from .trainable import Trainable, loss, loss_inputs

#: tokens of an answer, for each of the right one and in all: more is a loop
_ANSWER_FACTOR, _ANSWER_TOKENS = 2, 8


class Validator:
    """Measures loss and word errors of a model in training; each rank those of its share."""

    def __init__(
        self, trainable: Trainable, processor: Any, dataset: RecordingDataset, ranks: Ranks
    ):
        self._trainable, self._processor, self._dataset = trainable, processor, dataset
        self._ranks = ranks

    def __call__(
        self,
        step: int,
        progress: Callable[[int, int], None],
        stop: Callable[[], bool],
    ) -> ValLossReport | None:
        """Loss and word error rate after so many steps; None if it was stopped. Leaves the model in
        evaluation mode.

        Args:
            progress: called with how many batches are done, and of how many.
            stop: asked before each batch whether to end; says the same on all ranks.
        """
        from mlx_lm.tuner.trainer import evaluate

        options, began = self._trainable.options, time.perf_counter()
        total = -(-len(self._dataset) // options.batch_size)
        if options.val_batches >= 0:
            total = min(total, options.val_batches)
        done = errors = words = 0

        def batches(**asked: Any) -> Iterator[tuple[mx.array, ...]]:
            for batch in iterate_batches(**asked):
                if stop():
                    return
                yield loss_inputs(batch, self._ranks)

        def measured(trainable: Trainable, *inputs: mx.array) -> tuple[mx.array, mx.array]:
            nonlocal errors, words
            *arrays, _, weights = inputs
            batch = Batch(*arrays)
            for reference, hypothesis in decoded(trainable, self._processor, batch):
                errors += word_errors(reference, hypothesis)
                words += len(reference.split())
            return loss(trainable, *inputs)[0], weights[2]

        def count() -> None:
            nonlocal done
            done += 1
            progress(done, total)
            self._ranks.expect()  # behind the last batch

        progress(0, total)
        value = evaluate(
            self._trainable,
            self._dataset,
            options.batch_size,
            options.val_batches,
            options.max_seq_length,
            measured,
            batches,
            options.clear_cache_threshold,
            count,
        )
        if stop():
            return None
        errors, words = map(int, self._ranks.totals(errors, words))
        rate = word_error_rate(errors, words)
        return ValLossReport(step, value, rate, words, time.perf_counter() - began)


def decoded(trainable: Trainable, processor: Any, batch: Batch) -> list[tuple[str, str]]:
    """The right text of each row, and what greedy decoding writes after its prompt; nothing of a
    batch that does not count."""
    ids, counts = np.array(batch.input_ids), np.array(batch.labels) != IGNORED
    if not counts.any():
        return []
    answers = [row[counted] for row, counted in zip(ids, counts, strict=True)]
    prompts = [row[: counted.argmax()] for row, counted in zip(ids, counts, strict=True)]
    audio_tokens = (batch.audio_positions >= 0).sum(axis=1, keepdims=True)
    audio = trainable.model.projector(trainable.encoded(batch)[0])
    width, longest = max(map(len, prompts)), max(map(len, answers))
    padded = [np.pad(row, (width - len(row), 0)) for row in prompts]
    room = max(1, trainable.model.context_length - width)
    answered = trainable.model.generate(
        mx.array(np.stack(padded)),
        attention_mask=mx.array([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        audio_features=audio,
        input_features_mask=mx.arange(audio.shape[1]) < audio_tokens,
        num_beams=1,
        max_new_tokens=min(room, _ANSWER_FACTOR * longest + _ANSWER_TOKENS),
    )
    texts = processor.batch_decode(answered[:, width:].tolist(), skip_special_tokens=True)
    right = processor.batch_decode([row.tolist() for row in answers], skip_special_tokens=True)
    return list(zip(right, texts, strict=True))
