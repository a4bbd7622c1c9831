"""Tags of speakers and times: as they were taught, and as models write them now and then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_speech.transcription.tags import LONGEST_TAG, parse_turns, parse_words, settled


def turns_of(answer: str, **known):
    turns, remarks = parse_turns(answer, **known)
    assert all(answer[slice(*turn.span)] == turn.text for turn in turns)
    return [(turn.speaker, turn.text) for turn in turns], remarks


def words_of(answer: str, duration: float = 100.0):
    words, remarks = parse_words(answer, duration)
    assert all(answer[slice(*word.span)] == word.text for word in words)
    return [(word.text, round(word.start, 2), round(word.end, 2)) for word in words], remarks


class TestTurns:
    def test_as_taught(self):
        answer = "[Speaker 1]: good morning [Speaker 2]: hello [Speaker 1]: how are you"
        turns, remarks = turns_of(answer)
        assert turns == [(1, "good morning"), (2, "hello"), (1, "how are you")]
        assert remarks == []

    def test_a_turn_goes_on(self):
        """Text before the first tag is of whoever spoke last, and speakers are counted on."""
        turns, remarks = turns_of("and so on [Speaker 3]: no", speaking=2, known=2)
        assert turns == [(2, "and so on"), (3, "no")]
        assert remarks == []

    @pytest.mark.parametrize(
        ("answer", "turns", "remark"),
        [
            ("", [], ""),
            ("   ", [], ""),
            ("hello", [(None, "hello")], "before the first"),
            ("hello [Speaker 1]: you", [(None, "hello"), (1, "you")], "before the first"),
            ("[speaker 1]: a", [(1, "a")], ""),
            ("[SPEAKER 1]: a", [(1, "a")], ""),
            ("[Speaker 1] a", [(1, "a")], ""),
            ("[Speaker 1] : a", [(1, "a")], ""),
            ("[Speaker 1]:a", [(1, "a")], ""),
            ("[Speaker1]: a", [(1, "a")], ""),
            ("[Speaker1]a", [(1, "a")], ""),
            ("[ Speaker 1 ]: a", [(1, "a")], ""),
            ("[Speaker 1: a", [(1, "a")], ""),
            ("[Speaker #1]: a", [(1, "a")], ""),
            ("[Speaker: 1]: a", [(1, "a")], ""),
            ("[Speaker 1]:: a", [(1, ": a")], ""),
            ("[Speaker 1]:\na\n[Speaker 2]:\nb\n", [(1, "a"), (2, "b")], ""),
            ("[Speaker 1]: a[Speaker 2]:b", [(1, "a"), (2, "b")], ""),
            ("[Speaker 1]: [Speaker 2]: b", [(2, "b")], "speaker 1 is named and says nothing"),
            ("[Speaker 1]: a [Speaker 2]:", [(1, "a")], "speaker 2 is named and says nothing"),
            ("[Speaker 1]: a [Speaker 3]: b", [(1, "a"), (3, "b")], "3 is named after 1 speakers"),
            ("[Speaker 2]: a", [(2, "a")], "speaker 2 is named after 0 speakers"),
            ("[Speaker 0]: a", [(0, "a")], "speaker 0 is named after 0 speakers"),
            ("[Speaker 12]: a", [(12, "a")], "speaker 12 is named after 0 speakers"),
            ("[Speaker 1]: a [Speaker 1]: b", [(1, "a"), (1, "b")], ""),
            ("[Speaker 1]: a [Spea", [(1, "a")], "'[Spea' is cut off"),
            ("[Speaker 1]: a [Speaker 2", [(1, "a")], "'[Speaker 2' is cut off"),
            ("[Speaker 1]: a [", [(1, "a")], "'[' is cut off"),
            ("[Speaker 1]: a [laughs] b", [(1, "a [laughs] b")], "a bracket that begins no tag"),
            ("[Speaker A]: a", [(None, "[Speaker A]: a")], "before the first"),
            ("[Speaker 1]: the speaker 2 said", [(1, "the speaker 2 said")], ""),
            ("[Speaker 1]: a ]: b", [(1, "a ]: b")], ""),
            ("[Speaker 9999999999]: a", [(None, "[Speaker 9999999999]: a")], "before the first"),
        ],
    )
    def test_irregular(self, answer, turns, remark):
        found, remarks = turns_of(answer)
        assert found == turns
        assert remark in " ".join(remarks) if remark else remarks == []


class TestWords:
    def test_golden(self):
        answer = "hello [T:995] world [T:012] _ [T:100] again [T:150] more [T:1234]"
        assert words_of(answer) == (
            [
                ("hello", 0.0, 9.95),
                ("world", 9.95, 10.12),
                ("again", 11.0, 11.5),
                ("more", 11.5, 12.34),
            ],
            [],
        )

    def test_many_wraps(self):
        answer = " ".join(f"w{n} [T:{n * 70 % 1000:03}]" for n in range(1, 300))
        words, remarks = words_of(answer, 250.0)
        assert remarks == []
        assert [end for _, _, end in words] == pytest.approx([0.7 * n for n in range(1, 300)])

    @pytest.mark.parametrize(
        ("answer", "words", "remark"),
        [
            ("", [], ""),
            ("_ [T:300]", [], ""),
            ("if[T:7962]you[T:7990]", [("if", 0.0, 79.62), ("you", 79.62, 79.9)], ""),
            ("a[T:10]_[T:50]b[T:60]", [("a", 0.0, 0.1), ("b", 0.5, 0.6)], ""),
            (
                "a [t:10] b [T: 20] c [ T:30 ]",
                [("a", 0, 0.1), ("b", 0.1, 0.2), ("c", 0.2, 0.3)],
                "",
            ),
            ("a [T10] b [T:20", [("a", 0, 0.1), ("b", 0.1, 100)], "the last words have no time"),
            ("a [T:10] b [T:20 c [T:30]", [("a", 0, 0.1), ("b", 0.1, 0.2), ("c", 0.2, 0.3)], ""),
            ("a [T:10] b [T:", [("a", 0, 0.1), ("b", 0.1, 100)], "'[T:' has no time"),
            ("a [T:10] b [", [("a", 0, 0.1), ("b", 0.1, 100)], "the last words have no time"),
            ("a [T:10] [T:", [("a", 0, 0.1)], "'[T:' has no time"),
            ("a [T:] b [T:20]", [("a", 0, 0.1), ("b", 0.1, 0.2)], "'[T:]' has no time"),
            ("a [T:10] bb c [T:40]", [("a", 0, 0.1), ("bb", 0.1, 0.3), ("c", 0.3, 0.4)], ""),
            ("a b", [("a", 0, 50), ("b", 50, 100)], "the last words have no time"),
            # one step back is noise, and not ten seconds
            (
                "a [T:100] b [T:99] c [T:200]",
                [("a", 0, 1), ("b", 1, 1.5), ("c", 1.5, 2)],
                "99 after",
            ),
            (
                "a [T:900] b [T:400] c [T:950]",
                [("a", 0, 9), ("b", 9, 9.25), ("c", 9.25, 9.5)],
                "400",
            ),
            ("a [T:900] b [T:399]", [("a", 0, 9), ("b", 9, 13.99)], ""),
            (
                "a [T:5000] b [T:4000] c [T:10]",
                [("a", 0, 50), ("b", 50, 50.05), ("c", 50.05, 50.1)],
                "4000",
            ),
            ("a [T:99999] b [T:10]", [("a", 0, 0.05), ("b", 0.05, 0.1)], "99999 after 0"),
            ("a [T:10050]", [("a", 0, 100)], ""),  # a little beyond the end is the end
            ("a [T:10] b [T:10]", [("a", 0, 0.1), ("b", 0.1, 0.1)], ""),
            ("[T:10] a [T:20]", [("a", 0.1, 0.2)], ""),
            ("[Speaker 1]: a [T:10]", [("a", 0, 0.1)], ""),
            ("a [T:10] [laughs] [T:20]", [("a", 0, 0.1), ("[laughs]", 0.1, 0.2)], ""),
            ("a [T:x] b [T:20]", [("a", 0, 0.05), ("x]", 0.05, 0.15), ("b", 0.15, 0.2)], "no time"),
        ],
    )
    def test_irregular(self, answer, words, remark):
        found, remarks = words_of(answer)
        assert [word for word, _, _ in found] == [word for word, _, _ in words]
        for (_, *times), (_, *expected) in zip(found, words, strict=True):
            assert times == pytest.approx(expected, abs=0.011)
        assert remark in " ".join(remarks) if remark else remarks == []


WORD = st.text("abcdeö日'-.?T1", min_size=1, max_size=6)
SPEAKER = st.builds(
    lambda form, number: form.format(number),
    st.sampled_from(["[Speaker {}]:", "[speaker {}]", "[SPEAKER{}]:", "[Speaker {}:"]),
    st.integers(0, 99),
)
TIME = st.builds(
    lambda form, number: form.format(number),
    st.sampled_from(["[T:{}]", "[T:{:03}]", "[t:{}]", "[T: {}]", "[T{}]"]),
    st.integers(0, 30000),
) | st.just("[T:]")


@st.composite
def answers(draw, tag):
    """An answer, and the words in it."""
    parts = draw(st.lists(st.tuples(WORD | st.just("_"), tag | st.just(""))))
    text = ""
    for word, mark in parts:
        text += word + draw(st.sampled_from(["", " "])) + mark if mark else word
        text += draw(st.sampled_from(["", " "])) if mark else " "
    return text, [word for word, _ in parts]


@given(answers(SPEAKER))
def test_turns_lose_no_word(made):
    answer, words = made
    turns, _ = turns_of(answer)
    assert [word for _, text in turns for word in text.split()] == words


@given(answers(TIME), st.floats(0, 200))
def test_words_are_all_there_and_in_order_of_time(made, duration):
    answer, expected = made
    words, _ = parse_words(answer, duration)
    assert [word.text for word in words] == [word for word in expected if word != "_"]
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= time <= duration + 0.006 for time in times)


PIECES = "[ ] T : 1 23 a _ [Speaker@1]: [speaker@2] [T:45] [T: [s [Speaker@3 [laughs] word"
PIECE = st.sampled_from([" ", "\n", *PIECES.replace(" ", "\t").replace("@", " ").split("\t")])


@given(st.lists(PIECE | WORD, max_size=25).map("".join).map(str.strip))
def test_what_is_settled_stays(answer):
    """Each beginning of an answer has a beginning of its words, whatever comes."""
    words = " ".join(word.text for word in parse_words(answer, 60)[0])
    text = next((turn.text for turn in parse_turns(answer)[0]), "")
    for end in range(len(answer)):
        part = settled(answer[:end])
        so_far = " ".join(word.text for word in parse_words(part, 60)[0])
        assert words.startswith(so_far)
        assert text.startswith(next((turn.text for turn in parse_turns(part)[0]), ""))


def test_no_tag_is_longer_than_is_waited_for():
    assert len("[ Speaker # 123456 ] :") < LONGEST_TAG
