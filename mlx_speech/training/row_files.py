"""Rows of JSON lines and of CSV files."""

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .rows import AUDIO_COLUMNS, TEXT_COLUMNS, Rows

SUFFIXES = (".jsonl", ".csv")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_file(path: Path) -> Rows:
    """All rows of a file, one of `SUFFIXES`; empty lines are none, and paths are relative to its
    folder.

    Raises:
        InputError: it is not text, or has no columns that could be used.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if data.startswith(_UTF_16):
        raise InputError(f"{path} is in UTF-16: save it in UTF-8")
    # what is not UTF-8 becomes surrogates, which are refused in the row that has them
    text = data.decode("utf-8-sig", "surrogateescape")
    return (_csv_rows if path.suffix.lower() == ".csv" else _jsonl_rows)(text, path)


def _jsonl_rows(text: str, path: Path) -> Rows:
    rows = Rows()
    # not splitlines, which would end them also at separators that JSON may have in its texts
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            rows.add(place, json.loads(line, object_pairs_hook=_unique), path.parent)
        except InputError as error:
            rows.refuse(place, error)
        except json.JSONDecodeError as error:
            rows.refuse(place, f"it is not JSON ({error.msg} at character {error.pos + 1})")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep lists
            rows.refuse(place, f"it is not JSON ({error})")
    return rows


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise InputError(f"{name} is there twice")
        values[name] = value
    return values


def _csv_rows(text: str, path: Path) -> Rows:
    rows = Rows()
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        place = f"{path.name}:{number}"
        try:
            fields = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            rows.refuse(place, f"it is not CSV ({error})")
            continue
        if not any(field.strip() for field in fields):
            continue
        if not header:
            header = [name.strip() for name in fields]
            _check_header(header, f"{path}:{number}")
        elif len(fields) != len(header):
            counts = f"it has {len(fields)} fields, but the header {len(header)}"
            rows.refuse(place, f"{counts}: put texts with commas in quotation marks")
        else:
            rows.add(place, dict(zip(header, fields, strict=True)), path.parent)


def _check_header(header: list[str], place: str) -> None:
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{place}: column {twice} is there twice")
    for names in (AUDIO_COLUMNS, TEXT_COLUMNS):
        if not {*names} & {*header}:
            raise InputError(f"{place}: the header has no column {names[0]}")
