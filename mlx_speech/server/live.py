"""Audio that is still coming in, transcribed by the engine's thread."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np

from ..generation.protocols import Detokenizes
from ..processing.request import TranscriptionRequest
from ..transcription.live import LiveEvent, LiveTranscriber
from .capabilities import fitted_request
from .engine import Engine, Lease
from .raw_audio import RawFormat

T = TypeVar("T")

MAX_AUDIO_BYTES = 15 * 2**20  #: of one message


class LiveStream:
    """A `LiveTranscriber`, made by `live_stream`. Await each call before the next, so that who
    sends faster than can be transcribed has to wait.

    Attributes:
        language: code of the one that is spoken, where that is known.
        tokenizer: of the model.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        live: LiveTranscriber,
        audio_format: RawFormat,
        language: str | None,
        tokenizer: Detokenizes,
    ):
        self._engine, self._lease = engine, lease
        self._live, self._format = live, audio_format
        self.language, self.tokenizer = language, tokenizer

    def parts(self, data: bytes) -> Iterator[np.ndarray]:
        """The samples of bytes, (n,) each, at most a second: the engine's other requests get their
        turn between two of them.

        Raises:
            InputError: the last sample is not whole.
        """
        samples, size = self._format.decode(data), self._format.sampling_rate
        return (samples[start : start + size] for start in range(0, samples.size, size))

    def seconds(self, part: np.ndarray) -> float:
        """How long a part is."""
        return part.size / self._format.sampling_rate

    async def push(self, part: np.ndarray) -> list[LiveEvent]:
        """Take in a part; returns what became known with it. Errors as of `LiveTranscriber`."""
        events = await self._call(lambda: self._live.push(part))
        self._engine.live_seconds += self.seconds(part)
        return events

    async def commit(self) -> list[LiveEvent]:
        """End the open segment now; returns its last events."""
        return await self._call(self._live.commit)

    async def clear(self) -> None:
        """Forget the audio of the open segment."""
        await self._call(self._live.clear)

    async def finish(self) -> list[LiveEvent]:
        """The audio ends here; returns the last events."""
        return await self._call(self._live.finish)

    async def _call(self, function: Callable[[], T]) -> T:
        return await self._lease.call(lambda model, processor: function())


@asynccontextmanager
async def live_stream(
    engine: Engine,
    name: str,
    audio_format: RawFormat,
    request: TranscriptionRequest,
    languages: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[LiveStream]:
    """A transcriber of live audio, with a model that stays loaded meanwhile.

    Args:
        name: one that `ModelStore.resolve` gave.
        request, languages: see `fitted_request`; punctuation is asked for where the model can.
        options: of `LiveTranscriber`.

    Raises:
        MlxSpeechError: the model cannot be loaded, or cannot do it.
    """

    async with engine.lease(name) as lease:

        def begin(model: Any, processor: Any) -> LiveStream:
            fitted, language = fitted_request(
                model,
                processor,
                request,
                languages=languages,
                punctuate=None,
                speakers=False,
                words=False,
            )
            told = {name: getattr(fitted, name) for name in ("language", "punctuate", "keywords")}
            rate = audio_format.sampling_rate
            live = LiveTranscriber((model, processor), sampling_rate=rate, **told, **options)
            return LiveStream(engine, lease, live, audio_format, language, processor.tokenizer)

        yield await lease.call(begin)
