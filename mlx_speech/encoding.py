"""What tokenizers, feature extractors and processors return."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import InputError, UnsupportedOptionError


class BatchEncoding(dict):
    """A dictionary whose items are attributes, too: `inputs.input_ids`."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name} here, but {', '.join(self)}") from None


def check_arrays(
    return_tensors: str, padding: bool | str, lengths: Sequence[int], what: str
) -> None:
    """Whether rows of these lengths become the array that a caller asks for.

    Args:
        return_tensors: `"mlx"`; `"pt"` and `"np"` mean MLX's arrays as well, so that examples
            written for transformers run as they stand.
        padding: True or `"longest"`: shorter rows are filled up; False: there are none.
        lengths: of the rows.
        what: the rows are, in the plural.

    Raises:
        InputError: a row is shorter though it may not be.
        UnsupportedOptionError: arrays of another kind, or another padding.
    """
    if return_tensors not in ("mlx", "pt", "np"):
        raise UnsupportedOptionError(
            f"return_tensors={return_tensors!r}: there are only MLX arrays; leave it out"
        )
    if padding not in (True, False, "longest"):
        raise UnsupportedOptionError(f"padding={padding!r} is neither True nor False")
    if not padding and len(set(lengths)) > 1:
        raise InputError(f"the {what} differ in length: an array of them needs padding")
