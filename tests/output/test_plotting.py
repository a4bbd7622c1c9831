"""Pictures of transcripts: what the figure shows, and the file that comes of it."""

from __future__ import annotations

import struct
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from small_transcripts import many_scripts, segment, spoken, transcript

from mlx_speech.errors import InputError, UnsupportedOptionError
from mlx_speech.output.plotting import (
    BLOCK,
    ENVELOPE_POINTS,
    MAX_ROWS,
    check_plot,
    draw_transcript,
    plot_transcript,
)

RATE = 16000


class Samples:
    """A recording of silence but for a click at each given time; remembers what was read."""

    def __init__(self, *clicks: float, rate: int = RATE):
        self.clicks = [round(click * rate) for click in clicks]
        self.reads: list[tuple[int, int]] = []

    def __call__(self, start: int, end: int) -> mx.array:
        self.reads.append((start, end))
        samples = np.zeros(end - start, dtype=np.float32)
        samples[[click - start for click in self.clicks if start <= click < end]] = -0.5
        return mx.array(samples)


def found(row, gid: str) -> list:
    return [artist for artist in row.get_children() if artist.get_gid() == gid]


def bars(row, gid: str) -> list[tuple[float, float]]:
    """Start and end of each bar, in s."""
    paths = [path for artist in found(row, gid) for path in artist.get_paths()]
    extents = [path.get_extents() for path in paths if len(path.vertices)]
    return [(round(extent.x0, 3), round(extent.x1, 3)) for extent in extents]


def texts(row, gid: str) -> list[str]:
    return [artist.get_text() for artist in found(row, gid)]


def wave(row) -> np.ndarray:
    """Corners of the waveform, (n, 2)."""
    (drawn,) = found(row, "wave")
    return drawn.get_paths()[0].vertices


def test_segments_words_and_pauses_are_where_they_are_said():
    said = transcript(spoken("unlock the gate", 1.0, 0.6), segment("again", 4.0, 5.0))
    said.duration = 6.0
    said.regions = [(1.0, 2.8), (4.0, 5.0)]
    (row,) = draw_transcript(Samples(2.0), RATE, said).axes
    assert row.get_xlim() == (0, 6)
    assert bars(row, "pauses") == [(0, 1), (2.8, 4), (5, 6)]
    assert bars(row, "segments") == [(1, 2.8), (4, 5)]
    assert texts(row, "segment text") == ["unlock the gate", "again"]
    assert bars(row, "words") == [(1, 1.6), (1.6, 2.2), (2.2, 2.8)]
    assert texts(row, "word text") == ["unlock", "the", "gate"]
    (cuts,) = found(row, "cuts")
    times = [line[0, 0] for line in cuts.get_segments()]
    assert times == pytest.approx([1, 2.8, 4, 5])


def test_waveform_fills_its_band_and_shows_the_shortest_click():
    said = transcript(segment("a", 0, 19.0))
    (row,) = draw_transcript(Samples(7.5), RATE, said).axes
    corners = wave(row)
    assert corners[:, 1].min() == -1
    assert corners[:, 1].max() == 0
    assert corners[corners[:, 1].argmin(), 0] == pytest.approx(7.5, abs=19 / ENVELOPE_POINTS)
    assert bars(row, "pauses") == []


def test_a_long_recording_takes_more_rows():
    said = transcript(segment("one", 1, 2), segment("over the edge of a row", 18, 22))
    said.duration = 50.0
    rows = draw_transcript(Samples(30.0), RATE, said).axes
    assert [row.get_xlim() for row in rows] == [(0, 20), (20, 40), (40, 60)]
    assert [texts(row, "segment text") for row in rows] == [
        ["one", "over the edge of a row"],
        ["over the edge of a row"],
        [],
    ]
    assert [bars(row, "segments") for row in rows] == [[(1, 2), (18, 22)], [(18, 22)], []]
    assert [wave(row)[:, 1].min() for row in rows] == [0, -1, 0]
    corners = wave(rows[1])
    assert corners[corners[:, 1].argmin(), 0] == pytest.approx(30, abs=0.02)
    assert wave(rows[2])[:, 0].max() <= 50


