"""What came of the cases, for people."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .cases import Case
from .workers import FAILED, FINE, REFUSED, Result


@dataclass
class Report:
    """Counts by kind, and each failure with how to have it again."""

    seed: int = 0
    counts: dict[str, Counter] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, result: Result, sources: Path) -> str | None:
        """Count one; what failed, if it did."""
        case = Case(result.number, self.seed)
        kind = case.source.kind
        self.counts.setdefault(kind, Counter())[result.outcome] += 1
        self.slowest[kind] = max(self.slowest.get(kind, 0), result.seconds)
        self.most[kind] = max(self.most.get(kind, 0), result.mebibytes)
        if result.outcome != FAILED:
            return None
        with tempfile.TemporaryDirectory(dir=sources.parent) as place:
            done = case.write(sources, Path(place) / "case")
        self.failures.append(f"{case.number} {case.source}: {done}\n    {result.message}")
        return self.failures[-1]

    def __str__(self) -> str:
        lines = [f"{'':14}{FINE:>8}{REFUSED:>8}{FAILED:>8}{'slowest':>10}{'memory':>10}"]
        for kind, counts in self.counts.items():
            numbers = "".join(f"{counts[outcome]:8}" for outcome in (FINE, REFUSED, FAILED))
            lines.append(f"{kind:14}{numbers}{self.slowest[kind]:8.1f} s{self.most[kind]:6.0f} MiB")
        if self.failures:
            seed = f" --seed {self.seed}" if self.seed else ""
            lines.append(f"one of them again: python -m tests.fuzz{seed} --case N")
        return "\n".join(lines)
