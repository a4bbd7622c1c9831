"""Granite Speech's processor: audio tokens, templates, batches."""

from __future__ import annotations

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest
from chat_templates import DATED, ROLES, USER_ASSISTANT
from conftest import TINY, edit_json

from mlx_speech import (
    CheckpointError,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechProcessor,
    InputError,
    Tokenizer,
    UnsupportedOptionError,
    load_audio,
)
from mlx_speech.processing.prompts import (
    GRANITE_3,
    GRANITE_4_0,
    GRANITE_4_1,
    GRANITE_4_1_PLUS,
)
from mlx_speech.processing.request import TranscriptionRequest

NOISE = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)


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
            with pytest.raises(UnsupportedOptionError, match="return_tensors='tf'"):
                processor(text, audio, return_tensors="tf")
        with pytest.raises(InputError, match="differ in length"):
            processor(["a", "a b"], padding=False)
        assert processor(None, recordings[0], padding=False).input_features.shape[0] == 1

    @pytest.mark.parametrize("audio", [5, [None], [[0.5, "x"]], {"array": [0.5]}])
    def test_what_is_no_audio(self, processor, audio):
        with pytest.raises(InputError, match=r"^audio is no samples.*load_audio"):
            processor("<|audio|>", audio)

    def test_the_rate_of_the_recordings(self, processor):
        """They are resampled; a device means nothing."""
        audio = np.sin(np.arange(24000) * 0.05).astype(np.float32) / 4
        expected = processor("<|audio|>", load_audio(audio, 48000))
        for options in ({"sampling_rate": 48000}, {"audio_kwargs": {"sampling_rate": 48000}}):
            found = processor("<|audio|>", audio, "mps", **options)
            assert mx.array_equal(found.input_features, expected.input_features).item()
            assert found.input_ids.tolist() == expected.input_ids.tolist()

    def test_no_audio(self, processor):
        with pytest.raises(InputError, match="no audio given"):
            processor("", [])

    def test_audio_token_of_the_tokenizer_counts(self):
        tokenizer = Tokenizer.from_pretrained(TINY)
        tokenizer.config = {**tokenizer.config, "audio_token": "<|sound|>"}
        processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), tokenizer)
        assert processor.audio_token == "<|sound|>"


class TestChatTemplates:
    def test_parts_become_one_string(self, processor):
        content = [{"type": "audio"}, {"type": "text", "text": "hear"}, {"type": "audio"}]
        chat = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
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

    @pytest.mark.parametrize("template", [ROLES, ROLES + "{{ prefix_text or '' }}"])
    def test_plus_goes_on_with_a_text(self, processor, monkeypatch, template):
        """Whether its template knows of it or not."""
        monkeypatch.setattr(processor.tokenizer, "chat_template", template)
        monkeypatch.setattr(processor, "prompts", GRANITE_4_1_PLUS)
        end = "do it<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>[Speaker 1]: well"
        assert processor.speech_prompt("do it", "[Speaker 1]: well").endswith(end)
        request = TranscriptionRequest(prefix_text="well then")
        ids = processor.speech_inputs(mx.zeros(16000), request)["input_ids"][0].tolist()
        text = processor.decode(ids, skip_special_tokens=False)
        assert text.endswith("assistant<|end_of_role|>well then")

    def test_only_plus_goes_on_with_a_text_and_only_in_an_answer(self, processor, monkeypatch):
        messages = [{"role": "user", "content": "x"}]
        with pytest.raises(UnsupportedOptionError, match=r"these were: Granite Speech 4\.1 Plus$"):
            processor.speech_prompt("do it", "well")
        monkeypatch.setattr(processor, "prompts", GRANITE_4_1_PLUS)
        with pytest.raises(InputError, match="prefix_text begins the answer: it needs add_gen"):
            processor.apply_chat_template(messages, prefix_text="well")
        with pytest.raises(InputError, match="which stands for a recording"):
            processor.speech_prompt("do it", "well <|audio|>")

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


def test_other_arguments_of_the_class(processor):
    parts = processor.feature_extractor, processor.tokenizer
    assert GraniteSpeechProcessor(*parts, None).audio_token == "<|audio|>"
    with pytest.raises(InputError, match="audio_token is 5, but must be text"):
        GraniteSpeechProcessor(*parts, 5)
    with pytest.raises(InputError, match="chat_template is 5, but must be text"):
        processor.apply_chat_template([{"role": "user", "content": "hello"}], chat_template=5)


def test_nothing_of_a_caller_is_held(processor):
    """As the error of a template would that is tried, until the next garbage collection."""

    class Audio: ...

    def transcribe() -> weakref.ref:
        audio = Audio()
        processor.speech_prompt("hear")
        return weakref.ref(audio)

    transcribe()
    gc.disable()
    try:
        assert transcribe()() is None
    finally:
        gc.enable()


class TestFolders:
    def test_without_a_model(self, tiny_copy, processor):
        """What save_pretrained writes is enough; how to instruct the model is kept."""
        expected = processor("<|audio|>hear", NOISE)
        edit_json(tiny_copy / "processor_config.json", prompt_style="Granite Speech 4.1 Plus")
        assert GraniteSpeechProcessor.from_pretrained(tiny_copy).prompts is GRANITE_4_1_PLUS
        (tiny_copy / "config.json").unlink()
        alone = GraniteSpeechProcessor.from_pretrained(tiny_copy)
        assert alone.prompts is GRANITE_4_1_PLUS
        assert alone.to_dict()["prompt_style"] == GRANITE_4_1_PLUS.title
        found = alone("<|audio|>hear", NOISE)
        assert all(mx.array_equal(found[name], expected[name]).item() for name in expected)
        edit_json(tiny_copy / "processor_config.json", prompt_style=None)
        for name, style in (("granite-speech-3.3-2b", GRANITE_3), ("granite-4.0-1b", GRANITE_4_0)):
            assert GraniteSpeechProcessor.from_pretrained(tiny_copy, name=name).prompts is style

    def test_options(self, tiny_copy):
        processor = GraniteSpeechProcessor.from_pretrained(
            tiny_copy, audio_token="<|pad|>", chat_template="x", padding_value=1.0, revision=None
        )
        assert processor.audio_token == "<|pad|>"
        assert processor.chat_template == processor.tokenizer.chat_template == "x"
        assert processor.feature_extractor.padding_value == 1.0
        with pytest.raises(InputError, match="no option colour"):
            GraniteSpeechProcessor.from_pretrained(tiny_copy, colour="red")

    def test_parts(self, processor):
        features, tokenizer = processor.audio_processor, processor.tokenizer
        assert features is processor.feature_extractor
        assert GraniteSpeechProcessor(features, tokenizer, "<x>").audio_token == "<x>"
        with pytest.raises(InputError, match="is made of a GraniteSpeechFeatureExtractor and a T"):
            GraniteSpeechProcessor(tokenizer, features)


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
    assert processor.decode(second, skip_special_tokens=True) == "seven"
