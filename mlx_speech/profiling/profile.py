"""All that is measured of one model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..audio import SAMPLING_RATE
from ..errors import InputError
from ..transcription.pipeline import prepare, transcribe
from ..transcription.segment_decoder import SegmentDecoder
from .attention import AttentionUse, attention_uses
from .counts import decoder_bits, decoding_bytes, encoder_flops, weight_bytes
from .limits import matmul_flops
from .sample import joined_sample
from .speed import (
    DecodingSpeed,
    PipelineSpeed,
    decode,
    decoding_speed,
    encoding_seconds,
    pipeline_speed,
)

BATCHES = (1, 4, 8, 16)
RUNS = 3  #: of which the median is taken


@dataclass(frozen=True)
class Encoding:
    """Of one segment, by the encoder alone.

    audio_seconds: of the segment.
    seconds: what it takes.
    flops: floating-point operations in it, see `encoder_flops`.
    limit_flops: of them in a second, in a large product of matrices of the model's type.
    """

    audio_seconds: float
    seconds: float
    flops: int
    limit_flops: float

    @property
    def ms_per_audio_second(self) -> float:
        return 1000 * self.seconds / self.audio_seconds

    @property
    def share_of_limit(self) -> float:
        """How much of the arithmetic that the machine is able to do is done."""
        return self.flops / self.seconds / self.limit_flops


@dataclass(frozen=True)
class ModelProfile:
    """What is known of a model on this machine.

    bits: of the decoder's weights, or where there is none of all.
    dtype: what it computes in.
    weight_bytes: of all its tensors.
    decoding_bytes: of those that a step of decoding reads, see there.
    decoding: in batches of growing size; the first is of one. Empty where the model does not write
        token by token.
    bandwidth: bytes a second that the machine copies.
    """

    bits: int
    dtype: str
    weight_bytes: int
    decoding_bytes: int
    encoding: Encoding
    decoding: list[DecodingSpeed]
    pipeline: PipelineSpeed
    attention: list[AttentionUse]
    bandwidth: float

    @property
    def share_of_bandwidth(self) -> float:
        """How much of what the machine copies in a second is read of weights, decoding one row."""
        (alone, *_) = self.decoding
        return self.decoding_bytes * alone.decode_tokens_per_second / self.bandwidth


def profile_model(
    loaded: tuple[Any, Any],
    recordings: Sequence[str],
    bandwidth: float,
    runs: int = RUNS,
    progress: Callable[[str], None] = lambda doing: None,
) -> ModelProfile:
    """Measure a speech model; all numbers are medians, after a run that warms up.

    The encoder and the decoder are measured with one segment of the recordings, whole
    transcriptions with all of them.

    Args:
        loaded: what `load` returned.
        recordings: paths of files.
        bandwidth: what `copy_bandwidth` gave.
        runs: how often each measurement is made.
        progress: told what is done next.

    Raises:
        AudioError: a recording cannot be read.
        InputError: there is no speech in the beginning of the recordings.
        UnsupportedOptionError: it is not a speech model.
    """
    model, processor = loaded
    progress("warming up")
    samples = joined_sample(recordings)
    job = prepare(samples, loaded, {"sampling_rate": SAMPLING_RATE})
    with job.recording:
        chunks = list(job.chunks)
    decoder = job.decoder
    if not chunks:
        first = f"the first {len(samples) / SAMPLING_RATE:.0f} seconds of the recordings"
        raise InputError(f"there is no speech in {first}, which decoding is measured with")
    chunk = max(chunks, key=lambda chunk: chunk.duration)
    begin, end = (round(s * SAMPLING_RATE) for s in (chunk.begin, chunk.begin + chunk.duration))
    features = processor.speech_inputs(samples[begin:end])["input_features"]
    attention = attention_uses(model, features, lambda: decode(decoder, chunk))
    transcribe(samples, loaded, sampling_rate=SAMPLING_RATE)
    progress("transcribing")
    pipeline = pipeline_speed(recordings, loaded, runs)
    progress("encoding")
    encoding = Encoding(
        chunk.duration,
        encoding_seconds(model, features, runs),
        encoder_flops(model, features),
        matmul_flops(model.dtype, runs),
    )
    decoding = []
    for batch in BATCHES if isinstance(decoder, SegmentDecoder) else ():
        progress(f"decoding in batches of {batch}")
        decoding.append(decoding_speed(cast(SegmentDecoder, decoder), chunk, batch, runs))
    return ModelProfile(
        decoder_bits(model),
        str(model.dtype).removeprefix("mlx.core."),
        weight_bytes(model),
        decoding_bytes(model) if decoding else 0,
        encoding,
        decoding,
        pipeline,
        attention,
        bandwidth,
    )
