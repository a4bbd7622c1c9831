"""Text that appears as soon as it is certain."""

from __future__ import annotations


class TextStream:
    """Turns tokens, one by one, into pieces of text that are never taken back.

    A piece comes out once its characters are complete: one that spans several tokens appears with
    its last token, white space with what follows it. All pieces together are exactly
    `tokenizer.decode(ids).strip()`.

    Tokens decoded alone lack what their neighbours do to them (a leading space that only the first
    one loses, characters cut in two), and decoding everything anew at each token is quadratic. So
    each step decodes a short window: the tokens of the last piece, as context, and the new ones.

    Args:
        tokenizer: anything with `decode(ids)`. Where a later token can change the text of earlier
            ones, beyond a cut character's U+FFFD, it also has `is_open(id)`: true for the tokens
            after which that can happen, so that their text waits for one that ends it.
    """

    def __init__(self, tokenizer):
        self._decode = tokenizer.decode
        self._is_open = getattr(tokenizer, "is_open", lambda token: False)
        self._ids: list[int] = []
        # the window begins at `_context`; in it, what comes before `_new` is out and reads `_known`
        self._context = self._new = 0
        self._known = ""
        self.text = ""
        #: after the end, what stood behind the text
        self.white_space = ""

    def add(self, token: int) -> str:
        """The text that `token` makes certain, often empty."""
        self._ids.append(token)
        if self._is_open(token):
            return ""
        piece = self._decode(self._ids[self._context :])[len(self._known) :]
        if piece.endswith("\ufffd") or not piece.strip():
            return ""
        piece = piece.rstrip() if self.text else piece.strip()
        self._context, self._new = self._new, len(self._ids)
        self._known = self._decode(self._ids[self._context :]).rstrip()
        self.text += piece
        return piece

    def finish(self) -> str:
        """What was still held back, once there are no more tokens."""
        decoded = self._decode(self._ids).lstrip()
        whole = decoded.rstrip()
        self.white_space = decoded[len(whole) :]
        if not whole.startswith(self.text):
            raise AssertionError(f"streamed {self.text!r}, but the text is {whole!r}")
        rest, self.text = whole[len(self.text) :], whole
        return rest
