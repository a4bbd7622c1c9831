"""What was trained -> the folder of an adapter in peft's format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.adapter_saving import LowRankTerm, write_adapter_files
from ..checkpoint.saving import writing
from ..errors import InputError
from ..files import adding_files


def write_adapter(
    folder: Path,
    model: Any,
    *,
    lora: dict[str, tuple[mx.array, mx.array]],
    rank: int,
    scale: float,
    dropout: float,
    saved: Sequence[str],
    base_model: str,
    revision: str | None = None,
) -> None:
    """Write an adapter that `load(..., adapter=folder)` reads, and peft over transformers' model.

    Its two files replace those of an earlier one together, or not at all; they are in the model's
    floating type.

    Args:
        folder: where to; made if there is none.
        model: a `PretrainedModel` that was trained.
        lora: by the path of a linear layer in a model without adapters, such as
            `language_model.model.layers.0.self_attn.q_proj`: mlx-lm's `lora_a` (in, rank) and
            `lora_b` (rank, out).
        rank: of all of them.
        scale: factor on `x @ lora_a @ lora_b`, which peft calls `lora_alpha / r`.
        dropout: of what goes into the terms, in training.
        saved: paths of modules of the model that were trained as a whole, whose tensors are taken
            from it; what an adapter that the model was loaded with does in one of them becomes part
            of its weights.
        base_model: what the model was loaded from.
        revision: of it.

    Raises:
        CheckpointError: the folder cannot be written to.
        InputError: there is nothing to write, or it does not fit the model.
    """
    terms, dtype = {}, model.dtype
    for name, (a, b) in lora.items():
        if (a.ndim, b.ndim) != (2, 2) or (a.shape[1], b.shape[0]) != (rank, rank):
            raise InputError(
                f"{name}: lora_a {a.shape} and lora_b {b.shape} are not of rank {rank}"
            )
        terms[name] = LowRankTerm(a.T.astype(dtype), b.T.astype(dtype), scale)
    about = {
        "base_model_name_or_path": base_model,
        "revision": revision,
        "lora_dropout": dropout,
    }
    with writing(folder), adding_files(folder) as temporary:
        write_adapter_files(model, temporary, terms, saved, **about)
