"""When tensor parallelism pays: what a token and a prompt take on one Mac and on several, by the
bytes that are read and sent and the round trips between; nothing is measured here.

    python tests/benchmarks/tensor_parallel.py

A token takes one Mac bytes / bandwidth, as all weights are read once. N Macs read 1/N of the
layers' each, the head is read by one, and there are two sums in each layer and two messages of the
command: each takes a latency, and little else.
"""

from __future__ import annotations

from dataclasses import dataclass

#: calls in a pass; of a command: how long it is, what it is, and that all ranks have done it
CALLS_A_LAYER, CALLS_OF_COMMAND = 2, 3
BITS = {16: 16.0, 4: 4.5}  #: with scales and biases of groups of 64
#: seconds that a call takes, by what carries it: measured by others, see the README
LATENCIES = {"TCP": 300e-6, "JACCL": 40e-6}
BANDWIDTHS = {"M4": 120e9, "M4 Pro": 273e9, "M4 Max": 546e9}  #: bytes a second
NETWORKS = {"10 Gb/s": 10e9 / 8, "40 Gb/s": 40e9 / 8}  #: bytes a second
#: eight segments of 30 s, ten audio tokens a second, with the prompt and a block of a draft
PREFILL_POSITIONS = 8 * (300 + 20 + 32)


@dataclass(frozen=True)
class Decoder:
    """Sizes of a released model's."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Of all layers."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    @property
    def calls(self) -> int:
        """Collective calls in a pass."""
        return CALLS_A_LAYER * self.layers + CALLS_OF_COMMAND

    def sent_bytes(self, positions: int, macs: int) -> float:
        """What each Mac sends and receives in a pass, in 16 bits: a sum by a ring, 2 (N - 1) / N of
        the states, which a command has once."""
        states = positions * self.hidden * 2
        return 2 * (macs - 1) / macs * states * (CALLS_A_LAYER * self.layers + 1)

    def step_seconds(self, bits: int, bandwidth: float, macs: int = 1, latency: float = 0) -> float:
        """Of one token."""
        weights = self.layer_weights / macs + self.head_weights
        waiting = self.calls * latency if macs > 1 else 0.0
        return weights * BITS[bits] / 8 / bandwidth + waiting


DECODERS = [
    Decoder("4.1-2b", 2048, 4096, 40, 16, 4, 128, 100353),
    Decoder("3.3-8b", 4096, 12800, 40, 32, 8, 128, 49160),
]


def token_table(macs: int = 2) -> list[str]:
    """Milliseconds a token, as a table in Markdown."""
    columns = ["model", "bits", "Mac", "one", *(f"{macs} by {name}" for name in LATENCIES)]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for decoder in DECODERS:
        for bits in BITS:
            for mac, bandwidth in BANDWIDTHS.items():
                one = decoder.step_seconds(bits, bandwidth)
                cells = [decoder.name, str(bits), mac, f"{one * 1e3:.1f}"]
                for latency in LATENCIES.values():
                    seconds = decoder.step_seconds(bits, bandwidth, macs, latency)
                    cells.append(f"{seconds * 1e3:.1f} ({one / seconds:.2f} x)")
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def prefill_table(macs: int = 2) -> list[str]:
    """What a batch of speech takes on the way, as a table in Markdown."""
    columns = ["model", "sent by each", *NETWORKS, "operations"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for decoder in DECODERS:
        sent = decoder.sent_bytes(PREFILL_POSITIONS, macs)
        seconds = [f"{sent / rate:.2f} s" for rate in NETWORKS.values()]
        operations = 2 * decoder.layer_weights * PREFILL_POSITIONS
        cells = [decoder.name, f"{sent / 1e9:.2f} GB", *seconds, f"{operations / 1e12:.0f} T"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*token_table(), "", *prefill_table()]))
