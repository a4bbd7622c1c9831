"""Decoders whose layers several processes share, as if one process had them (tensor parallelism).

Rank 0 leads: it runs the whole program, and whatever that has a decoder run, it first has the
others run with it, in one command: the embeddings, and all that has been done to the cache since.
They follow: each has its heads of the layers and of the caches, and nothing else. So what decides
what is run is decided once, and the ranks need not be machines of one kind.
"""

from __future__ import annotations

import itertools
import json
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from ..distributed.group import Group
from ..errors import DistributedError, MlxSpeechError, UnsupportedOptionError
from ..layers.attention import AttentionMask
from ..layers.cache import KVCache, LeftPadding
from ..layers.cache_journal import CacheJournal, CacheMirror
from ..layers.lora import adapter_in_use, use_adapter
from ..signals import uninterrupted

SECONDS_BETWEEN_PINGS = 5.0  #: while nothing is run
_PROMPT_POSITIONS = 64  # so many are of a prompt, whose buffers no later pass can use

T = TypeVar("T")

_FAILED = "this process failed while all ranks computed together"
_OUT_OF_STEP = "the caches of the ranks are not the same any more"
_INTEGERS = (mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64)
_TYPES = {
    str(dtype): dtype for dtype in (*_INTEGERS, mx.bool_, mx.float16, mx.bfloat16, mx.float32)
}
_LENGTH = struct.Struct("<I")


class Layers(Protocol):
    """What a rank has of a decoder; see `DecoderModel`."""

    training: bool

    def run_stack(
        self,
        x: mx.array,
        cache: Sequence[KVCache] | None = None,
        mask: Any = None,
        position_ids: mx.array | None = None,
        states: list[mx.array] | None = None,
        weights: list[mx.array] | None = None,
    ) -> mx.array: ...

    def make_cache(self, left_padding: LeftPadding = None, **options: Any) -> list[KVCache]: ...


class Leader:
    """Rank 0, which any of its threads may use models by. It tells the others now and then that it
    is there, until it is `close`d.

    Args:
        group: which is its own until then. A rank that is lost while nothing is run ends the
            process as one that is silent does, and so at last does one that is lost meanwhile.
    """

    def __init__(self, group: Group):
        self.group = group
        self._lock = threading.Lock()
        self._failure: DistributedError | None = None
        self._ended = threading.Event()
        self._used = True  # since the last ping
        self._models = itertools.count()
        self._dropped: deque[int] = deque()
        self._pings = threading.Thread(target=self._ping, name="pings", daemon=True)
        self._pings.start()

    def load(self, told: Any, load: Callable[[], tuple[T, Any]]) -> T:
        """Load a model, while the others load their shards of its decoder.

        Args:
            told: to the others' `load`, as JSON; see `follow`.
            load: gives what is wanted, and the decoder in it.

        Raises:
            DistributedError: a rank is lost or fails.
        """
        number = next(self._models)
        with self._together(loads=True):
            self._send({"do": "load", "model": number, "told": told})
            loaded, decoder = load()
        decoder.leader = LedModel(self, number, decoder)
        weakref.finalize(decoder, self._dropped.append, number).atexit = False
        return loaded

    def run(
        self,
        command: dict[str, Any],
        arrays: dict[str, mx.array],
        journal: CacheJournal,
        compute: Callable[[], None],
    ) -> None:
        """Have the others compute something with this rank.

        Args:
            command, arrays: to them; see `_run`.
            journal: of what was done to the caches before.
            compute: does this rank's part, to its end.

        Raises:
            DistributedError: a rank is lost.
        """
        mx.eval(arrays)  # may take long: an encoder is before it
        with self._together():
            self._send({"do": "run", **command, "journal": journal.take()}, arrays)
            with self.group.waiting():
                compute()
            self.group.confirm()

    def close(self) -> None:
        """Tell the others that this is the end."""
        self._ended.set()
        self._pings.join()
        if self._failure is None:
            with self._together():
                self._send({"do": "end"})

    @contextmanager
    def _together(self, loads: bool = False) -> Iterator[None]:
        """Around what all ranks do; where it fails in this one alone, nothing follows it."""
        # what a model takes may be long, and is never gone on with
        with self._lock, nullcontext() if loads else uninterrupted():
            if self._failure is not None:
                raise DistributedError(str(self._failure))
            self._used = True
            try:
                yield
            except MlxSpeechError as error:
                # what is wrong with what was asked is found by all, before anything is computed
                if loads or isinstance(error, DistributedError):
                    self._failure = DistributedError(str(error))
                raise
            except BaseException:
                self._failure = DistributedError(_FAILED)
                raise

    def _send(self, command: dict[str, Any], arrays: dict[str, mx.array] | None = None) -> None:
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        self.group.broadcast(_packed({**command, "dropped": dropped}, arrays or {}))

    def _ping(self) -> None:
        failed = False
        try:
            while not self._ended.wait(SECONDS_BETWEEN_PINGS):
                if self._failure is not None:
                    if failed:  # since the last time, and who was told of it has not ended
                        self.group.on_silence(str(self._failure))
                    failed = True
                elif self._used:
                    self._used = False
                else:
                    with self._together():
                        self._send({"do": "nothing"})
        except DistributedError as error:
            self.group.on_silence(str(error))
        finally:
            mx.clear_streams()  # or the process may abort at exit


