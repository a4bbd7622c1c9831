"""Weights of eight bits that lie beside their scales, as FP8 checkpoints have them.

Programs name the scales differently, and they are for a whole tensor, for each row or for blocks
of rows and columns; a weight is always the product. Scales of activations are left out: states
keep their type here.
"""

from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from ..layers.sharding import ShardingGroup

# fp8's, which is no inverse in spite of its name, and that of the others
_SCALES = (".weight_scale_inv", ".weight_scale")
_OF_ACTIVATIONS = (".input_scale", ".input_scale_ub", ".activation_scale")


def apply_scales(
    weights: dict[str, mx.array], config: dict[str, Any], sharding: ShardingGroup | None = None
) -> dict[str, mx.array]:
    """A checkpoint's tensors with scaled weights in float32, and without the scales; nothing is
    computed before it is used.

    Args:
        config: config.json, which may say how large the blocks are.
        sharding: if given, of weights that are shared out this rank's part is among the tensors,
            but all of their scales.

    Raises:
        CheckpointError: scales are of no blocks of their weights.
    """
    stated = config.get("quantization_config")
    blocks = stated.get("weight_block_size") if isinstance(stated, dict) else None
    scaled = dict(weights)
    for name, scale in weights.items():
        for end in _SCALES:
            weight = f"{name.removesuffix(end)}.weight"
            if name.endswith(end) and weight in weights:
                del scaled[name]
                shape = weights[weight].shape
                if sharding is not None:
                    shape = sharding.whole_shape(weight, shape)
                factors = _spread(scale.astype(mx.float32), shape, blocks)
                if factors is None:
                    raise CheckpointError(
                        f"tensor {name} has {scale.shape} scales, which are of no blocks of the "
                        f"{shape} weights"
                    )
                if sharding is not None:
                    factors = sharding.part(weight, mx.broadcast_to(factors, shape))
                scaled[weight] = weights[weight].astype(mx.float32) * factors
    return {name: value for name, value in scaled.items() if not name.endswith(_OF_ACTIVATIONS)}


def _spread(scale: mx.array, shape: tuple[int, ...], blocks: Any) -> mx.array | None:
    """Scales in a shape that multiplies weights of another one, or None if they are not theirs."""
    if scale.size == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        scale = scale[:, None]
    if scale.ndim != 2 or len(shape) != 2:
        return None
    sizes = blocks if isinstance(blocks, list) and len(blocks) == 2 else [None, None]
    for axis, stated in enumerate(sizes):
        length, count = shape[axis], scale.shape[axis]
        # the last block may be a smaller one, where it is said how large they are
        whole = isinstance(stated, int) and stated > 0 and -(-length // stated) == count
        size = stated if whole else length // max(count, 1)
        if not whole and size * count != length:
            return None
        scale = mx.repeat(scale, size, axis)
    return scale[: shape[0], : shape[1]]
