"""Models whose decoder's layers several processes share."""

from typing import Any

import mlx.core as mx

from ..layers.sharding import ShardingGroup


class Shardable:
    """Base of the model classes, which may have such a decoder."""

    config: Any

    def get_decoder(self) -> Any:
        """What reads the tokens in it, a `DecoderModel` where layers can be shared out; None if
        there is nothing of the kind."""
        return None

    @property
    def sharding_group(self) -> ShardingGroup | None:
        """The ranks that share the layers of the decoder; None if this process has all of them."""
        return getattr(self.get_decoder(), "sharding_group", None)

    def shard(self, group: mx.distributed.Group) -> None:
        """Keep this rank's part of the decoder's layers, so that the ranks of a group compute them
        together, and all of the rest; nothing is computed before it is used. `from_pretrained`,
        which may be given the group, does not even read what it would drop.

        Raises:
            InputError: the layers are shared out already.
            UnsupportedOptionError: there is no such decoder, or its heads, inner units or groups of
                quantized weights cannot be shared out evenly.
        """
        sharding = self.config.sharding(group)
        if sharding is not None:
            self.get_decoder().share_layers(sharding)
