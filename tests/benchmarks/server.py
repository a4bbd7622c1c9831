"""A server under load on loopback: what 16 clients at a time get, how fast, and in what memory.

    python tests/benchmarks/server.py
    python tests/benchmarks/server.py --requests 400 --clients 32 --model FOLDER

Each client uploads one of eight bundled recordings and waits for its text, again and again. Before
and after, as many requests come one at a time. Texts must be the same, and the server's memory must
not grow between the 50th request and the 200th.

On Linux the server preloads OpenBLAS if it is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from workers import Demands, openblas_environment

from mlx_speech.audio import load_audio
from mlx_speech.profiling.machine import machine_name

ROOT = Path(__file__).parent.parent.parent
AUDIO = ROOT / "tests" / "data" / "audio"
RECORDINGS = [
    AUDIO / f"{name}.flac"
    for name in (
        *("espeak_01", "espeak_04", "espeak_06", "festival_13", "festival_15"),
        *("flite_07", "flite_08", "flite_11"),
    )
]
LEAST_SPEEDUP = 1.5
MOST_GROWTH = 1.05  #: of memory
SETTLED_REQUESTS = 50  #: after which it is not to grow


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen
    url: str

    def transcribe(self, recording: Path) -> str:
        """The text of a recording, by `/v1/audio/transcriptions`."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
        head += f'filename="{recording.name}"\r\n\r\n'
        body = head.encode() + recording.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        request = urllib.request.Request(
            f"{self.url}/v1/audio/transcriptions",
            body,
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)["text"]

    def memory_mb(self) -> float:
        """What it has in memory, resident."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1000


@contextmanager
def serving(model: str) -> Iterator[Server]:
    """A server, on any port that is free."""
    command = [sys.executable, "-m", "mlx_speech.serve", "--model", model, "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=openblas_environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            if found := re.search(r"serving .* at (http\S+)", line):
                break
        else:
            sys.exit("the server did not start")
        # what else it says is not to fill the pipe
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Server(process, found[1])
    finally:
        process.terminate()
        process.wait()


@dataclass
class Load:
    """What becomes of requests.

    seconds: of each, as its client sees it.
    memory_mb: after each.
    """

    server: Server
    texts: list[tuple[Path, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    wall_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, requests: int, clients: int) -> Load:
        """So many requests, of which as many are open at a time as there are clients."""
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            # a list, so that an error is raised
            list(pool.map(self._one, itertools.islice(itertools.cycle(RECORDINGS), requests)))
        self.wall_seconds += time.perf_counter() - start
        return self

    def _one(self, recording: Path) -> None:
        start = time.perf_counter()
        text = self.server.transcribe(recording)
        taken = time.perf_counter() - start
        with self._lock:
            self.texts.append((recording, text))
            self.seconds.append(taken)
            self.memory_mb.append(self.server.memory_mb())

    @property
    def requests_per_second(self) -> float:
        return len(self.texts) / self.wall_seconds

    def row(self, name: str, duration: dict[Path, float]) -> str:
        """A line of the table."""
        times = statistics.quantiles(self.seconds, n=20, method="inclusive")
        audio = sum(duration[recording] for recording, _ in self.texts)
        numbers = f"{self.requests_per_second:>12.1f}{audio / self.wall_seconds:>12.1f}"
        return f"{name:<22}{numbers}{times[9] * 1000:>12.0f}{times[-1] * 1000:>12.0f}"


def benchmark(options: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    duration = {path: load_audio(path).size / 16000 for path in RECORDINGS}
    with serving(options.model) as server:
        alone, together = Load(server), Load(server)
        Load(server).run(len(RECORDINGS), 1)  # warms up
        alone.run(options.requests // 2, 1)
        together.run(options.requests, options.clients)
        alone.run(options.requests - options.requests // 2, 1)
    print(machine_name())
    seconds = sum(duration.values())
    print(f"{options.model}: {len(RECORDINGS)} recordings, {seconds:.1f} s")
    print(f"\n{'':<22}{'requests/s':>12}{'x real time':>12}{'median, ms':>12}{'95 %, ms':>12}")
    print(alone.row("one at a time", duration))
    print(together.row(f"{options.clients} clients", duration))
    settled, last = together.memory_mb[SETTLED_REQUESTS - 1], together.memory_mb[-1]
    print(f"\nresident memory: {settled:.0f} MB after {SETTLED_REQUESTS} requests, ", end="")
    print(f"{last:.0f} MB after {options.requests}\n")
    demands = Demands()
    same = {*alone.texts} == {*together.texts} and len({*alone.texts}) == len(RECORDINGS)
    demands.check("texts are those of one at a time", same)
    speedup = together.requests_per_second / alone.requests_per_second
    demands.at_least("requests a second, beside one at a time", speedup, LEAST_SPEEDUP)
    demands.at_most("memory at the end, beside the settled", last / settled, MOST_GROWTH)
    return demands.status()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="examples/tiny-granite-speech")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    if options.requests <= SETTLED_REQUESTS:
        parser.error(f"--requests must be more than {SETTLED_REQUESTS}")
    return benchmark(options)


if __name__ == "__main__":
    sys.exit(main())
