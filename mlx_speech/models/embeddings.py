"""Room for more tokens, or less: the tables of a model that have one row for each."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError, UnsupportedOptionError


def resize_token_embeddings(
    model: nn.Module, new_num_tokens: int, padding_idx: int | None = None
) -> nn.Embedding:
    """Change how many tokens a model knows.

    Rows are kept; new ones, at the end, are the mean of the old, which changes the probabilities
    of the old tokens least (Hewitt, "Initializing New Word Embeddings for Pretrained Language
    Models", 2021). Updates the configuration's `vocab_size`, and `pad_token_id` if that is given.

    Args:
        new_num_tokens: rows to have, as in `len(tokenizer)`.
        padding_idx: id of the padding token; its embedding becomes zero.

    Returns:
        The embeddings, with weights (new_num_tokens, hidden_size).

    Raises:
        InputError: there are to be no rows, or none for `padding_idx`.
        UnsupportedOptionError: the model is quantized.
    """
    if new_num_tokens < 1:
        raise InputError(f"a model cannot have embeddings of {new_num_tokens} tokens")
    if padding_idx is not None and not 0 <= padding_idx < new_num_tokens:
        raise InputError(f"padding_idx {padding_idx} is not one of {new_num_tokens} tokens")
    named = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
    embeddings, head = named["embed_tokens"], named.get("lm_head")
    for table in filter(None, (embeddings, head)):
        if not isinstance(table, (nn.Embedding, nn.Linear)):
            raise UnsupportedOptionError(
                f"a {type(table).__name__} cannot be resized: do it before quantizing the model"
            )
    for table in filter(None, (embeddings, head)):
        table.weight = _resized(table.weight, new_num_tokens)
    config = getattr(model.config, "text_config", model.config)
    config.vocab_size = new_num_tokens
    if padding_idx is not None:
        embeddings.weight[padding_idx] = 0
        config.pad_token_id = padding_idx
    return embeddings


def _resized(rows: mx.array, count: int) -> mx.array:
    added = max(count - len(rows), 0)
    mean = rows.astype(mx.float32).mean(axis=0, keepdims=True).astype(rows.dtype)
    return mx.concatenate([rows[:count], mx.repeat(mean, added, axis=0)])
