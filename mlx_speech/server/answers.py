"""Transcripts as the API has them: https://platform.openai.com/docs/api-reference/audio."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

from ..generation.protocols import Detokenizes
from ..output.subtitles import to_srt, to_vtt
from ..output.writers import to_txt
from ..processing.prompts import LANGUAGES
from ..transcription.transcript import Segment, Transcript

#: response format -> what makes it, and its type
TEXT_FORMATS: dict[str, tuple[Callable[[Transcript], str], str]] = {
    "text": (to_txt, "text/plain"),
    "srt": (to_srt, "text/plain"),
    "vtt": (to_vtt, "text/vtt"),
}

_LOWEST_LOGPROB = -1e4  # JSON has no infinities


def plain(transcript: Transcript, *, usage: bool = True) -> dict[str, Any]:
    """`json`."""
    return {"text": transcript.text, **(_usage(transcript) if usage else {})}


def logprobs(segments: Iterable[Segment], tokenizer: Detokenizes) -> list[dict[str, Any]]:
    """Of all tokens."""
    return [
        token_logprob(token, logprob, tokenizer)
        for segment in segments
        for token, logprob in zip(segment.tokens, segment.logprobs, strict=True)
    ]


def token_logprob(token: int, logprob: float, tokenizer: Detokenizes) -> dict[str, Any]:
    """A token as the API has it; of one that is a part of a character, the `bytes` are unknown."""
    text = tokenizer.decode([token], skip_special_tokens=True)
    data = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "bytes": data, "logprob": max(logprob, _LOWEST_LOGPROB)}


def verbose(
    transcript: Transcript,
    *,
    task: str,
    language: str | None,
    temperature: float,
    segments: bool,
    words: bool,
) -> dict[str, Any]:
    """`verbose_json`.

    Args:
        language: code of the text's; where nobody has told it, it is empty: models do not say
            which they detected.
    """
    body: dict[str, Any] = {
        "task": task,
        "language": LANGUAGES.get(language, language).lower() if language else "",
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
    }
    if segments:
        body["segments"] = [
            _verbose_segment(segment, number, temperature, words)
            for number, segment in enumerate(transcript.segments)
        ]
    if words:
        body["words"] = [word for segment in transcript.segments for word in _words(segment)]
    return body | _usage(transcript)


def _verbose_segment(
    segment: Segment, number: int, temperature: float, words: bool
) -> dict[str, Any]:
    """A segment of `verbose_json`, with its words where these are asked for.

    `seek`: where it begins, in hundredths of a second. `compression_ratio`: bytes of the text,
    through those that zlib makes of it, as in Whisper. `no_speech_prob` is 0: what Silero VAD
    finds no speech in has no segment.
    """
    text = segment.text.encode()
    return {
        "id": number,
        "seek": round(100 * segment.start),
        **_times(segment.start, segment.end),
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": temperature,
        "avg_logprob": max(segment.avg_logprob, _LOWEST_LOGPROB),
        "compression_ratio": len(text) / len(zlib.compress(text)),
        "no_speech_prob": 0.0,
        **({"words": _words(segment)} if words else {}),
    }


def diarized(transcript: Transcript, *, words: bool) -> dict[str, Any]:
    """`diarized_json`."""
    return {
        "task": "transcribe",
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
        "segments": [
            diarized_segment(segment, number, words=words)
            for number, segment in enumerate(transcript.segments)
        ],
        **_usage(transcript),
    }


def diarized_segment(segment: Segment, number: int, *, words: bool) -> dict[str, Any]:
    """A segment of `diarized_json`, which is an event as well; `speaker` is empty where nobody is
    told from others."""
    return {
        "type": "transcript.text.segment",
        "id": segment_id(number),
        **_times(segment.start, segment.end),
        "text": segment.text,
        "speaker": speaker_name(segment.speaker),
        **({"words": _words(segment)} if words else {}),
    }


def segment_id(number: int) -> str:
    """What events call a segment."""
    return f"seg_{number}"


def speaker_name(speaker: int | None) -> str:
    """A, B, ... Z, AA, ... for 1, 2, ..."""
    name = ""
    while speaker:
        speaker, letter = divmod(speaker - 1, 26)
        name = chr(ord("A") + letter) + name
    return name


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"usage": {"type": "duration", "seconds": _seconds(transcript.duration)}}


def _words(segment: Segment) -> list[dict[str, Any]]:
    return [{"word": word.text, **_times(word.start, word.end)} for word in segment.words]


def _times(start: float, end: float) -> dict[str, float]:
    return {"start": _seconds(start), "end": _seconds(end)}


def _seconds(value: float) -> float:
    return round(value, 3)
