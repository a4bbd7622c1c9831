"""Arrays that callers give, and the check that token ids are ids of the model's vocabulary.

An index beyond a table is no error to MLX: it reads whatever lies there, or kills the process.
"""

from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError


def as_mlx(value: Any) -> Any:
    """Arrays of NumPy and other libraries as MLX's; anything else as it is."""
    if isinstance(value, mx.array) or not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    return mx.array(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


def check_token_ids(
    ids: Any, vocab_size: int, name: str = "input_ids", ignored: int | None = None
) -> mx.array:
    """Token ids of a caller as an MLX array. It waits for their values: not for what is called
    once a token.

    Args:
        ids: (batch, length) integers.
        vocab_size: they are below it.
        name: of the argument, for a message.
        ignored: a further value that is allowed, such as that of labels that do not count.

    Raises:
        InputError: they are no such array, or the model does not know one of them.
    """
    ids = as_mlx(ids)
    if not isinstance(ids, mx.array) or ids.ndim != 2 or not ids.size:
        shown = ids.shape if isinstance(ids, mx.array) else type(ids).__name__
        hint = "; one text alone is ids[None]" if getattr(ids, "ndim", 0) == 1 else ""
        raise InputError(f"{name} are {shown}, but must be an array (batch, length){hint}")
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise InputError(f"{name} are {ids.dtype}, but must be integers")
    checked = ids if ignored is None else mx.where(ids == ignored, 0, ids)
    least, greatest = mx.min(checked).item(), mx.max(checked).item()
    suspect = least if least < 0 else greatest
    if not 0 <= suspect < vocab_size:
        found = f"{name} hold {suspect}, the model knows 0 to {vocab_size - 1}"
        if ignored is not None:
            found += f", and {ignored} for what does not count"
        remedy = "after adding tokens to a tokenizer, call model.resize_token_embeddings"
        raise InputError(f"{found}; {remedy}")
    return ids
