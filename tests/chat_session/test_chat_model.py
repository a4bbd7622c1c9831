"""Conversations with a model that only mlx-lm runs: what is fed, what is kept, what is refused."""

from __future__ import annotations

import contextlib
import gc
import random
import threading

import mlx.core as mx
import pytest
from chat_models import GEMMA3, GOLDEN, MAMBA, QWEN3, by_mlx_lm, quantized, write_random
from chat_session.test_session import ask, interrupted_after, same_reply
from conftest import DATA

from mlx_speech import (
    ChatSession,
    CheckpointError,
    ContextLengthError,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.chat_session.chat_model import load_chat_model

SAID = ("turn on the kitchen light", "good night", "how many seconds are in a day?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of checkpoints, by name."""
    folder = tmp_path_factory.mktemp("chat-models")
    return {
        "qwen3": QWEN3,
        "quantized": quantized(folder / "quantized"),
        "mamba": write_random(folder / "mamba", MAMBA),
        "gemma3": write_random(folder / "gemma3", GEMMA3),
    }


@pytest.fixture(scope="module")
def chat_models(folders):
    """What replies, in float32, by name."""
    return {name: load_chat_model(path, dtype=mx.float32) for name, path in folders.items()}


@pytest.fixture(scope="module")
def started(tiny, chat_models):
    """A session with one of them."""

    def start(name: str = "qwen3", **options) -> ChatSession:
        options = {"max_new_tokens": 12, **options}
        return ChatSession(*tiny, chat_model=chat_models[name], **options)

    return start


NAMES = pytest.mark.parametrize("name", ["qwen3", "quantized", "mamba", "gemma3"])


class TestReplies:
    def test_those_of_transformers(self, started):
        """Ids, texts and ends; each turn feeds only what is new."""
        session = started(max_new_tokens=GOLDEN["new_tokens"])
        held = 0
        for turn in GOLDEN["turns"]:
            responses = list(session.stream(turn["said"]))
            assert [r.token for r in responses] == turn["ids"]
            assert "".join(r.text for r in responses) == turn["reply"]
            # the second of two ids that end a reply, which the tokenizer does not name
            assert (responses[-1].finish_reason == "stop") == (turn["ids"][-1] == 0)
            prompt = session._chat.tokenizer.encode(turn["prompt"])
            assert responses[0].prompt_tokens == len(prompt) - held
            held = len(prompt) + len(turn["ids"]) - 1
        assert [t["ids"][-1] for t in GOLDEN["turns"]].count(0) == 2

    @NAMES
    def test_those_of_mlx_lm(self, started, folders, name):
        session = started(name)
        for text in SAID:
            messages = [*session.messages, *ask(text)]
            ids, tokens, reply = by_mlx_lm(folders[name], messages, 12, mx.float32)
            responses = list(session.stream(text))
            assert [r.token for r in responses] == tokens
            assert "".join(r.text for r in responses) == reply
            assert responses[0].prompt_tokens <= len(ids)
            assert session.messages == [*messages, {"role": "assistant", "content": reply}]

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("qwen3", {}),
            ("qwen3", {"kv_bits": 8, "kv_group_size": 32, "prefill_step_size": 1}),
            ("qwen3", {"max_kv_size": 200}),
            ("mamba", {}),
            ("gemma3", {}),
        ],
    )
    def test_turns_are_as_if_fed_anew(self, started, name, options):
        session = started(name, **options)
        fed = []
        for text in SAID:
            anew = started(name, **options)
            anew.messages = list(session.messages)
            new, whole = list(session.stream(text)), list(anew.stream(text))
            same_reply(new, whole)
            fed.append((new[0].prompt_tokens, whole[0].prompt_tokens))
        # also of a recurrent model, where the prompt goes on from what it has read and written
        assert fed[1][0] < fed[1][1]

    @pytest.mark.parametrize("name", ["mamba", "gemma3"])
    def test_what_cannot_be_trimmed_is_fed_anew(self, started, name):
        """A message is no longer what it was: the cache of a recurrent model, or of a window that
        has moved on, is of no use."""
        for said in (SAID[0], "good night " * 10):
            session = started(name)
            session.send(said)
            session.messages[1]["content"] = "no"
            anew = started(name)
            anew.messages = list(session.messages)
            new, whole = list(session.stream(SAID[1])), list(anew.stream(SAID[1]))
            same_reply(new, whole)
            # the window of gemma3 holds the first one as a whole
            trimmed = name == "gemma3" and said == SAID[0]
            assert (new[0].prompt_tokens < whole[0].prompt_tokens) == trimmed

    def test_thoughts_are_left_out_of_later_prompts(self, started):
        """By the template; what was held of them is trimmed."""
        session = started()
        session.send(SAID[0])
        session.messages[1]["content"] = "<think>which one</think>done"
        prompt = session._chat.tokenizer.apply_chat_template(
            session.messages, add_generation_prompt=True
        )
        assert "assistant\ndone<|im_end|>" in prompt
        assert "think" not in prompt
        anew = started()
        anew.messages = list(session.messages)
        same_reply(session.stream(SAID[1]), anew.stream(SAID[1]))

    def test_system_message(self, started):
        session = started(system="be brief")
        assert session.send(SAID[0]) != started().send(SAID[0])
        assert session.messages[0] == {"role": "system", "content": "be brief"}

    def test_recordings_are_transcribed_by_the_speech_model(self, started):
        session = started()
        said = session.transcribe(DATA / "audio" / "flite_08.flac").text
        assert said == "unlock the back gate"
        assert session.send(said) == started().send(said)

    def test_reset(self, started):
        session = started(system="be brief")
        first = session.send(SAID[0])
        session.send(SAID[1])
        session.reset()
        assert session.messages == [{"role": "system", "content": "be brief"}]
        assert session.send(SAID[0]) == first

    def test_in_another_thread(self, started):
        session, found = started(), []
        expected = [started().send(SAID[0])]

        def work():
            try:
                found.append(session.send(SAID[0]))
                found.append(session.send(SAID[1]))
            finally:
                mx.clear_streams()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        other = started()
        assert found == [*expected, (other.send(SAID[0]), other.send(SAID[1]))[1]]


