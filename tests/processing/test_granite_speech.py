"""Prompts: templates, instructions per model family, audio tokens."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import TINY, edit_json, find_recording

from mlx_speech import (
    AudioError,
    CheckpointError,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechProcessor,
    InputError,
    Tokenizer,
    UnsupportedOptionError,
    load,
    load_audio,
)
from mlx_speech.processing.prompts import (
    GRANITE_3,
    GRANITE_4_0,
    GRANITE_4_1,
    GRANITE_4_1_PLUS,
    GRANITE_5_0,
    UNRELEASED,
    prompt_style,
)
from mlx_speech.processing.request import TranscriptionRequest

ROLES = (
    "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}"
    "<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
# as that of Granite 3.3, with a system message where none is given
DATED = (
    "{%- if messages[0]['role'] != 'system' %}<|start_of_role|>system<|end_of_role|>"
    "Today's Date: {{ strftime_now('%B %d, %Y') }}.<|end_of_text|>\n{% endif -%}" + ROLES
)
USER_ASSISTANT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }}\n ASSISTANT:"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture
def processor(tiny):
    return tiny[1]


class TestAudioTokens:
    @pytest.mark.parametrize(
        ("seconds", "frames", "tokens"), [(1, 50, 12), (10, 500, 102), (60, 3000, 600)]
    )
    def test_counts_of_the_released_models(self, seconds, frames, tokens):
        features = GraniteSpeechFeatureExtractor()(mx.zeros(16000 * seconds))
        assert features["input_features"].shape == (1, frames, 160)
        assert features["audio_embed_sizes"] == [tokens]
        assert features["input_features_mask"].shape == (1, tokens)

    def test_one_token_in_the_text_becomes_as_many_as_needed(self, processor):
        audio = [mx.zeros(16000), mx.zeros(1600)]
        inputs = processor(["a<|audio|>b<|audio|>", "c"], audio)
        assert (inputs["input_ids"] == 4).sum(axis=1).tolist() == [12 + 3, 0]
        assert inputs["input_features_mask"].sum(axis=1).tolist() == [12, 3]
        assert inputs["feature_lengths"].tolist() == [50, 5]
        assert inputs["attention_mask"][1].tolist()[-2:] == [0, 1]

    @pytest.mark.parametrize(
        ("text", "audio", "numbers"),
        [("<|audio|><|audio|>", [mx.zeros(999)], (2, 1)), ("none", [mx.zeros(999)], (0, 1))],
    )
    def test_mismatch_names_both_numbers(self, processor, text, audio, numbers):
        with pytest.raises(InputError, match=f"mentions {numbers[0]} .* but {numbers[1]} "):
            processor(text, audio)

    def test_text_that_mentions_audio_without_any(self, processor):
        with pytest.raises(InputError, match=r"mentions 1 .* but 0 are given"):
            processor("<|audio|>what is this")

    def test_audio_alone_is_features(self, processor):
        audio = [mx.zeros(16000), mx.zeros(1600)]
        expected = processor(["<|audio|>", "<|audio|>"], audio)
        for features in (processor(audio=audio), processor(None, audio)):
            names = {"input_features", "input_features_mask", "feature_lengths"}
            assert features.keys() == names
            assert all(mx.array_equal(features[name], expected[name]).item() for name in names)

    @pytest.mark.parametrize("text", [None, [], ["a", None], 5, {"a": 1}, np.zeros(999)])
    def test_what_is_no_text(self, processor, text):
        with pytest.raises(InputError, match=r"^text is .*, but must be one or more strings$"):
            processor(text)

    def test_arrays(self, processor):
        """As in transformers' examples: all kinds are MLX's."""
        prompt, recordings = "<|audio|>hear", [mx.zeros(16000), mx.zeros(800)]
        prompts = [prompt, prompt]
        expected = processor(prompts, recordings)
        inputs = processor(prompts, recordings, return_tensors="pt", padding=True)
        assert inputs.keys() == expected.keys()
        assert inputs.input_features is inputs["input_features"]
        assert all(mx.array_equal(inputs[name], expected[name]).item() for name in inputs)
        for text, audio in ((prompts, recordings), (None, recordings), (["a", "a b"], None)):
            with pytest.raises(InputError, match="differ in length"):
                processor(text, audio, padding=False)
            with pytest.raises(UnsupportedOptionError, match="return_tensors='tf'"):
                processor(text, audio, return_tensors="tf")
        assert processor(None, recordings[0], padding=False).input_features.shape[0] == 1

    @pytest.mark.parametrize("audio", ["talk.flac", ["talk.flac"], 5, [None], [[0.5, "x"]]])
    def test_what_is_no_audio(self, processor, audio):
        with pytest.raises(InputError, match=r"load_audio reads files"):
            processor("<|audio|>", audio)

    def test_no_audio(self, processor):
        with pytest.raises(InputError, match="no audio given"):
            processor("", [])

    def test_audio_token_of_the_tokenizer_counts(self):
        tokenizer = Tokenizer.from_pretrained(TINY)
        tokenizer.config = {**tokenizer.config, "audio_token": "<|sound|>"}
        processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), tokenizer)
        assert processor.audio_token == "<|sound|>"


class TestFeatures:
    def test_too_short(self):
        extractor = GraniteSpeechFeatureExtractor()
        with pytest.raises(AudioError, match="256 samples is too short: at least 257"):
            extractor(mx.zeros(256))
        assert extractor(mx.zeros(257))["input_features"].shape == (1, 1, 160)

    def test_integers_are_refused(self):
        with pytest.raises(AudioError, match="int16"):
            GraniteSpeechFeatureExtractor()(np.zeros(1000, np.int16))

    @pytest.mark.parametrize(
        ("sample", "message"),
        [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (3.0, "look like integers")],
    )
    @pytest.mark.parametrize("kind", [np.array, mx.array])
    def test_samples_are_checked_as_those_of_files(self, sample, message, kind):
        samples = np.zeros(1000, np.float32)
        samples[500] = sample
        with pytest.raises(AudioError, match=message):
            GraniteSpeechFeatureExtractor()([kind(np.zeros_like(samples)), kind(samples)])

    def test_a_hot_mix_is_accepted(self):
        GraniteSpeechFeatureExtractor()(np.linspace(-1.5, 1.4, 1000, dtype=np.float32))

    def test_stereo_is_refused(self):
        with pytest.raises(AudioError, match="not mono"):
            GraniteSpeechFeatureExtractor()([mx.zeros((2, 1000))])

    def test_each_recording_has_its_own_floor(self):
        """The reference takes lengths from a padded batch, and so lets one change another."""
        quiet = load_audio(find_recording("synthetic/short.wav")) * 1e-3
        loud = load_audio(find_recording("synthetic/espeak_00.flac"))
        extractor = GraniteSpeechFeatureExtractor()
        together = extractor([quiet, loud])["input_features"]
        alone = extractor(quiet)["input_features"][0]
        assert mx.array_equal(together[0, : len(alone)], alone).item()
        assert not together[0, len(alone) :].any().item()

    def test_other_parameters(self):
        extractor = GraniteSpeechFeatureExtractor.from_dict({"n_mels": 40, "hop_length": 320})
        assert extractor(mx.zeros(16000))["input_features"].shape == (1, 25, 80)

    def test_unknown_parameters(self):
        with pytest.raises(CheckpointError, match="unsupported power"):
            GraniteSpeechFeatureExtractor(melspec_kwargs={"power": 1.0})

    def test_null_is_nothing(self):
        extractor = GraniteSpeechFeatureExtractor.from_dict({"melspec_kwargs": None})
        assert extractor.melspec_kwargs == GraniteSpeechFeatureExtractor().melspec_kwargs


class TestChatTemplates:
    def test_parts_become_one_string(self, processor):
        content = [{"type": "audio"}, {"type": "text", "text": "hear"}, {"type": "audio"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}])
        assert prompt == (
            "<|start_of_role|>user<|end_of_role|><|audio|>hear<|audio|><|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>"
        )

    def test_without_generation_prompt(self, processor):
        messages = [{"role": "user", "content": "x"}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=False)
        assert prompt.endswith("x<|end_of_text|>\n")

    def test_user_assistant_form_of_4(self, processor, monkeypatch):
        monkeypatch.setattr(processor.tokenizer, "chat_template", USER_ASSISTANT)
        monkeypatch.setattr(processor, "prompts", GRANITE_4_1)
        assert processor.speech_prompt("do it") == "USER: <|audio|>do it\n ASSISTANT:"

    def test_plus_has_a_space_and_its_system_message(self, processor, monkeypatch):
        monkeypatch.setattr(processor.tokenizer, "chat_template", ROLES)
        monkeypatch.setattr(processor, "prompts", GRANITE_4_1_PLUS)
        prompt = processor.speech_prompt("do it")
        assert prompt.startswith("<|start_of_role|>system<|end_of_role|>Knowledge Cutoff")
        assert "user<|end_of_role|><|audio|> do it<|end_of_text|>" in prompt
        assert prompt.endswith("<|start_of_role|>assistant<|end_of_role|>")

    def test_3_puts_the_system_message_of_its_card_first(self, processor, monkeypatch):
        """Else its template would say what day it is, and the text depend on it."""
        monkeypatch.setattr(processor.tokenizer, "chat_template", DATED)
        monkeypatch.setattr(processor, "prompts", GRANITE_3)
        assert processor.speech_prompt("do it") == (
            "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
            "Today's Date: April 9, 2025.\n"
            "You are Granite, developed by IBM. You are a helpful AI assistant<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|><|audio|>do it<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>"
        )

    def test_unknown_part(self, processor):
        message = {"role": "user", "content": [{"type": "image"}]}
        with pytest.raises(InputError, match="'image'"):
            processor.apply_chat_template([message])

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "user"},
            {"role": "user", "content": None},
            {"role": "user", "content": 5},
            {"content": "x"},
            "x",
            {"role": "user", "content": ["x"]},
            {"role": "user", "content": [{"type": "text"}]},
            {"role": "user", "content": [{"type": "text", "text": None}]},
            {"role": "user", "content": [{"text": np.zeros((99, 99))}]},
        ],
    )
    def test_what_is_no_message(self, processor, message):
        with pytest.raises(InputError, match=r"^a (part of a )?message is [^\n]+$"):
            processor.apply_chat_template([message])

    def test_the_sandbox_holds(self, processor, monkeypatch):
        evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        monkeypatch.setattr(processor.tokenizer, "chat_template", evil)
        with pytest.raises(CheckpointError, match="unsafe"):
            processor.apply_chat_template([{"role": "user", "content": "x"}])

    def test_a_template_that_fails(self, processor, monkeypatch):
        """Not only with an error of jinja's."""
        monkeypatch.setattr(processor.tokenizer, "chat_template", "{{ 1 + 'x' }}")
        with pytest.raises(CheckpointError, match="the chat template fails: unsupported operand"):
            processor.apply_chat_template([{"role": "user", "content": "x"}])

    def test_a_template_that_refuses(self, processor, monkeypatch):
        template = "{{ raise_exception('roles must alternate') }}"
        monkeypatch.setattr(processor.tokenizer, "chat_template", template)
        with pytest.raises(InputError, match="roles must alternate"):
            processor.apply_chat_template([{"role": "user", "content": "x"}])

    @pytest.mark.parametrize("place", ["tokenizer_config", "list", "chat_template.json"])
    def test_places_where_it_may_stand(self, tiny_copy, place):
        (tiny_copy / "chat_template.jinja").unlink()
        if place == "tokenizer_config":
            edit_json(tiny_copy / "tokenizer_config.json", chat_template=USER_ASSISTANT)
        elif place == "list":
            named = [
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": USER_ASSISTANT},
            ]
            edit_json(tiny_copy / "tokenizer_config.json", chat_template=named)
        else:
            edit_json(tiny_copy / "chat_template.json", chat_template=USER_ASSISTANT)
        processor = GraniteSpeechProcessor.from_pretrained(tiny_copy)
        assert processor.speech_prompt("go") == "USER: <|audio|>go\n ASSISTANT:"

    def test_no_template(self, tiny_copy):
        (tiny_copy / "chat_template.jinja").unlink()
        processor = GraniteSpeechProcessor.from_pretrained(tiny_copy)
        with pytest.raises(InputError, match="no chat template"):
            processor.speech_prompt("x")


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
        ],
    )
    def test_instructions(self, style, options, instruction):
        assert style.instruction(TranscriptionRequest(**options)) == instruction

    @pytest.mark.parametrize(
        ("style", "options", "message"),
        [
            (
                GRANITE_3,
                {"task": "translate", "target_language": "it"},
                "3.x does not translate to Italian, but to en, fr, de, es, pt, ja, zh",
            ),
            (GRANITE_3, {"punctuate": True}, "punctuate.*3.x.*these were: Granite Speech 4.1"),
            (GRANITE_4_0, {"language": "en"}, "language.*4.0.*Granite Speech 5.0"),
            (
                GRANITE_4_1_PLUS,
                {"task": "translate", "target_language": "fr"},
                "not trained for translation; these were: Granite Speech 3.x",
            ),
            (GRANITE_4_1, {"task": "translate", "target_language": "tlh"}, "'tlh' is not known"),
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
                    "Granite Speech 4.1, Granite Speech 5.0$",
                )
                for style in (GRANITE_3, GRANITE_4_1_PLUS, UNRELEASED)
            ),
            *(
                (
                    style,
                    {"task": "translate", "target_language": "fr", "keywords": ["MLX"]},
                    "trained for keywords in translation; these were: Granite Speech 4.1$",
                )
                for style in (GRANITE_3, GRANITE_4_0, GRANITE_5_0)
            ),
        ],
    )
    def test_what_a_family_cannot_do(self, style, options, message):
        with pytest.raises(UnsupportedOptionError, match=message):
            style.instruction(TranscriptionRequest(**options))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "translate"}, "task 'translate' needs target_language"),
            ({"target_language": "fr"}, "goes with task 'translate'"),
            ({"task": "dance"}, "task is 'dance'"),
            ({"task": "translate", "target_language": 5}, "target_language is 5"),
            ({"language": b"en"}, "language is b'en'"),
            ({"keywords": "MLX"}, "keywords is 'MLX', but must be a list"),
            ({"keywords": {"MLX"}}, "keywords is {'MLX'}, but must be a list"),
            *(
                ({"keywords": ["MLX", word]}, "among the keywords is .*, which is no word or name")
                for word in ("", " ", "a, b", "a\nb", 5)
            ),
            ({"keywords": ["MLX"], "punctuate": True}, "keywords and punctuate at once"),
        ],
    )
    def test_what_no_family_can_do(self, options, message):
        with pytest.raises(InputError, match=message):
            TranscriptionRequest(**options)

    def test_a_prompt_takes_the_place_of_keywords(self):
        with pytest.raises(InputError, match=r"the place of .* and keywords"):
            TranscriptionRequest(prompt="do it", keywords=["MLX"])

    def test_keywords_reach_the_prompt(self, processor, monkeypatch):
        monkeypatch.setattr(processor, "prompts", GRANITE_4_1)
        request = TranscriptionRequest(keywords=["front", "window"])
        inputs = processor.speech_inputs(mx.zeros(16000), request)
        text = processor.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=False)
        assert "Keywords: front, window" in text
        assert processor.text_language(request) is None


def test_stored_padding_and_truncation_are_left_alone(tiny_copy, processor):
    """A prompt with its audio tokens is longer than what tokenizers were trained on."""
    stored = {
        "truncation": {
            "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
        },
        "padding": {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 1, "pad_type_id": 0, "pad_token": "<|pad|>",
        },
    }  # fmt: skip
    edit_json(tiny_copy / "tokenizer.json", **stored)
    text = "unlock the back gate and the front gate"
    ids = Tokenizer.from_pretrained(tiny_copy).encode(text)
    assert ids == processor.tokenizer.encode(text)
    assert len(ids) > 4


def test_left_padding_of_a_text_batch(processor):
    inputs = processor(["good night", "seven"])
    first, second = inputs["input_ids"].tolist()
    assert second[: len(first) - 1].count(1) == inputs["attention_mask"][1].tolist().count(0)
    assert processor.decode(second) == "seven"
