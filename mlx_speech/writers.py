"""Transcripts as text and as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .files import replacing
from .transcription import Transcript


def to_txt(transcript: Transcript, model: str) -> str:
    """The bare text, one line."""
    return transcript.text + "\n"


def to_json(transcript: Transcript, model: str) -> str:
    """Everything but the token ids; times in seconds."""
    segments = [
        {
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "avg_logprob": segment.avg_logprob,
            "words": [
                {"word": w.text, "start": w.start, "end": w.end, "probability": w.probability}
                for w in segment.words
            ],
        }
        for segment in transcript.segments
    ]
    document = {
        "text": transcript.text,
        "language": transcript.language,
        "duration": transcript.duration,
        "model": model,
        "segments": segments,
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


#: output format -> what makes its text of a transcript and the model's name
FORMATS: dict[str, Callable[[Transcript, str], str]] = {"txt": to_txt, "json": to_json}


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name first, then renamed.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
