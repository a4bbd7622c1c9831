"""Lines of text: what is on one, how wide it is, where it may be broken, which way it runs."""

import re
import unicodedata
from itertools import pairwise

#: white space, but for the no-break ones, and control characters
_SPACES = re.compile(r"(?:[^\S\xa0\u202f]|[\x00-\x1f\x7f-\x9f])+")
#: characters that a line may be broken beside without a space: ideographs, kana, full-width forms
_CJK = re.compile(
    "[\u2e80-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff60\U00020000-\U0003ffff]"
)
#: of those, and of their neighbours, what no line begins or ends with: marks that close or open,
#: small kana, signs of repetition
_NOT_FIRST = set(
    " \xa0\u202f\u2060,.!?:;%)]}'\"’”»…‥・、。，．：；？！％）］｝〕〉》」』】〙〗ー々〻ゝゞヽヾ"
    "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶㇰㇱㇲㇳㇴㇵㇶㇷㇸㇹㇺㇻㇼㇽㇾㇿ"
)
_NOT_LAST = set("\xa0\u202f\u2060([{'\"‘“«（［｛〔〈《「『【〘〖￥＄￡$£¥€")


def collapse_spaces(text: str) -> str:
    """The text with every run of white space or control characters as one space, none around it.

    No-break spaces inside stay as they are.
    """
    return _SPACES.sub(" ", text).strip()


def columns(text: str) -> int:
    """How wide the text is: 2 for each full-width character, 0 for a combining one, else 1."""
    shown = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)


def line_breaks(text: str) -> list[int]:
    """Indices of the characters that a line may begin with, the first one's included.

    That is after spaces, and beside Chinese and Japanese characters (not Korean ones, which make
    words) but neither before a closing mark nor after an opening one.
    """
    return [0, *(i for i, pair in enumerate(pairwise(text), 1) if _may_break(*pair))]


def _may_break(before: str, after: str) -> bool:
    if before == " ":
        return after not in "!?:;"  # as French sets them off
    beside_cjk = _CJK.match(before) or _CJK.match(after)
    kept = before in _NOT_LAST or after in _NOT_FIRST
    return bool(beside_cjk) and not kept and columns(after) > 0


def is_rtl(text: str) -> bool:
    """Whether the first letter with a direction is of a script written from right to left."""
    for character in text:
        if (direction := unicodedata.bidirectional(character)) in ("L", "R", "AL"):
            return direction != "L"
    return False
