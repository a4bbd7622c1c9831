"""From a recording to a transcript."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .audio import load_audio
from .errors import ContextLengthError, InputError, UnsupportedOptionError
from .generation import TextStream, stream_tokens
from .generation.api import generate_rows, resolve_config
from .loading import load
from .processing.prompts import check_request, language_code

DEFAULT_MODEL = "ibm-granite/granite-speech-4.1-2b"

#: tokens that an answer may have: so many for each second of audio (fast speech has 3 to 4, other
#: scripts more), and so many besides
TOKENS_PER_SECOND = 12
TOKENS_BESIDES = 32


@dataclass
class Word:
    """One word and when it was said, in seconds."""

    text: str
    start: float
    end: float
    probability: float


@dataclass
class Segment:
    """A stretch of the recording and what was said in it; times in seconds.

    tokens: ids of the text, without the one that ended it.
    avg_logprob: mean log-probability of the tokens, the ending one included.
    truncated: the text was cut off by the limit on new tokens.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    words: list[Word] = field(default_factory=list)
    truncated: bool = False


@dataclass
class Transcript:
    """What was said in a recording of `duration` seconds.

    language: code of the text's, if it was asked for; the models do not say which they heard.
    """

    text: str
    language: str | None
    duration: float
    segments: list[Segment]


@dataclass
class _Request:
    """A recording and an instruction, ready for the model."""

    model: Any
    processor: Any
    inputs: dict[str, Any]
    options: dict[str, Any]
    duration: float
    language: str | None


def transcribe(
    audio,
    model: str | os.PathLike | tuple = DEFAULT_MODEL,
    *,
    sampling_rate: int | None = None,
    language: str | None = None,
    task: str = "transcribe",
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Transcript:
    """Transcribe or translate one recording.

    Args:
        audio: path of a file, `"-"` for standard input, or samples (see `load_audio`).
        model: a folder or repository id, or what `load` returned, to load it only once.
        sampling_rate: of the samples, in Hz, where `audio` is an array.
        language: the language spoken, code or English name; unset, the model hears it.
        task: `"transcribe"` or `"translate"`.
        target_language: what to translate to, code or English name.
        punctuate: ask for punctuation and capitals.
        prompt: an instruction of your own instead of those that the options above choose.
        max_new_tokens: limit on the text's length; by default one that speech does not reach.
        options: further ones of `GenerationConfig`, e.g. `num_beams` or `temperature`.

    Raises:
        AudioError: the recording cannot be read.
        CheckpointError: the model cannot be loaded.
        ContextLengthError: the recording is too long for the model.
        InputError: the arguments contradict each other.
        UnsupportedOptionError: the model was not trained for what is asked.
    """
    request = _prepare(
        audio,
        model,
        sampling_rate=sampling_rate,
        language=language,
        task=task,
        target_language=target_language,
        punctuate=punctuate,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        **options,
    )
    _, (row,) = generate_rows(request.model, **request.inputs, **request.options)
    return _transcript(request, row.tokens, row.logprobs)


def stream_transcribe(
    audio, model: str | os.PathLike | tuple = DEFAULT_MODEL, **options: Any
) -> Generator[str, None, Transcript]:
    """As `transcribe`, but yields the text piece by piece, as soon as each is certain.

    The pieces together are exactly the transcript's text. Beam search cannot stream. The transcript
    is what the generator returns: `transcript = yield from stream_transcribe(...)` in a generator
    of your own, or the `value` of the `StopIteration` that ends it.
    """
    request = _prepare(audio, model, **options)
    text = TextStream(request.processor.tokenizer)
    tokens, logprobs = [], []
    for step in stream_tokens(request.model, **request.inputs, **request.options):
        tokens += step.tokens
        logprobs += step.logprobs
        if piece := text.add(step.tokens[0]):
            yield piece
    if rest := text.finish():
        yield rest
    return _transcript(request, tokens, logprobs)


def _transcript(request: _Request, tokens: list[int], logprobs: list[float]) -> Transcript:
    """What the model's answer says, the token that ended it included."""
    config = resolve_config(request.model, dict(request.options))
    ended = tokens[-1] in config.eos_token_ids
    kept = tokens[:-1] if ended else tokens
    text = request.processor.decode(kept).strip()
    segment = Segment(
        start=0.0,
        end=request.duration,
        text=text,
        tokens=kept,
        avg_logprob=sum(logprobs) / len(logprobs),
        truncated=not ended,
    )
    mx.clear_cache()
    return Transcript(text, request.language, request.duration, [segment])


def _prepare(
    audio,
    model,
    *,
    sampling_rate: int | None = None,
    language: str | None = None,
    task: str = "transcribe",
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    **options: Any,
) -> _Request:
    check_request(
        task,
        language=language,
        target_language=target_language,
        punctuate=punctuate,
        prompt=prompt,
    )
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if not isinstance(model, tuple) or len(model) != 2:
        raise InputError(
            f"model is a {type(model).__name__}, but must be a folder, a repository id, or the "
            "(model, processor) that load returns"
        )
    model, processor = model
    if not hasattr(processor, "speech_prompt"):
        raise UnsupportedOptionError(
            f"a {model.config.model_type} model has no ears; transcription needs a speech model"
        )
    if prompt is None:
        prompt = processor.prompts.instruction(
            task, language=language, target_language=target_language, punctuate=punctuate
        )
    rate = processor.audio_processor.sampling_rate
    samples = load_audio(audio, sampling_rate, rate)
    duration = samples.size / rate
    inputs = processor(processor.speech_prompt(prompt), samples)
    room = model.context_length - inputs["input_ids"].shape[1]
    if max_new_tokens is None:
        max_new_tokens = TOKENS_BESIDES + math.ceil(TOKENS_PER_SECOND * duration)
        if room >= TOKENS_BESIDES:
            max_new_tokens = min(max_new_tokens, room)
    if room < max_new_tokens:
        raise ContextLengthError(
            f"a recording of {duration:.1f} s and a text of {max_new_tokens} tokens are more than "
            f"the model's context of {model.context_length} tokens holds; cut the recording"
        )
    wanted = target_language if task == "translate" else language
    return _Request(
        model=model,
        processor=processor,
        inputs=inputs,
        options={**options, "max_new_tokens": max_new_tokens},
        duration=duration,
        language=wanted and language_code(wanted),
    )
