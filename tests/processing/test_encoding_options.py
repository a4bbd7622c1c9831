"""What options of a call come to, and what is cut off."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mlx_speech import InputError, UnsupportedOptionError
from mlx_speech.processing.encoding_options import EncodingOptions, cut

NONE = 10**30


def read(model_max_length: int = NONE, **options) -> tuple:
    asked = EncodingOptions.read(options, model_max_length)
    return asked.padding, asked.truncation, asked.max_length


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("longest", False, None)),
        ({"return_tensors": None}, (False, False, None)),
        ({"padding": "do_not_pad", "truncation": "do_not_truncate"}, (False, False, None)),
        ({"max_length": 5}, ("longest", "longest_first", 5)),
        ({"max_length": 5, "padding": False}, (False, "longest_first", 5)),
        ({"max_length": 5, "padding": True}, ("longest", False, 5)),
        ({"max_length": 5, "truncation": False}, ("longest", False, 5)),
        ({"max_length": 5, "padding": "max_length"}, ("max_length", False, 5)),
        ({"truncation": "only_second", "padding": "max_length"}, (False, False, None)),
    ],
)
def test_what_they_come_to(options, expected):
    assert read(**options) == expected


def test_length_of_the_model():
    options = {"truncation": True, "padding": "max_length"}
    assert read(512, **options) == ("max_length", "longest_first", 512)
    assert read(512, max_length=9, **options) == ("max_length", "longest_first", 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 5}, "no option max_len, but add_special_tokens"),
        ({"max_length": 0}, "max_length is 0, but must be an integer, at least 1"),
        ({"stride": -1}, "stride is -1"),
        ({"padding": "most"}, "padding is 'most', but must be true or false or 'longest'"),
        ({"padding_side": "top"}, "padding_side is 'top', but must be 'left' or 'right'"),
        (
            {"max_length": 9, "truncation": True, "pad_to_multiple_of": 8},
            "pad_to_multiple_of=8 does not divide max_length=9",
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(InputError, match=message):
        read(**options)
    with pytest.raises(UnsupportedOptionError, match="return_tensors='tf'"):
        read(return_tensors="tf")


def test_none_asks_for_nothing():
    names = {field.name for field in fields(EncodingOptions)} - {"return_tensors"}
    nothing = EncodingOptions.read(dict.fromkeys(names), NONE)
    assert nothing == EncodingOptions.read({}, NONE)
    assert EncodingOptions.read({"return_tensors": None}, NONE).return_tensors is None


def test_lengths_filled_up():
    def length(**options) -> int | None:
        return EncodingOptions.read(options, NONE).padded_length([3, 5])

    assert length() == 5
    assert length(pad_to_multiple_of=4) == 8
    assert length(padding="max_length", max_length=7) == 7
    assert length(padding=False) is None


@pytest.mark.parametrize(
    ("truncation", "side", "expected"),
    [
        ("longest_first", "right", ([1, 2], [7, 8], [])),
        ("longest_first", "left", ([4, 5], [8, 9], [])),
        ("only_first", "right", ([1], [7, 8, 9], [1, 2, 3, 4, 5])),
        ("only_first", "left", ([5], [7, 8, 9], [1, 2, 3, 4, 5])),
    ],
)
def test_cut(truncation, side, expected):
    options = EncodingOptions(truncation=truncation, stride=1)
    assert cut([1, 2, 3, 4, 5], [7, 8, 9], 4, options, side) == expected
    assert cut([1], None, 0, options, side) == ([1], None, [])


def test_too_short_to_be_cut():
    options = EncodingOptions(truncation="only_second")
    with pytest.raises(InputError, match=r"'only_second' has to cut 4 tokens.*greater max_length"):
        cut([1, 2, 3, 4, 5], [7, 8, 9], 4, options, "right")
