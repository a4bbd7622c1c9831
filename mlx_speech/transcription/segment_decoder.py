"""From chunks to their texts, several at a time."""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, cast

from ..errors import ContextLengthError, InputError, UnsupportedOptionError
from ..generation import GenerationConfig
from ..generation.api import Prefilled, prefill, resolve_config
from ..generation.checks import check_one_text
from ..generation.protocols import GenerativeModel
from ..generation.repetition import find_loop
from ..generation.speculative import Speculation
from ..generation.streaming import answer_text, stream_text
from ..processing.protocols import SpeechProcessor
from .alignment import word_probabilities
from .chunks import AudioChunk
from .ctc_decoder import CTCDecoder
from .drafted_batch import DraftedBatch, DraftedRow, Trimmed
from .family import ChunkDecoder, Decoded, Decoding, GenerativeFamily
from .transcript import Segment, TranscriptionDelta
from .words import place_words, words_of

#: tokens that a text may have, for each second of audio (fast speech has 3 to 4, other scripts
#: more), and besides
TOKENS_PER_SECOND = 12
TOKENS_OVERHEAD = 32
#: what a prompt has beside: for each second of audio, and at most in what is asked and shortly
#: answered, keywords aside
AUDIO_TOKENS_PER_SECOND = 10
PROMPT_TOKENS = 150

#: what is tried, one after the other, where a text has run into a loop
FALLBACKS = ({"num_beams": 5}, {"num_beams": 1, "repetition_penalty": 1.3})


def seconds_in_context(model: GenerativeModel, tokens_per_second: int = TOKENS_PER_SECOND) -> float:
    """How long a chunk may be whose text takes so many tokens for each second of audio."""
    room = model.context_length - PROMPT_TOKENS
    return max(1.0, room / (AUDIO_TOKENS_PER_SECOND + tokens_per_second))


def generative_decoder(
    model: GenerativeModel,
    processor: SpeechProcessor,
    family: GenerativeFamily,
    how: Decoding,
    longest_chunk: float = math.inf,
) -> ChunkDecoder:
    """The decoder of chunks of a family whose models write token by token; errors as there."""
    if how.ctc_only:
        return CTCDecoder(family, how.request, how.word_timestamps)
    return SegmentDecoder(model, processor, family, how, longest_chunk)


