"""Subtitles: what a cue shows and when, by golden files and by parsers that are not ours."""

from __future__ import annotations

import random
import re
from html import unescape
from io import StringIO
from itertools import pairwise

import pytest
import srt
import webvtt
from conftest import DATA
from small_transcripts import dialogue, many_scripts, segment, spoken, transcript

from mlx_speech.errors import InputError
from mlx_speech.output.line_breaking import collapse_spaces, columns, line_breaks
from mlx_speech.output.subtitles import SubtitleOptions, subtitle_cues, to_srt, to_vtt

WRAPPED = SubtitleOptions(max_line_width=16)
SHORT = SubtitleOptions(max_line_width=16, max_line_count=1)
HIGHLIGHTED = SubtitleOptions(max_line_width=16, max_line_count=2, highlight_words=True)
THREE_WORDS = SubtitleOptions(max_words_per_line=3)
OPTIONS = {
    "plain": SubtitleOptions(),
    "wrapped": WRAPPED,
    "short": SHORT,
    "highlighted": HIGHLIGHTED,
    "three_words": THREE_WORDS,
    "highlighted_words": SubtitleOptions(max_words_per_line=2, highlight_words=True),
}


def texts(options: SubtitleOptions, *segments) -> list[str]:
    return [cue.text for cue in subtitle_cues(transcript(*segments), options)]


def times(options: SubtitleOptions, *segments) -> list[tuple[int, int]]:
    return [(cue.start, cue.end) for cue in subtitle_cues(transcript(*segments), options)]


def parse_srt(text: str) -> list[srt.Subtitle]:
    """Every byte must belong to a cue."""
    return list(srt.parse(text, ignore_errors=False))


def parse_vtt(text: str) -> list[webvtt.Caption]:
    return webvtt.from_buffer(StringIO(text), strict=True).captions


def in_ms(time) -> int:
    return ((time.hours * 60 + time.minutes) * 60 + time.seconds) * 1000 + time.milliseconds


@pytest.mark.parametrize("name", OPTIONS)
class TestFiles:
    def test_golden(self, name):
        for ending, write in (("srt", to_srt), ("vtt", to_vtt)):
            golden = (DATA / "writers" / f"{name}.{ending}").read_text(encoding="utf-8")
            assert write(many_scripts(), OPTIONS[name]) == golden

    def test_parsers_agree_on_the_times_and_lines(self, name):
        cues = subtitle_cues(many_scripts(), OPTIONS[name])
        subtitles = parse_srt(to_srt(many_scripts(), OPTIONS[name]))
        captions = parse_vtt(to_vtt(many_scripts(), OPTIONS[name]))
        assert len(cues) == len(subtitles) == len(captions)
        for number, (cue, subtitle, caption) in enumerate(
            zip(cues, subtitles, captions, strict=True), 1
        ):
            assert subtitle.index == number
            assert cue.start < cue.end
            assert round(subtitle.start.total_seconds() * 1000) == cue.start
            assert round(subtitle.end.total_seconds() * 1000) == cue.end
            assert in_ms(caption.start_time) == cue.start
            assert in_ms(caption.end_time) == cue.end
            assert subtitle.content == cue.text.replace("-->", "->")
            assert len(caption.raw_text.split("\n")) == len(cue.text.split("\n"))


def test_empty_transcripts():
    for empty in (transcript(), transcript(segment("", 0, 3)), transcript(segment(" \n", 0, 3))):
        for options in OPTIONS.values():
            assert to_srt(empty, options) == ""
            assert to_vtt(empty, options) == "WEBVTT\n"
    assert parse_vtt("WEBVTT\n") == []


class TestOptions:
    @pytest.mark.parametrize("name", ["max_line_width", "max_line_count", "max_words_per_line"])
    @pytest.mark.parametrize("value", [0, -1, 2.5, "20", True])
    def test_numbers(self, name, value):
        with pytest.raises(InputError, match=rf"^{name} is .*, but must be a whole number above 0"):
            SubtitleOptions(**{name: value})

    def test_without_effect(self):
        with pytest.raises(InputError, match="max_line_count has no effect without max_line_width"):
            SubtitleOptions(max_line_count=2)
        with pytest.raises(InputError, match="max_words_per_line and max_line_width exclude"):
            SubtitleOptions(max_words_per_line=3, max_line_width=40)

    def test_which_need_words(self):
        assert SubtitleOptions().needs_words is None
        assert WRAPPED.needs_words is None
        assert SHORT.needs_words == "max_line_count"
        assert THREE_WORDS.needs_words == "max_words_per_line"
        assert SubtitleOptions(highlight_words=True).needs_words == "highlight_words"

    def test_no_words_at_all(self):
        wordless = transcript(segment("unlock the back gate", 0, 2))
        for write in (to_srt, to_vtt):
            with pytest.raises(InputError, match=r"^max_line_count needs the times of words"):
                write(wordless, SHORT)
        assert texts(WRAPPED, *wordless.segments) == ["unlock the back\ngate"]


