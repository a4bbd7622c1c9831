"""From chunks to texts that go on with what was said before.

A chunk is not decoded alone: the prompt has the audio of all chunks of the window so far, and the
answer begins with their text; what the model adds is the text of the new chunk. The keys and values
of the audio before it are in the cache, so that only what follows is fed. A window ends where the
context is full.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import mlx.core as mx

from ..errors import InputError
from ..generation.processors import repetition_penalty
from ..processing.granite_speech import GraniteSpeechProcessor
from ..processing.request import Tags
from .alignment import split_words, word_probabilities
from .chunks import AudioChunk
from .ctc import Vocabulary
from .family import Decoded
from .segment_decoder import TOKENS_PER_SECOND
from .tag_decoder import TagDecoder, TaggedAnswer
from .tags import parse_turns
from .transcript import Segment
from .words import place_words, words_of

LONGEST_SECONDS = 540.0  #: of audio in a window: what the models were made for


@dataclass
class _Window:
    """What prompts have in common.

    audio: projected, (audio tokens, hidden_size) each, in order.
    text: what was said there.
    seconds: of audio.
    cache: keys and values of the first `held` positions of the prompts, and maybe of others behind;
        `held_audio` of them are audio tokens.
    """

    cache: Any
    audio: list[mx.array] = field(default_factory=list)
    text: str = ""
    seconds: float = 0.0
    held: int = 0
    held_audio: int = 0


@dataclass
class WindowDecoder(TagDecoder):
    """Makes segments of the chunks of one recording, each decoded as the continuation of those
    before it, so that `prefix_text` may end anywhere. One after the other: a batch size has no
    effect.

    Raises:
        InputError: an option contradicts this.
    """

    independent = False
    tags: ClassVar[Tags | None] = None
    longest_seconds = LONGEST_SECONDS
    tokens_per_second = TOKENS_PER_SECOND

    def __post_init__(self):
        super().__post_init__()
        self._words_by = None  # they are told here, with what is known of the beginning
        if self.options.get("max_kv_size") is not None:
            message = "{max_kv_size} would forget what an answer goes on with; leave it out"
            raise InputError.about(message)
        names = self.model.cache_options
        self._cache_options = {n: self.options.pop(n) for n in names if n in self.options}
        self._latest: AudioChunk | None = None
        # positions of the latest prompt up to the end of its audio, and audio tokens among them
        self._fed = 0, 0
        self._window = self._new_window()
        self._window.text = (self.request.prefix_text or "").strip()

    def _new_window(self) -> _Window:
        return _Window(self.model.make_cache(**self._cache_options))

    def decode(self, chunks: Iterable[AudioChunk], batch_size: int) -> Iterator[Decoded]:
        """See `SegmentDecoder`."""
        return super().decode(chunks, 1)

    def _arguments(
        self, batch: Sequence[AudioChunk], options: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int]]:
        (chunk,) = batch
        if chunk is not self._latest:
            self._admit(chunk)
        window = self._window
        audio = mx.concatenate([*window.audio, cast(mx.array, chunk.audio)])
        arguments, limits = super()._arguments([replace(chunk, audio=audio)], options)
        ids = arguments["input_ids"][0].tolist()
        processor = cast(GraniteSpeechProcessor, self.processor)
        self._fed = ids.index(processor.audio_token_id) + len(audio), len(audio)
        for layer in window.cache:
            layer.trim(layer.length - window.held)
        for name in ("audio_features", "input_features_mask"):
            arguments[name] = arguments[name][:, window.held_audio :]
        if penalty := arguments.pop("repetition_penalty", None):
            own = arguments.get("logits_processor") or []
            # what was said before is no repetition, as it is none for chunks that are alone
            of_answer = repetition_penalty(penalty, padding=[len(ids)])
            own = [of_answer, *([own] if callable(own) else own)]
            arguments["logits_processor"] = own
        return {**arguments, "past_key_values": window.cache}, limits

    def _admit(self, chunk: AudioChunk) -> None:
        """Have the window, or where that is full another one, go on with a chunk."""
        self._latest = chunk
        self.request = replace(self.request, prefix_text=self._window.text)
        if self._window.audio and not self._fits(chunk):
            self._window = self._new_window()
            self._begin_window()
            self.request = replace(self.request, prefix_text=self._window.text)

    def _begin_window(self) -> None:
        """What a further window begins with: nothing, where nothing has to be kept."""

    def _fits(self, chunk: AudioChunk) -> bool:
        prompt = self.family.chunk_inputs([chunk], self.request)["input_ids"].shape[1]
        audio = sum(map(len, self._window.audio))
        limit = self.options.get("max_new_tokens") or self._usual_limit(chunk)
        needed = prompt + audio + limit
        seconds = self._window.seconds + chunk.duration
        room = min(self.model.context_length, self.options.get("max_length") or math.inf)
        return needed <= room and seconds <= LONGEST_SECONDS

    def _keep(self, chunk: AudioChunk, text: str) -> None:
        """Have the window go on behind a chunk, in which this was said."""
        window = self._window
        if not (window.text or text):
            return  # nothing to go on with
        if window.cache[0].length >= self._fed[0]:  # beams have caches of their own
            window.held, window.held_audio = self._fed
        window.audio.append(cast(mx.array, chunk.audio))
        window.seconds += chunk.duration
        window.text = joined(window.text, text)

    def _read(self, chunk: AudioChunk, answer: TaggedAnswer) -> list[Segment]:
        segment = answer.segment()
        if self.vocabulary is not None:
            said = answer.text, answer.tokens, answer.logprobs
            self._tell_words(chunk, segment, word_probabilities(*said, self.tokenizer))
        self._keep(chunk, answer.text)
        return [segment]

    def _tell_words(
        self, chunk: AudioChunk, segment: Segment, probabilities: Sequence[float]
    ) -> None:
        """Give a segment its words, and these their times. A text that is known before the first
        chunk is placed in it, too: else the first word would reach into it."""
        turns, _ = parse_turns("" if self._window.audio else self._window.text)
        known = " ".join(turn.text for turn in turns)
        before = len(split_words(known))
        both = replace(segment, text=joined(known, segment.text))
        both.words = words_of(both, [*[1.0] * before, *probabilities])
        place_words([(chunk, both)], cast(Vocabulary, self.vocabulary))
        segment.words = both.words[before:]

    def _clean(self, answer: str) -> tuple[str, int | None]:
        return answer, None


def joined(before: str, after: str) -> str:
    """Two texts in a row."""
    return f"{before} {after}".strip()
