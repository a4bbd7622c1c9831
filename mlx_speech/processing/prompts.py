"""What to say to which Granite Speech model: the instructions that each one was trained on.

Sources: the models' cards, and the prompts of ibm-granite's own `granite-speech` library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError, UnsupportedOptionError

TRANSCRIBE = "can you transcribe the speech into a written format?"
TRANSCRIBE_PUNCTUATED = "transcribe the speech with proper punctuation and capitalization."
TRANSCRIBE_LANGUAGE = "transcribe the {} speech with proper punctuation and capitalization."
TRANSLATE = "translate the speech to {}."
TRANSLATE_PUNCTUATED = "translate the speech to {} with proper punctuation and capitalization."
TRANSCRIBE_KEYWORDS = "transcribe the speech to text."
KEYWORDS = " Keywords: {}"
LANGUAGE_HINT = "The speech is in {}. Transcribe it exactly; do not translate. "

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

_CARD_SYSTEM = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: {}.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)


@dataclass(frozen=True)
class PromptStyle:
    """How a family of models is spoken to.

    title: for messages.
    translate: the instruction for a translation, with a place for the language.
    targets: codes of the languages that it translates to.
    punctuates: whether it knows the instruction for punctuation and capitals.
    keyword_tasks: the tasks in which it takes keywords, words to expect.
    names_language: whether it can be told which language is spoken.
    after_audio: what stands between the audio and the instruction.
    system: the system message that its card uses; without one, their templates fill in another,
        3.3's with the day's date.
    """

    title: str
    translate: str = TRANSLATE
    targets: tuple[str, ...] = tuple(LANGUAGES)
    punctuates: bool = False
    keyword_tasks: tuple[str, ...] = ()
    names_language: bool = False
    after_audio: str = ""
    system: str | None = None

    def instruction(
        self,
        task: str = "transcribe",
        *,
        language: str | None = None,
        target_language: str | None = None,
        punctuate: bool = False,
        keywords: Sequence[str] | None = None,
    ) -> str:
        """The instruction for a task.

        Args:
            task: `"transcribe"` or `"translate"`.
            language: spoken language, code or English name; None lets the model hear it.
            target_language: language to translate to, code or English name.
            punctuate: ask for punctuation and capitals.
            keywords: names and terms to expect, spelled as they should be written.

        Raises:
            InputError: the arguments contradict each other.
            UnsupportedOptionError: this family was not trained for it.
        """
        check_request(
            task,
            language=language,
            target_language=target_language,
            punctuate=punctuate,
            keywords=keywords,
        )
        if keywords and task not in self.keyword_tasks:
            raise self._no_keywords(task)
        if punctuate and not self.punctuates:
            raise self._unsupported("punctuate", "punctuation and capitals", "punctuates")
        if language is not None and not self.names_language:
            raise self._unsupported("language", "being told the language", "names_language")
        if task == "translate":
            return self._translate(language, target_language, punctuate) + _listed(keywords)
        plain = TRANSCRIBE_PUNCTUATED if punctuate else TRANSCRIBE
        if keywords:
            plain = TRANSCRIBE_KEYWORDS + _listed(keywords)
        if language is None:
            return plain
        spoken = LANGUAGES[language_code(language)]
        if self is GRANITE_5_0:
            return LANGUAGE_HINT.format(spoken) + plain
        if not punctuate:
            raise UnsupportedOptionError(
                f"{self.title} takes the language only together with punctuation (punctuate)"
            )
        return TRANSCRIBE_LANGUAGE.format(spoken)

    def _translate(self, language: str | None, target: str, punctuate: bool) -> str:
        if not self.targets:
            raise self._unsupported("task", "translation", "targets")
        if language is not None:
            raise UnsupportedOptionError(f"{self.title} hears the language that it translates from")
        code = language_code(target)
        name = LANGUAGES[code]
        if code not in self.targets:
            raise UnsupportedOptionError(
                f"{self.title} does not translate to {name}, but to {', '.join(self.targets)}"
            )
        return (TRANSLATE_PUNCTUATED if punctuate else self.translate).format(name)

    def _unsupported(self, option: str, what: str, attribute: str) -> UnsupportedOptionError:
        able = [style.title for style in _STYLES if getattr(style, attribute)]
        return self._untrained(option, what, able)

    def _no_keywords(self, task: str) -> UnsupportedOptionError:
        able = [style.title for style in _STYLES if task in style.keyword_tasks]
        what = "keywords" if task == "transcribe" else "keywords in translation"
        return self._untrained("keywords", what, able)

    def _untrained(self, option: str, what: str, able: list[str]) -> UnsupportedOptionError:
        return UnsupportedOptionError(
            f"{option}: {self.title} was not trained for {what}; these were: {', '.join(able)}"
        )


def _listed(keywords: Sequence[str] | None) -> str:
    return KEYWORDS.format(", ".join(keywords)) if keywords else ""


GRANITE_3 = PromptStyle(
    "Granite Speech 3.x",
    targets=("en", "fr", "de", "es", "pt", "ja", "zh"),
    system=_CARD_SYSTEM.format("April 9, 2025"),
)
GRANITE_4_0 = PromptStyle("Granite 4.0 Speech", keyword_tasks=("transcribe",))
GRANITE_4_1 = PromptStyle(
    "Granite Speech 4.1",
    punctuates=True,
    keyword_tasks=("transcribe", "translate"),
    names_language=True,
)
GRANITE_4_1_PLUS = PromptStyle(
    "Granite Speech 4.1 Plus",
    targets=(),
    after_audio=" ",
    system=_CARD_SYSTEM.format("December 19, 2024"),
)
GRANITE_5_0 = PromptStyle(
    "Granite Speech 5.0", punctuates=True, keyword_tasks=("transcribe",), names_language=True
)
_STYLES = (GRANITE_3, GRANITE_4_0, GRANITE_4_1, GRANITE_4_1_PLUS, GRANITE_5_0)
#: of a model that is none of these, e.g. trained from scratch: what they have in common
UNRELEASED = PromptStyle("this Granite Speech model")


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


def check_request(
    task: str,
    *,
    language: str | None = None,
    target_language: str | None = None,
    punctuate: bool = False,
    prompt: str | None = None,
    keywords: Sequence[str] | None = None,
) -> None:
    """What holds for every model; arguments as in `transcribe`.

    Raises:
        InputError: the arguments contradict each other.
    """
    texts = {"language": language, "target_language": target_language, "prompt": prompt}
    for name, value in texts.items():
        if not isinstance(value, str | None):
            raise InputError(f"{name} is {value!r}, but must be text")
    if task not in ("transcribe", "translate"):
        raise InputError(f"task is {task!r}, but must be 'transcribe' or 'translate'")
    told = language is not None or target_language is not None or punctuate or bool(keywords)
    if prompt is not None and (told or task != "transcribe"):
        raise InputError(
            "prompt takes the place of task, language, target_language, punctuate and keywords; "
            "leave them out"
        )
    if keywords is not None:
        _check_keywords(keywords)
        if keywords and punctuate:
            raise InputError("no model was trained for keywords and punctuate at once; choose one")
    if task == "translate" and target_language is None:
        raise InputError("task 'translate' needs target_language")
    if task != "translate" and target_language is not None:
        raise InputError("target_language goes with task 'translate'")


def _check_keywords(keywords: Sequence[str]) -> None:
    if isinstance(keywords, str) or not isinstance(keywords, Sequence):
        raise InputError(f"keywords is {keywords!r}, but must be a list of words")
    for word in keywords:
        # they are told to the model as one line, with commas between them
        if not (isinstance(word, str) and word.strip() and word.isprintable() and "," not in word):
            raise InputError(f"among the keywords is {word!r}, which is no word or name")


def language_code(language: str) -> str:
    """Code of a language given by its code or English name in any case.

    Raises:
        UnsupportedOptionError: no Granite Speech model knows it.
    """
    for code, name in LANGUAGES.items():
        if language.lower() in (code, name.lower()):
            return code
    known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
    raise UnsupportedOptionError(f"language {language!r} is not known; known are {known}")
