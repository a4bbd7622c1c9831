"""Where lines may be broken, and how wide they are."""

from __future__ import annotations

from mlx_speech.output.line_breaking import line_breaks


class TestLineBreaks:
    def test_combining_characters_stay_with_theirs(self):
        assert line_breaks("か\u3099き\ufe00く") == [0, 2, 4]

    def test_korean_is_broken_between_words(self):
        assert line_breaks("안녕하세요 세계") == [0, 6]

    def test_french_marks_stay_with_their_word(self):
        text = "Ça va\u202f? Oui\xa0! Bon ; bien"
        assert [text[i] for i in line_breaks(text)] == ["Ç", "v", "O", "B", "b"]
