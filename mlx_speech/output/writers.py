"""Transcripts as text and as files."""

import json
import math
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..transcription.transcript import Segment, Transcript, Word
from .line_breaking import collapse_spaces
from .subtitles import SubtitleOptions, speaker_label, to_srt, to_vtt

#: what the template of a file's name may hold
NAME_FIELDS = ("stem", "name", "parent", "model", "language", "task")


def to_txt(transcript: Transcript) -> str:
    """The bare text: a line for each segment that has any, with its speaker where one is known."""
    lines = ((speaker_label(s.speaker), collapse_spaces(s.text)) for s in transcript.segments)
    return "".join(f"{label}{text}\n" for label, text in lines if text)


def to_tsv(transcript: Transcript) -> str:
    """A table of the segments with text: start and end in whole milliseconds, text; unquoted. Where
    speakers are known, their numbers are the last column."""
    rows = [
        [f"{round(1000 * s.start)}", f"{round(1000 * s.end)}", text, _speaker(s)]
        for s in transcript.segments
        if (text := collapse_spaces(s.text))
    ]
    columns = 4 if any(segment.speaker is not None for segment in transcript.segments) else 3
    table = [["start", "end", "text", "speaker"], *rows]
    return "".join("\t".join(row[:columns]) + "\n" for row in table)


def to_json(transcript: Transcript, model: str) -> str:
    """Everything but the token ids; times in seconds, to the millisecond; `speaker`, `remarks` and
    `drafts` where there are any. What is not a finite number is null."""
    document: dict[str, Any] = {
        "text": transcript.text,
        "language": transcript.language,
        "duration": round(transcript.duration, 3),
        "model": model,
        "segments": [segment_data(segment) for segment in transcript.segments],
    }
    if transcript.remarks:
        document["remarks"] = transcript.remarks
    if transcript.drafts is not None:
        document["drafts"] = vars(transcript.drafts)
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def segment_data(segment: Segment) -> dict[str, Any]:
    """A segment as `to_json` writes it."""
    return {
        **_times(segment),
        **({} if segment.speaker is None else {"speaker": segment.speaker}),
        "text": segment.text,
        "avg_logprob": _number(segment.avg_logprob),
        "words": [
            {"word": word.text, **_times(word), "probability": _number(word.probability)}
            for word in segment.words
        ],
        **({"remarks": segment.remarks} if segment.remarks else {}),
    }


#: output format -> what makes its text of a transcript, the model's name and what subtitles obey
FORMATS: dict[str, Callable[[Transcript, str, SubtitleOptions], str]] = {
    "txt": lambda transcript, model, options: to_txt(transcript),
    "srt": lambda transcript, model, options: to_srt(transcript, options),
    "vtt": lambda transcript, model, options: to_vtt(transcript, options),
    "tsv": lambda transcript, model, options: to_tsv(transcript),
    "json": lambda transcript, model, options: to_json(transcript, model),
}


def output_name(
    template: str, source: str, *, model: str, task: str, language: str | None = None
) -> str:
    """The name of a file for a recording's transcript, without the format's ending.

    The template's fields: `{stem}` and `{name}`, the recording's name without and with its ending;
    `{parent}`, the folder that it lies in; `{model}`, the last part of the model's name; `{task}`;
    `{language}`, the code of the text's. `{{` and `}}` are braces. The name depends on nothing
    else, so that the same call finds its files again.

    Args:
        source: path of the recording; `"-"`, standard input, is called `stdin`.
        model: folder or repository id.
        language: where it is known before transcribing.

    Raises:
        InputError: the template is malformed or has another field, its result is no name of a
            file in one folder, or the language is not known.
    """
    path = Path("stdin" if source == "-" else source).absolute()
    model = Path(model).absolute().name
    named = (path.stem, path.name, path.parent.name, model, language, task)
    values = dict(zip(NAME_FIELDS, named, strict=True))
    made = f"the output name {template!r}"
    name = ""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{made} is malformed: {error}; a brace itself is {{{{ or }}}}") from error
    for text, field, spec, conversion in parts:
        if any(c in "/\\" or c < " " for c in text):
            raise InputError(
                f"{made} has a path separator or control character; it names a file in the output "
                "folder"
            )
        name += text
        if field is None:
            continue
        if field not in values or spec or conversion:
            wrong = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            known = ", ".join(f"{{{known}}}" for known in NAME_FIELDS)
            raise InputError(f"{made} has the unknown field {{{wrong}}}; there are {known}")
        if (value := values[field]) is None:
            message = "{made} needs the language, which is not known: give {language}"
            raise InputError.about(message, made=made)
        name += value
    if not name.strip(" ."):
        raise InputError(f"{made} gives {name!r}, which is no name for a file")
    return name


def _times(part: Segment | Word) -> dict[str, float]:
    return {"start": round(part.start, 3), "end": round(part.end, 3)}


def _speaker(segment: Segment) -> str:
    return "" if segment.speaker is None else str(segment.speaker)


def _number(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
