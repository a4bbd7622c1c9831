"""Chat completions that are refused, or left by their client: told in a line, and nothing more."""

from __future__ import annotations

import errno
import gc
import io
import os
import time

import openai
import pytest
import tiny_nar
import turboctc
from chats import AUDIO, LIGHT, about, create, post, recording, say, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import client_of, serving

import mlx_speech
from mlx_speech.audio import load
from mlx_speech.generation.text import prompt_ids
from mlx_speech.server import chat, chat_audio

AUDIO_PART = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def ask(**fields):
    return {"model": "tiny", "messages": [say(LIGHT)], **fields}


@pytest.fixture(scope="module")
def others(tmp_path_factory, tiny, tiny_s2t):
    """The client of a server whose models do not chat."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "nar").mkdir()
    (folder / "turbo").mkdir()
    untaught = mlx_speech.Tokenizer(tiny[1].tokenizer.backend, {})
    loaded = {
        "nar": mlx_speech.load(tiny_nar.checkpoint(folder / "nar")),
        "turbo": mlx_speech.load(turboctc.write(folder / "turbo")),
        "s2t": tiny_s2t,
        "untaught": (tiny[0].language_model, untaught),
    }
    with serving(loaded.__getitem__, tuple(loaded)) as url, client_of(url) as client:
        yield client


class TestFields:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": 2.1}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"top_p": -0.1}, "top_p"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
            ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
            ({"stop": ""}, "stop"),
            ({"stop": ["a"] * 5}, "stop"),
            ({"stop": [1]}, "stop"),
            ({"seed": 2**63}, "seed"),
            ({"stream": "yes"}, "stream"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
            ({"logprobs": 3}, "logprobs"),
            ({"top_logprobs": 2}, "top_logprobs"),
            ({"n": 2}, "n"),
            ({"presence_penalty": 0.5}, "presence_penalty"),
            ({"frequency_penalty": -1}, "frequency_penalty"),
            ({"logit_bias": {"5": 10}}, "logit_bias"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"tools": [{"type": "function"}]}, "tools"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"modalities": ["text", "audio"]}, "modalities"),
            ({"reasoning_effort": "high"}, "reasoning_effort"),
            ({"chat_template": "{{ 1 }}"}, "chat_template"),
            ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
            ({"model": 3}, "model"),
            ({"messages": None}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "hello"}, "messages"),
            ({"messages": ["hello"]}, "messages[0]"),
            ({"messages": [say(LIGHT), say("x", "tool")]}, "messages[1].role"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"messages": [say(None)]}, "messages[0].content"),
            ({"messages": [say([])]}, "messages[0].content"),
            ({"messages": [{**say("x"), "name": "me"}]}, "messages[0].name"),
            ({"messages": [say([{"type": "image_url"}])]}, "messages[0].content[0].type"),
            ({"messages": [say([{"type": "text"}])]}, "messages[0].content[0].text"),
            (
                {"messages": [say([{"type": "text", "text": "x", "audio": "/etc/passwd"}])]},
                "messages[0].content[0].audio",
            ),
            ({"messages": [say([AUDIO_PART], "assistant")]}, "messages[0].content[0]"),
            (
                {"messages": [say([{"type": "input_audio", "input_audio": "/etc/passwd"}])]},
                "messages[0].content[0].input_audio",
            ),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_refused_by_name(self, server, fields, param):
        status, error = post(server, ask(**fields))
        assert (status, error["param"]) == (400, param), error
        assert param in error["message"]
        assert "\n" not in error["message"]

    def test_unknown_model(self, client):
        with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
            create(client, [say(LIGHT)], model="nobody")

    def test_the_client_raises(self, client):
        with pytest.raises(openai.BadRequestError, match="temperature"):
            create(client, [say(LIGHT)], temperature=9)
        with pytest.raises(openai.BadRequestError, match="stream is"):
            create(client, [say(LIGHT)], extra_body={"stream": 7})


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"hello",
            b"[]",
            b"null",
            b"{",
            b'{"messages": [],}',
            b'{"temperature": NaN}',
            b'{"temperature": Infinity}',
            b'{"temperature": ' + b"9" * 5000 + b"}",
            b"\xff\xfe",
            b'{"model": "\\ud800"}',
            b'{"\\ud800": 1}',
            b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"temperature": ' + b"[" * 500 + b"]" * 500 + b"}",
        ],
        ids=lambda body: str(body[:30]),
    )
    def test_no_json_of_a_client(self, server, body):
        status, error = post(server, body)
        assert status == 400
        assert error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]

    def test_numbers_without_end(self, server):
        for number in ("1e999", "-1e999", "9" * 400, "1e-999"):
            for name in ("temperature", "max_tokens", "seed", "top_p"):
                body = f'{{"messages": [{{"role": "user", "content": "x"}}], "{name}": {number}}}'
                status, error = post(server, body.encode())
                assert (status, error.get("param")) in ((400, name), (200, None))

    def test_too_large(self, tiny, monkeypatch):
        monkeypatch.setattr(chat, "MAX_BODY_BYTES", 1000)
        with serving(lambda name: tiny) as url:
            status, error = post(url, ask(user="x" * 2000))
            assert (status, error["code"]) == (413, "request_too_large")
            assert post(url, ask())[0] == 200

    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["role", "content", "type", "text", "input_audio", "data", "format"]
                ),
                inner | st.sampled_from(["user", "text", "input_audio", "AAAA"]),
                max_size=4,
            )
        ),
        max_leaves=12,
    )
    names = st.sampled_from(
        [
            *("temperature", "top_p", "stop", "seed", "stream", "n", "max_tokens", "logprobs"),
            *("stream_options", "response_format", "model", "tools", "messages", "no such field"),
        ]
    )

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(fields=st.dictionaries(names, values, max_size=3), tokens=st.integers(1, 2))
    def test_garbage_in_every_field(self, server, fields, tokens):
        body = {"messages": [say("hello")], "max_completion_tokens": tokens, **fields}
        if body["messages"] != [say("hello")] or fields.get("stream") is not True:
            status, answer = post(server, body)
            assert status in (200, 400, 404), answer
            assert "choices" in answer or "\n" not in answer["message"]


class TestModels:
    @pytest.mark.parametrize("name", ["nar", "turbo", "s2t", "untaught"])
    def test_that_do_not_chat(self, others, name):
        with pytest.raises(openai.BadRequestError, match=f"{name} cannot chat: ") as caught:
            create(others, [say(LIGHT)], model=name)
        assert caught.value.param == "model"

    def test_text_models_take_no_recordings(self, tiny_text):
        loaded = mlx_speech.load(tiny_text)
        with serving(lambda name: loaded) as url, client_of(url) as client:
            assert text_of(create(client, [say(LIGHT)])) == "the kitchen light is on."
            with pytest.raises(openai.BadRequestError, match="takes no recordings in a chat"):
                create(client, [about(AUDIO / "short.wav")])


class TestLimits:
    def test_context(self, client, tiny):
        room = tiny[0].context_length
        for asked in ({"max_tokens": room}, {}):
            words = LIGHT if asked else "light " * room
            with pytest.raises(openai.BadRequestError, match=f"context of {room} tokens") as caught:
                create(client, [say(words)], **asked)
            assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="characters") as caught:
            create(client, [say("light " * room * 10)])
        assert caught.value.code == "context_length_exceeded"

    def test_an_answer_ends_with_the_context(self, client, tiny, monkeypatch):
        """Where nothing is said of its length."""
        model, processor = tiny
        words = model.context_length - 30 - len(prompt_ids(processor.tokenizer, [say("")]))
        monkeypatch.setattr(model.generation_config, "eos_token_id", -1)
        light = len(processor.tokenizer.encode("light light")) // 2
        answer = create(client, [say("light " * (words // light))])
        assert answer.usage.total_tokens == model.context_length
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens < 60

    def test_recordings_in_all(self, client, monkeypatch):
        monkeypatch.setattr(chat_audio, "MAX_AUDIO_SECONDS", 6)
        one = AUDIO / "espeak_03.flac"
        assert text_of(create(client, [about(one)]))
        with pytest.raises(openai.BadRequestError, match="may have 6 s together") as caught:
            create(client, [about(one, one)])
        assert caught.value.code == "audio_too_long"


class TestRecordings:
    def test_a_full_disk(self, client, server, monkeypatch):
        """Is the server's trouble, and over when there is room."""

        class Full(io.FileIO):
            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(load.tempfile, "TemporaryFile", lambda **_: Full(os.devnull, "r+"))
            status, error = post(server, ask(messages=[about(AUDIO / "short.wav")]))
        assert (status, error["code"]) == (507, "disk_full"), error
        assert text_of(create(client, [about(AUDIO / "flite_08.flac")]))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"hello",
            b"#EXTM3U\n/etc/passwd\n",
            b"ffconcat version 1.0\nfile /etc/passwd\n",
            (AUDIO / "short.wav").read_bytes()[:40],
        ],
    )
    def test_that_are_none(self, client, data):
        with pytest.raises(openai.BadRequestError, match=r"content\[0\]\.input_audio") as caught:
            create(client, [say([recording(data)])])
        assert (caught.value.code, caught.value.param) == (
            "invalid_audio",
            "messages[0].content[0].input_audio",
        )

    @pytest.mark.parametrize(
        "data", ["é", "data:audio/wav;base64,AAAA", "AAA", "/etc/passwd", "A A="]
    )
    def test_that_are_no_base64(self, server, data):
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        status, error = post(server, ask(messages=[say([part])]))
        assert status == 400
        assert error["param"].startswith("messages[0].content[0].input_audio"), error

    def test_in_words(self, client):
        """The token that stands for a recording, written out, stands for none."""
        for messages in (
            [say("<|audio|>")],
            [say([recording(AUDIO / "short.wav")]), say("<|audio|>")],
        ):
            with pytest.raises(openai.BadRequestError, match="audio"):
                create(client, messages)


class TestClientsThatGo:
    def test_their_answers_end(self, tiny, monkeypatch):
        """At the next step, streamed or not; their places are free."""
        steps = []
        step = type(tiny[0]).step

        def counted(model, tokens, cache):
            steps.append(1)
            time.sleep(0.02)
            return step(model, tokens, cache)

        monkeypatch.setattr(type(tiny[0]), "step", counted)
        monkeypatch.setattr(tiny[0].generation_config, "eos_token_id", -1)
        asked = {"model": "tiny", "messages": [say("hello")], "max_tokens": 900}
        with (
            serving(lambda name: tiny, engine={"max_requests": 1}) as url,
            client_of(url) as client,
        ):
            stream = client.chat.completions.create(stream=True, **asked)
            next(stream)
            stream.close()
            del stream
            gc.collect()
            wait_for_place(client)
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.3).chat.completions.create(**asked)
            wait_for_place(client)
            assert len(steps) < 400


def wait_for_place(client):
    """Within 20 s; while there is none, requests are turned away."""
    for _ in range(200):
        try:
            return create(client, [say(LIGHT)], max_tokens=1)
        except openai.RateLimitError:
            time.sleep(0.1)
    raise AssertionError("the place is not free")
