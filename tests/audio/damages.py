"""Formats x damages x what becomes of them: the table in tests/README.md.

    python tests/audio/damages.py

writes it anew. Every file holds eight seconds of noise, of which no part can be foreseen.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from media import encoded, make

from mlx_speech.audio import SAMPLING_RATE, open_recording
from mlx_speech.errors import AudioError

SECONDS = 8
NOISE = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * SAMPLING_RATE).astype(np.float32)
README = Path(__file__).parent.parent / "README.md"
#: what libsndfile writes, by its name for it; PyAV writes the others
SOUNDS = {
    **{kind: kind.upper() for kind in ("wav", "aiff", "caf", "w64", "au", "voc", "flac", "mp3")},
    "sph": "NIST",
    "ogg": "OGG",
}
FORMATS = (*SOUNDS, "opus", "aac", "ac3", "m4a", "mov", "mka", "webm", "ts", "avi", "wma")


#: how a packet of WebM begins; what is in it, Opus takes whatever it is
_WEBM_BLOCK = re.compile(rb"\xa3[\x40-\x7f].\x81..\x80", re.DOTALL)


def _one_place(data: bytes) -> bytes:
    middle = len(data) // 2
    if b"webm" in data[:100]:
        middle = next(_WEBM_BLOCK.finditer(data, middle)).start()
    return data[:middle] + np.random.default_rng(1).bytes(40) + data[middle + 40 :]


def _everywhere(data: bytes) -> bytes:
    damaged, randomness = bytearray(data), np.random.default_rng(1)
    for start in range(3000, len(data) - 3000, 100):
        damaged[start : start + 40] = randomness.bytes(40)
    return bytes(damaged)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "40 bytes in the middle": _one_place,
    "40 of each 100 bytes": _everywhere,
    "half is missing": lambda data: data[: len(data) // 2],
    "a fifth is missing": lambda data: data[: len(data) * 4 // 5],
    "zeros behind it": lambda data: data + bytes(10_000),
    "twice in a row": lambda data: data + data,
}


def whole(kind: str, folder: Path) -> bytes:
    """An undamaged file."""
    if kind in SOUNDS:
        return encoded(NOISE, format=SOUNDS[kind])
    path = folder / f"whole.{kind}"
    if kind == "ac3":  # not below 32 kHz
        return make(path, np.repeat(NOISE, 2), rate=2 * SAMPLING_RATE).read_bytes()
    return make(path, NOISE).read_bytes()


def outcome(kind: str, damage: str, folder: Path) -> str:
    """`error`, or the seconds that are read, with `remark` where there is one."""
    path = folder / f"talk.{kind}"
    path.write_bytes(DAMAGES[damage](whole(kind, folder)))
    try:
        with open_recording(path) as recording:
            remark = ", remark" if recording.remarks else ""
            return f"{recording.duration:.0f} s{remark}"
    except AudioError:
        return "error"


def table() -> str:
    """All of it, in Markdown."""
    rows = [["format", *DAMAGES], ["---"] * (len(DAMAGES) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            rows.append([kind, *(outcome(kind, damage, Path(folder)) for damage in DAMAGES)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    made = re.sub(r"(\| format .*\n)(\|.*\n)*", lambda match: table(), text, count=1)
    README.write_text(made, encoding="utf-8")
