"""A conversation: what is fed, what is kept, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import TINY, find_recording

import mlx_speech
from mlx_speech import (
    ChatSession,
    CheckpointError,
    ContextLengthError,
    InputError,
    Tokenizer,
    save_prompt_cache,
)
from mlx_speech.generation.text import prompt_ids

COMMAND = "translate to french: please turn on the hall light and play some music"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@contextlib.contextmanager
def interrupted_after(lines: int):
    """Within it, Ctrl-C comes when so many lines of the package have been run."""
    package = str(Path(mlx_speech.__file__).parent)
    count = 0

    def enter(frame, event, argument):
        return step if frame.f_code.co_filename.startswith(package) else None

    def step(frame, event, argument):
        nonlocal count
        count += event == "line"
        if count == lines:
            sys.settrace(None)
            raise KeyboardInterrupt
        return step

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


def same_reply(one, other) -> None:
    """Also in its probabilities: the likeliest tokens may be the same by accident."""
    one, other = list(one), list(other)
    assert [r.token for r in one] == [r.token for r in other]
    assert [r.logprob for r in one] == pytest.approx([r.logprob for r in other], abs=1e-4)


class TestChat:
    @pytest.fixture
    def session(self, tiny) -> ChatSession:
        return ChatSession(*tiny, max_new_tokens=40)

    def test_turns_feed_only_what_is_new(self, tiny, session):
        """And give what the whole conversation gives when it is fed anew."""
        _, processor = tiny
        for number, text in enumerate([COMMAND, "repeat: hello", "turn on the light"]):
            history = [*session.messages, *ask(text)]
            ids = prompt_ids(processor.tokenizer, history)
            responses = list(session.stream(text))
            assert (responses[0].prompt_tokens == len(ids)) == (number == 0)
            new = ids if number == 0 else prompt_ids(processor.tokenizer, ask(text))
            # and the white space that the template puts behind the last reply
            assert responses[0].prompt_tokens <= len(new) + 2
            expected = mlx_speech.generate(*tiny, history, max_new_tokens=40)
            assert "".join(r.text for r in responses) == expected
            assert session.messages == [*history, {"role": "assistant", "content": expected}]

    def test_so_do_those_of_a_draft_model(self, tiny, session, monkeypatch):
        """Its cache survives the turns as well, and a load; replies are those without it."""
        draft, _ = mlx_speech.load(TINY)
        fed = []
        prefill = type(draft).prefill

        def counted(model, ids, cache, **inputs):
            if model is draft:
                fed.append(ids.shape[1])
            return prefill(model, ids, cache, **inputs)

        monkeypatch.setattr(type(draft), "prefill", counted)
        other = ChatSession(*tiny, max_new_tokens=40)
        for text in (COMMAND, "repeat: hello", "turn on the light"):
            new = list(other.stream(text))
            same_reply(session.stream(text, draft_model=draft), new)
            # a little of the last reply may be missing in it
            assert new[0].prompt_tokens <= fed[-1] <= new[0].prompt_tokens + 2
        assert len(fed) == 3
        session.reset()
        session.send(COMMAND, draft_model=draft)
        assert fed[-1] == fed[0]
        session.send("repeat: hello", assistant_model=draft)
        assert fed[-1] < 30

    def test_interrupted_reply(self, tiny, session):
        """The conversation goes on from what was said, as if fed anew."""
        responses = session.stream(COMMAND)
        said = "".join(next(responses).text for _ in range(4))
        responses.close()
        assert session.messages[-1] == {"role": "assistant", "content": said}
        history = [*session.messages, *ask("repeat: hello")]
        expected = mlx_speech.generate(*tiny, history, max_new_tokens=40)
        assert session.send("repeat: hello") == expected

    @pytest.mark.parametrize("options", [{}, {"max_kv_size": 24}, {"kv_bits": 8}], ids=str)
    def test_save_and_load(self, tiny, options, tmp_path):
        if "kv_bits" in options:
            options = options | {"kv_group_size": 32}
        session = ChatSession(*tiny, system="be brief", max_new_tokens=20, **options)
        session.send(COMMAND)
        session.save(tmp_path / "chat")
        expected = session.send("repeat: hello")
        other = ChatSession(*tiny, max_new_tokens=20)
        other.load(tmp_path / "chat")
        responses = list(other.stream("repeat: hello"))
        assert "".join(r.text for r in responses) == expected
        assert other.messages == session.messages
        assert responses[0].prompt_tokens < 30

    def test_saved_files_are_replaced_unless_told_otherwise(self, session, tmp_path):
        for overwrite in (False, True):
            session.save(tmp_path / "chat", overwrite=overwrite)
        before = (tmp_path / "chat").read_bytes()
        session.send(COMMAND)
        with pytest.raises(InputError, match="chat exists already; overwrite replaces it"):
            session.save(tmp_path / "chat", overwrite=False)
        assert (tmp_path / "chat").read_bytes() == before

    def test_failed_load_changes_nothing(self, session, tmp_path):
        session.send(COMMAND)
        before = list(session.messages)
        with pytest.raises(InputError, match="no such file"):
            session.load(tmp_path / "none")
        assert session.messages == before

    def test_cache_of_no_conversation(self, tiny, session, tmp_path):
        model, _ = tiny
        cache = model.make_cache()
        model.generate(mx.array([[5, 6]]), past_key_values=cache)
        save_prompt_cache(tmp_path / "prompt", cache, model)
        with pytest.raises(CheckpointError, match="a prompt cache, but of no conversation"):
            session.load(tmp_path / "prompt")

    def test_no_template(self, tiny):
        model, processor = tiny
        plain = Tokenizer(processor.tokenizer.backend, {})
        with pytest.raises(InputError, match="no chat template"):
            ChatSession(model, plain)

    def test_cut_off_replies(self, tiny):
        """The conversation goes on from what was said, as if fed anew."""
        session = ChatSession(*tiny, max_new_tokens=6)
        for text in ("repeat: hello", "good night", "call my sister"):
            anew = ChatSession(*tiny, max_new_tokens=6)
            anew.messages = list(session.messages)
            same_reply(session.stream(text), anew.stream(text))

    @pytest.mark.parametrize(
        "options",
        [{}, {"max_kv_size": 64}, {"kv_bits": 8}, {"draft_model": None, "num_draft_tokens": 2}],
        ids=str,
    )
    def test_interrupted_anywhere(self, tiny, options):
        """Wherever Ctrl-C hits, the conversation goes on from its messages, as if fed anew."""
        if "draft_model" in options:
            options = options | {"draft_model": tiny[0]}
        if "kv_bits" in options:
            # a key that is computed in a larger product may be a step apart in 8 bits
            options = options | {"kv_group_size": 32, "prefill_step_size": 1}
        for line in random.Random(1).sample(range(1, 3000), 6):
            session = ChatSession(*tiny, max_new_tokens=6, **options)
            session.send("repeat: hello")
            with interrupted_after(line), contextlib.suppress(KeyboardInterrupt):
                session.send("seven two nine")
            gc.collect()  # the reply that nobody takes to its end any more
            anew = ChatSession(*tiny, max_new_tokens=6, **options)
            anew.messages = list(session.messages)
            same_reply(session.stream("good night"), anew.stream("good night"))

    def test_reset(self, tiny):
        session = ChatSession(*tiny, system="be brief", max_new_tokens=20)
        first = session.send(COMMAND)
        session.send("repeat: hello")
        session.reset()
        assert session.messages == [{"role": "system", "content": "be brief"}]
        assert session.send(COMMAND) == first

    def test_too_long(self, tiny):
        """An error that leaves the conversation as it was, or a cache that forgets."""
        model, _ = tiny
        session = ChatSession(*tiny, max_new_tokens=10)
        session.send(COMMAND)
        before = list(session.messages)
        with pytest.raises(ContextLengthError):
            session.send("light " * model.context_length)
        assert session.messages == before
        assert next(session.stream("repeat: hello")).prompt_tokens < 30
        rotating = ChatSession(*tiny, max_new_tokens=10, max_kv_size=32)
        for _ in range(8):
            rotating.send(COMMAND)
        assert rotating._cache.layers[0].state[0].shape[2] <= 256

    def test_transcribes_and_replies(self, tiny, reference):
        """The transcript with the adapter on, the reply to it with the adapter off, in one
        conversation."""
        session = ChatSession(*tiny)
        name = "synthetic/espeak_03.flac"
        text = session.transcribe(find_recording(name)).text
        assert text == reference["files"][name]["greedy"]
        reply = session.send(text)
        assert reply == mlx_speech.generate(*tiny, ask(text), max_new_tokens=512)
