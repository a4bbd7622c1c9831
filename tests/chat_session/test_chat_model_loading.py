"""What may be named as chat model, which of both runs it, and what is said of what neither does."""

from __future__ import annotations

import logging
import random
import shutil

import mlx.core as mx
import pytest
import small_tokenizers
from chat_models import GOLDEN, MAMBA, QWEN3, write_random
from conftest import DATA, TINY, TINY_S2T, edit_json
from mlx.utils import tree_flatten

import mlx_speech
from mlx_speech import (
    ChatSession,
    CheckpointError,
    HubError,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.chat_session.chat_model import MlxLmChatModel, OwnChatModel, load_chat_model
from mlx_speech.chat_session.mlx_lm_model import MlxLmModel, MlxLmTokenizer
from mlx_speech.generation.streaming import StreamingDetokenizer

SAID = "turn on the kitchen light"


@pytest.fixture
def qwen3(tmp_path):
    """A copy of the bundled chat model, to be damaged."""
    return shutil.copytree(QWEN3, tmp_path / "qwen3")


class TestChoice:
    def test_ours_where_there_is_the_architecture(self, tiny, tiny_text):
        chat_model = load_chat_model(tiny_text, dtype=mx.float32)
        assert isinstance(chat_model, OwnChatModel)
        session = ChatSession(*tiny, chat_model=tiny_text)
        assert session.send(SAID) == ChatSession(*mlx_speech.load(tiny_text)).send(SAID)
        assert session.send("good night", draft_model=tiny[0])

    def test_granite_speech_chats_as_well(self, tiny):
        expected = ChatSession(*mlx_speech.load(TINY)).send(SAID)
        assert ChatSession(*tiny, chat_model=str(TINY)).send(SAID) == expected
        assert ChatSession(*tiny, chat_model=mlx_speech.load(TINY)).send(SAID) == expected

    def test_any_speech_model_transcribes(self, tiny_s2t):
        """Also one that could not chat."""
        with pytest.raises(InputError, match="belongs to a model that answers no texts"):
            ChatSession(*tiny_s2t)
        session = ChatSession(*tiny_s2t, chat_model=QWEN3)
        said = session.transcribe(DATA / "audio" / "flite_08.flac").text
        assert said
        assert session.send(said, max_new_tokens=5)

    def test_what_mlx_lm_loaded(self, tiny):
        from mlx_lm import load

        model, tokenizer = load(str(QWEN3))
        session = ChatSession(*tiny, chat_model=(model, tokenizer), max_new_tokens=8)
        assert session.send(SAID) == ChatSession(*tiny, chat_model=QWEN3).send(SAID)
        # both of its ends are known, though its folder is not
        assert session._chat.model.generation_config.eos_token_ids == (0, 2)

    def test_repositories(self, hub, tiny):
        hub.add("someone/qwen3", QWEN3)
        turn = GOLDEN["turns"][0]
        assert ChatSession(*tiny, chat_model="someone/qwen3").send(SAID) == turn["reply"]
        with pytest.raises(HubError, match=r"someone/nothing: .*no such repository"):
            load_chat_model("someone/nothing")

    def test_types(self, monkeypatch):
        """As of our own models: the checkpoint's, but on a CPU float32, in which there every
        operation of MLX works."""

        def held(**options):
            parameters = load_chat_model(QWEN3, **options).model.parameters()
            return {array.dtype for _, array in tree_flatten(parameters)}

        assert held(dtype=mx.float16) == held(dtype="float16") == {mx.float16}
        for device, dtype in ((mx.cpu, mx.float32), (mx.gpu, mx.bfloat16)):
            monkeypatch.setattr(mx, "default_device", lambda device=device: mx.Device(device, 0))
            assert held() == {dtype}
        with pytest.raises(InputError, match="dtype is 'int8', but must be one of auto"):
            load_chat_model(QWEN3, dtype="int8")

    def test_other_quantizations_than_ours(self, tiny_text, tmp_path):
        """What this package would refuse is left to mlx-lm."""
        folder = shutil.copytree(tiny_text, tmp_path / "awq")
        edit_json(folder / "config.json", quantization_config={"quant_method": "awq", "bits": 2})
        with pytest.raises(CheckpointError, match="awq: mlx-lm cannot load it"):
            load_chat_model(folder)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "bert"}, "mlx-lm cannot load it: ValueError: Model type bert not"),
            ({"model_type": None}, "qwen3: mlx-lm cannot load it"),
            ({"model_type": 5}, "qwen3: mlx-lm cannot load it"),
            ({"architectures": ["Qwen3ForSequenceClassification"]}, "Classification writes no"),
            ({"architectures": "Qwen3"}, "architectures is 'Qwen3'"),
            ({"num_hidden_layers": 3}, "qwen3: mlx-lm cannot load it: ValueError: Missing"),
            ({"hidden_size": 48}, "qwen3: mlx-lm cannot load it: ValueError: "),
            ({"hidden_size": "big"}, "qwen3: mlx-lm cannot load it: "),
            ({"model_file": "model.py"}, "requires importing and running a"),
        ],
        ids=str,
    )
    def test_configurations(self, qwen3, changes, message):
        edit_json(qwen3 / "config.json", **changes)
        with pytest.raises((CheckpointError, InputError), match=message) as caught:
            load_chat_model(qwen3)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("config.json", None, "no config.json here, so this is not a model folder"),
            ("config.json", b"{", "config.json: not readable as JSON"),
            ("model.safetensors", None, "mlx-lm reads safetensors only, and here are none"),
            ("model.safetensors", b"nothing", "qwen3: mlx-lm cannot load it: RuntimeError"),
            ("chat_template.jinja", None, "qwen3: this checkpoint has no chat template"),
            ("tokenizer.json", b"{}", "qwen3: mlx-lm cannot load it"),
            ("tokenizer.json", b"{", "qwen3: mlx-lm cannot load it"),
            ("tokenizer.json", None, "qwen3: mlx-lm cannot load it"),
            ("generation_config.json", b"[]", "qwen3: mlx-lm cannot load it"),
        ],
        ids=str,
    )
    def test_files(self, qwen3, name, data, message):
        (qwen3 / name).unlink()
        if data is not None:
            (qwen3 / name).write_bytes(data)
        with pytest.raises((CheckpointError, InputError), match=message) as caught:
            load_chat_model(qwen3)
        assert "\n" not in str(caught.value)

    def test_packages_that_mlx_lm_wants(self, qwen3, capsys):
        """It would exit."""
        edit_json(qwen3 / "config.json", model_type="olmo")
        with pytest.raises(CheckpointError, match="qwen3: mlx-lm cannot load it: SystemExit"):
            load_chat_model(qwen3)
        assert "pip install ai2-olmo" in capsys.readouterr().out

    def test_weights_of_pytorch(self, qwen3):
        (qwen3 / "model.safetensors").rename(qwen3 / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="safetensors only"):
            load_chat_model(qwen3)

    def test_speech_models(self):
        with pytest.raises(UnsupportedOptionError, match=r"tiny-s2t is a speech model \(speech_to"):
            load_chat_model(TINY_S2T)

    @pytest.mark.parametrize("given", [5, ("a", "b"), ()], ids=str)
    def test_what_is_no_model(self, tiny, given):
        with pytest.raises(InputError, match=r"chat_model is .*, but must be a folder, a repos"):
            ChatSession(*tiny, chat_model=given)

    def test_templates_that_fail(self, tiny, qwen3):
        (qwen3 / "chat_template.jinja").write_text(
            "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}"
            "{{ messages[0]['content'] }}"
        )
        session = ChatSession(*tiny, chat_model=qwen3, max_new_tokens=4)
        session.send(SAID)
        before = list(session.messages)
        with pytest.raises(InputError, match="refuses these messages: one message only"):
            session.send(SAID)
        assert session.messages == before


