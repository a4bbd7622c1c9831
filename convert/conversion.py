"""Convert a checkpoint, module by module."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Plan


@dataclass(frozen=True)
class Conversion:
    """One converted model.

    folder: where it is, or for a dry run would be.
    plan: what became of each module, with bytes before and after.
    bits, group_size, mode: the usual ones, as at the top of config.json's `quantization`; None
        where the result is not quantized.
    recipe: name of the recipe, None where there was none.
    dtype: type of what is not quantized, as in config.json: `"bfloat16"` and so on.
    source: the repository (`owner/name`), or the name of the folder, that it was made from.
    """

    folder: Path
    plan: Plan
    bits: int | None
    group_size: int | None
    mode: str | None
    recipe: str | None
    dtype: str
    source: str


def convert(
    path_or_repo: str | os.PathLike,
    mlx_path: str | os.PathLike = "mlx_model",
    *,
    quantize: bool = False,
    q_bits: int | Sequence[int] | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    quant_predicate: str | Callable[[str, Any], bool | dict] | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    fuse_adapter: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Conversion]:
    """To come."""
    raise NotImplementedError