ALPHABET = "ab1.,-<>&\"'!? \n\t\xa0日本語。「」かなー\u3099한글שלאב🙂\u0301"


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_whatever_is_said(seed):
    """Every character is in one cue, in order; no line is too wide that could be broken."""
    draw = random.Random(seed)
    segments, time = [spoken("one word", 0.0)], 2.0
    for _ in range(6):
        text = "".join(draw.choices(ALPHABET, k=draw.randrange(60)))
        time += draw.random()
        said = spoken(text, time, draw.choice([0.0, 0.0004, 0.3]))
        segments.append(said if draw.random() < 0.7 else segment(text, said.start, said.end))
        time = said.end
    said = transcript(*segments)
    expected = re.sub(r"\s", "", "".join(s.text for s in segments))
    for options in (o for o in OPTIONS.values() if not o.highlight_words):
        cues = subtitle_cues(said, options)
        shown = re.sub("[\\s\u200e\u200f]", "", "".join(cue.text for cue in cues))
        assert shown == expected
        assert all(cue.start < cue.end for cue in cues)
        assert all(a.end <= b.start for a, b in pairwise(cues))
        assert len(parse_srt(to_srt(said, options))) == len(cues)
        assert len(parse_vtt(to_vtt(said, options))) == len(cues)
        for line in "\n".join(cue.text for cue in cues).split("\n"):
            wide = options.max_line_width and columns(line) > options.max_line_width
            assert not (wide and line_breaks(line.strip("\u200e\u200f"))[1:])


class TestLines:
    def test_filled_to_the_last_column(self):
        said = spoken("aaa bbb ccc ddd eee", 0)
        assert texts(SubtitleOptions(max_line_width=7), said) == ["aaa bbb\nccc ddd\neee"]
        assert texts(SubtitleOptions(max_line_width=6), said) == ["aaa\nbbb\nccc\nddd\neee"]

    def test_a_longer_word_stays_whole(self):
        assert texts(SubtitleOptions(max_line_width=5), spoken("an extraordinary day", 0)) == [
            "an\nextraordinary\nday"
        ]

    def test_lines_over_the_count_are_further_cues_with_their_words_times(self):
        options = SubtitleOptions(max_line_width=7, max_line_count=2)
        said = spoken("aaa bbb ccc ddd eee", 10)
        assert texts(options, said) == ["aaa bbb\nccc ddd", "eee"]
        assert times(options, said) == [(10000, 12000), (12000, 12833)]

    def test_no_cue_goes_over_a_segments_end(self):
        options = SubtitleOptions(max_line_width=40, max_line_count=2)
        assert texts(options, spoken("one two", 0), spoken("three", 1)) == ["one two", "three"]

    def test_full_width_characters_take_two_columns(self):
        assert texts(SubtitleOptions(max_line_width=8), segment("音声を文字にします", 0, 2)) == [
            "音声を文\n字にしま\nす"
        ]
        assert columns("音声 MLX") == 8
        assert columns("e\u0301") == 1

    def test_closing_marks_do_not_begin_a_line_nor_opening_ones_end_it(self):
        assert texts(SubtitleOptions(max_line_width=6), segment("あいう。「えお」", 0, 2)) == [
            "あい\nう。\n「え\nお」"
        ]

    def test_white_space_and_control_characters(self):
        """A blank line would end the cue."""
        said = segment("one\n\n00:00:01,000 --> 00:00:02,000\r\ntwo\tthree\u2028four\x00", 0, 2)
        (subtitle,) = parse_srt(to_srt(transcript(said)))
        assert subtitle.content == "one 00:00:01,000 -> 00:00:02,000 two three four"
        (caption,) = parse_vtt(to_vtt(transcript(said)))
        assert unescape(caption.text) == "one 00:00:01,000 --> 00:00:02,000 two three four"
        assert collapse_spaces(" a \n\x07 b\xa0! ") == "a b\xa0!"

    def test_arrows_of_any_length(self):
        assert "-->" not in to_srt(transcript(segment("a ---> b -->> c", 0, 1))).split("\n")[2]


