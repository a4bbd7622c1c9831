"""From segments that were heard to their texts, several at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from .alignment import align_words, split_words, word_probabilities
from .ctc import CTCVocabulary
from .errors import ContextLengthError
from .generation import GenerationConfig, TextStream
from .generation.api import Run, start
from .generation.repetition import find_loop
from .generation.stopping import TextBefore
from .hearing import Heard
from .transcript import Segment, Word

#: tokens that a text may have: so many for each second of audio (fast speech has 3 to 4, other
#: scripts more), and so many besides
TOKENS_PER_SECOND = 12
TOKENS_BESIDES = 32

#: what is tried, one after the other, where a text has run into a loop
SECOND_ATTEMPTS = ({"num_beams": 5}, {"num_beams": 1, "repetition_penalty": 1.3})


@dataclass
class SegmentDecoder:
    """Makes texts of segments.

    instruction: what `segment_inputs` of the processor takes.
    max_new_tokens: limit on each text; by default one that speech does not reach.
    options: further ones of `generate`.
    vocabulary: of the CTC head, where words and their times are asked for.
    """

    model: Any
    processor: Any
    instruction: dict[str, Any]
    max_new_tokens: int | None
    options: dict[str, Any]
    vocabulary: CTCVocabulary | None = None

    def decode(self, batch: Sequence[Heard]) -> list[Segment]:
        """The texts of a batch: each is what the segment gives alone.

        Raises:
            ContextLengthError: a segment is too long for the model.
        """
        segments = self._decode(batch)
        self._place_words(batch, segments)
        return segments

    def _decode(self, batch: Sequence[Heard]) -> list[Segment]:
        arguments, limits = self._arguments(batch, self.options)
        run = start(self.model, None, arguments)
        segments = []
        for heard, limit, row in zip(batch, limits, run.rows(), strict=True):
            if len(row.tokens) > limit:
                # it went on while others of the batch had more room
                segments += self._decode([heard])
                continue
            segment = self._segment(heard, run, row.tokens, row.logprobs)
            segments.append(self._unlooped(heard, segment))
        return segments

    def stream(self, heard: Heard) -> Generator[str, None, Segment]:
        """The text of one segment, piece by piece as each is certain; returns the whole segment.

        What is out cannot be taken back: a text that runs into a loop ends where that is noticed.
        """
        arguments, _ = self._arguments([heard], self.options)
        run = start(self.model, None, arguments, streaming=True)
        text, tokens, logprobs = TextStream(self.processor.tokenizer), [], []
        before, held = TextBefore(run.config.stop_texts), ""
        for step in run.steps():
            tokens += step.tokens
            logprobs += step.logprobs
            if step.tokens[0] in run.config.eos_token_ids:
                break
            # white space waits: the text may end before a stop string that comes after it
            held += before.add(text.add(step.tokens[0]))
            if piece := held.rstrip():
                held = held[len(piece) :]
                yield piece
            if find_loop(tokens) is not None:
                break
        held += before.finish(text.finish() + text.white_space)
        if rest := held.rstrip():
            yield rest
        segment = self._segment(heard, run, tokens, logprobs)
        self._place_words([heard], [segment])
        return segment

    def _arguments(
        self, batch: Sequence[Heard], options: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        """What `generate` needs for a batch, and how many tokens each of its texts may have."""
        inputs = self.processor.segment_inputs(batch, **self.instruction)
        arguments = {"tokenizer": self.processor.tokenizer, **inputs, **options}
        if self.max_new_tokens is None:
            arguments.pop("max_length", None)  # it bounds prompts that are padded alike
        prompt = inputs.get("attention_mask") if "input_ids" in inputs else None
        lengths = [1] * len(batch) if prompt is None else prompt.sum(axis=1).tolist()
        limits = [self._limit(h, length) for h, length in zip(batch, lengths, strict=True)]
        return {**arguments, "max_new_tokens": max(limits)}, limits

    def _limit(self, heard: Heard, prompt_length: int) -> int:
        limit, room = self.max_new_tokens, self.model.context_length - prompt_length
        whole = self.options.get("max_length")
        if limit is None and whole is not None:
            limit = GenerationConfig(max_length=whole).limited(prompt_length).max_new_tokens
        if limit is None:
            own = getattr(self.model.generation_config, "max_length", None) or 0
            limit = max(own, TOKENS_BESIDES + math.ceil(TOKENS_PER_SECOND * heard.duration))
            limit = min(limit, room) if room >= TOKENS_BESIDES else limit
        if room < limit:
            raise ContextLengthError(
                f"a segment of {heard.duration:.1f} s and a text of {limit} tokens are more than "
                f"the model's context of {self.model.context_length} tokens holds; lower "
                "chunk_duration"
            )
        return limit

    def _unlooped(self, heard: Heard, segment: Segment) -> Segment:
        """The segment, or where its text has run into a loop, one of another attempt.

        Where all attempts do, the text ends after the loop's first round.
        """
        if find_loop(segment.tokens) is None:
            return segment
        for changes in SECOND_ATTEMPTS:
            options = {**self.options, "temperature": None, "do_sample": False, **changes}
            run = start(self.model, None, self._arguments([heard], options)[0])
            (row,) = run.rows()
            end = find_loop(row.tokens)
            if end is None:
                break
        segment = self._segment(heard, run, row.tokens[:end], row.logprobs[:end])
        return dataclasses.replace(segment, retried=True)

    def _segment(self, heard, run: Run, tokens: list[int], logprobs: list[float]) -> Segment:
        """What an answer says, the token that ended it included."""
        ended = tokens[-1] in run.config.eos_token_ids
        kept = tokens[:-1] if ended else tokens
        truncated = not run.ending(tokens)
        before = TextBefore(run.config.stop_texts)
        text = before.finish(self.processor.decode(kept).lstrip()).rstrip()
        forced = 1 if run.config.forced_bos_token_id is not None else 0
        free = logprobs[forced:] or logprobs  # the model had no choice there
        segment = Segment(
            start=heard.start,
            end=heard.end,
            text=text,
            tokens=kept,
            avg_logprob=sum(free) / len(free),
            truncated=truncated,
        )
        if self.vocabulary is not None:
            probabilities = word_probabilities(
                text, kept, logprobs[: len(kept)], self.processor.tokenizer
            )
            segment.words = [
                Word(text[first:last], heard.start, heard.end, probability)
                for (first, last), probability in zip(split_words(text), probabilities, strict=True)
            ]
        return segment

    def _place_words(self, batch: Sequence[Heard], segments: Sequence[Segment]) -> None:
        """Give the words their times, all segments at once."""
        if self.vocabulary is None:
            return
        placed = align_words(
            [segment.text for segment in segments],
            [heard.ctc_logits for heard in batch],
            [heard.levels for heard in batch],
            self.vocabulary,
            [heard.start for heard in batch],
        )
        for segment, times in zip(segments, placed, strict=True):
            for word, time in zip(segment.words, times, strict=True):
                word.start, word.end = time.start, time.end
