"""What `generate` returns where more than the ids is asked for, as in transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..layers.model_output import ModelOutput

Scores = tuple[mx.array, ...]


@dataclass
class ScoreRecord:
    """The scores and the model's logits of each step, (rows, vocab); None where nobody wants them.
    A strategy that is a step ahead may have recorded one more than it chose tokens from."""

    scores: list[mx.array] | None = None
    logits: list[mx.array] | None = None

    def add(self, logits: mx.array, scores: mx.array) -> None:
        """Keep those of one step."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits)

    @classmethod
    def of_rows(cls, records: Sequence["ScoreRecord"]) -> "ScoreRecord":
        """One of several of a row each, which end where they do."""

        def joined(kept: list[list[mx.array] | None]) -> list[mx.array] | None:
            rows = [row for row in kept if row is not None]
            steps = range(max(map(len, rows), default=0))
            found = [mx.concatenate([row[min(i, len(row) - 1)] for row in rows]) for i in steps]
            return found or None

        return cls(joined([r.scores for r in records]), joined([r.logits for r in records]))

    def forget(self, count: int) -> None:
        """Drop those of the last `count` steps."""
        for kept in (self.scores, self.logits):
            if kept is not None and count:
                del kept[-count:]


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """What greedy search and sampling return.

    sequences: (rows, length) ids: the prompts and their continuations, padded at the end. There are
        `num_return_sequences` rows for each prompt.
    scores: with `output_scores`, those of each new token, (rows, vocab), after all processors;
        without meaning for a row that has ended.
    logits: with `output_logits`, those of the model, float32.
    past_key_values: the cache, with all but the last token; None with `use_cache=False`.
    """

    sequences: mx.array
    scores: Scores | None = None
    logits: Scores | None = None
    past_key_values: Sequence[Any] | None = None


@dataclass(eq=False)
class GenerateBeamOutput(ModelOutput):
    """What beam search returns; what is not described is as in `GenerateOutput`.

    sequences_scores: (rows,), with `output_scores`: sums of log-probabilities over lengths to the
        power of `length_penalty`.
    scores: with `output_scores`, log-probabilities of each step, (prompts * num_beams, vocab),
        after all processors; without meaning for a prompt whose search is over.
    logits: with `output_logits`, those of the model, likewise.
    beam_indices: (rows, new tokens), from which beam each token comes, -1 behind the end.
    past_key_values: the cache of the beams that were running at the end.
    """

    sequences: mx.array
    sequences_scores: mx.array | None = None
    scores: Scores | None = None
    logits: Scores | None = None
    beam_indices: mx.array | None = None
    past_key_values: Sequence[Any] | None = None


class _OfDecoder:
    """What a decoder's own call gives, and generation does not."""

    attentions = hidden_states = None


class _OfEncoderDecoder:
    """The same of an encoder-decoder."""

    encoder_attentions = encoder_hidden_states = None
    decoder_attentions = cross_attentions = decoder_hidden_states = None


class GenerateDecoderOnlyOutput(_OfDecoder, GenerateOutput):
    """`GenerateOutput` of a decoder."""


class GenerateEncoderDecoderOutput(_OfEncoderDecoder, GenerateOutput):
    """`GenerateOutput` of an encoder-decoder."""


class GenerateBeamDecoderOnlyOutput(_OfDecoder, GenerateBeamOutput):
    """`GenerateBeamOutput` of a decoder."""


class GenerateBeamEncoderDecoderOutput(_OfEncoderDecoder, GenerateBeamOutput):
    """`GenerateBeamOutput` of an encoder-decoder."""
