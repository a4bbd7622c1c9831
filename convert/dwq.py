"""DWQ, distilled weight quantization, of a decoder, by mlx-lm: scales and offsets are learned.

The decoder is quantized, and then the scales and offsets of its groups are trained until its
distributions come close to what the original's were. These are computed first, and of each the
likeliest tokens are kept. What is trained is what GPTQ gives, where that has so many bits, for a
few recordings say little to so many scales: rounded to nearest, the tiny model learns its texts by
heart, and others are no better than before. In memory is the decoder, first as it was and then
quantized, with what a backward pass through it takes.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.checkpoint.quantization import Quantization
from mlx_speech.errors import InputError

from . import gptq
from .blocks import DECODER, Decoder
from .calibration import CalibratedModel, Calibration, Progress
from .reporting import reported

_KEPT_TOKENS = 1024  #: of a distribution, as in mlx-lm
_STEPS = 100  #: at least; whole passes over all utterances
_LEARNING_RATE = 1e-5
_TEMPERATURE = 2.0  #: mlx-lm's
_SEED = 123  #: mlx-lm's


def check(settings: dict[str, Any]) -> None:
    """Refuse a decoder of which nothing would be learned.

    Args:
        settings: of its linear layers, see `linear_settings`.

    Raises:
        InputError: it is one.
    """
    if not any(s and s["bits"] < 8 for s in settings.values()):
        text = "{method} dwq is for {q_bits} below 8, and the decoder has none; leave out {method}"
        raise InputError.about(text)


def quantize(
    model: Any, calibration: Calibration, quantization: Quantization, progress: Progress
) -> None:
    """Quantize a speech model's decoder in place."""
    from mlx.optimizers import Adam, cosine_decay
    from mlx_lm.quant import dwq

    utterances = calibration.utterances
    targets = [_likeliest(utterance.logits(model)) for utterance in utterances]
    mx.eval(targets)
    decoder = getattr(model, DECODER)
    layers = Decoder(model, utterances, quantization)
    if gptq.can(layers.settings):
        gptq.quantize(layers, progress)
    layers.restore()
    nn.quantize(decoder, class_predicate=lambda path, m: quantization(f"{DECODER}.{path}", m))
    mx.eval(decoder.parameters())
    student = CalibratedModel(model, calibration)
    student.freeze()
    passes = -(-_STEPS // len(utterances))
    # a row stands for an utterance: its number, as often as it has positions
    rows = [([n] * u.input_ids.shape[1], 0) for n, u in enumerate(utterances)] * passes
    state = np.random.get_state()  # which the order of the rows would else be left in
    try:
        with reported(dwq, progress, "learning scales, step"):
            dwq.dwq_quantize(
                student,
                lambda batch, step, split: targets[batch[0, 0].item()],
                Adam(cosine_decay(_LEARNING_RATE, len(rows)), bias_correction=True),
                rows,
                rows[:1],
                batch_size=1,
                max_seq_length=2**20,
                seed=_SEED,
                dtype=decoder.model.norm.weight.dtype,
                temperature=_TEMPERATURE,
            )
    finally:
        np.random.set_state(state)


def _likeliest(logits: mx.array) -> tuple[mx.array, mx.array]:
    """The largest logits of each position, and whose they are."""
    count = min(_KEPT_TOKENS, logits.shape[-1])
    tokens = mx.argpartition(logits, kth=-count, axis=-1)[..., -count:]
    return mx.take_along_axis(logits, tokens, axis=-1), tokens
