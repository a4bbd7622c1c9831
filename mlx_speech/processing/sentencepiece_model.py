"""A sentencepiece model file, as Llama 2 has, as a vocabulary with merges.

Format: sentencepiece's `sentencepiece_model.proto`, in the encoding of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

# field numbers and values of sentencepiece_model.proto
_PIECE, _TRAINER = 1, 2
_TEXT, _TYPE = 1, 3
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_ALGORITHM, _UNIGRAM, _BPE = 3, 1, 2


def read_sentencepiece(file: Path) -> dict[str, Any]:
    """A byte-pair encoding model in the terms of a tokenizer.json: `model` and `added_tokens`.

    Two pieces may merge where they make a third, and do so in the order of the third ones' ids.
    Pieces that no text is split into are added tokens.

    Raises:
        CheckpointError: the file is not a sentencepiece model, or one of another algorithm.
    """
    pieces: list[tuple[str, int]] = []
    algorithm = None
    try:
        for field, value in _fields(file.read_bytes()):
            if field == _PIECE:
                values = dict(_fields(value))
                pieces.append((values[_TEXT].decode(), values.get(_TYPE, _NORMAL)))
            elif field == _TRAINER:
                algorithm = dict(_fields(value)).get(_ALGORITHM, _UNIGRAM)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a sentencepiece model ({error})") from error
    if not pieces or algorithm is None:
        raise CheckpointError(f"{file}: not a sentencepiece model (it has no pieces)")
    if algorithm != _BPE:
        raise CheckpointError(f"{file}: a sentencepiece model, but not of byte-pair encoding (BPE)")
    vocab = {text: i for i, (text, _) in enumerate(pieces)}
    return {
        "added_tokens": [
            {
                **{"id": i, "content": text, "special": kind == _CONTROL},
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
            for i, (text, kind) in enumerate(pieces)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "model": {
            "vocab": vocab,
            "merges": [
                (text[:cut], text[cut:])
                for text in vocab
                for cut in range(1, len(text))
                if text[:cut] in vocab and text[cut:] in vocab
            ],
            "unk_token": next((text for text, kind in pieces if kind == _UNKNOWN), None),
        },
    }


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an integer, or the bytes of anything else."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        field, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield field, varint()
            continue
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        position += size
        if position > len(message):
            raise ValueError("cut off")
        yield field, message[position - size : position]
