"""The models of a server: loaded when they are needed, given up when they are not."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from ..distributed.memory import clear_cache
from ..errors import InputError
from ..loading import load

State = Literal["unloaded", "loading", "ready"]


class UnknownModelError(InputError):
    """There is no model of the name that a request gives."""


@dataclass
class _Entry:
    """A model.

    loaded: what `load` returned, while it is.
    users: requests that hold it.
    idle_since: when the last of them ended.
    """

    name: str
    created: int
    loaded: tuple[Any, Any] | None = None
    state: State = "unloaded"
    users: int = 0
    idle_since: float = field(default_factory=time.monotonic)


class ModelStore:
    """Models by name. All but `load` and `unload`, which compute, may be called by any thread.

    Args:
        names: folders or repository ids. A request may name one of them, or its last part.
        keep_alive: seconds for which a model stays that nobody uses; None: for ever.
        loader: `mlx_speech.load`, with its options.
    """

    def __init__(
        self,
        names: Sequence[str],
        keep_alive: float | None = None,
        loader: Callable[[str], tuple[Any, Any]] = load,
    ):
        if not names:
            raise InputError("a server needs a model")
        created = int(time.time())
        self._entries = {name: _Entry(name, created) for name in names}
        self._keep_alive = keep_alive
        self._loader = loader

    @property
    def names(self) -> list[str]:
        """As they were given, the first of which is the default."""
        return list(self._entries)

    def created(self, name: str) -> int:
        """When the server began to offer a model, in seconds since 1970."""
        return self._entries[name].created

    def state(self, name: str) -> State:
        """What has become of a model so far."""
        return self._entries[name].state

    def users(self, name: str) -> int:
        """How many requests hold a model."""
        return self._entries[name].users

    def loaded(self, name: str) -> tuple[Any, Any] | None:
        """The model and its processor, while they are loaded."""
        return self._entries[name].loaded

    def resolve(self, asked: str) -> str:
        """The name of the model that a request means.

        Raises:
            UnknownModelError: there is none.
        """
        if asked in self._entries:
            return asked
        short = [name for name in self._entries if PurePath(name).name == asked]
        if len(short) == 1:
            return short[0]
        known = ", ".join(self._entries)
        raise UnknownModelError.about(
            "there is no {option} {asked!r}; this server has {known}",
            option="model",
            asked=asked,
            known=known,
        )

    def hold(self, name: str) -> None:
        """A request is going to use a model: it stays until `release`."""
        self._entries[name].users += 1

    def release(self, name: str) -> None:
        """A request has ended."""
        entry = self._entries[name]
        entry.users -= 1
        entry.idle_since = time.monotonic()

    def load(self, name: str) -> tuple[Any, Any]:
        """The model and its processor, read from disk or from the Hub if need be; errors as
        there."""
        entry = self._entries[name]
        if entry.loaded is None:
            entry.state = "loading"
            try:
                entry.loaded = self._loader(name)
            finally:
                entry.state = "unloaded" if entry.loaded is None else "ready"
        return entry.loaded

    def idle(self) -> list[str]:
        """Models that nobody has used for long enough."""
        return [entry.name for entry in self._kept() if self._seconds_left(entry) <= 0]

    def unload(self, names: Sequence[str]) -> None:
        """Give up models that are still `idle`, and their memory, which must not be in use."""
        if still := {*names}.intersection(self.idle()):
            for name in still:
                self._entries[name].loaded, self._entries[name].state = None, "unloaded"
            gc.collect()  # modules refer to each other
            clear_cache()

    def seconds_to_unload(self) -> float | None:
        """When there will be an idle one, as far as is known."""
        return min(map(self._seconds_left, self._kept()), default=None)

    def _kept(self) -> list[_Entry]:
        """Those that are loaded, but not used, and will not stay."""
        if self._keep_alive is None:
            return []
        return [e for e in self._entries.values() if e.loaded is not None and not e.users]

    def _seconds_left(self, entry: _Entry) -> float:
        assert self._keep_alive is not None
        return max(0.0, entry.idle_since + self._keep_alive - time.monotonic())
