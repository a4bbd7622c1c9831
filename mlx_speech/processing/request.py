"""What is asked about a recording, whatever the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

TASKS = ("transcribe", "translate")
#: what an answer can be marked with: who speaks, before each turn, or when each word ends
Tags = Literal["speakers", "times"]
#: the options that need them
TAG_OPTIONS: dict[Tags, str] = {"speakers": "speakers", "times": "word_timestamps"}


@dataclass(frozen=True)
class TranscriptionRequest:
    """A task and how it is to be done; what no model could do is refused.

    task: `"transcribe"` or `"translate"`.
    language: spoken language, code or English name; None: the model detects it.
    target_language: language to translate to, code or English name.
    punctuate: ask for punctuation and capitals.
    prompt: an instruction of one's own, in place of those that all these choose.
    keywords: names and terms to expect, spelled as they should be written.
    prefix_text: what was said at the beginning, as it is known already; the answer goes on with it.
    tags: what the answer is to be marked with, if anything.

    Raises:
        InputError: they contradict each other.
    """

    task: str = "transcribe"
    language: str | None = None
    target_language: str | None = None
    punctuate: bool = False
    prompt: str | None = None
    keywords: Sequence[str] | None = None
    prefix_text: str | None = None
    tags: Tags | None = None

    def __post_init__(self):
        for name in ("language", "target_language", "prompt", "prefix_text"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise InputError.must_be(name, value, "text")
        if self.task not in TASKS:
            raise InputError.must_be("task", self.task, "'transcribe' or 'translate'")
        chosen = self.task != "transcribe" or self.punctuate or self.keywords
        named = self.language is not None or self.target_language is not None
        if self.prompt is not None and (chosen or named):
            others = "{task}, {language}, {target_language}, {punctuate} and {keywords}"
            raise InputError.about("{prompt} takes the place of " + others + "; leave them out")
        if self.prompt is not None and self.tags is not None:
            message = "an answer to a {prompt} of your own is not read for tags, which {option} "
            message += "needs; choose one"
            raise InputError.about(message, option=TAG_OPTIONS[self.tags])
        if self.keywords is not None:
            _check_keywords(self.keywords)
        if self.task == "translate" and self.target_language is None:
            raise InputError.about("{task} 'translate' needs {target_language}")
        if self.task != "translate" and self.target_language is not None:
            raise InputError.about("{target_language} goes with {task} 'translate'")
        if self.task == "translate" and self.prefix_text is not None:
            message = "{prefix_text} is the beginning of what was said, and a translation is not"
            raise InputError.about(message)


def _check_keywords(keywords: Sequence[str]) -> None:
    if isinstance(keywords, str) or not isinstance(keywords, Sequence):
        raise InputError.must_be("keywords", keywords, "a list of words")
    for word in keywords:
        # they are told to the model as one line, with commas between them
        if not (isinstance(word, str) and word.strip() and word.isprintable() and "," not in word):
            text = "among the {keywords} is {word!r}, which is no word or name"
            raise InputError.about(text, word=word)
