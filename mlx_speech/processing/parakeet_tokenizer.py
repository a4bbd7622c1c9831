"""The tokenizer of models that write with a CTC head, by the name that transformers has for it."""

from itertools import groupby
from typing import Any

from .batch import as_ids
from .tokenizer import Tokenizer

PARAKEET_CLASSES = ("ParakeetTokenizer", "ParakeetTokenizerFast")


class ParakeetTokenizer(Tokenizer):
    """A `Tokenizer` whose padding token is the blank of a CTC head, the labels of which it decodes
    frame by frame."""

    default_padding_side = "right"

    def decode(
        self, token_ids: Any, *arguments: Any, group_tokens: bool = True, **options: Any
    ) -> Any:
        """Text of the labels of frames, or texts of several rows; blanks are nothing.

        Args:
            group_tokens: whether labels in a row, one frame after the other, are one. What has been
                collapsed already may have real ones side by side, and needs False.
            arguments, options: as for `Tokenizer.decode`.
        """
        ids = as_ids(token_ids)
        if ids and isinstance(ids[0], list | tuple):
            rows = [self._said(row, group_tokens) for row in ids]
            return super().decode(rows, *arguments, **options)
        return super().decode(self._said(ids, group_tokens), *arguments, **options)

    def _said(self, labels: list[int], group_tokens: bool) -> list[int]:
        if group_tokens:
            labels = [label for label, _ in groupby(labels)]
        return [label for label in labels if label != self.pad_token_id]
