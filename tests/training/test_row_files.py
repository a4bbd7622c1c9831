"""Rows of JSON lines and CSV, and what is said about those that are none."""

from __future__ import annotations

import pytest

from mlx_speech.errors import InputError
from mlx_speech.training.row_files import read_file
from mlx_speech.training.rows import Row

GOOD = '{"audio": "a.wav", "text": "one"}'
DEEP = "[" * 100_000
LINES = {
    '{"audio": "a.wav"': "it is not JSON (Expecting ',' delimiter at character 18)",
    "[1]": "it is of type list, but must be an object",
    '"a.wav"': "it is of type str, but must be an object",
    '{"audio": "a.wav"}': "there is no text",
    '{"audio": "a.wav", "text": null}': "there is no text",
    '{"text": "x"}': "there is no audio",
    '{"audio": "a.wav", "text": " \\n"}': "text is empty",
    '{"audio": "", "text": "x"}': "audio is empty, but must be a path",
    '{"audio": ["a.wav"], "text": "x"}': "audio is of type list, but must be a path",
    '{"audio": "a.wav", "text": 5}': "text is 5, but must be text",
    '{"audio": "a.wav", "text": "x", "prompt": 5}': "prompt is 5, but must be text",
    '{"audio": "a.wav", "text": "x", "language": ["en"]}': "language is ['en'], but must be text",
    '{"audio": "a.wav", "text": "x", "prompt": "do", "language": "en"}': (
        "prompt takes the place of language and punctuate: leave them out"
    ),
    '{"audio": "a.wav", "text": "x", "punctuate": "ja"}': (
        "punctuate is 'ja', but must be true or false"
    ),
    '{"audio": "a.wav", "text": "x", "text": "y"}': "text is there twice",
    '{"audio": "http://a.org/a.wav", "text": "x"}': (
        "audio is the address http://a.org/a.wav: download it first"
    ),
    '{"audio": "a.wav", "text": "\\ud800"}': "text is not UTF-8",
    '{"audio": "a.wav", "text": "caf\udce9"}': "text is not UTF-8",
    DEEP: "it is not JSON (maximum recursion depth exceeded while decoding a JSON array from a",
    "1" * 5000: "it is not JSON (Exceeds the limit (4300 digits)",
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60])
def test_a_bad_line_of_json(tmp_path, line):
    file = tmp_path / "train.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", errors="surrogateescape")
    first, problem, last = read_file(file).entries
    assert (first.place, last.place) == ("train.jsonl:1", "train.jsonl:4")
    expected = f"train.jsonl:3: {LINES[line]}"
    assert problem.startswith(expected) if len(line) > 1000 else problem == expected


def test_json_of_any_editor(tmp_path):
    """With a byte order mark, of Windows, empty lines, no end of the last, and odd separators."""
    file = tmp_path / "train.jsonl"
    texts = '{"audio": "a.wav", "text": "two\u2028lines", "duration": 3}'
    file.write_bytes(f"\ufeff{GOOD}\r\n \r\n{texts}".encode())
    assert [(row.place, row.text) for row in read_file(file).entries] == [
        ("train.jsonl:1", "one"),
        ("train.jsonl:3", "two\u2028lines"),
    ]


def test_what_a_row_says(tmp_path):
    file = tmp_path / "train.jsonl"
    rows = (
        '{"audio": "a.wav", "text": " one ", "prompt": "", "language": null}',
        '{"audio": "/b/c.wav", "text": "two", "prompt": "write"}',
        '{"file_name": "d/e.wav", "transcription": "three", "language": "fr"}',
        '{"audio": null, "audio_filepath": "f.wav", "text": null, "sentence": "four"}',
    )
    file.write_text("\n".join(rows))
    found = read_file(file).entries
    paths = [row.audio.path.as_posix() for row in found]
    folder = tmp_path.as_posix()
    assert paths == [f"{folder}/a.wav", "/b/c.wav", f"{folder}/d/e.wav", f"{folder}/f.wav"]
    others = [(row.text, row.prompt, row.language) for row in found]
    assert others == [
        ("one", None, None),
        ("two", "write", None),
        ("three", None, "fr"),
        ("four", None, None),
    ]


def test_csv(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes(
        b"\xef\xbb\xbfaudio, text,language,punctuate,speaker\r\n"
        b'a.wav,"one, ""two""\r\nthree",fr,TRUE,x\r\n'
        b"\r\n"
        b"b.wav,four,,false,\r\n"
    )
    one, two = read_file(file).entries
    assert one == Row("train.csv:2", one.audio, 'one, "two"\r\nthree', None, "fr", True)
    assert two == Row("train.csv:5", two.audio, "four")
    assert two.audio.path == tmp_path / "b.wav"


def test_bad_lines_of_csv(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes(
        b'audio,text\na.wav,one, two\na.wav\n,x\na.wav,\n"b.wav"x,y\na.wav,caf\xe9\na.wav,z\n'
        b'a.wav,"open\n'
    )
    commas = "but the header 2: put texts with commas in quotation marks"
    *problems, last, end = read_file(file).entries
    assert problems == [
        f"train.csv:2: it has 3 fields, {commas}",
        f"train.csv:3: it has 1 fields, {commas}",
        "train.csv:4: audio is empty, but must be a path",
        "train.csv:5: text is empty",
        "train.csv:6: it is not CSV (',' expected after '\"')",
        "train.csv:7: text is not UTF-8",
    ]
    assert last.text == "z"
    assert end == "train.csv:9: it is not CSV (unexpected end of data)"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a.wav,hello", "train.csv:1: the header has no column audio"),
        ("audio,words", "train.csv:1: the header has no column text"),
        ("\naudio,text,text", "train.csv:2: column text is there twice"),
    ],
)
def test_a_bad_header(tmp_path, header, message):
    file = tmp_path / "train.csv"
    file.write_text(f"{header}\na.wav,x,y\n")
    with pytest.raises(InputError) as caught:
        read_file(file)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_utf_16(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("audio,text\na.wav,x\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"train.csv is in UTF-16: save it in UTF-8$"):
        read_file(file)
