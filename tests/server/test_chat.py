"""Chat completions by OpenAI's own client: the model's answers, whatever else is asked between."""

from __future__ import annotations

import gc
import io
import json
import time
import urllib.request
import weakref

import numpy as np
import pytest
import soundfile
from chats import AUDIO, COMMAND, LIGHT, PATH, about, alone, create, recording, say, text_of
from conftest import TINY, random_decoder
from openai.types.chat import ChatCompletionChunk
from serving import client_of, serving

import mlx_speech
from mlx_speech.generation.prefix_cache import PrefixCache
from mlx_speech.server.chat_prompt import ChatCaches

ONE, OTHER = AUDIO / "espeak_03.flac", AUDIO / "flite_08.flac"


def usage_of(answer):
    """Tokens of the prompt, of these cached, and of these of audio."""
    details = answer.usage.prompt_tokens_details
    return answer.usage.prompt_tokens, details.cached_tokens, details.audio_tokens


def chunks_of(client, messages, **asked):
    events = client.chat.completions.create(model="tiny", messages=messages, stream=True, **asked)
    return [
        ChatCompletionChunk.model_validate(e.model_dump(exclude_unset=True), strict=True)
        for e in events
    ]


class TestAnswers:
    def test_text(self, client, tiny):
        answer = create(client, [say(LIGHT)])
        assert text_of(answer) == "the kitchen light is on."
        (choice,) = answer.choices
        assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
        assert (answer.object, answer.model) == ("chat.completion", "tiny")
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        model, processor = tiny
        last = list(mlx_speech.stream_generate(model, processor, [say(LIGHT)]))[-1]
        assert usage.prompt_tokens == last.prompt_tokens
        assert usage.completion_tokens == last.generation_tokens

    def test_parts_and_roles(self, client, tiny):
        parts = [{"type": "text", "text": LIGHT[:10]}, {"type": "text", "text": LIGHT[10:]}]
        plain = [say("be brief", "system"), say(LIGHT)]
        for role in ("system", "developer"):
            assert text_of(create(client, [say("be brief", role), say(parts)])) == alone(
                tiny, plain
            )

    def test_stream(self, client):
        messages = [say(COMMAND)]
        whole = create(client, messages)
        chunks = chunks_of(client, messages)
        assert len({chunk.id for chunk in chunks}) == 1
        choices = [chunk.choices[0] for chunk in chunks]
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == text_of(whole)
        assert sum(bool(choice.delta.content) for choice in choices) > 5
        assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert all(chunk.usage is None for chunk in chunks)

    def test_usage_of_a_stream(self, client):
        *chunks, last = chunks_of(client, [say(LIGHT)], stream_options={"include_usage": True})
        assert last.choices == []
        whole = create(client, [say(LIGHT)]).usage
        assert last.usage.completion_tokens == whole.completion_tokens
        assert last.usage.prompt_tokens == whole.prompt_tokens
        assert all(chunk.usage is None for chunk in chunks)

    def test_stream_ends_with_done(self, server):
        body = json.dumps({"messages": [say(LIGHT)], "stream": True}).encode()
        with urllib.request.urlopen(server + PATH, body, timeout=60) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert all(line.startswith("data: {") for line in lines[:-2])

    def test_without_a_name_it_is_the_first_model(self, server, client):
        body = json.dumps({"messages": [say(LIGHT)]}).encode()
        with urllib.request.urlopen(server + PATH, body, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["content"] == text_of(create(client, [say(LIGHT)]))
        assert answer["model"] == "tiny"


class TestOptions:
    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_limit(self, client, tiny, name):
        answer = create(client, [say(COMMAND)], **{name: 4})
        assert text_of(answer) == alone(tiny, [say(COMMAND)], max_new_tokens=4)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 4

    @pytest.mark.parametrize("stop", ["light", ["music", " is"]])
    def test_stop(self, client, stop):
        answer = create(client, [say(LIGHT)], stop=stop)
        assert text_of(answer) == ("the kitchen " if stop == "light" else "the kitchen light")
        assert answer.choices[0].finish_reason == "stop"
        chunks = chunks_of(client, [say(LIGHT)], stop=stop)
        deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(deltas) == text_of(answer)

    def test_sampling(self, client, tiny):
        asked = {"temperature": 2.0, "top_p": 0.9, "seed": 7}
        answers = {text_of(create(client, [say(COMMAND)], **asked)) for _ in range(2)}
        assert answers == {alone(tiny, [say(COMMAND)], **asked)}
        assert text_of(create(client, [say(COMMAND)], **(asked | {"seed": -7}))) not in answers

    def test_top_p_alone_samples(self, client, tiny):
        expected = alone(tiny, [say(COMMAND)], temperature=1.0, top_p=0.95, seed=3)
        assert text_of(create(client, [say(COMMAND)], top_p=0.95, seed=3)) == expected

    @pytest.mark.parametrize("asked", [{"temperature": 0, "top_p": 0.5}, {"top_p": 0}, {"seed": 1}])
    def test_the_likeliest(self, client, tiny, asked):
        assert text_of(create(client, [say(COMMAND)], **asked)) == alone(tiny, [say(COMMAND)])

    def test_logprobs(self, client, tiny):
        model, processor = tiny
        expected = list(mlx_speech.stream_generate(model, processor, [say(LIGHT)]))[:-1]
        answer = create(client, [say(LIGHT)], logprobs=True)
        content = answer.choices[0].logprobs.content
        assert [c.logprob for c in content] == pytest.approx(
            [e.logprob for e in expected], abs=1e-4
        )
        assert "".join(c.token for c in content) == text_of(answer)
        assert bytes(b for c in content for b in c.bytes).decode() == text_of(answer)
        chunks = chunks_of(client, [say(LIGHT)], logprobs=True)
        streamed = [c.choices[0].logprobs for c in chunks]
        assert [t.token for s in streamed if s for t in s.content] == [c.token for c in content]

    def test_what_changes_nothing_is_accepted(self, client):
        asked = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}
        asked |= {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}
        asked |= {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}
        asked |= {"modalities": ["text"], "top_logprobs": 0}
        assert text_of(create(client, [say(LIGHT)], **asked)) == "the kitchen light is on."


