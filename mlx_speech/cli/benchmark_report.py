"""What was measured, as a table of 80 columns and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import __version__
from .console import display_name

if TYPE_CHECKING:
    from ..profiling.attention import AttentionUse
    from ..profiling.machine import Machine
    from ..profiling.profile import ModelProfile

_WIDTH, _COLUMN = 80, 12


@dataclass(frozen=True)
class Report:
    """What was measured of a model, with one number of bits after the other.

    adapter: what was put over it with --adapter.
    bandwidth: bytes a second that the machine copies.
    """

    machine: Machine
    model: str
    adapter: str | None
    recordings: list[str]
    runs: int
    bandwidth: float
    profiles: list[ModelProfile]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "mlx_speech": __version__,
            "machine": asdict(self.machine),
            "model": self.model,
            "adapter": self.adapter,
            "recordings": self.recordings,
            "runs": self.runs,
            "bandwidth_bytes_per_second": self.bandwidth,
            "profiles": [_profile_dict(profile) for profile in self.profiles],
            # the same, however many bits
            "attention": [asdict(use) for use in self.profiles[0].attention],
        }

    def table(self) -> str:
        """For people."""
        return "\n".join([*self._head(), "", *self._rows(), "", *self._attention()])

    def _head(self) -> Iterator[str]:
        machine, (first, *_) = self.machine, self.profiles
        yield machine.name
        yield f"MLX {machine.mlx} on {machine.device}"
        over = "" if self.adapter is None else f", with {display_name(self.adapter)} over it"
        yield display_name(self.model) + over
        count, seconds = len(self.recordings), f"{first.pipeline.audio_seconds:.1f} s"
        name = display_name(self.recordings[0]) if count == 1 else f"{count} recordings"
        yield f"{name}, {seconds}; medians of {self.runs}"
        limit = _scaled(first.encoding.limit_flops, "FLOP/s")
        bandwidth = _scaled(self.bandwidth, "B/s")
        yield f"memory: {_scaled(machine.memory_bytes, 'B')}, {bandwidth} copied"
        yield f"arithmetic: {limit} in a large product of matrices, {first.dtype}"

    def _rows(self) -> Iterator[str]:
        names = [f"{p.bits} bits" if p.bits < 16 else p.dtype for p in self.profiles]
        yield _row("", names)
        for label, value in _MEASURES.items():
            yield self._row(label, value)
        if not self.profiles[0].decoding:
            return
        for title, name in _SPEEDS.items():
            yield title
            for speeds in zip(*(p.decoding for p in self.profiles), strict=True):
                size = speeds[0].batch
                label = f"  in a batch of {size}" if size > 1 else "  alone"
                yield _row(label, [_plain(getattr(speed, name)) for speed in speeds])
        for label, value in _OF_DECODING.items():
            yield self._row(label, value)

    def _row(self, label: str, value: Callable[[ModelProfile], str]) -> str:
        return _row(label, [value(profile) for profile in self.profiles])

    def _attention(self) -> Iterator[str]:
        yield _attention_row(
            "attention", "queries", "keys", "heads / KV", "head size", "fused kernel"
        )
        for use in self.profiles[0].attention:
            yield _attention_row(
                f"{use.part}, causal" if use.causal else use.part,
                use.num_queries,
                _keys(use),
                f"{use.heads} / {use.kv_heads}",
                use.head_dim,
                "yes" if use.fused else "no",
            )


def _profile_dict(profile: ModelProfile) -> dict[str, Any]:
    encoding, pipeline = profile.encoding, profile.pipeline
    return {
        "bits": profile.bits,
        "dtype": profile.dtype,
        "weight_bytes": profile.weight_bytes,
        "encoder": {
            "ms_per_audio_second": encoding.ms_per_audio_second,
            "flops_per_audio_second": encoding.flops / encoding.audio_seconds,
            "matmul_flops_per_second": encoding.limit_flops,
            "share_of_matmul": encoding.share_of_limit,
        },
        "decoder": _decoding_dict(profile) if profile.decoding else None,
        "pipeline": {
            "audio_seconds": pipeline.audio_seconds,
            "seconds": pipeline.seconds,
            "times_real_time": pipeline.times_real_time,
            "peak_memory_bytes": pipeline.peak_memory_bytes,
            "drafts": pipeline.drafts and asdict(pipeline.drafts),
            "passes_per_token": pipeline.passes_per_token,
        },
    }


def _decoding_dict(profile: ModelProfile) -> dict[str, Any]:
    return {
        "batches": [asdict(speed) for speed in profile.decoding],
        "bytes_per_token": profile.decoding_bytes,
        "share_of_bandwidth": profile.share_of_bandwidth,
    }


def _plain(number: float | None) -> str:
    """Three digits that count."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 99.95 else f"{number:#.3g}"


def _scaled(number: float, unit: str) -> str:
    """In thousands, millions and so on of a unit."""
    power = min(int(math.log10(max(number, 1)) / 3), 4)
    return f"{_plain(number / 1000**power)} {['', 'k', 'M', 'G', 'T'][power]}{unit}"


def _per_cent(share: float) -> str:
    return f"{_plain(100 * share)} %"


#: label -> what stands there
_MEASURES: dict[str, Callable[[ModelProfile], str]] = {
    "weights": lambda p: _scaled(p.weight_bytes, "B"),
    "whole pipeline, times real time": lambda p: _plain(p.pipeline.times_real_time),
    "  passes of the decoder per token": lambda p: _plain(p.pipeline.passes_per_token),
    "  peak memory": lambda p: _scaled(p.pipeline.peak_memory_bytes, "B"),
    "encoder, ms per second of audio": lambda p: _plain(p.encoding.ms_per_audio_second),
    "  arithmetic per second of audio": lambda p: _scaled(
        p.encoding.flops / p.encoding.audio_seconds, "FLOP"
    ),
    "  share of the machine's arithmetic": lambda p: _per_cent(p.encoding.share_of_limit),
}
#: title -> field of `DecodingSpeed`
_SPEEDS = {
    "prefill, tokens per second": "prefill_tokens_per_second",
    "decoding without drafts, tokens per second": "decode_tokens_per_second",
}
_OF_DECODING: dict[str, Callable[[ModelProfile], str]] = {
    "  weights read in a step": lambda p: _scaled(p.decoding_bytes, "B"),
    "  share of the machine's bandwidth, alone": lambda p: _per_cent(p.share_of_bandwidth),
}


def _row(label: str, values: list[str]) -> str:
    columns = "".join(f"{value:>{_COLUMN}}" for value in values)
    return f"{label:<{_WIDTH - 3 * _COLUMN}}{columns}".rstrip()


def _attention_row(part: str, *values: object) -> str:
    widths = (9, 13, 13, 12, 15)
    return f"{part:<18}" + "".join(f"{v!s:>{w}}" for v, w in zip(values, widths, strict=True))


def _keys(use: AttentionUse) -> str:
    if use.least_keys == use.most_keys:
        return str(use.least_keys)
    return f"{use.least_keys} to {use.most_keys}"