@dataclass
class SegmentDecoder:
    """Makes texts of chunks token by token, several at once; a `ChunkDecoder`.

    how: without `max_new_tokens` in its options the limit is one that speech does not reach.
    longest_chunk: see `ChunkDecoder`.

    Raises:
        InputError: an option is unknown, or contradicts another.
        UnsupportedOptionError: there are no drafts for an option that is about them.
    """

    model: GenerativeModel
    processor: SpeechProcessor
    family: GenerativeFamily
    how: Decoding
    longest_chunk: float = math.inf

    needs_audio = True  #: chunks bring what the decoder is given
    independent: ClassVar[bool] = True
    verbosity: ClassVar[int] = 1  #: by how much its texts are longer than what is said

    def __post_init__(self):
        how, self.request, self.options = self.how, self.how.request, dict(self.how.options)
        if "drafts" in self.options:
            raise InputError("drafts are made here, of what the encoder's CTC head writes")
        self._acceptance = self.options.pop("draft_acceptance", None)
        config, others = resolve_config(self.model, self.options, how.streaming)
        check_one_text(config)
        self.sampling = config.sampling
        # what of the cache is kept, or rounded, would depend on the batch
        plain = not (config.sampling or others.keys() & {*self.model.cache_options, "draft_model"})
        greedy = plain and config.num_beams == 1
        #: whether chunks bring drafts that are checked
        self.drafting = how.draft and greedy and self.family.can_draft(self.request)
        if self._acceptance is not None and not how.draft:
            raise InputError.about("{draft_acceptance} is for drafts; leave out {draft}=False")
        if self._acceptance is not None and not self.drafting:
            message = (
                "{draft_acceptance} is for drafts, which there are only of a known CTC head, in "
                "transcription by greedy search"
            )
            raise UnsupportedOptionError.about(message)
        self.tokenizer = self.processor.tokenizer
        #: of the CTC head, where words are to be told
        self.vocabulary = self.family.ctc_vocabulary if how.word_timestamps else None
        self._words_by = self.vocabulary  # that of words that are told of each text as a whole

    def decode(self, chunks: Iterable[AudioChunk], batch_size: int) -> Iterator[Decoded]:
        """See `ChunkDecoder`."""
        batches = self._decode_drafted if self.drafting else self._decode_batches
        for decoded in batches(iter(chunks), batch_size):
            yield self.finished(decoded)

    def _decode_batches(
        self, chunks: Iterator[AudioChunk], size: int
    ) -> Iterator[list[tuple[AudioChunk, Segment]]]:
        """All texts of a batch end before the next one begins."""
        while batch := list(islice(chunks, size)):
            arguments, limits = self._arguments(batch, self.options)
            run = prefill(self.model, **arguments)
            rows = run.rows()
            for number, (chunk, limit) in enumerate(zip(batch, limits, strict=True)):
                if len(rows[number].tokens) > limit:
                    # it went on while others of the batch had more room
                    alone, _ = self._arguments([chunk], self.options)
                    (rows[number],) = prefill(self.model, **alone).rows()
            pairs = zip(batch, rows, strict=True)
            yield [(chunk, self.segment(chunk, run, r.tokens, r.logprobs)) for chunk, r in pairs]

    def _decode_drafted(
        self, chunks: Iterator[AudioChunk], size: int
    ) -> Iterator[list[tuple[AudioChunk, Segment]]]:
        enough = 1 if self.vocabulary is None else size  # words are placed together
        batch = DraftedBatch(size)
        pending: deque[DraftedRow] = deque()
        decoded: list[tuple[AudioChunk, Segment]] = []
        while True:
            if fresh := list(islice(chunks, batch.room)):
                pending += batch.begin(self, fresh)
            elif batch.is_empty:
                break
            else:
                batch.advance()
            batch.take_ended()
            while pending and pending[0].ended:
                row = pending.popleft()
                decoded.append((row.chunk, row.segment()))
            if len(decoded) >= enough:
                yield decoded
                decoded = []
        if decoded:
            yield decoded

    def begin(self, chunks: Sequence[AudioChunk]) -> list[DraftedRow]:
        """See `DraftingDecoder`."""
        arguments, limits = self._arguments(chunks, self.options)
        run = prefill(self.model, **arguments, **self._drafts(chunks))
        answers = cast(Speculation, run.speculation).answers
        for answer, limit in zip(answers, limits, strict=True):
            answer.shorten(limit)
        pairs = zip(chunks, answers, strict=True)
        return [DraftedRow(self, chunk, run, answer) for chunk, answer in pairs]

    def finished(
        self, pairs: Sequence[tuple[AudioChunk, Segment]], *, retry: bool = True
    ) -> Decoded:
        """What becomes of texts that are whole: their words are placed.

        Args:
            retry: those that have run into a loop are decoded again.
        """
        decoded = list(pairs)
        if retry:
            decoded = [(chunk, self._with_fallback(chunk, segment)) for chunk, segment in pairs]
        if self._words_by is not None:
            place_words(decoded, self._words_by)
        return [(chunk, [segment]) for chunk, segment in decoded]

    def stream(
        self, chunk: AudioChunk, gap: str
    ) -> Generator[TranscriptionDelta, None, list[Segment]]:
        """See `ChunkDecoder`. What is out cannot be taken back: a text that runs into a loop ends
        where that is noticed."""
        arguments, _ = self._arguments([chunk], self.options)
        drafts = self._drafts([chunk]) if self.drafting else {}
        run = prefill(self.model, streaming=True, **arguments, **drafts)
        tokens: list[int] = []
        logprobs: list[float] = []
        pieces = Trimmed()
        for step in stream_text(run, self.tokenizer, lambda said: find_loop(said) is not None):
            tokens.append(step.token)
            logprobs.append(step.logprob)
            if piece := pieces.add(step.text):
                yield TranscriptionDelta(gap + piece)
                gap = ""
        segment = self.segment(chunk, run, tokens, logprobs)
        if run.speculation is not None:
            segment.drafts = run.speculation.answers[0].statistics
        if self._words_by is not None:
            place_words([(chunk, segment)], self._words_by)
        yield TranscriptionDelta("", segment)
        return [segment]

    def _arguments(
        self, batch: Sequence[AudioChunk], options: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        """What `generate` needs for a batch, and how many tokens each of its texts may have."""
        inputs = self.family.chunk_inputs(batch, self.request)
        arguments = {"tokenizer": self.tokenizer, **inputs, **options}
        if options.get("max_new_tokens") is None:
            arguments.pop("max_length", None)  # it bounds prompts that are padded alike
        prompt = inputs.get("attention_mask") if "input_ids" in inputs else None
        lengths = [1] * len(batch) if prompt is None else prompt.sum(axis=1).tolist()
        limits = [self._limit(chunk, n) for chunk, n in zip(batch, lengths, strict=True)]
        return {**arguments, "max_new_tokens": max(limits)}, limits

    def _drafts(self, batch: Sequence[AudioChunk]) -> dict[str, Any]:
        """What `generate` needs to check the drafts of a batch."""
        drafts = [chunk.draft.tokens if chunk.draft else [] for chunk in batch]
        return {"drafts": drafts, "draft_acceptance": self._acceptance}

    def _limit(self, chunk: AudioChunk, prompt_length: int) -> int:
        limit = self.options.get("max_new_tokens")
        context = self.model.context_length
        room = context - prompt_length
        whole = self.options.get("max_length")
        if limit is None and whole is not None:
            limit = GenerationConfig(max_length=whole).limited(prompt_length).max_new_tokens
        if limit is None:
            limit = self._usual_limit(chunk)
            limit = min(limit, room) if room >= TOKENS_OVERHEAD else limit
        if room < limit:
            message = (
                "a segment of {seconds:.1f} s and a text of {limit} tokens are more than the "
                "model's context of {context} tokens holds; lower {chunk_duration}"
            )
            if self.how.request.keywords:
                message += ", or give fewer {keywords}"
            if self.how.request.prefix_text:
                message += ", or give a shorter {prefix_text}"
            raise ContextLengthError.about(
                message, seconds=chunk.duration, limit=limit, context=context
            )
        return limit

    def _usual_limit(self, chunk: AudioChunk) -> int:
        """A number of tokens that the text of a chunk does not reach."""
        own = getattr(self.model.generation_config, "max_length", None) or 0
        return max(
            own, TOKENS_OVERHEAD + math.ceil(self.verbosity * TOKENS_PER_SECOND * chunk.duration)
        )

    def _with_fallback(self, chunk: AudioChunk, segment: Segment) -> Segment:
        """The segment, or where its text has run into a loop, one of another attempt.

        Where all attempts do, the text ends after the loop's first round.
        """
        if find_loop(segment.tokens) is None:
            return segment
        for changes in FALLBACKS:
            options = {**self.options, "temperature": None, "do_sample": False, **changes}
            run = prefill(self.model, **self._arguments([chunk], options)[0])
            (row,) = run.rows()
            end = find_loop(row.tokens)
            if end is None:
                break
        other = self.segment(chunk, run, row.tokens[:end], row.logprobs[:end])
        other.retried, other.drafts = True, segment.drafts
        return other

    def segment(
        self, chunk: AudioChunk, run: Prefilled, tokens: list[int], logprobs: list[float]
    ) -> Segment:
        """What an answer says, the token that ended it included."""
        ended = tokens[-1] in run.config.eos_token_ids
        kept = tokens[:-1] if ended else tokens
        text = answer_text(run, tokens, self.tokenizer).rstrip()
        forced = 1 if run.config.forced_bos_token_id is not None else 0
        free = logprobs[forced:] or logprobs  # the model had no choice there
        segment = Segment(chunk.start, chunk.end, text, kept, avg_logprob=sum(free) / len(free))
        segment.truncated = not run.stopping(tokens)
        segment.logprobs = logprobs[: len(kept)]
        if self._words_by is not None:
            probabilities = word_probabilities(text, kept, segment.logprobs, self.tokenizer)
            segment.words = words_of(segment, probabilities)
        return segment