class TestRightToLeft:
    ARABIC = "مرحبا MLX Speech يعمل هنا"

    def test_a_line_that_begins_with_another_script_keeps_the_direction(self):
        assert texts(SubtitleOptions(max_line_width=12), segment(self.ARABIC, 0, 2)) == [
            "مرحبا MLX\n\u200fSpeech يعمل\nهنا"
        ]
        assert texts(SubtitleOptions(max_line_width=8), segment("he said שלום to me", 0, 2)) == [
            "he said\n\u200eשלום to\nme"
        ]

    def test_a_line_of_digits(self):
        assert texts(SubtitleOptions(max_line_width=5), segment("مرحبا 2024", 0, 2)) == [
            "مرحبا\n\u200f2024"
        ]

    def test_nothing_is_added_to_a_whole_segment(self):
        assert texts(SubtitleOptions(), segment(self.ARABIC, 0, 2)) == [self.ARABIC]


class TestWords:
    def test_so_many_in_a_cue(self):
        said = spoken("one two three four five", 2)
        assert texts(THREE_WORDS, said) == ["one two three", "four five"]
        assert times(THREE_WORDS, said) == [(2000, 3500), (3500, 4500)]

    def test_punctuation_that_the_words_leave_out(self):
        said = segment(
            'say "hello" - now!', 0, 3, [("say", 0, 1), ("hello", 1.1, 2), ("now", 2.1, 3)]
        )
        one = SubtitleOptions(max_words_per_line=1)
        assert texts(one, said) == ["say", '"hello" -', "now!"]
        assert times(one, said) == [(0, 1000), (1100, 2000), (2100, 3000)]

    def test_punctuation_before_the_first_word(self):
        said = segment("- one - two -", 0, 3, [("one", 0, 1), ("two", 2, 3)])
        assert texts(SubtitleOptions(max_words_per_line=1), said) == ["- one -", "two -"]

    def test_words_that_cannot_be_parted_are_one(self):
        said = segment("don't go", 0, 3, [("don", 0, 1), ("'t", 1, 1.5), ("go", 2, 3)])
        one = SubtitleOptions(max_words_per_line=1)
        assert texts(one, said) == ["don't", "go"]
        assert times(one, said) == [(0, 1500), (2000, 3000)]

    def test_a_segment_without_words_shares_its_times_out(self):
        said = segment("aaaa bbbb cccc", 10, 24)
        cues = subtitle_cues(transcript(spoken("one", 0), said), HIGHLIGHTED)
        assert cues[1:] == [(10000, 24000, "aaaa bbbb cccc")]
        one = SubtitleOptions(max_words_per_line=1)
        assert times(one, spoken("one", 0), said)[1:] == [
            (10000, 15000),
            (15000, 20000),
            (20000, 24000),
        ]

    @pytest.mark.parametrize(
        "words", [["other", "words"], ["unlock"], ["gate"], ["gate", "unlock"]]
    )
    def test_words_of_another_text_are_not_believed(self, words):
        said = segment("unlock gate", 0, 2, [(word, 5, 6) for word in words])
        assert texts(HIGHLIGHTED, said) == ["unlock gate"]
        assert times(HIGHLIGHTED, said) == [(0, 2000)]

    def test_a_word_over_two_cues_shares_its_time_out(self):
        said = segment("音声文字", 0, 4, [("音声文字", 0, 4)])
        options = SubtitleOptions(max_line_width=4, max_line_count=1)
        assert texts(options, said) == ["音声", "文字"]
        assert times(options, said) == [(0, 2000), (2000, 4000)]


