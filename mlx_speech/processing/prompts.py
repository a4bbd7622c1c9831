"""What to say to which Granite Speech model: the instructions that each one was trained on.

Sources: the models' cards, and the prompts of ibm-granite's own `granite-speech` library.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UnsupportedOptionError
from .request import TAG_OPTIONS, TASKS, Tags, TranscriptionRequest

TRANSCRIBE = "can you transcribe the speech into a written format?"
TRANSCRIBE_PUNCTUATED = "transcribe the speech with proper punctuation and capitalization."
TRANSCRIBE_LANGUAGE = "transcribe the {} speech with proper punctuation and capitalization."
TRANSCRIBE_SPOKEN = "can you transcribe the {} speech into a written format?"
TRANSLATE = "translate the speech to {}."
TRANSLATE_PUNCTUATED = "translate the speech to {} with proper punctuation and capitalization."
TRANSCRIBE_KEYWORDS = "transcribe the speech to text."
KEYWORDS = " Keywords: {}"
LANGUAGE_HINT = "The speech is in {}. Transcribe it exactly; do not translate. "
TAG_SPEAKERS = (
    "Speaker attribution: Transcribe and denote who is speaking by adding [Speaker 1]: and "
    "[Speaker 2]: tags before speaker turns."
)
TAG_TIMES = (
    "Timestamps: Transcribe the speech. After each word, add a timestamp tag showing the end time "
    "in centiseconds, e.g. hello [T:45] world [T:82]"
)

LANGUAGES = {
    "en": "English",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "pt": "Portuguese",
    "ja": "Japanese",
    "it": "Italian",
    "zh": "Mandarin",
}

_CARD = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: {}.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)


@dataclass(frozen=True)
class PromptStyle:
    """How a family of models is spoken to.

    title: for messages.
    languages: codes of the languages spoken that it was trained on.
    targets: of those that it translates to.
    punctuates: whether it knows the instruction for punctuation and capitals.
    translations: the instructions to translate, without and with punctuation and capitals.
    keyword_tasks: the tasks in which it takes keywords, words to expect.
    keyword_instruction: the one that keywords stand behind.
    keywords_punctuated: whether it takes them behind instructions for punctuation as well.
    names_language: the instruction, or what comes before one, with the language that is spoken;
        None where it cannot be told.
    tags: the instructions for answers with tags.
    continues: whether its answer may begin with a text that is known already.
    after_audio: what stands between the audio and the instruction.
    system: the system message that its card uses; without one, their templates fill in another,
        3.3's with the day's date.
    """

    title: str
    languages: tuple[str, ...] = ("en", "fr", "de", "es", "pt", "ja")
    targets: tuple[str, ...] = tuple(LANGUAGES)
    punctuates: bool = False
    translations: tuple[str, str] = (TRANSLATE, TRANSLATE_PUNCTUATED)
    keyword_tasks: tuple[str, ...] = ()
    keyword_instruction: str = TRANSCRIBE_KEYWORDS
    keywords_punctuated: bool = False
    names_language: str | None = None
    tags: Mapping[Tags, str] = field(default_factory=dict)
    continues: bool = False
    after_audio: str = ""
    system: str | None = None

    def instruction(self, request: TranscriptionRequest) -> str:
        """The instruction for a request.

        Raises:
            UnsupportedOptionError: this family was not trained for it.
        """
        if request.prefix_text is not None:
            self.check_continues()
        if request.prompt is not None:
            return request.prompt
        task, keywords, punctuate = request.task, request.keywords, request.punctuate
        translates, language, tags = task == "translate", request.language, request.tags
        what = "keywords in translation" if translates else "keywords"
        told = language is not None
        self._require("keywords", keywords, what, lambda s: task in s.keyword_tasks)
        both, what = keywords and punctuate, f"{what} and punctuation at once"
        self._require("keywords", both, what, lambda s: s.keywords_punctuated)
        self._require("punctuate", punctuate, "punctuation and capitals", lambda s: s.punctuates)
        self._require("language", told, "being told the language", lambda s: s.names_language)
        self._require("task", translates, "translation", lambda s: s.targets)
        if tags is not None:
            what = _TAGGED[tags]
            self._require(TAG_OPTIONS[tags], True, what, lambda s: tags in s.tags)
            if told:
                message = "{title} is told no {language} where it is asked for {what}"
                raise UnsupportedOptionError.about(message, title=self.title, what=what)
            return _with_keywords(self.tags[tags], keywords)
        if translates:
            if language is not None:
                message = (
                    "{title} detects the language that it translates from; leave {language} out"
                )
                raise UnsupportedOptionError.about(message, title=self.title)
            code = language_code(request.target_language or "", "target_language")
            if code not in self.targets:
                able = f"{LANGUAGES[code]}, but to {', '.join(self.targets)}"
                message = "{target_language}: {title} does not translate to {able}"
                raise UnsupportedOptionError.about(message, title=self.title, able=able)
            asked = self.translations[bool(punctuate)].format(LANGUAGES[code])
            return _with_keywords(asked, keywords)
        plain = TRANSCRIBE
        if keywords:
            plain = self.keyword_instruction
        if punctuate:
            plain = TRANSCRIBE_PUNCTUATED
        if language is not None and self.names_language is not None:
            spoken = self.check_language(language)
            if self.names_language == LANGUAGE_HINT:
                plain = LANGUAGE_HINT.format(spoken) + plain
            elif self.punctuates and not punctuate:
                message = "{title} takes the language only together with punctuation ({punctuate})"
                raise UnsupportedOptionError.about(message, title=self.title)
            else:
                plain = self.names_language.format(spoken)
        return _with_keywords(plain, keywords)

    def check_language(self, language: str) -> str:
        """The name of a language spoken, given by its code or name.

        Raises:
            UnsupportedOptionError: this family was not trained on it.
        """
        code = language_code(language)
        self._require("language", True, LANGUAGES[code], lambda s: code in s.languages)
        return LANGUAGES[code]

    def check_continues(self) -> None:
        """Raises `UnsupportedOptionError` where an answer cannot go on with a given text."""
        self._require("prefix_text", True, "going on with a text", lambda s: s.continues)

    def _require(self, option: str, asked: Any, what: str, trained: Callable) -> None:
        if asked and not trained(self):
            able = ", ".join(style.title for style in _STYLES if trained(style)) or "none"
            message = "{option}: {title} was not trained for {what}; these were: {able}"
            values = {"title": self.title, "what": what, "able": able}
            raise UnsupportedOptionError.about(message, option=option, **values)


_TAGGED: dict[Tags, str] = {
    "speakers": "telling speakers apart",
    "times": "telling the times of words itself",
}


def _with_keywords(instruction: str, keywords: Sequence[str] | None) -> str:
    """An instruction with the keywords as a sentence of its own, if there are some."""
    if not keywords:
        return instruction
    end = "" if instruction.endswith((".", "?")) else "."
    return instruction + end + KEYWORDS.format(", ".join(keywords))


_FIVE = ("en", "fr", "de", "es", "pt")
GRANITE_3 = PromptStyle(
    "Granite Speech 3.x",
    languages=_FIVE,
    targets=("en", "fr", "de", "es", "pt", "ja", "zh"),
    system=_CARD.format("April 9, 2025"),
)
GRANITE_4_0 = PromptStyle("Granite 4.0 Speech", keyword_tasks=("transcribe",))
GRANITE_4_1 = PromptStyle(
    "Granite Speech 4.1", punctuates=True, keyword_tasks=TASKS, names_language=TRANSCRIBE_LANGUAGE
)
GRANITE_4_1_PLUS = PromptStyle(
    "Granite Speech 4.1 Plus",
    languages=_FIVE,
    targets=(),
    keyword_tasks=("transcribe",),
    keyword_instruction=TRANSCRIBE,
    names_language=TRANSCRIBE_SPOKEN,
    tags={"speakers": TAG_SPEAKERS, "times": TAG_TIMES},
    continues=True,
    after_audio=" ",
    system=_CARD.format("December 19, 2024"),
)
GRANITE_5_0 = PromptStyle(
    "Granite Speech 5.0",
    punctuates=True,
    translations=(TRANSLATE.capitalize(), TRANSLATE_PUNCTUATED.capitalize()),
    keyword_tasks=TASKS,
    keywords_punctuated=True,
    names_language=LANGUAGE_HINT,
)
_STYLES = (GRANITE_3, GRANITE_4_0, GRANITE_4_1, GRANITE_4_1_PLUS, GRANITE_5_0)
#: of a model that is none of these, e.g. trained from scratch: what they have in common
UNRELEASED = PromptStyle("this Granite Speech model")


def check_plain(title: str, request: TranscriptionRequest, languages: tuple[str, ...]) -> None:
    """Refuse all but plain transcription, for a model that takes no instruction.

    Args:
        title: of the model, for messages.
        languages: codes of those that it was trained on.

    Raises:
        UnsupportedOptionError: something else is asked for; the message names who can.
    """
    plain = PromptStyle(title, languages, targets=())
    plain.instruction(replace(request, language=None))
    if request.prompt is not None:
        able = ", ".join(style.title for style in _STYLES)
        message = "{option}: {title} takes no instruction; these do: {able}"
        raise UnsupportedOptionError.about(message, option="prompt", title=title, able=able)
    if request.language is not None:
        plain.check_language(request.language)


def check_no_tags(title: str, request: TranscriptionRequest) -> None:
    """Refuse what only Granite Speech Plus can do, for a model of another family; see
    `check_plain`."""
    only = TranscriptionRequest(prefix_text=request.prefix_text, tags=request.tags)
    PromptStyle(title).instruction(only)


def named_style(title: str | None) -> PromptStyle | None:
    """The style of a title, if there is one."""
    return next((style for style in (*_STYLES, UNRELEASED) if style.title == title), None)


def prompt_style(model_type: str, audio_token_index: int, name: str) -> PromptStyle:
    """The style of a checkpoint.

    The Plus variant and 3.x are told by their configuration: 3.x by the number of the audio token,
    which a merged adapter or another name does not change. 4.0, 4.1 and 5.0 have the same one, so
    there the repository's or folder's name decides: the last version in it, as in
    `granite-4.0-something-of-granite-speech-4.1-2b`. 4.1 is taken where it does not say.
    """
    if model_type == "granite_speech_plus":
        return GRANITE_4_1_PLUS
    if audio_token_index in (49155, 49159):
        return GRANITE_3
    versions = re.findall(r"granite[-_](?:speech[-_])?(\d\.\d)", name.lower())
    named = {"3": GRANITE_3, "4.0": GRANITE_4_0, "4.1": GRANITE_4_1, "5.0": GRANITE_5_0}
    for version in versions[-1:]:
        if style := named.get(version) or named.get(version[0]):
            return style
    return GRANITE_4_1 if audio_token_index == 100352 else UNRELEASED


def language_code(language: str, option: str = "language") -> str:
    """Code of a language given by its code or English name in any case.

    Args:
        option: name of the option that gives it.

    Raises:
        UnsupportedOptionError: no Granite Speech model knows it.
    """
    if code := find_language(language, LANGUAGES):
        return code
    known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
    message = "{option} {language!r} is not known; known are {known}"
    raise UnsupportedOptionError.about(message, option=option, language=language, known=known)


def find_language(language: str, names: dict[str, str]) -> str | None:
    """Code of a language given by its code or name in any case, where `names` has it."""
    wanted = language.lower()
    return next((code for code, name in names.items() if wanted in (code, name.lower())), None)