class LedModel:
    """A decoder that the other ranks run with this one."""

    def __init__(self, leader: Leader, number: int, decoder: Layers):
        self._leader, self._number = leader, number
        self._decoder: Layers = weakref.proxy(decoder)  # which has this
        self._journal = CacheJournal()

    def recorded(
        self, cache: Sequence[KVCache], left_padding: LeftPadding, options: dict[str, Any]
    ) -> list[KVCache]:
        """See `CacheJournal.recorded`."""
        return self._journal.recorded(cache, left_padding, options)

    def run_stack(
        self,
        x: mx.array,
        cache: Sequence[KVCache] | None = None,
        mask: Any = None,
        position_ids: mx.array | None = None,
        states: list[mx.array] | None = None,
        weights: list[mx.array] | None = None,
    ) -> mx.array:
        """The decoder's `run_stack` on all ranks; what it gives is computed.

        Raises:
            DistributedError: a rank is lost.
            UnsupportedOptionError: the decoder is being trained.
        """
        if self._decoder.training:
            raise UnsupportedOptionError(
                "the layers of this model are shared by several processes that follow this one, "
                "which cannot train it: call eval() first"
            )
        arrays = {"x": x}
        if position_ids is not None:
            arrays["position_ids"] = position_ids
        command: dict[str, Any] = {
            "model": self._number,
            "mask": None,
            "adapter": adapter_in_use(None),
            "cache": None,
        }
        if isinstance(mask, str):
            command["mask"] = mask
        elif mask is not None:
            parts = mask if isinstance(mask, AttentionMask) else (mask,)
            arrays |= {f"mask.{number}": part for number, part in enumerate(parts)}
        if cache:
            command |= {"cache": self._journal.number(cache), "lengths": cache[0].row_lengths}
            if cache[0].prompt_lengths is not None:
                arrays["prompt_lengths"] = cache[0].prompt_lengths
        result: list[mx.array] = []

        def compute() -> None:
            result.append(self._decoder.run_stack(x, cache, mask, position_ids, states, weights))
            mx.eval(result, [layer.state for layer in cache or ()])

        self._leader.run(command, arrays, self._journal, compute)
        return result[0]


def follow(group: Group, load: Callable[[Any], Layers]) -> None:
    """Do what rank 0 says, until it says that this is the end.

    Args:
        load: gives this rank's shard of the layers of a model, by what `Leader.load` was told.

    Raises:
        DistributedError: a rank is lost or fails.
    """
    models: dict[int, tuple[Layers, CacheMirror]] = {}
    while True:
        command, arrays = _unpacked(group.broadcast())
        for number in command["dropped"]:
            del models[number]
        match command["do"]:
            case "end":
                return
            case "load":
                layers = load(command["told"])
                models[command["model"]] = layers, CacheMirror(layers.make_cache)
            case "run":
                try:
                    _run(group, *models[command["model"]], command, arrays)
                except DistributedError:
                    raise
                except MlxSpeechError:
                    pass  # rank 0 has the same error, and says so


def _run(
    group: Group,
    layers: Layers,
    caches: CacheMirror,
    command: dict[str, Any],
    arrays: dict[str, mx.array],
) -> None:
    caches.replay(command["journal"])
    cache = None
    if command["cache"] is not None:
        cache = caches[command["cache"]]
        if cache[0].row_lengths != command["lengths"]:
            raise DistributedError(_OUT_OF_STEP)
        cache[0].prompt_lengths = arrays.get("prompt_lengths")
    mask: Any = command["mask"]
    parts = [arrays[name] for name in sorted(arrays) if name.startswith("mask.")]
    if parts:
        mask = AttentionMask(*parts) if len(parts) > 1 else parts[0]
    with group.waiting(), use_adapter(command["adapter"]):
        x = layers.run_stack(arrays["x"], cache, mask, arrays.get("position_ids"))
        mx.eval(x, [layer.state for layer in cache or ()])
    group.confirm()
    if x.shape[1] >= _PROMPT_POSITIONS:
        mx.clear_cache()
    if cache is not None:
        cache[0].prompt_lengths = None  # rank 0 has those that are right


def _packed(command: dict[str, Any], arrays: dict[str, mx.array]) -> bytes:
    shapes = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    text = json.dumps([command, shapes]).encode()
    data = (mx.contiguous(array).reshape(-1).view(mx.uint8) for array in arrays.values())
    return b"".join([_LENGTH.pack(len(text)), text, *(bytes(memoryview(part)) for part in data)])


def _unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, mx.array]]:
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    command, shapes = json.loads(data[_LENGTH.size : start])
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        nbytes = int(np.prod(shape)) * _TYPES[dtype].size
        part = mx.array(np.frombuffer(data, np.uint8, nbytes, start))
        arrays[name] = part.view(_TYPES[dtype]).reshape(shape)
        start += nbytes
    return command, arrays
