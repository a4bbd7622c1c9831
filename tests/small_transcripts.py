"""Transcripts made by hand, for the writers."""

from __future__ import annotations

from mlx_speech import Segment, Transcript, Word


def segment(text: str, start: float, end: float, words=()) -> Segment:
    """Its words are texts with start and end."""
    return Segment(start, end, text, [1, 2], -0.25, [Word(*word, 0.5) for word in words])


def spoken(text: str, start: float, seconds: float = 0.5) -> Segment:
    """A segment whose words follow each other without a pause, each `seconds` long."""
    words, time = [], start
    for word in text.split():
        words.append((word, time, time + seconds))
        time += seconds
    return segment(text, start, time, words)


def dialogue() -> Transcript:
    """Two speakers, and what nobody is named for."""
    turns = [
        (1, spoken("good morning everybody", 0)),
        (2, spoken("a <b> & c", 2)),
        (None, spoken("hm", 5)),
        (1, spoken("\u0645\u0631\u062d\u0628\u0627", 6)),
    ]
    for speaker, turn in turns:
        turn.speaker = speaker
    return transcript(*(turn for _, turn in turns))


def transcript(*segments: Segment, language: str | None = None) -> Transcript:
    text = " ".join(s.text for s in segments if s.text)
    return Transcript(text, language, max([s.end for s in segments], default=0.0), list(segments))


def many_scripts() -> Transcript:
    """Latin, Arabic, Japanese, markup, a pause inside a segment, an empty segment."""
    return transcript(
        segment(
            "Unlock the back gate, please.",
            0.32,
            2.96,
            [
                ("Unlock", 0.32, 0.7),
                ("the", 0.74, 0.9),
                ("back", 0.94, 1.3),
                ("gate,", 1.34, 1.72),
                ("please.", 2.4, 2.96),
            ],
        ),
        segment("", 3.0, 3.5),
        spoken("Tom & Jerry: 1 < 2 --> true", 4.0, 0.25),
        spoken("تحويل الكلام إلى نص مع MLX على الجهاز", 6.5, 0.4),
        segment(
            "今日は「MLX」で音声を文字にします。",
            3661.0005,
            3664.5,
            [
                ("今日は", 3661.0005, 3661.5),
                ("MLX", 3661.6, 3662.0),
                ("で音声を", 3662.0, 3663.0),
                ("文字にします", 3663.0, 3664.5),
            ],
        ),
        language="en",
    )
