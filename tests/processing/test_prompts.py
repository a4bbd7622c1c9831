"""Instructions and templates of each model family."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import pytest
from conftest import edit_json

from mlx_speech import (
    GraniteSpeechProcessor,
    UnsupportedOptionError,
    load,
)
from mlx_speech.processing.prompts import (
    GRANITE_3,
    GRANITE_4_0,
    GRANITE_4_1,
    GRANITE_4_1_PLUS,
    GRANITE_5_0,
    UNRELEASED,
    check_no_tags,
    check_plain,
    prompt_style,
)
from mlx_speech.processing.request import TranscriptionRequest


@pytest.fixture
def processor(tiny):
    return tiny[1]


class TestPrompts:
    @pytest.mark.parametrize(
        ("audio_token", "name", "style"),
        [
            (49155, "ibm-granite/granite-speech-3.2-8b", GRANITE_3),
            (49159, "ibm-granite/granite-speech-3.3-2b", GRANITE_3),
            (49159, "anything", GRANITE_3),
            (49159, "ibm-granite/granite-speech-4.1-2b", GRANITE_3),
            (49200, "granite-speech-3.3-2b-with-more-tokens", GRANITE_3),
            (100352, "ibm-granite/granite-4.0-1b-speech", GRANITE_4_0),
            (100352, "ibm-granite/granite-speech-4.1-2b", GRANITE_4_1),
            (100352, "/models/Granite-Speech-5.0-2b", GRANITE_5_0),
            (100352, "/granite-speech-5.0-2b/granite_speech_4.0", GRANITE_4_0),
            (100352, "models--ibm-granite--granite-speech-5.0-2b/snapshots/0f", GRANITE_5_0),
            (100352, "granite-4.0-ft-of-granite-speech-4.1-2b", GRANITE_4_1),
            (100352, "granite-speech-7.5-2b", GRANITE_4_1),
            (100352, "my-model", GRANITE_4_1),
            (100400, "my-model", UNRELEASED),
        ],
    )
    def test_family(self, audio_token, name, style):
        assert prompt_style("granite_speech", audio_token, name) is style

    def test_plus(self):
        for name in ("granite-speech-4.1-2b-plus", "granite-speech-5.0-2b", "mine"):
            assert prompt_style("granite_speech_plus", 100352, name) is GRANITE_4_1_PLUS

    def test_the_name_of_the_folder_one_stands_in(self, tiny_copy, monkeypatch):
        folder = tiny_copy.rename(tiny_copy.with_name("granite-speech-5.0-2b"))
        monkeypatch.chdir(folder)
        assert GraniteSpeechProcessor.from_pretrained(".").prompts is GRANITE_5_0
        assert load(".")[1].prompts is GRANITE_5_0

    def test_merged_adapter(self, tiny_copy):
        """3.3 without its adapter files is still 3.3."""
        edit_json(tiny_copy / "config.json", audio_token_index=49159, has_lora_adapter=False)
        folder = tiny_copy.rename(tiny_copy.with_name("merged"))
        assert GraniteSpeechProcessor.from_pretrained(folder).prompts is GRANITE_3

    def test_the_bundled_model_is_none_of_the_released(self, processor):
        """It was trained without a system message."""
        assert processor.prompts is UNRELEASED
        assert "system" not in processor.speech_prompt("do it")

    @pytest.mark.parametrize(
        ("style", "options", "instruction"),
        [
            (GRANITE_3, {}, "can you transcribe the speech into a written format?"),
            (
                GRANITE_4_1,
                {"punctuate": True},
                "transcribe the speech with proper punctuation and capitalization.",
            ),
            (
                GRANITE_4_1,
                {"punctuate": True, "language": "de"},
                "transcribe the German speech with proper punctuation and capitalization.",
            ),
            (
                GRANITE_3,
                {"task": "translate", "target_language": "fr"},
                "translate the speech to French.",
            ),
            (
                GRANITE_4_1,
                {"task": "translate", "target_language": "Mandarin", "punctuate": True},
                "translate the speech to Mandarin with proper punctuation and capitalization.",
            ),
            (
                GRANITE_5_0,
                {"language": "es"},
                "The speech is in Spanish. Transcribe it exactly; do not translate. "
                "can you transcribe the speech into a written format?",
            ),
            (
                GRANITE_4_0,
                {"keywords": ["MLX", "Jais 2"]},
                "transcribe the speech to text. Keywords: MLX, Jais 2",
            ),
            (
                GRANITE_4_1,
                {"task": "translate", "target_language": "fr", "keywords": ["MLX"]},
                "translate the speech to French. Keywords: MLX",
            ),
            (
                GRANITE_5_0,
                {"language": "es", "keywords": ("MLX", "Jais")},
                "The speech is in Spanish. Transcribe it exactly; do not translate. "
                "transcribe the speech to text. Keywords: MLX, Jais",
            ),
            (GRANITE_3, {"keywords": []}, "can you transcribe the speech into a written format?"),
            (
                GRANITE_4_1_PLUS,
                {"language": "de"},
                "can you transcribe the German speech into a written format?",
            ),
            (
                GRANITE_4_1_PLUS,
                {"keywords": ["MLX", "Jais"]},
                "can you transcribe the speech into a written format? Keywords: MLX, Jais",
            ),
            (
                GRANITE_4_1_PLUS,
                {"keywords": ["MLX"], "language": "fr", "prefix_text": "well"},
                "can you transcribe the French speech into a written format? Keywords: MLX",
            ),
            (
                GRANITE_4_1_PLUS,
                {"tags": "speakers"},
                "Speaker attribution: Transcribe and denote who is speaking by adding "
                "[Speaker 1]: and [Speaker 2]: tags before speaker turns.",
            ),
            (
                GRANITE_4_1_PLUS,
                {"tags": "times"},
                "Timestamps: Transcribe the speech. After each word, add a timestamp tag showing "
                "the end time in centiseconds, e.g. hello [T:45] world [T:82]",
            ),
            (
                GRANITE_4_1_PLUS,
                {"tags": "times", "keywords": ["MLX"]},
                "Timestamps: Transcribe the speech. After each word, add a timestamp tag showing "
                "the end time in centiseconds, e.g. hello [T:45] world [T:82]. Keywords: MLX",
            ),
        ],
    )
    def test_instructions(self, style, options, instruction):
        assert style.instruction(TranscriptionRequest(**options)) == instruction

    @pytest.mark.parametrize("keywords", [(), ("MLX", "Jais 2")])
    @pytest.mark.parametrize(
        ("options", "instruction"),
        [
            ({}, "can you transcribe the speech into a written format?"),
            (
                {"punctuate": True},
                "transcribe the speech with proper punctuation and capitalization.",
            ),
            (
                {"language": "ja", "punctuate": True},
                "The speech is in Japanese. Transcribe it exactly; do not translate. "
                "transcribe the speech with proper punctuation and capitalization.",
            ),
            (
                {"task": "translate", "target_language": "it"},
                "Translate the speech to Italian.",
            ),
            (
                {"task": "translate", "target_language": "zh", "punctuate": True},
                "Translate the speech to Mandarin with proper punctuation and capitalization.",
            ),
        ],
    )
    def test_instructions_of_5_0(self, options, instruction, keywords):
        """Keywords go behind any of them, but for the plain one, which is another with them."""
        if keywords:
            listed = " Keywords: MLX, Jais 2"
            instruction = (instruction if options else "transcribe the speech to text.") + listed
        request = TranscriptionRequest(**options, keywords=keywords)
        assert GRANITE_5_0.instruction(request) == instruction

    @pytest.mark.parametrize(
        ("style", "options", "message"),
        [
            (
                GRANITE_3,
                {"task": "translate", "target_language": "it"},
                "^target_language: .*3.x does not .* Italian, but to en, fr, de, es, pt, ja, zh$",
            ),
            (GRANITE_3, {"punctuate": True}, "punctuate.*3.x.*these were: Granite Speech 4.1"),
            (GRANITE_4_0, {"language": "en"}, "language.*4.0.*Granite Speech 5.0"),
            (
                GRANITE_4_1_PLUS,
                {"task": "translate", "target_language": "fr"},
                "not trained for translation; these were: Granite Speech 3.x",
            ),
            (
                GRANITE_4_1,
                {"task": "translate", "target_language": "tlh"},
                "^target_language 'tlh' is not known",
            ),
            (GRANITE_4_1, {"language": "de"}, "only together with punctuation"),
            (
                GRANITE_4_1,
                {"language": "de", "keywords": ["MLX"]},
                "language only together with punctuation",
            ),
            *(
                (
                    style,
                    {"keywords": ["MLX"]},
                    "keywords: .* was not trained for keywords; these were: Granite 4.0 Speech, "
                    "Granite Speech 4.1, Granite Speech 4.1 Plus, Granite Speech 5.0$",
                )
                for style in (GRANITE_3, UNRELEASED)
            ),
            *(
                (style, options, message + "; these were: Granite Speech 4.1 Plus$")
                for style in (GRANITE_3, GRANITE_4_0, GRANITE_4_1, GRANITE_5_0, UNRELEASED)
                for options, message in (
                    ({"tags": "speakers"}, "^speakers: .* for telling speakers apart"),
                    (
                        {"tags": "times"},
                        "word_timestamps: .* the times of words itself",
                    ),
                    ({"prefix_text": "well"}, "^prefix_text: .* for going on with a text"),
                    (
                        {"prefix_text": "", "prompt": "do it"},
                        "^prefix_text: .* for going on with a text",
                    ),
                )
            ),
            (
                GRANITE_4_1_PLUS,
                {"tags": "times", "language": "de"},
                "no language where it is asked",
            ),
            *(
                (
                    style,
                    {"task": "translate", "target_language": "fr", "keywords": ["MLX"]},
                    "trained for keywords in translation; these were: Granite Speech 4.1, "
                    "Granite Speech 5.0$",
                )
                for style in (GRANITE_3, GRANITE_4_0)
            ),
            (
                GRANITE_4_1,
                {"keywords": ["MLX"], "punctuate": True},
                "keywords and punctuation at once; these were: Granite Speech 5.0$",
            ),
            (
                GRANITE_5_0,
                {"task": "translate", "target_language": "fr", "language": "de"},
                "5.0 detects the language that it translates from; leave language out",
            ),
        ],
    )
    def test_what_a_family_cannot_do(self, style, options, message):
        with pytest.raises(UnsupportedOptionError, match=message):
            style.instruction(TranscriptionRequest(**options))

    def test_keywords_reach_the_prompt(self, processor, monkeypatch):
        monkeypatch.setattr(processor, "prompts", GRANITE_4_1)
        request = TranscriptionRequest(keywords=["front", "window"])
        inputs = processor.speech_inputs(mx.zeros(16000), request)
        text = processor.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=False)
        assert "Keywords: front, window" in text
        assert processor.text_language(request) is None


@pytest.mark.parametrize("check", [check_no_tags, partial(check_plain, languages=("en",))])
@pytest.mark.parametrize("options", [{"tags": "speakers"}, {"tags": "times"}, {"prefix_text": ""}])
def test_other_families_have_no_tags(check, options):
    with pytest.raises(UnsupportedOptionError, match=r"Other .* were: Granite Speech 4\.1 Plus$"):
        check("Other", TranscriptionRequest(**options))
    check("Other", TranscriptionRequest())
