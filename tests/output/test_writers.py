"""Files of transcripts, but for the subtitles; and what they are called."""

from __future__ import annotations

import csv
import json
import math

import pytest
from conftest import DATA
from small_transcripts import dialogue, many_scripts, segment, transcript

from mlx_speech.errors import InputError
from mlx_speech.output.subtitles import SubtitleOptions
from mlx_speech.output.writers import FORMATS, output_name

CALL = {"model": "org/granite-8bit", "task": "transcribe"}


@pytest.mark.parametrize("ending", ["txt", "tsv", "json"])
def test_golden(ending):
    golden = (DATA / "writers" / f"plain.{ending}").read_text(encoding="utf-8")
    assert FORMATS[ending](many_scripts(), "org/tiny", SubtitleOptions()) == golden


def test_every_format_takes_the_same():
    assert list(FORMATS) == ["txt", "srt", "vtt", "tsv", "json"]
    for write in FORMATS.values():
        assert write(many_scripts(), "tiny", SubtitleOptions())


def test_txt_has_a_line_for_each_segment_with_text():
    made = transcript(segment("one\ntwo", 0, 1), segment(" ", 1, 2), segment("three", 2, 3))
    assert FORMATS["txt"](made, "tiny", SubtitleOptions()) == "one two\nthree\n"
    assert FORMATS["txt"](transcript(), "tiny", SubtitleOptions()) == ""


def test_tsv_is_three_columns_whatever_is_said():
    made = transcript(segment('a\tb\r\n"c" \x0b d\u2028e', 0.0004, 1.0006), segment("", 2, 3))
    text = FORMATS["tsv"](made, "tiny", SubtitleOptions())
    assert text == 'start\tend\ttext\n0\t1001\ta b "c" d e\n'
    rows = list(csv.reader(text.splitlines(), "excel-tab", quoting=csv.QUOTE_NONE))
    assert rows[1] == ["0", "1001", 'a b "c" d e']
    assert FORMATS["tsv"](transcript(), "tiny", SubtitleOptions()) == "start\tend\ttext\n"


class TestSpeakers:
    def test_txt(self):
        lines = FORMATS["txt"](dialogue(), "tiny", SubtitleOptions()).splitlines()
        assert lines[:3] == [
            "[Speaker 1]: good morning everybody",
            "[Speaker 2]: a <b> & c",
            "hm",
        ]

    def test_tsv_has_a_column_more(self):
        lines = FORMATS["tsv"](dialogue(), "tiny", SubtitleOptions()).splitlines()
        assert lines[:4] == [
            "start\tend\ttext\tspeaker",
            "0\t1500\tgood morning everybody\t1",
            "2000\t4000\ta <b> & c\t2",
            "5000\t5500\thm\t",
        ]

    def test_json(self):
        made = dialogue()
        made.segments[1].remarks = ["the tag '[' is cut off"]
        read = json.loads(FORMATS["json"](made, "tiny", SubtitleOptions()))
        assert [s.get("speaker", "none") for s in read["segments"]] == [1, 2, "none", 1]
        assert "Speaker" not in read["text"]
        remarks = [s.get("remarks") for s in read["segments"]]
        assert remarks == [None, ["the tag '[' is cut off"], None, None]


class TestJson:
    def test_remarks_where_there_are_any(self):
        made = transcript()
        made.remarks = ["no text: it is silent"]
        read = json.loads(FORMATS["json"](made, "tiny", SubtitleOptions()))
        assert read["remarks"] == ["no text: it is silent"]

    def test_everything_is_there(self):
        made = many_scripts()
        read = json.loads(FORMATS["json"](made, "org/tiny", SubtitleOptions()))
        assert list(read) == ["text", "language", "duration", "model", "segments"]
        assert (read["text"], read["language"]) == (made.text, "en")
        assert (read["duration"], read["model"]) == (3664.5, "org/tiny")
        assert len(read["segments"]) == len(made.segments)
        for got, want in zip(read["segments"], made.segments, strict=True):
            assert list(got) == ["start", "end", "text", "avg_logprob", "words"]
            times = round(want.start, 3), round(want.end, 3)
            assert (got["start"], got["end"], got["text"]) == (*times, want.text)
            assert got["avg_logprob"] == -0.25
            assert [list(w) for w in got["words"]] == [["word", "start", "end", "probability"]] * (
                len(want.words)
            )
            assert [tuple(w.values()) for w in got["words"]] == [
                (w.text, round(w.start, 3), round(w.end, 3), w.probability) for w in want.words
            ]

    def test_no_text(self):
        assert (
            json.loads(FORMATS["json"](transcript(), "tiny", SubtitleOptions()))["segments"] == []
        )

    def test_it_has_no_infinities(self):
        made = transcript(segment("a", 0, 1, [("a", 0, 1)]))
        made.segments[0].avg_logprob = -math.inf
        made.segments[0].words[0].probability = math.nan
        (read,) = json.loads(FORMATS["json"](made, "tiny", SubtitleOptions()))["segments"]
        assert read["avg_logprob"] is None
        assert read["words"][0]["probability"] is None


class TestOutputName:
    @pytest.mark.parametrize(
        ("template", "name"),
        [
            ("{stem}", "talk.v2"),
            ("{name}", "talk.v2.flac"),
            ("{parent}-{stem}", "monday-talk.v2"),
            ("{stem}.{language}", "talk.v2.en"),
            ("{model}_{task}", "granite-8bit_transcribe"),
            ("{{{stem}}}", "{talk.v2}"),
            ("all of it", "all of it"),
        ],
    )
    def test_fields(self, template, name):
        assert output_name(template, "calls/monday/talk.v2.flac", language="en", **CALL) == name

    def test_standard_input(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert output_name("{stem}", "-", **CALL) == "stdin"
        assert output_name("{parent}", "a.wav", **CALL) == tmp_path.name

    def test_no_break_spaces_of_a_recordings_name(self):
        assert output_name("{stem}", "3.04\u202fPM.mov", **CALL) == "3.04\u202fPM"

    def test_model_is_a_folder(self):
        call = CALL | {"model": "models/tiny/"}
        assert output_name("{stem}.{model}", "a.wav", **call) == "a.tiny"

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{title}", r"unknown field \{title\}; there are \{stem\}, \{name\}, \{parent\}, "),
            ("{}", r"unknown field \{\}"),
            ("{0}", r"unknown field \{0\}"),
            ("{stem.upper}", r"unknown field \{stem.upper\}"),
            ("{stem!r}", r"unknown field \{stem!r\}"),
            ("{stem:>20}", r"unknown field \{stem:>20\}"),
            ("{stem", "is malformed: "),
            ("stem}", "is malformed: "),
            ("a/{stem}", "has a path separator"),
            ("..\\{stem}", "has a path separator"),
            ("{stem}\n", "has a path separator or control character"),
            ("", "gives '', which is no name for a file"),
            ("  ", "which is no name for a file"),
            ("..", "which is no name for a file"),
            ("{stem}.{language}", "needs the language, which is not known"),
        ],
    )
    def test_refused(self, template, message):
        with pytest.raises(InputError, match=message) as caught:
            output_name(template, "calls/talk.flac", **CALL)
        assert "\n" not in str(caught.value)
