"""Command line: `python -m tests.fuzz [options]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from .cases import Case, try_case
from .report import Report
from .sources import make_sources
from .workers import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=4000, metavar="N", help="how many to try (default: 4000)")
    add("--first", type=int, default=0, metavar="N", help="the number to begin with (default: 0)")
    add("--seed", type=int, default=0, metavar="N", help="another one gives other files")
    add("--case", type=int, metavar="N", help="try this one in this process, and keep its files")
    text = "(default: one for each core, up to 4)"
    add("--processes", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help=text)
    args = parser.parse_args()
    if args.case is not None:
        return rerun(Case(args.case, args.seed))
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as in `make test`
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        sources = Path(place) / "sources"
        sources.mkdir()
        make_sources(sources)
        report, start = Report(args.seed), time.monotonic()
        job = partial(try_case, sources=sources, seed=args.seed)
        for result in run(job, range(args.first, args.first + args.count), args.processes):
            if failure := report.add(result, sources):
                print(failure, flush=True)
    print(report)
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if report.failures else 0


def rerun(case: Case) -> int:
    """Use one, whose files stay; what is raised is shown."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (place / "sources").mkdir()
    make_sources(place / "sources")
    what = case.write(place / "sources", place / "case")
    print(f"{case.source}: {what}\n{place / 'case'}", file=sys.stderr)
    case.use(place / "case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
