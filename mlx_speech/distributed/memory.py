"""Memory that arrays no longer need, of which MLX keeps some for others."""

import mlx.core as mx

from .launched import rank_of_launch

#: that MLX keeps at most where there are other ranks
CACHE_BYTES = 2 << 30


def clear_cache() -> None:
    """Let MLX keep none now. Where there are other ranks it goes on keeping `CACHE_BYTES`: for
    `mx.clear_cache` MLX waits until all threads' work is done, also for a message of another rank,
    and holds Python's lock meanwhile; where that rank is lost, nobody could ever say so."""
    if rank_of_launch() is None:
        mx.clear_cache()