class TestInterruptions:
    @NAMES
    def test_a_reply_stays_as_far_as_it_came(self, started, name):
        session = started(name)
        responses = session.stream(SAID[0])
        said = "".join(next(responses).text for _ in range(4))
        responses.close()
        assert session.messages[-1] == {"role": "assistant", "content": said}
        anew = started(name)
        anew.messages = list(session.messages)
        same_reply(session.stream(SAID[1]), anew.stream(SAID[1]))

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("qwen3", {}),
            ("qwen3", {"max_kv_size": 64}),
            ("qwen3", {"kv_bits": 8, "kv_group_size": 32, "prefill_step_size": 1}),
            ("mamba", {}),
            ("gemma3", {}),
        ],
    )
    def test_anywhere(self, started, name, options):
        """Wherever Ctrl-C hits, the conversation goes on from its messages, as if fed anew."""
        for line in random.Random(2).sample(range(1, 900), 5):
            session = started(name, max_new_tokens=6, **options)
            session.send(SAID[0])
            with interrupted_after(line), contextlib.suppress(KeyboardInterrupt):
                session.send(SAID[1])
            gc.collect()  # the reply that nobody takes to its end any more
            anew = started(name, max_new_tokens=6, **options)
            anew.messages = list(session.messages)
            same_reply(session.stream(SAID[2]), anew.stream(SAID[2]))

    @NAMES
    def test_within_the_model(self, started, name, monkeypatch):
        """Some layers have taken a token in, and others have not."""
        session = started(name)
        session.send(SAID[0])
        layers = session._cache.layers[0].layers
        kind = type(layers[-1])
        method = "__setitem__" if name == "mamba" else "update_and_fetch"
        original, calls = getattr(kind, method), []

        def interrupted(self, *args):
            calls.append(self)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return original(self, *args)

        monkeypatch.setattr(kind, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.send(SAID[1])
        monkeypatch.undo()
        anew = started(name)
        anew.messages = list(session.messages)
        same_reply(session.stream(SAID[2]), anew.stream(SAID[2]))

    @NAMES
    def test_full_context(self, started, name):
        """An error that leaves the conversation as it was, where the model has an end."""
        session = started(name)
        if name == "mamba":
            assert len(session.send("light " * 600).split()) > 0
            return
        limit = session._chat.model.context_length
        session.send(SAID[0])
        before = list(session.messages)
        if limit < 1000:
            with pytest.raises(ContextLengthError, match=f"exceed the model's context of {limit};"):
                session.send("light " * limit)
        assert session.messages == before
        anew = started(name)
        anew.messages = list(before)
        same_reply(session.stream(SAID[1]), anew.stream(SAID[1]))

    def test_a_cache_that_forgets_has_no_end(self, started):
        session = started(max_kv_size=32)
        for _ in range(12):
            session.send(SAID[2])
        held = session._cache.layers[0].layers
        assert all(layer.keys.shape[2] <= 32 + 64 for layer in held)


class TestOptions:
    def test_sampling(self, started):
        options = {"temperature": 2.0, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
        one, again, other = (started(seed=seed, **options).send(SAID[0]) for seed in (7, 7, 8))
        assert one == again != other
        assert started(temperature=50.0, top_k=1).send(SAID[0]) == started().send(SAID[0])

    def test_stop_strings(self, started):
        reply = started().send(SAID[0])
        session = started()
        responses = list(session.stream(SAID[0], stop_strings=reply[4:6]))
        assert "".join(r.text for r in responses) == reply[:4]
        assert responses[-1].finish_reason == "stop"
        assert session.messages[-1]["content"] == reply[:4]

    def test_repetition_penalty(self, started):
        """The third golden reply says one thing many times."""
        session = started(max_new_tokens=24, repetition_penalty=100.0)
        session.messages = [*ask(SAID[0]), {"role": "assistant", "content": "on."}]
        tokens = [r.token for r in session.stream(SAID[1])]
        assert len(set(tokens)) == len(tokens)

    def test_room_of_the_context_bounds_replies(self, started):
        session = started(max_new_tokens=None, suppress_tokens=[0, 2])
        *_, last = session.stream("on " * 200)
        assert last.finish_reason == "length"
        assert last.prompt_tokens + last.generation_tokens == session._chat.model.context_length

    def test_progress_of_a_long_prompt(self, started):
        told = []
        session = started(prefill_step_size=32)
        session.send("on " * 60, prompt_progress_callback=lambda *done: told.append(done))
        total = told[-1][1]
        assert told == [*((n, total) for n in range(32, total - 1, 32)), *told[-2:]]
        assert told[-1] == (total, total)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("mamba", {"max_kv_size": 64}, "max_kv_size is for models whose layers all keep"),
            ("gemma3", {"max_kv_size": 64}, "which those of a gemma3_text do not"),
            ("mamba", {"kv_bits": 8}, "kv_bits is not for this mamba model: no layer has keys"),
            ("gemma3", {"kv_bits": 8}, "kv_bits is not for this gemma3_text model: Rotating"),
            ("qwen3", {"kv_bits": 4}, "kv_bits is not for this qwen3 model: .*32"),
        ],
    )
    def test_caches_that_a_model_cannot_have(self, started, name, options, message):
        with pytest.raises(UnsupportedOptionError, match=message):
            started(name, **options)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"draft_model": "tiny"}, UnsupportedOptionError, "draft_model is for models of this"),
            ({"assistant_model": "tiny"}, UnsupportedOptionError, "draft_model is for models of"),
            ({"num_beams": 2}, InputError, "num_beams cannot stream"),
            ({"num_return_sequences": 2, "temperature": 1.0}, UnsupportedOptionError, "one answer"),
            ({"inputs_embeds": 1}, InputError, "no argument inputs_embeds"),
            ({"frequency_penalty": 1}, InputError, "no argument frequency_penalty"),
            ({"output_attentions": True}, UnsupportedOptionError, "output_attentions=True"),
        ],
    )
    def test_what_is_refused(self, started, tiny, options, error, message):
        """By its name; and the conversation goes on."""
        session = started()
        session.send(SAID[0])
        before = list(session.messages)
        options = {name: tiny[0] if value == "tiny" else value for name, value in options.items()}
        with pytest.raises(error, match=message):
            session.send(SAID[1], **options)
        assert session.messages == before
        anew = started()
        anew.messages = list(before)
        same_reply(session.stream(SAID[1]), anew.stream(SAID[1]))


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("qwen3", {}),
            ("qwen3", {"max_kv_size": 24}),
            ("qwen3", {"kv_bits": 8, "kv_group_size": 32}),
            ("qwen3", {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 60}),
            ("quantized", {}),
            ("mamba", {}),
            ("gemma3", {}),
        ],
    )
    def test_save_and_load(self, started, tmp_path, name, options):
        session = started(name, system="be brief", **options)
        session.send(SAID[0])
        session.save(tmp_path / "chat")
        expected = list(session.stream(SAID[1]))
        other = started(name)
        other.send("something else")
        other.load(tmp_path / "chat")
        responses = list(other.stream(SAID[1]))
        same_reply(responses, expected)
        assert responses[0].prompt_tokens == expected[0].prompt_tokens
        assert other.messages == session.messages

    def test_of_no_conversation_yet(self, started, tmp_path):
        started(system="be brief").save(tmp_path / "chat")
        session = started()
        session.load(tmp_path / "chat")
        assert session.send(SAID[0]) == started(system="be brief").send(SAID[0])

    def test_are_replaced_unless_told_otherwise(self, started, tmp_path):
        session = started()
        for overwrite in (False, True):
            session.save(tmp_path / "chat", overwrite=overwrite)
        with pytest.raises(InputError, match="chat exists already; overwrite replaces it"):
            session.save(tmp_path / "chat", overwrite=False)
        with pytest.raises(InputError, match=r"nowhere/chat: cannot be written"):
            session.save(tmp_path / "nowhere" / "chat")
        assert [path.name for path in tmp_path.iterdir()] == ["chat"]

    def test_a_failed_load_changes_nothing(self, started, tiny, tmp_path):
        session = started()
        session.send(SAID[0])
        session.save(tmp_path / "sound")
        before = list(session.messages)
        sound = (tmp_path / "sound").read_bytes()
        started("mamba").save(tmp_path / "other")
        own = ChatSession(*tiny)
        own.save(tmp_path / "own")
        (tmp_path / "cut").write_bytes(sound[:-20])
        (tmp_path / "text").write_text("hello")
        flipped = bytearray(sound)
        flipped[-9] ^= 1
        (tmp_path / "flipped").write_bytes(flipped)
        said = sound.replace(b"kitchen", b"cellars", 1)
        (tmp_path / "said").write_bytes(said)
        for name, message in {
            "none": "no such file",
            "other": "belongs to another model than this one",
            "own": "not a conversation with a model of mlx-lm",
            "cut": "not a conversation with a model of mlx-lm",
            "text": "not a conversation with a model of mlx-lm",
            "flipped": "flipped: is damaged",
            "said": "said: is damaged",
        }.items():
            with pytest.raises((CheckpointError, InputError), match=message):
                session.load(tmp_path / name)
            assert session.messages == before
        with pytest.raises(CheckpointError, match="not a prompt cache of this program"):
            own.load(tmp_path / "sound")
        anew = started()
        anew.messages = before
        same_reply(session.stream(SAID[1]), anew.stream(SAID[1]))
