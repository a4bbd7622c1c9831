"""A sentencepiece model file, as Llama 2 has, as a vocabulary with merges."""

from pathlib import Path
from typing import Any

from ..errors import CheckpointError


def read_sentencepiece(file: Path) -> dict[str, Any]:
    """A byte-pair encoding model in the terms of a tokenizer.json: `model` and `added_tokens`.

    Two pieces may merge where they make a third, and do so in the order of the third ones' ids.
    Pieces that no text is split into are added tokens.

    Raises:
        CheckpointError: the file is not a sentencepiece model, or one of another algorithm.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.load_from_serialized_proto(file.read_bytes())
        pieces = [model.id_to_piece(i) for i in range(model.piece_size())]
    except (RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not a sentencepiece model ({error})") from error
    if not _is_bpe(model):
        raise CheckpointError(f"{file}: a sentencepiece model, but not of byte-pair encoding (BPE)")
    vocab = {text: i for i, text in enumerate(pieces)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added_tokens = [
        {"id": i, "content": text, "special": model.is_control(i), **flags}
        for i, text in enumerate(pieces)
        if model.is_control(i) or _is_user_defined(model, i, text)
    ]
    merges = [
        (text[:cut], text[cut:])
        for text in vocab
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    bpe = {"vocab": vocab, "merges": merges, "unk_token": pieces[model.unk_id()]}
    return {"added_tokens": added_tokens, "model": bpe}


def _is_bpe(model) -> bool:
    """Sentencepiece does not name its algorithm. Of its four, all but words and characters can
    sample, and all but BPE of these two can list the best."""
    try:
        _without_merges(model, "a")
        model.nbest_encode_as_pieces("a", 1)
    except RuntimeError as error:
        return "NBest" in str(error)
    return False


def _is_user_defined(model, i: int, text: str) -> bool:
    """Nor does it name these: they are what stays whole where nothing merges."""
    special = model.is_unknown(i) or model.is_byte(i) or model.is_unused(i)
    return len(text) > 1 and not special and text in _without_merges(model, f"a{text}a")


def _without_merges(model, text: str) -> list[str]:
    # BPE dropout (https://arxiv.org/abs/1910.13267) of every merge
    return model.sample_encode_as_pieces(text, -1, 1.0)
