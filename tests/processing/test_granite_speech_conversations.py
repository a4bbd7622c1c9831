"""Recordings inside the messages of conversations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import find_recording

from mlx_speech import (
    AudioError,
    InputError,
    UnsupportedOptionError,
    load_audio,
)


@pytest.fixture
def processor(tiny):
    return tiny[1]


PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}"
    "{% if part['type'] == 'audio' %} <|audio|>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
NOISE = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)


def message(*parts, role: str = "user") -> dict:
    """A message: strings are texts, dictionaries what stands in a part for its recording."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", **part}
        for part in parts
    ]
    return {"role": role, "content": content}


class TestRecordingsInConversations:
    """Other cases are compared with transformers in tests/parity."""

    @pytest.mark.parametrize(
        "part",
        [
            {"audio": NOISE},
            {"audio": NOISE.tolist()},
            {"audio": {"array": NOISE, "sampling_rate": 16000}},
            {"audio": None, "path": NOISE},
            {"url": NOISE},
        ],
        ids=lambda part: ",".join(part),
    )
    def test_ids_and_features(self, processor, part):
        conversation = [message(part, "transcribe this")]
        inputs = processor.apply_chat_template(conversation, tokenize=True, return_tensors="pt")
        prompt = processor.apply_chat_template(conversation)
        expected = processor(prompt, NOISE)
        assert inputs.keys() == expected.keys()
        assert all(mx.array_equal(inputs[name], expected[name]).item() for name in inputs)
        assert (inputs.input_ids == 4).sum().item() == 6
        ids = processor.apply_chat_template(conversation, tokenize=True, return_dict=False)
        assert ids.tolist() == inputs.input_ids.tolist()

    def test_files_and_other_rates(self, processor):
        path = find_recording("synthetic/espeak_04.flac")
        loud = {"array": np.repeat(NOISE, 3), "sampling_rate": 48000}
        found = processor.apply_chat_template(
            [[message({"path": path})], [message({"audio": loud})], [message({"audio": NOISE})]],
            tokenize=True,
        )
        audio = [load_audio(path), load_audio(loud["array"], 48000), NOISE]
        expected = processor.feature_extractor(audio)
        assert mx.array_equal(found.input_features, expected["input_features"]).item()
        rows = (found.input_ids == 4).sum(axis=1).tolist()
        assert rows == expected["audio_embed_sizes"]

    def test_several_in_several_turns(self, processor):
        turns = [
            message("one", {"audio": NOISE}, {"audio": NOISE[:1600]}),
            {"role": "assistant", "content": "two"},
            message({"audio": NOISE[:3200]}, "three"),
        ]
        found = processor.apply_chat_template(turns, tokenize=True)
        expected = processor(
            processor.apply_chat_template(turns), [NOISE, NOISE[:1600], NOISE[:3200]]
        )
        assert found.input_ids.tolist() == expected.input_ids.tolist()
        assert mx.array_equal(found.input_features, expected.input_features).item()

    def test_a_template_that_knows_parts(self, processor):
        """Gets them as they are, without the recordings, which are no plain data."""
        conversation = [message("a", {"audio": NOISE}, "b")]
        options = {"chat_template": PARTS}
        prompt = processor.apply_chat_template(conversation, **options)
        assert prompt == "user: a <|audio|> b"
        found = processor.apply_chat_template(conversation, tokenize=True, **options)
        assert found.input_ids.tolist() == processor(prompt, NOISE).input_ids.tolist()

    def test_a_batch_of_prompts(self, processor):
        conversations = [[message("a")], [message({"audio": NOISE}, "b")]]
        prompts = processor.apply_chat_template(conversations, add_generation_prompt=False)
        start = "<|start_of_role|>user<|end_of_role|>"
        assert prompts == [
            f"{start}a<|end_of_text|>\n",
            f"{start}<|audio|>b<|end_of_text|>\n",
        ]

    def test_options_of_a_call(self, processor):
        conversation = [message({"audio": np.repeat(NOISE, 3)}, "b")]
        expected = processor.apply_chat_template(
            [message({"audio": load_audio(np.repeat(NOISE, 3), 48000)}, "b")], tokenize=True
        )
        for options in ({"sampling_rate": 48000}, {"processor_kwargs": {"sampling_rate": 48000}}):
            found = processor.apply_chat_template(conversation, tokenize=True, **options)
            assert mx.array_equal(found.input_features, expected.input_features).item()

    def test_what_cannot_be(self, processor):
        with pytest.raises(InputError, match=r"mentions 1 recordings .* but 0 are given"):
            processor.apply_chat_template([message({}, "b")], tokenize=True)
        with pytest.raises(UnsupportedOptionError, match=r"^load_audio_from_video: "):
            processor.apply_chat_template([message("b")], load_audio_from_video=True)
        with pytest.raises(InputError, match=r"^processor_kwargs is 5"):
            processor.apply_chat_template([message("b")], tokenize=True, processor_kwargs=5)
        with pytest.raises(UnsupportedOptionError, match=r"^return_assistant_tokens_mask is for t"):
            processor.apply_chat_template([message("b")], return_assistant_tokens_mask=True)
        with pytest.raises(AudioError, match=r"talk.wav does not exist"):
            processor.apply_chat_template([message({"path": "talk.wav"})], tokenize=True)
        with pytest.raises(InputError, match="audio is no samples, but of type object"):
            processor.apply_chat_template([message({"audio": object()})], tokenize=True)
        for conversation in (5, "text", [[5]], [5], [message("a"), [message("b")]]):
            with pytest.raises(InputError, match=r"a (chat is a list|message is)"):
                processor.apply_chat_template(conversation)
