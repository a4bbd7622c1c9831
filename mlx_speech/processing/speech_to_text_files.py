"""The files of Speech2Text's tokenizer: vocab.json and the SentencePiece model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from tokenizers import AddedToken

from ..checkpoint.folder import read_json
from ..errors import CheckpointError, InputError
from ..fields import Range, fitted
from .tokenizer_files import added_token

VOCAB_FILE = "vocab.json"
SPM_FILE = "sentencepiece.bpe.model"
TokenIndex = Annotated[int, Range(0, 2**24 - 1)]


def read_vocab(file: Path) -> dict[str, int]:
    """Ids by piece.

    Raises:
        CheckpointError: the file is missing or malformed, or an id stands for several pieces.
    """
    vocab = read_json(file.parent, file.name)
    try:
        vocab = {piece: fitted(repr(piece), index, TokenIndex) for piece, index in vocab.items()}
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if len(set(vocab.values())) < len(vocab):
        raise CheckpointError(f"{file}: an id stands there for several pieces")
    return vocab


def read_added(tokens: Mapping[Any, Any], place: Any) -> dict[int, AddedToken]:
    """The `added_tokens_decoder` of a configuration.

    Raises:
        CheckpointError: it is malformed.
    """
    try:
        ids = [fitted("added_tokens_decoder", int(index), TokenIndex) for index in tokens]
    except ValueError as error:
        raise CheckpointError(f"{place}: added_tokens_decoder is malformed: {error}") from error
    return dict(zip(ids, read_tokens(list(tokens.values()), place), strict=True))


def read_tokens(tokens: Sequence[Any], place: Any) -> list[AddedToken]:
    """Tokens of a configuration.

    Raises:
        CheckpointError: one is malformed.
    """
    try:
        return [added_token(token) for token in tokens]
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{place}: a special token is malformed: {error}") from error


def read_spm(file: Path, options: dict[str, Any]):
    """The SentencePieceProcessor of a file.

    Raises:
        CheckpointError: the file is missing or malformed, or there is no such option.
    """
    from sentencepiece import SentencePieceProcessor

    if not file.is_file():
        raise CheckpointError(f"{file.parent}: no {file.name} here, and the tokenizer needs it")
    try:
        model = SentencePieceProcessor(model_file=str(file), **options)
        model.encode("a")  # options are looked at only now
        return model
    except (RuntimeError, TypeError, ValueError, ArithmeticError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable SentencePiece model: {error}") from error
