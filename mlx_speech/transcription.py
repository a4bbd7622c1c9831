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
from .generation import TextStream
from .generation.api import Run, start
from .generation.stopping import TextBefore
from .loading import load
from .processing.prompts import check_request
from .segmentation import cut_at_quiet

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

    tokens: ids of the text, without the one that ended it; with those of a stop string.
    avg_logprob: mean log-probability of the tokens, the ending one included.
    truncated: the text was cut off by the limit on tokens.
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
class Request:
    """A recording and what to do with it; `prepare` makes it.

    spans: the parts of the recording that the model hears one by one, in samples.
    instruction: what `speech_inputs` of the processor takes.
    """

    model: Any
    processor: Any
    samples: mx.array
    sampling_rate: int
    spans: list[tuple[int, int]]
    instruction: dict[str, Any]
    max_new_tokens: int | None
    options: dict[str, Any]
    language: str | None

    def arguments(self, span: tuple[int, int]) -> dict[str, Any]:
        """What `generate` needs for one span.

        Raises:
            ContextLengthError: it is too long for the model.
        """
        start, end = span
        inputs = self.processor.speech_inputs(self.samples[start:end], **self.instruction)
        arguments = {"tokenizer": self.processor.tokenizer, **inputs, **self.options}
        limit = self.max_new_tokens
        if self.options.get("max_length") is not None:
            return arguments if limit is None else {**arguments, "max_new_tokens": limit}
        duration = (end - start) / self.sampling_rate
        prompt = inputs.get("input_ids")
        room = self.model.context_length - (1 if prompt is None else prompt.shape[1])
        if limit is None:
            own = getattr(self.model.generation_config, "max_length", None) or 0
            limit = max(own, TOKENS_BESIDES + math.ceil(TOKENS_PER_SECOND * duration))
            limit = min(limit, room) if room >= TOKENS_BESIDES else limit
        if room < limit:
            raise ContextLengthError(
                f"a recording of {duration:.1f} s and a text of {limit} tokens are more than the "
                f"model's context of {self.model.context_length} tokens holds; cut the recording"
            )
        return {**arguments, "max_new_tokens": limit}

    def answer(self, span: tuple[int, int]) -> Segment:
        """What the model makes of one span."""
        run = start(self.model, None, self.arguments(span))
        (row,) = run.rows()
        return self.segment(span, run, row.tokens, row.logprobs)

    def segment(self, span, run: Run, tokens: list[int], logprobs: list[float]) -> Segment:
        """What the model's answer says, the token that ended it included."""
        kept = tokens[:-1] if tokens[-1] in run.config.eos_token_ids else tokens
        before = TextBefore(run.config.stop_texts)
        if run.config.forced_bos_token_id is not None:
            logprobs = logprobs[1:] or logprobs  # the model had no choice there
        return Segment(
            start=span[0] / self.sampling_rate,
            end=span[1] / self.sampling_rate,
            text=before.finish(self.processor.decode(kept).lstrip()).rstrip(),
            tokens=kept,
            avg_logprob=sum(logprobs) / len(logprobs),
            truncated=not run.ending(tokens),
        )

    def transcript(self, segments: list[Segment]) -> Transcript:
        """All segments together."""
        text = " ".join(segment.text for segment in segments if segment.text)
        duration = self.samples.size / self.sampling_rate
        return Transcript(text, self.language, duration, segments)


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
        options: further ones of `GenerationConfig`, e.g. `num_beams`, `temperature` or
            `stop_strings`, before which the text of a segment ends.

    Raises:
        AudioError: the recording cannot be read.
        CheckpointError: the model cannot be loaded.
        ContextLengthError: the recording is too long for the model.
        InputError: the arguments contradict each other.
        UnsupportedOptionError: the model was not trained for what is asked.
    """
    request = prepare(
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
    segments = []
    for span in request.spans:
        segments.append(request.answer(span))
        mx.clear_cache()
    return request.transcript(segments)


def stream_transcribe(
    audio, model: str | os.PathLike | tuple = DEFAULT_MODEL, **options: Any
) -> Generator[str, None, Transcript]:
    """As `transcribe`, but yields the text piece by piece, as soon as each is certain.

    The pieces together are exactly the transcript's text. Beam search cannot stream. The transcript
    is what the generator returns: `transcript = yield from stream_transcribe(...)` in a generator
    of your own, or the `value` of the `StopIteration` that ends it.
    """
    request = prepare(audio, model, **options)
    segments = []
    for span in request.spans:
        run = start(request.model, None, request.arguments(span), streaming=True)
        text, tokens, logprobs = TextStream(request.processor.tokenizer), [], []
        before, held = TextBefore(run.config.stop_texts), ""
        gap = " " if any(segment.text for segment in segments) else ""
        for step in run.steps():
            tokens += step.tokens
            logprobs += step.logprobs
            if step.tokens[0] in run.config.eos_token_ids:
                break
            # white space waits: the text may end before a stop string that comes after it
            held += before.add(text.add(step.tokens[0]))
            if piece := held.rstrip():
                held = held[len(piece) :]
                yield gap + piece
                gap = ""
        held += before.finish(text.finish() + text.white_space)
        if rest := held.rstrip():
            yield gap + rest
        segments.append(request.segment(span, run, tokens, logprobs))
        mx.clear_cache()
    return request.transcript(segments)


def prepare(
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
) -> Request:
    """Load what is to be transcribed, and settle how; arguments and errors as in `transcribe`."""
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
    if not hasattr(processor, "speech_inputs"):
        raise UnsupportedOptionError(
            f"a {model.config.model_type} model has no ears; transcription needs a speech model"
        )
    instruction = {
        "task": task,
        "language": language,
        "target_language": target_language,
        "punctuate": punctuate,
        "prompt": prompt,
    }
    text_language = processor.text_language(**instruction)
    rate, longest = processor.sampling_rate, processor.max_seconds
    samples = load_audio(audio, sampling_rate, rate)
    return Request(
        model=model,
        processor=processor,
        samples=samples,
        sampling_rate=rate,
        spans=cut_at_quiet(samples, rate, longest) if longest else [(0, samples.size)],
        instruction=instruction,
        max_new_tokens=max_new_tokens,
        options=options,
        language=text_language,
    )
