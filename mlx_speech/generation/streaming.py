"""Text that appears as soon as it is certain."""

from __future__ import annotations

from tokenizers.decoders import DecodeStream


class TextStream:
    """Turns tokens, one by one, into pieces of text that are never taken back.

    A piece comes out once its characters are complete: one that spans several tokens appears with
    its last token, white space with what follows it. All pieces together are exactly
    `tokenizer.decode(ids).strip()`.

    Args:
        tokenizer: an `mlx_speech.processing.Tokenizer`.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._held_back = ""
        self.text = ""

    def add(self, token: int) -> str:
        """The text that `token` makes certain, often empty."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer.backend, token)
        return self._release(self._held_back + piece) if piece else ""

    def finish(self) -> str:
        """What was still held back, once there are no more tokens."""
        whole = self._tokenizer.decode(self._ids).strip()
        if not whole.startswith(self.text):
            raise AssertionError(f"streamed {self.text!r}, but the text is {whole!r}")
        rest, self.text = whole[len(self.text) :], whole
        return rest

    def _release(self, piece: str) -> str:
        if not self.text:
            piece = piece.lstrip()
        certain = piece.rstrip()
        self._held_back = piece[len(certain) :]
        self.text += certain
        return certain