class TestHighlight:
    WORDS = SubtitleOptions(highlight_words=True)

    def test_a_cue_for_each_state(self):
        said = segment("one two three", 0, 4, [("one", 0, 1), ("two", 1.2, 2), ("three", 3, 4)])
        assert subtitle_cues(transcript(said), self.WORDS) == [
            (0, 1200, "<u>one</u> two three"),  # held over a short pause
            (1200, 2000, "one <u>two</u> three"),
            (2000, 3000, "one two three"),
            (3000, 4000, "one two <u>three</u>"),
        ]

    def test_line_breaks_stay_where_they_are(self):
        options = SubtitleOptions(max_line_width=7, highlight_words=True)
        assert texts(options, spoken("aaa bbb ccc", 0)) == [
            "<u>aaa</u> bbb\nccc",
            "aaa <u>bbb</u>\nccc",
            "aaa bbb\n<u>ccc</u>",
        ]

    def test_a_word_over_two_lines_is_underlined_on_both(self):
        options = SubtitleOptions(max_line_width=4, highlight_words=True)
        said = segment("音声文字", 0, 4, [("音声文字", 0, 4)])
        assert texts(options, said) == ["<u>音声</u>\n<u>文字</u>"]

    def test_text_is_escaped_and_markup_is_not(self):
        said = spoken("a<b &", 0)
        assert parse_vtt(to_vtt(transcript(said), self.WORDS))[0].raw_text == (
            "<u>a&lt;b</u> &amp;"
        )
        assert unescape(parse_vtt(to_vtt(transcript(said), self.WORDS))[0].text) == "a<b &"


class TestTimes:
    def test_hours_beyond_99(self):
        said = transcript(segment("late", 360000.5, 450001.25))
        assert "100:00:00,500 --> 125:00:01,250" in to_srt(said)
        assert "100:00:00.500 --> 125:00:01.250" in to_vtt(said)
        assert parse_srt(to_srt(said))[0].end.total_seconds() == 450001.25
        assert in_ms(parse_vtt(to_vtt(said))[0].end_time) == 450001250

    def test_rounding_carries(self):
        assert "00:00:58,999 --> 00:01:00,000" in to_srt(transcript(segment("a", 58.9991, 59.9996)))

    def test_no_cue_is_empty_or_out_of_order(self):
        words = [("a", 1.0, 1.0), ("b", 1.0, 1.0001), ("c", 1.0002, 1.0003), ("d", 1.5, 1.2)]
        said = segment("a b c d", 1, 1.5, words)
        one = SubtitleOptions(max_words_per_line=1)
        assert times(one, said) == [(1000, 1001), (1001, 1002), (1002, 1500), (1500, 2333)]

    def test_cues_last_long_enough_where_nothing_follows(self):
        one = SubtitleOptions(max_words_per_line=1)
        said = segment("go there now", 1, 4, [("go", 1, 1.02), ("there", 1.18, 1.3), ("now", 3, 4)])
        assert times(one, said) == [(1000, 1180), (1180, 2013), (3000, 4000)]

    def test_overlapping_cues_end_where_the_next_begins(self):
        assert times(SubtitleOptions(), segment("a", 0, 3), segment("b", 2.5, 5)) == [
            (0, 2500),
            (2500, 5000),
        ]


class TestSpeakers:
    def test_srt_says_who_at_the_first_cue_of_a_turn(self):
        text = to_srt(dialogue(), SubtitleOptions(max_words_per_line=2))
        assert [cue.content for cue in parse_srt(text)] == [
            "[Speaker 1]: good morning",
            "everybody",
            "[Speaker 2]: a <b>",
            "& c",
            "hm",
            "\u200f[Speaker 1]: \u0645\u0631\u062d\u0628\u0627",
        ]

    def test_vtt_marks_every_cue(self):
        text = to_vtt(dialogue(), SubtitleOptions(max_words_per_line=2))
        shown = [block.split("\n")[-1] for block in text.strip().split("\n\n")[1:]]
        assert shown == [
            "<v Speaker 1>good morning",
            "<v Speaker 1>everybody",
            "<v Speaker 2>a &lt;b&gt;",
            "<v Speaker 2>&amp; c",
            "hm",
            "<v Speaker 1>\u0645\u0631\u062d\u0628\u0627",
        ]
        assert [cue.voice for cue in parse_vtt(text)][:3] == ["Speaker 1", "Speaker 1", "Speaker 2"]

    def test_width_counts_what_is_shown(self):
        """The label of srt is, the markup of vtt is not."""
        wrapped = SubtitleOptions(max_line_width=17)
        (first, *_) = parse_srt(to_srt(dialogue(), wrapped))
        assert first.content.split("\n") == ["[Speaker 1]: good", "morning everybody"]
        assert "\n<v Speaker 1>good morning\neverybody\n" in to_vtt(dialogue(), wrapped)

    def test_a_label_is_no_word(self):
        """It is never alone, nor underlined."""
        narrow = SubtitleOptions(max_line_width=6, max_line_count=1, highlight_words=True)
        shown = [cue.content for cue in parse_srt(to_srt(dialogue(), narrow))]
        assert shown[:2] == ["[Speaker 1]: <u>good</u>", "<u>morning</u>"]
