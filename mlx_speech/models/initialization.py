"""Weights of a model that is not read from a checkpoint, drawn as transformers draws them."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .base import PretrainedModel
from .config import initial_std


def init_weights(module: nn.Module, config: Any = None) -> None:
    """Draw the weights of linear layers, convolutions and embeddings; biases become zero, and so
    does the embedding of the padding. Norms are as MLX makes them.

    Nothing is computed before it is used: what a checkpoint replaces costs nothing.

    A module that draws tensors of its own does so in `init_own_weights`, with the standard
    deviation as its argument.

    Args:
        config: of what the module is part of; modules that have a `config` have their own. The
            standard deviation is its `initializer_range` or `init_std`.
    """
    config = getattr(module, "config", config)
    std = initial_std(config)
    if hasattr(module, "init_own_weights"):
        module.init_own_weights(std)
    elif isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
        module.weight = mx.random.normal(module.weight.shape, scale=std)
    if isinstance(module, nn.Linear | nn.Conv1d) and "bias" in module:
        module.bias = mx.zeros(module.bias.shape)
    padding = getattr(config, "pad_token_id", None)
    # some say -1 for none
    if isinstance(module, nn.Embedding) and padding in range(len(module.weight)):
        module.weight[padding] = 0
    for _, child in tree_flatten(module.children(), is_leaf=nn.Module.is_module):
        if not isinstance(child, PretrainedModel):  # which has done it when it was made
            init_weights(child, config)
