"""What the frozen encoder makes of recordings, computed once and kept on disk."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..errors import InputError
from ..files import replacing
from ..layers.lora import use_adapter
from .augmentation import at_speed
from .examples import Example
from .ranks import Ranks

_SUFFIX = ".safetensors"
_OVERHEAD_BYTES = 512  #: of a file beside the states, at most


class StateCache:
    """Arrays in files of a folder, by keys that say what was computed from what.

    Each is written whole or not at all, and a damaged one is as good as none, so that a run that
    was killed goes on where it was. Whoever deletes the folder loses nothing but time.

    Args:
        folder: made when the first file is written.
        limit: bytes that the files may have together; what does not fit is not kept.
    """

    def __init__(self, folder: Path, limit: int):
        self._folder, self._limit = folder, limit
        # of earlier runs, until they are claimed; deleted where their room is needed
        self._unclaimed = {f.stem: f.stat().st_size for f in folder.glob(f"*{_SUFFIX}")}
        self._sizes: dict[str, int] = {}
        self._used, self._unused = 0, sum(self._unclaimed.values())

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    def claim(self, keys: Iterable[str], writers: int = 1) -> None:
        """These are all that will be needed: what is there of them stays, as far as the limit
        allows.

        Args:
            writers: processes that fill the folder, with the same keys; they share what room is
                left, and each writes whole files.
        """
        for key in keys:
            size = self._unclaimed.get(key)
            if size is not None and self._used + size <= self._limit:
                self._sizes[key] = self._unclaimed.pop(key)
                self._used, self._unused = self._used + size, self._unused - size
        self._make_room(0)
        self._limit = self._used + (self._limit - self._used) // writers

    def has_room(self, nbytes: int) -> bool:
        """Whether an array of so many bytes would be kept."""
        return self._used + nbytes + _OVERHEAD_BYTES <= self._limit

    def get(self, key: str) -> mx.array | None:
        """The array of a key, if there is one."""
        if key not in self._sizes:
            return None
        try:
            arrays, metadata = mx.load(str(self._path(key)), return_metadata=True)  # type: ignore[misc]
            states = arrays["states"]
            if metadata["crc32"] == _checksum(states):
                return states
        except (RuntimeError, KeyError):  # of MLX, for a file that is gone or damaged
            pass
        self._used -= self._sizes.pop(key)
        self._path(key).unlink(missing_ok=True)
        return None

    def put(self, key: str, states: mx.array) -> None:
        """Keep an array, if there is room for it.

        Raises:
            InputError: it cannot be written.
        """
        if not self.has_room(states.nbytes):
            return
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._unused -= self._unclaimed.pop(key, 0)  # which is replaced
            self._make_room(states.nbytes + _OVERHEAD_BYTES)
            with replacing(path) as temporary, open(temporary, "wb") as file:
                mx.save_safetensors(file, {"states": states}, {"crc32": _checksum(states)})  # type: ignore[arg-type]
            self._sizes[key] = path.stat().st_size
        except OSError as error:
            message = "{path} cannot be written ({reason}): free disk space, or lower {cache_limit}"
            raise InputError.about(message, path=path, reason=error.strerror) from None
        self._used += self._sizes[key]

    def _make_room(self, nbytes: int) -> None:
        while self._unclaimed and self._used + self._unused + nbytes > self._limit:
            key, size = self._unclaimed.popitem()
            self._path(key).unlink(missing_ok=True)
            self._unused -= size

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"


class AudioEncoder:
    """Features of examples' recordings, and states of the encoder for them.

    The encoder is put in evaluation mode and stays frozen: what it gives is computed once.
    """

    def __init__(self, model: Any, processor: Any, cache: StateCache):
        self._encoder, self._extractor = model.encoder, processor.audio_processor
        self._cache = cache
        self._version = _encoder_digest(model, self._extractor)

    @property
    def window_size(self) -> int:
        """Frames that the projector takes together."""
        return self._extractor.projector_window_size

    def num_audio_tokens(self, frames: int) -> int:
        """Tokens that the projector makes of so many frames."""
        return self._extractor.num_audio_tokens(frames)

    def features(self, example: Example) -> mx.array:
        """(frames, 160) in float32."""
        rate = self._extractor.sampling_rate
        with example.row.audio.open(rate) as recording:
            samples = recording.read()
        return self._extractor.log_mel(at_speed(samples, example.speed, rate))

    def encode(self, features: mx.array) -> mx.array:
        """(frames, 160) -> (frames, size), in the encoder's dtype; evaluated."""
        self._encoder.eval()
        with use_adapter(True):
            states = self._encoder(features[None]).last_hidden_state[0]
        mx.eval(states)
        mx.clear_cache()  # each recording has arrays of other sizes
        return states

    def states(self, example: Example) -> mx.array:
        """The same of an example, from the cache if it is there."""
        key = self._key(example)
        states = self._cache.get(key)
        if states is None or len(states) != example.frames:
            states = self.encode(self.features(example))
            self._cache.put(key, states)
        return states

    def fill_cache(
        self,
        examples: Iterable[Example],
        ranks: Ranks,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Encode what is not in the cache and will fit.

        Args:
            examples: of this one of the ranks.
            progress: called with how many all have done, and of how many.
        """
        by_key = {self._key(example): example for example in examples}
        size = self._encoder.config.output_size * self._encoder.layers[0].post_norm.weight.itemsize
        for key, example in ranks.rounds(list(by_key.items()), progress):
            if key not in self._cache and self._cache.has_room(example.frames * size):
                self.states(example)

    def claim(self, examples: Iterable[Example], ranks: Ranks) -> None:
        """Of these the cache will be needed, and of no others, by all ranks together."""
        ranks.gather()  # all have seen what lies there before one changes it
        self._cache.claim(map(self._key, examples), ranks.size)

    def _key(self, example: Example) -> str:
        made_of = f"{self._version} {example.digest} {example.speed}"
        return hashlib.sha256(made_of.encode()).hexdigest()


def _checksum(states: mx.array) -> str:
    return f"{zlib.crc32(_bytes(states)):08x}"


def _bytes(array: mx.array) -> memoryview:
    return np.asarray(array.reshape(-1).view(mx.uint8)).data  # NumPy has no bfloat16


def _encoder_digest(model: Any, extractor: Any) -> str:
    """A hash of all that decides what the encoder makes of a recording."""
    digest = hashlib.sha256()
    settings = extractor.to_dict(), model.config.encoder_config.to_dict()
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    _add_weights(digest, model.encoder)
    return digest.hexdigest()


def model_digest(model: Any) -> str:
    """A short hash of a model's weights, by which ranks know that they have the same."""
    digest = hashlib.sha256()
    _add_weights(digest, model)
    return digest.hexdigest()[:12]


def _add_weights(digest: Any, module: Any) -> None:
    for name, value in sorted(tree_flatten(module.parameters())):
        digest.update(f"{name} {value.shape} {value.dtype}".encode())
        digest.update(_bytes(value))
