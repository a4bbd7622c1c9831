"""Caches that know what they hold, so that of a prompt only what is new is fed."""

from collections import deque
from collections.abc import Hashable, Sequence

from ..layers.cache import KVCache

Key = Hashable  #: what was fed at a position: a token's id, or what tells a recording from others


class PrefixCache:
    """A model's cache of one prompt, and what is in it.

    Attributes:
        layers: of the model, from `make_cache`.
        keys: what they are known to begin with; never more than that, wherever a call that feeds
            them is interrupted.
    """

    def __init__(self, layers: Sequence[KVCache], keys: Sequence[Key] = ()):
        self.layers, self.keys = layers, list(keys)

    @property
    def length(self) -> int:
        """Positions that every layer holds."""
        return min(layer.length for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Memory that the layers take."""
        return sum(part.nbytes for layer in self.layers for part in layer.state)

    def common(self, keys: Sequence[Key]) -> int:
        """How many positions it has in common with a prompt, the last of which is always fed."""
        pairs = enumerate(zip(self.keys, keys[:-1], strict=False))
        shorter = min(len(self.keys), len(keys) - 1)
        return next((i for i, (held, wanted) in pairs if held != wanted), shorter)

    def settle(self, keys: Sequence[Key]) -> bool:
        """Note what was fed, of which it may hold less, and forget what else it holds; whether that
        could be done."""
        self.keys = list(keys[: self.length])
        return self.trim_to(len(self.keys))

    def trim_to(self, length: int) -> bool:
        """Forget what is behind the first `length` positions; whether that could be done."""
        surplus = [layer.length - length for layer in self.layers]
        if any(surplus) and not all(layer.is_trimmable() for layer in self.layers):
            return False
        self.keys = self.keys[:length]
        pairs = zip(self.layers, surplus, strict=True)
        return all(layer.trim(count) == count for layer, count in pairs)

    def fork(self, length: int) -> "PrefixCache":
        """Another one that begins with the same `length` positions."""
        return PrefixCache([layer.row(0, length) for layer in self.layers], self.keys[:length])


class PrefixCachePool:
    """The caches of a model's latest conversations.

    Args:
        max_caches: that are kept; the one used longest ago goes first.
        max_bytes: that they may take together.
    """

    def __init__(self, max_caches: int, max_bytes: int):
        self._max_caches, self._max_bytes = max_caches, max_bytes
        self._caches: deque[PrefixCache] = deque()

    def __len__(self) -> int:
        return len(self._caches)

    def take(self, keys: Sequence[Key]) -> PrefixCache | None:
        """A cache that holds a beginning of a prompt, the longest that there is, and nothing else;
        it is the caller's until it is put back. None where no two begin alike."""
        found = max(self._caches, key=lambda cache: cache.common(keys), default=None)
        length = 0 if found is None else found.common(keys)
        if found is None or not length:
            return None
        if len(found.keys) - length > length:
            # another conversation, which may go on: more of it would be lost than is reused
            return found.fork(length)
        self._caches.remove(found)
        return found if found.trim_to(length) else None

    def put(self, cache: PrefixCache) -> None:
        """Keep a cache."""
        self._caches.append(cache)
        while self._caches and (
            len(self._caches) > self._max_caches
            or sum(each.nbytes for each in self._caches) > self._max_bytes
        ):
            self._caches.popleft()
