"""How fast a model encodes, decodes and transcribes."""

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..generation import prefill
from ..generation.speculative import DraftStatistics
from ..transcription.chunks import AudioChunk
from ..transcription.family import ChunkDecoder
from ..transcription.pipeline import transcribe
from ..transcription.segment_decoder import SegmentDecoder
from .limits import median_seconds

#: tokens that are decoded of each row, whatever the model says
NEW_TOKENS = 32


@dataclass(frozen=True)
class DecodingSpeed:
    """Of a batch of prompts that are alike.

    prompt_tokens: of each.
    prefill_tokens_per_second: of all prompts together; None for an encoder-decoder, whose prompt is
        a token or two.
    decode_tokens_per_second: of all rows together, after their first token.
    """

    batch: int
    prompt_tokens: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float


@dataclass(frozen=True)
class PipelineSpeed:
    """Of whole transcriptions.

    audio_seconds: of all recordings together.
    seconds: what they take.
    peak_memory_bytes: the most that MLX held meanwhile, the weights included.
    drafts: what those of all recordings were good for; None where there are none.
    """

    audio_seconds: float
    seconds: float
    peak_memory_bytes: int
    drafts: DraftStatistics | None

    @property
    def times_real_time(self) -> float:
        """Seconds of audio in one second."""
        return self.audio_seconds / self.seconds

    @property
    def passes_per_token(self) -> float | None:
        """Of the decoder; None where there are no drafts, and each token takes one."""
        if self.drafts is None:
            return None
        return self.drafts.passes / max(self.drafts.tokens, 1)


def encoding_seconds(model: Any, features: mx.array, runs: int) -> float:
    """What it takes to encode a recording's features."""
    return median_seconds(lambda: next(model.audio_stages(features))[1], runs)


def decode(decoder: ChunkDecoder, chunk: AudioChunk) -> None:
    """Decode a chunk in the ways that are measured: as `transcribe` does, and token by token where
    that is how the model writes."""
    for _ in decoder.decode([chunk], batch_size=1):
        pass
    if isinstance(decoder, SegmentDecoder):
        for _ in prefill(decoder.model, **_arguments(decoder, chunk, batch=1)).steps():
            pass


def decoding_speed(
    decoder: SegmentDecoder, chunk: AudioChunk, batch: int, runs: int
) -> DecodingSpeed:
    """That of decoding a chunk so many times at once, greedily and token by token."""
    model, arguments = decoder.model, _arguments(decoder, chunk, batch)
    prefills, decodes = [], []
    gc.collect()
    mx.clear_cache()
    for _ in range(runs + 1):
        start_s = time.perf_counter()
        run = prefill(model, **arguments)
        mx.eval(run.logits)
        prefills.append(time.perf_counter() - start_s)
        times = [time.perf_counter() for _ in run.steps()]
        decodes.append(times[-1] - times[0])
    # the first warms up
    prefill_s, decode_s = (statistics.median(each[1:]) for each in (prefills, decodes))
    return DecodingSpeed(
        batch,
        run.fed,
        None if "encoder_outputs" in arguments else batch * run.fed / prefill_s,
        batch * (NEW_TOKENS - 1) / decode_s,
    )


def _arguments(decoder: SegmentDecoder, chunk: AudioChunk, batch: int) -> dict[str, Any]:
    """What `prefill` needs to decode a chunk so many times at once, token by token; an
    encoder-decoder has it encoded already."""
    model: Any = decoder.model
    inputs = decoder.family.chunk_inputs([chunk] * batch, decoder.request)
    if getattr(model.config, "is_encoder_decoder", False):
        del inputs["attention_mask"]  # there is no padding between them
        inputs["encoder_outputs"] = next(model.audio_stages(inputs.pop("input_features")))[1:]
        mx.eval(inputs["encoder_outputs"])
    return {**inputs, "max_new_tokens": NEW_TOKENS, "eos_token_id": [], "num_beams": 1}


def pipeline_speed(recordings: Sequence[str], loaded: tuple[Any, Any], runs: int) -> PipelineSpeed:
    """That of `transcribe` with its defaults; `loaded` is what `load` returned, warmed up."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    times = []
    for _ in range(runs):
        start_s = time.perf_counter()
        transcripts = [transcribe(recording, loaded) for recording in recordings]
        times.append(time.perf_counter() - start_s)
    audio_s = sum(transcript.duration for transcript in transcripts)
    known = [transcript.drafts for transcript in transcripts if transcript.drafts is not None]
    drafts = sum(known, DraftStatistics()) if known else None
    return PipelineSpeed(audio_s, statistics.median(times), mx.get_peak_memory(), drafts)