def test_an_hour_is_read_in_parts_and_never_drawn_sample_by_sample():
    said = transcript(segment("late", 3590, 3599))
    said.duration = 36000.0
    samples = Samples(35999.0, rate=2000)
    rows = draw_transcript(samples, 2000, said).axes
    assert len(rows) == MAX_ROWS
    assert max(end - start for start, end in samples.reads) <= BLOCK
    edges = [0, *(end for _, end in samples.reads)]
    assert edges == [*(start for start, _ in samples.reads), 72_000_000]  # each once
    assert max(len(wave(row)) for row in rows) <= 2 * ENVELOPE_POINTS + 8
    assert wave(rows[-1])[:, 1].min() == -1


def test_a_block_may_end_within_a_row(monkeypatch):
    whole = Samples(3.0, 11.0)
    said = transcript(segment("a", 0, 12))
    (row,) = draw_transcript(whole, RATE, said).axes
    monkeypatch.setattr("mlx_speech.output.plotting.BLOCK", 10_000)
    (cut,) = draw_transcript(parts := Samples(3.0, 11.0), RATE, said).axes
    assert len(whole.reads) == 1
    assert len(parts.reads) > 10
    assert np.array_equal(wave(row), wave(cut))


def test_words_that_are_too_close_lose_their_text_but_not_their_bar():
    said = transcript(spoken("extraordinary " * 40, 0.0, 0.1))
    said.duration = 20.0
    (row,) = draw_transcript(Samples(), RATE, said).axes
    assert len(bars(row, "words")) == 40
    assert 3 <= len(texts(row, "word text")) < 40


def test_long_text_is_cut_to_its_segment():
    said = transcript(segment("a very long sentence " * 20, 1, 3))
    said.duration = 20.0
    (row,) = draw_transcript(Samples(), RATE, said).axes
    (text,) = texts(row, "segment text")
    assert text.startswith("a very long sentence")
    assert text.endswith("…")
    assert len(text) < 60


def test_an_empty_recording_is_not_read():
    samples = Samples()
    (row,) = draw_transcript(samples, RATE, transcript()).axes
    assert samples.reads == []
    assert row.get_xlim()[0] == 0


def test_who_speaks():
    said = segment("hello", 0.0, 5.0)
    said.speaker = 2
    (row,) = draw_transcript(Samples(), RATE, transcript(said)).axes
    assert texts(row, "segment text") == ["[Speaker 2]: hello"]


def test_dollars_are_no_formula():
    (row,) = draw_transcript(Samples(), RATE, transcript(spoken("from $5 to $6", 0))).axes
    assert texts(row, "segment text") == ["from $5 to $6"]
    assert not any(artist.get_parse_math() for artist in row.texts)


def png_size(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.mark.parametrize("seconds", [0.0, 0.5, 30.0])
def test_file(tmp_path, seconds):
    path = tmp_path / "a.png"
    said = transcript(*many_scripts().segments[:4], segment("from $5 to $6_{x}", 0, 0.4))
    said.duration = seconds
    said.regions = []
    plot_transcript(path, Samples(), RATE, said)
    width, height = png_size(path)
    assert width == 2000
    assert 100 < height < 500
    first = path.read_bytes()
    said.regions = []
    plot_transcript(path, Samples(), RATE, said)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_characters_that_no_font_has(tmp_path):
    """They are boxes, without a word about it; every warning is an error here."""
    said = transcript(segment("今日は \U0001f600 \u1f5b\U000e0fff", 0, 2))
    plot_transcript(tmp_path / "a.png", Samples(), RATE, said)


def test_a_failed_picture_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")

    def read(start, end):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        plot_transcript(path, read, RATE, many_scripts())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_png(tmp_path):
    with pytest.raises(InputError, match=r"talk.pdf a name that ends in .png"):
        plot_transcript(tmp_path / "talk.pdf", Samples(), RATE, many_scripts())
    check_plot(tmp_path / "TALK.PNG")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedOptionError, match=r"pip install 'mlx-speech\[plot\]'"):
        plot_transcript(tmp_path / "a.png", Samples(), RATE, many_scripts())


def test_the_module_itself_imports_no_matplotlib_and_drawing_no_window():
    code = (
        "import sys, mlx_speech.output.plotting, mlx_speech.output.writers\n"
        "print('matplotlib' in sys.modules, 'mlx.core' in sys.modules)\n"
        "from mlx_speech import Transcript\n"
        "from mlx_speech.output.plotting import draw_transcript\n"
        "import numpy as np\n"
        "draw_transcript(lambda a, b: np.zeros(b - a), 100, Transcript('', None, 1.0, []))\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\nFalse\n"
