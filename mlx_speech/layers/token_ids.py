"""Arrays that callers give, masks of frames among them, and the check that token ids are ids of the
model's vocabulary.

An index beyond a table is no error to MLX: it reads whatever lies there, or kills the process.
"""

from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError


def as_mlx(value: Any) -> Any:
    """Arrays of NumPy and other libraries as MLX's; anything else as it is.

    Raises:
        InputError: it holds what are no numbers.
    """
    if isinstance(value, mx.array) or not hasattr(value, "__array__"):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError):  # torch's bfloat16, and what it has gradients of
        return mx.array(value)
    if array.dtype.kind not in "biufc":
        raise InputError(f"an array of {array.dtype} holds no numbers")
    too_wide = array.dtype.kind == "f" and array.dtype.itemsize > 4
    native = np.dtype(np.float32) if too_wide else array.dtype.newbyteorder("=")
    return mx.array(array.astype(native, order="C", copy=False))


def check_array(
    value: Any, name: str, kind: Any, *shapes: tuple[int | str, ...], hint: str = ""
) -> mx.array:
    """An array of a caller as MLX's.

    Args:
        name: of the argument, for a message.
        kind: of its numbers: `mx.integer`, `mx.floating` or, for all, `mx.generic`.
        shapes: that it may have; an axis of any length but zero is told by its name.
        hint: what else a message about the shape says.

    Raises:
        InputError: it has another shape or kind, or is none.
    """
    array = as_mlx(value)
    if not isinstance(array, mx.array) or not any(_fits(array.shape, s) for s in shapes):
        found = getattr(array, "shape", type(array).__name__)
        wanted = " or ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
        raise InputError(f"{name} are {found}, but must be an array {wanted}{hint}")
    if not mx.issubdtype(array.dtype, kind):
        rule = "integers" if kind == mx.integer else "floats"
        raise InputError(f"{name} are {array.dtype}, but must be {rule}")
    return array


def _fits(found: tuple[int, ...], shape: tuple[int | str, ...]) -> bool:
    pairs = zip(found, shape, strict=False)
    named = all(have > 0 if isinstance(want, str) else have == want for have, want in pairs)
    return len(found) == len(shape) and named


def real_frames(attention_mask: Any, *shape: int | str) -> mx.array | None:
    """Which frames are real: boolean (recordings, frames), None if all are.

    Args:
        attention_mask: (recordings, frames), ones and then zeros.
        shape: that it has to have.

    Raises:
        InputError: it is no such array, the zeros are not at the end, or a recording has no frame
            at all.
    """
    if attention_mask is None:
        return None
    shape = shape or ("recordings", "frames")
    mask = check_array(attention_mask, "attention_mask", mx.generic, shape).astype(mx.int32)
    if mx.any(mask[:, 1:] > mask[:, :-1]).item():
        raise InputError("attention_mask must be ones and then zeros: pad recordings at their end")
    if mx.any(mask.sum(axis=1) == 0).item():
        raise InputError("attention_mask leaves a recording without any frame")
    return None if mx.all(mask).item() else mask.astype(mx.bool_)


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
    hint = "; one text alone is ids[None]" if getattr(ids, "ndim", 0) == 1 else ""
    ids = check_array(ids, name, mx.integer, ("batch", "length"), hint=hint)
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


def check_cache_position(cache_position: Any, cached: int, length: int) -> None:
    """Raises `InputError` where it says anything but what follows from the cache."""
    found = as_mlx(cache_position)
    told = found.flatten().tolist() if isinstance(found, mx.array) else found
    if told != list(range(cached, cached + length)):
        wanted = f"must be {cached} to {cached + length - 1}, which follow the cache"
        raise InputError(f"cache_position {wanted}; leave it out")
