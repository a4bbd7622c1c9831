"""What the models of a server can do, and how they are asked."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError, UnsupportedOptionError
from ..processing.prompts import LANGUAGES, find_language
from ..processing.request import TranscriptionRequest
from ..transcription.family import SpeechFamily
from ..transcription.preparation import speech_family

_LONGEST_TERM_WORDS = 5


def capabilities(model: Any, processor: Any) -> dict[str, Any] | None:
    """What can be asked of a speech model; None: it is another one.

    languages: codes of those that it was trained on; target_languages: of those it translates to.
    punctuate, keywords, speakers, words: whether it takes, or tells, these.
    live: whether it transcribes audio that is still coming in.
    """
    try:
        family = speech_family(model, processor)
    except UnsupportedOptionError:
        return None

    def can(**asked: Any) -> bool:
        return _refusal(family, TranscriptionRequest(**asked)) is None

    return {
        "languages": list(processor.languages),
        "target_languages": list(processor.target_languages),
        "punctuate": can(punctuate=True),
        "keywords": can(keywords=["word"]),
        "speakers": can(tags="speakers"),
        "words": family.ctc_vocabulary is not None,
        "live": _has_live_text(family),
    }


def _has_live_text(family: SpeechFamily) -> bool:
    try:
        family.live_encoder()
        return True
    except UnsupportedOptionError:
        return False


def fitted_request(
    model: Any,
    processor: Any,
    request: TranscriptionRequest,
    *,
    languages: Sequence[str],
    punctuate: bool | None,
    speakers: bool,
    words: bool,
) -> tuple[TranscriptionRequest, str | None]:
    """A request as a model can take it, and the code of the language that is spoken, where that is
    known.

    Args:
        languages: that may be spoken. One alone is told to a model that takes it; others detect the
            language, and it only has to be one that they know.
        punctuate: whether punctuation and capitals are asked for; None: where the model can.
        speakers, words: are to be told.

    Raises:
        MlxSpeechError: it cannot.
    """
    family = speech_family(model, processor)
    if words and family.ctc_vocabulary is None:
        message = "{word_timestamps}: the model cannot tell when words were said"
        raise UnsupportedOptionError.about(message, option="word_timestamps")
    spoken = _checked_languages(languages, processor.languages)
    tagged = replace(request, tags="speakers") if speakers else request
    told = [*spoken, None] if len(spoken) == 1 else [None]
    for candidate in _candidates(tagged, told, [True, False] if punctuate is None else [punctuate]):
        if error := _refusal(family, candidate):
            continue
        known = spoken if len(spoken) == 1 else processor.languages
        language = known[0] if len(known) == 1 else None
        return replace(candidate, tags=None), request.target_language or language
    assert error is not None
    raise error


def _candidates(
    request: TranscriptionRequest, languages: Sequence[str | None], punctuations: Sequence[bool]
) -> Iterator[TranscriptionRequest]:
    """From the one that asks most."""
    for language in languages:
        for punctuate in punctuations:
            yield replace(request, language=language, punctuate=punctuate)


def _refusal(family: SpeechFamily, request: TranscriptionRequest) -> UnsupportedOptionError | None:
    try:
        family.text_language(request)
        return None
    except UnsupportedOptionError as error:
        return error


def _checked_languages(languages: Sequence[str], trained: Sequence[str]) -> list[str]:
    """Codes of languages that a model was trained on."""
    codes = [find_language(language, LANGUAGES) for language in languages]
    for language, code in zip(languages, codes, strict=True):
        if code not in trained:
            able = ", ".join(trained) or "one that it does not name"
            message = "{option}: the model knows {able}, and not {language!r}"
            values = {"able": able, "language": language}
            raise UnsupportedOptionError.about(message, option="language", **values)
    return [code for code in codes if code]


def prompt_terms(prompt: str | None) -> list[str]:
    """What a prompt lists, to be told as keywords.

    Raises:
        InputError: it has sentences.
    """
    parts = re.split(r"[,;\n]", (prompt or "").strip().removesuffix("."))
    terms = [" ".join(part.split()) for part in parts if part.strip()]
    if any(len(term.split()) > _LONGEST_TERM_WORDS or ". " in term for term in terms):
        message = "{option} must be names and terms to expect, with commas between them: there is "
        message += "no model here that takes sentences"
        raise InputError.about(message, option="prompt")
    return terms
