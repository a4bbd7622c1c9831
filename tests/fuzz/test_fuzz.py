"""The first 200 inputs of `make fuzz`; and that what is wrong would be seen."""

from __future__ import annotations

import warnings
from functools import partial

import pytest

from mlx_speech import MlxSpeechError

from .cases import Case, outcome_of, try_case
from .report import Report
from .sources import SOURCES, make_sources
from .workers import FAILED, FINE, REFUSED, run

INPUTS = 200
KINDS = {source.kind for source in SOURCES}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "sources"
    folder.mkdir()
    make_sources(folder)
    return folder


def test_nothing_but_errors_of_our_own(sources):
    """Whole files are read, playlists are not; of the others some are, in every kind of file."""
    report = Report()
    for result in run(partial(try_case, sources=sources), range(INPUTS)):
        report.add(result, sources)
    assert report.failures == [], "\n".join([*report.failures, str(report)])
    assert report.counts.keys() == KINDS
    for kind, counts in report.counts.items():
        assert counts[REFUSED] > 0, kind
        assert (counts[FINE] > 0) == (kind != "playlist"), kind


def test_a_number_stands_for_the_same_files(sources, tmp_path):
    case, last = Case(len(SOURCES)), Case(40 * len(SOURCES) - 1)
    for number, (a, b) in enumerate([(case, case), (last, last)]):
        first, second = tmp_path / f"{number}a", tmp_path / f"{number}b"
        assert a.write(sources, first) == b.write(sources, second) != "as it is"
        assert contents(first) == contents(second) != contents(sources / a.source.folder)


def test_another_seed_gives_other_files(sources, tmp_path):
    number = len(SOURCES)
    assert Case(number).write(sources, tmp_path / "a")
    assert Case(number, seed=1).write(sources, tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "b")


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class WordedError(MlxSpeechError):
    """With a message that nothing has made shorter or printable."""

    def __init__(self, message: str):
        self.message = message

    def __str__(self) -> str:
        return self.message


MUTATED = len(SOURCES)
PLAYLIST = next(number for number, source in enumerate(SOURCES) if source.refused)


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (None, FINE),
        (WordedError("talk.wav is cut short"), REFUSED),
        (WordedError("talk.wav:\nit is cut short"), FAILED),
        (WordedError("talk.wav: \x1b[31m"), FAILED),
        (WordedError("x" * 301), FAILED),
        (ValueError("not ours"), FAILED),
        (MemoryError(), FAILED),
        (SystemExit(1), FAILED),
    ],
)
def test_what_is_told_of_a_file_with_something_wrong(raised, outcome):
    assert outcome_of(partial(give, raised), Case(MUTATED))[0] == outcome


def test_what_is_told_of_a_whole_file():
    error = WordedError("talk.wav is cut short")
    assert outcome_of(partial(give, None), Case(0))[0] == FINE
    assert outcome_of(partial(give, error), Case(0))[0] == FAILED
    assert outcome_of(partial(give, None), Case(PLAYLIST))[0] == FAILED
    assert outcome_of(partial(give, error), Case(PLAYLIST))[0] == REFUSED


@pytest.mark.parametrize(
    ("category", "message", "outcome"),
    [
        (UserWarning, "the ids of vocab.json are used", FINE),
        (UserWarning, "the ids of\nvocab.json are used", FAILED),
        (RuntimeWarning, "divide by zero encountered in divide", FAILED),
    ],
)
def test_what_is_told_of_a_warning(category, message, outcome):
    assert outcome_of(partial(warnings.warn, message, category), Case(MUTATED))[0] == outcome


def give(raised):
    if raised is not None:
        raise raised