class TestTokenizer:
    @pytest.fixture
    def tokenizer(self):
        return load_chat_model(QWEN3).tokenizer

    def test_special_tokens_stay(self, tokenizer):
        text = "<think>so</think>on.<|im_end|>"
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text

    def test_harmony(self, tmp_path):
        """Of gpt-oss, whose template takes only answers, only these are shown to it."""
        seen = []

        class Wrapper:
            has_chat_template = True

            def get_vocab(self):
                return {}

            def apply_chat_template(self, messages, **options):
                seen.extend(message["content"] for message in messages)

        think = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
        said = [
            {"role": "user", "content": "<|channel|> is what?"},
            {"role": "assistant", "content": f"{think}<|channel|>final<|message|>a token"},
            {"role": "assistant", "content": "<|channel|>analysis<|message|>interrup"},
            {"role": "assistant", "content": "plain"},
        ]
        MlxLmTokenizer(Wrapper()).apply_chat_template(said, add_generation_prompt=True)
        assert seen == ["<|channel|> is what?", "a token", "", "plain"]

    @pytest.mark.parametrize("kind", ["llama", "qwen3"])
    def test_pieces_are_the_whole(self, kind, tmp_path):
        """Of whatever ids, also where bytes make no character."""
        from mlx_lm.tokenizer_utils import load

        wrapper = load(small_tokenizers.llama(tmp_path) if kind == "llama" else QWEN3)
        tokenizer, choose = MlxLmTokenizer(wrapper), random.Random(1)
        for _ in range(60):
            ids = [choose.randrange(len(wrapper)) for _ in range(choose.randrange(1, 30))]
            detokenizer = StreamingDetokenizer(tokenizer)
            text = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
            assert text == wrapper.decode(ids, clean_up_tokenization_spaces=False).strip()


class TestContext:
    @pytest.mark.parametrize(
        ("config", "length"),
        [
            ({}, 2**31 - 1),
            ({"max_position_embeddings": 512}, 512),
            ({"n_positions": 1024}, 1024),
            ({"max_position_embeddings": 64, "text_config": {"max_position_embeddings": 99}}, 99),
            (
                {
                    "max_position_embeddings": 4096,
                    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 4096},
                },
                16384,
            ),
        ],
        ids=str,
    )
    def test_lengths(self, config, length):
        """Wherever an architecture tells it."""

        class Args:
            def __init__(self):
                vars(self).update(config)

        class Model:
            args = Args()

        class Wrapper:
            eos_token_ids = frozenset()

            def __len__(self):
                return 7

        model = MlxLmModel(Model(), Wrapper())
        assert model.context_length == length
        assert model.vocab_size == 7

    def test_what_mlx_lm_does_not_keep(self, tmp_path):
        """Of config.json."""
        folder = write_random(tmp_path / "mamba", {**MAMBA, "max_position_embeddings": 300})
        assert load_chat_model(folder).model.context_length == 300


def test_transformers_is_silent(tmp_path, monkeypatch):
    """It knows no rwkv7, and need not; mlx-lm does."""
    config = {"model_type": "rwkv7", "num_hidden_layers": 2, "norm_eps": 1e-5, "head_dim": 32}
    config |= dict.fromkeys(("hidden_size", "intermediate_size"), 64)
    config |= {f"{name}_low_rank_dim": 8 for name in ("a", "v", "gate", "decay")}
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    assert isinstance(load_chat_model(write_random(tmp_path / "rwkv7", config)), MlxLmChatModel)
    assert said == []