class TestRecordings:
    def test_the_adapter_is_on_for_them_alone(self, client, tiny, reference):
        transcribed = create(client, [about(ONE)])
        assert text_of(transcribed) == alone(tiny, [about(ONE)])
        assert text_of(transcribed) == reference["files"]["synthetic/espeak_03.flac"]["greedy"]
        assert text_of(create(client, [say(LIGHT)])) == "the kitchen light is on."
        prompt, _, audio = usage_of(transcribed)
        assert 30 < audio < prompt

    def test_several_in_turns(self, client, tiny):
        """Each answer is that to the whole conversation; only what is new is fed."""
        messages, before = [], 0
        for turn in (about(ONE), about(OTHER, ONE), say("repeat: hello"), about(OTHER)):
            messages.append(turn)
            answer = create(client, messages, max_tokens=40)
            assert text_of(answer) == alone(tiny, messages, max_new_tokens=40)
            assert usage_of(answer)[1] >= before
            before = usage_of(answer)[0]
            messages.append(answer.choices[0].message.model_dump(exclude_none=True))

    def test_they_are_told_apart(self, tiny):
        """Of as many tokens each, in the same places of the same text."""
        soundfile.write(file := io.BytesIO(), np.zeros(48000), 16000, format="WAV")
        silence = file.getvalue()
        buzz = bytearray(silence)
        buzz[2001::200] = b"\x20" * len(buzz[2001::200])
        with serving(lambda name: tiny) as url, client_of(url) as client:
            first = create(client, [about(silence)], logprobs=True)
            other = create(client, [about(bytes(buzz))], logprobs=True)
            again = create(client, [about(silence)], logprobs=True)
        assert usage_of(first)[0] == usage_of(other)[0]
        assert usage_of(other)[1] < 10  # what stands before them
        assert usage_of(again)[1] == usage_of(first)[0] - 1

        def logprobs(answer):
            return [token.logprob for token in answer.choices[0].logprobs.content]

        assert logprobs(again) == pytest.approx(logprobs(first), abs=1e-4)
        assert logprobs(other) != pytest.approx(logprobs(first), abs=1e-4)

    def test_a_text_does_not_go_on_where_the_adapter_was_on(self, tiny):
        with serving(lambda name: tiny) as url, client_of(url) as client:
            system = say("be brief", "system")
            create(client, [system, about(OTHER)])
            assert usage_of(create(client, [system, say(LIGHT)]))[1] == 0
            assert usage_of(create(client, [system, say(LIGHT + " please")]))[1] > 10

    def test_streams(self, client, tiny):
        chunks = chunks_of(client, [about(OTHER)])
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == alone(tiny, [about(OTHER)])

    def test_any_format(self, client):
        wav = recording(AUDIO / "short.wav", "wav")
        mislabelled = recording(AUDIO / "short.wav", "mp3")
        texts = [text_of(create(client, [say([part])])) for part in (wav, mislabelled)]
        assert texts[0] == texts[1]


class TestCache:
    def test_a_conversation_goes_on(self, tiny):
        """After another one, too, and after a retry: with the ids that it has without a cache."""
        with serving(lambda name: tiny) as url, client_of(url) as client:
            talks = {"one": [say(COMMAND)], "other": [say("repeat: hello")]}
            held = dict.fromkeys(talks, 0)
            for turn in (LIGHT, "good night", "call my sister"):
                for name, messages in talks.items():
                    answer = create(client, messages)
                    assert text_of(answer) == alone(tiny, messages)
                    assert usage_of(answer)[1] >= held[name]
                    again = create(client, messages)
                    assert text_of(again) == text_of(answer)
                    assert usage_of(again)[1] == usage_of(again)[0] - 1
                    held[name] = usage_of(answer)[0]
                    messages += [say(text_of(answer), "assistant"), say(turn)]

    def test_a_stream_that_is_left_is_gone_on_with(self, tiny):
        with serving(lambda name: tiny) as url, client_of(url) as client:
            stream = client.chat.completions.create(
                model="tiny", messages=[say(COMMAND)], stream=True
            )
            with stream:
                next(stream)
            answer = create(client, [say(COMMAND)])
            assert text_of(answer) == alone(tiny, [say(COMMAND)])

    def test_goes_with_its_model(self):
        """Nothing else of a conversation holds on to either."""
        models = []

        def loader(name):
            loaded = mlx_speech.load(TINY)
            models.append(weakref.ref(loaded[0]))
            return loaded

        with serving(loader, keep_alive=0) as url, client_of(url) as client:
            for messages in ([say(LIGHT)], [about(OTHER)]):
                assert usage_of(create(client, messages))[1] == 0
                for _ in range(200):
                    if models[-1]() is None:
                        break
                    time.sleep(0.05)
                assert models[-1]() is None
        assert len(models) >= 2

    def test_its_memory_is_given_back(self):
        model, caches = random_decoder(), ChatCaches()
        cache = PrefixCache(model.make_cache())
        caches.of(model).put(cache)
        assert len(caches.of(model)) == 1
        alive = weakref.ref(cache)
        del cache, model
        gc.collect()
        assert alive() is None
