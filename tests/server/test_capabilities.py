"""How models of all kinds are asked, and what they say that they can do."""

from __future__ import annotations

import copy

import mlx.core as mx
import pytest
import tiny_nar

from mlx_speech import MlxSpeechError, load
from mlx_speech.processing import prompts
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.server.capabilities import capabilities, fitted_request

FIVE, SIX = ["en", "fr", "de", "es", "pt"], ["en", "fr", "de", "es", "pt", "ja"]
PLAIN = {"languages": [], "punctuate": None, "speakers": False, "words": False}


@pytest.fixture(scope="module")
def styled(tiny):
    """The bundled model, as if it were another one."""

    def make(style):
        processor = copy.copy(tiny[1])
        processor.prompts = style
        return tiny[0], processor

    return make


@pytest.fixture(scope="module")
def nar(tmp_path_factory):
    return load(tiny_nar.checkpoint(tmp_path_factory.mktemp("nar")), dtype=mx.float32)


def asked(loaded, request=None, **how):
    """The instruction that a model gets, and the language that is known."""
    request, language = fitted_request(
        *loaded, TranscriptionRequest(**(request or {})), **(PLAIN | how)
    )
    return loaded[1].prompts.instruction(request), language


class TestAsked:
    @pytest.mark.parametrize(
        ("style", "how", "expected"),
        [
            (prompts.GRANITE_3, {}, (prompts.TRANSCRIBE, None)),
            (prompts.GRANITE_3, {"languages": ["German"]}, (prompts.TRANSCRIBE, "de")),
            (prompts.GRANITE_3, {"languages": ["de", "fr"]}, (prompts.TRANSCRIBE, None)),
            (prompts.GRANITE_4_1, {}, (prompts.TRANSCRIBE_PUNCTUATED, None)),
            (prompts.GRANITE_4_1, {"punctuate": False}, (prompts.TRANSCRIBE, None)),
            (
                prompts.GRANITE_4_1,
                {"languages": ["de"]},
                (prompts.TRANSCRIBE_LANGUAGE.format("German"), "de"),
            ),
            # it cannot be told without punctuation
            (
                prompts.GRANITE_4_1,
                {"languages": ["de"], "punctuate": False},
                (prompts.TRANSCRIBE, "de"),
            ),
            # nor with keywords
            (
                prompts.GRANITE_4_1,
                {"languages": ["de"], "request": {"keywords": ["Granite"]}},
                (prompts.TRANSCRIBE_KEYWORDS + " Keywords: Granite", "de"),
            ),
            (
                prompts.GRANITE_4_1,
                {"request": {"task": "translate", "target_language": "fr"}},
                (prompts.TRANSLATE_PUNCTUATED.format("French"), "fr"),
            ),
            (
                prompts.GRANITE_4_1,
                {
                    "request": {"task": "translate", "target_language": "fr"},
                    "languages": ["de"],
                    "punctuate": False,
                },
                (prompts.TRANSLATE.format("French"), "fr"),
            ),
            (
                prompts.GRANITE_4_1_PLUS,
                {"languages": ["de"]},
                (prompts.TRANSCRIBE_SPOKEN.format("German"), "de"),
            ),
            # where speakers are told it takes no language
            (
                prompts.GRANITE_4_1_PLUS,
                {"languages": ["de"], "speakers": True},
                (prompts.TRANSCRIBE, "de"),
            ),
        ],
    )
    def test_what_a_model_takes(self, styled, style, how, expected):
        assert asked(styled(style), **how) == expected

    @pytest.mark.parametrize(
        ("style", "how", "words"),
        [
            (prompts.GRANITE_3, {"languages": ["ja"]}, "knows en, fr, de, es, pt, and not 'ja'"),
            (prompts.GRANITE_3, {"languages": ["en", "xx"]}, "and not 'xx'"),
            (prompts.GRANITE_3, {"punctuate": True}, "punctuation and capitals"),
            (prompts.GRANITE_3, {"request": {"keywords": ["Granite"]}}, "trained for keywords"),
            (prompts.GRANITE_3, {"speakers": True}, "telling speakers apart"),
            (
                prompts.GRANITE_4_1,
                {"request": {"keywords": ["Granite"]}, "punctuate": True},
                "keywords and punctuation at once",
            ),
            (
                prompts.GRANITE_4_1_PLUS,
                {"request": {"task": "translate", "target_language": "en"}},
                "translation",
            ),
        ],
    )
    def test_what_it_does_not(self, styled, style, how, words):
        with pytest.raises(MlxSpeechError, match=words):
            asked(styled(style), **how)

    def test_words_need_a_ctc_head(self, tiny_s2t):
        with pytest.raises(MlxSpeechError, match="when words were said"):
            fitted_request(*tiny_s2t, TranscriptionRequest(), **PLAIN | {"words": True})

    def test_models_without_instructions(self, nar):
        plain = TranscriptionRequest()
        assert fitted_request(*nar, plain, **PLAIN) == (plain, None)
        request, language = fitted_request(*nar, plain, **PLAIN | {"languages": ["fr"]})
        assert (request.punctuate, language) == (False, "fr")
        with pytest.raises(MlxSpeechError, match="keywords"):
            fitted_request(*nar, TranscriptionRequest(keywords=["a"]), **PLAIN)


class TestCapabilities:
    @pytest.mark.parametrize(
        ("style", "languages", "others"),
        [
            (prompts.GRANITE_3, FIVE, ()),
            (prompts.GRANITE_4_0, SIX, ("keywords",)),
            (prompts.GRANITE_4_1, SIX, ("punctuate", "keywords")),
            (prompts.GRANITE_4_1_PLUS, FIVE, ("keywords", "speakers")),
            (prompts.GRANITE_5_0, SIX, ("punctuate", "keywords")),
        ],
    )
    def test_granite_speech(self, styled, style, languages, others):
        able = capabilities(*styled(style))
        assert able["languages"] == languages
        assert able["target_languages"] == list(style.targets)
        assert able["words"] is True
        can = [name for name in ("punctuate", "keywords", "speakers") if able[name]]
        assert can == list(others)

    def test_others(self, nar, tiny_s2t):
        none = {"punctuate": False, "keywords": False, "speakers": False}
        texts = {"words": True, "live": True}
        assert capabilities(*nar) == {"languages": FIVE, "target_languages": []} | none | texts
        able = capabilities(*tiny_s2t)
        assert sorted(able["target_languages"]) == sorted(tiny_s2t[1].tokenizer.langs)
        texts = {"words": False, "live": False}
        assert able == able | {"languages": []} | none | texts

    def test_text_models(self, tiny):
        assert capabilities(tiny[0].language_model, tiny[1]) is None
