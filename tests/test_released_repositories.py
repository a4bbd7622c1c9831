"""Folders laid out like the released repositories: they load strictly, and transcribe."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
import released_repositories as released
from conftest import DATA

from mlx_speech import CheckpointError, ContextLengthError, GraniteConfig, load, transcribe
from mlx_speech.audio import open_recording
from mlx_speech.layers.rope import RotaryEmbedding
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.transcription.chunks import ChunkOptions
from mlx_speech.transcription.pipeline import prepare
from mlx_speech.transcription.preparation import speech_family

RECORDING = DATA / "audio" / "flite_08.flac"
#: what a repository is called -> its content, and how many floating-point tensors it has
REPOSITORIES = {
    "granite-4.0-1b-speech": (released.granite_4_0, 938),
    "granite-speech-4.1-2b": (released.granite_4_1, 938),
    "granite-speech-5.0-2b": (released.granite_5_0, 938),
    "april/granite-speech-4.1-2b-plus": (lambda: released.granite_4_1_plus(False), 937),
    "october/granite-speech-4.1-2b-plus": (lambda: released.granite_4_1_plus(True), 937),
    "granite-speech-3.3-2b": (released.granite_3_3, 937),
}
ASR = "can you transcribe the speech into a written format?"
PLAIN = f"USER: <|audio|>{ASR}\n ASSISTANT:"
SYSTEM = (
    "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
    "Today's Date: {}.\nYou are Granite, developed by IBM. You are a helpful AI assistant"
    "<|end_of_text|>\n<|start_of_role|>user<|end_of_role|><|audio|>{}"
    f"{ASR}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
)


@pytest.fixture(scope="module", params=REPOSITORIES)
def repository(request, tmp_path_factory):
    """Its name, what is in it, its folder, and what `load` makes of that."""
    make, count = REPOSITORIES[request.param]
    content = make()
    assert content.counted() == (count, 16)
    folder = content.write(tmp_path_factory.mktemp("hub") / request.param)
    return request.param, content, folder, load(folder)


def test_it_transcribes(repository):
    """Whatever the text: drafts are there by the head of tokens, or that of characters."""
    _, content, _, loaded = repository
    transcript = transcribe(RECORDING, loaded, max_new_tokens=4)
    (segment,) = transcript.segments
    assert 0 < len(segment.tokens) <= 4
    assert segment.drafts is not None
    assert loaded[0].has_bpe_head == ("out_llm.safetensors" in content.separate)


def test_a_recording_longer_than_what_waits_in_the_encoder(tmp_path):
    """Sixteen blocks of 4 s are a minute behind: at first there is nothing to cut."""
    family = speech_family(*load(released.granite_4_1().write(tmp_path / "granite-speech-4.1-2b")))
    with open_recording(DATA / "audio" / "long.flac") as recording:
        chunks = list(family.chunks(recording, ChunkOptions()))
    assert recording.duration > 100
    assert len(chunks) > 9


def test_what_is_read_of_it(repository):
    name, _, _, (model, processor) = repository
    config, text = model.config, model.config.text_config
    old, plus, yarn = "3.3" in name, name.endswith("-plus"), "5.0" in name or "october" in name
    assert config.tie_word_embeddings == (old or plus)
    assert config.logits_divisor == 8
    assert model.context_length == (131072 if old else 16384 if yarn else 4096)
    assert text.rope_parameters["rope_type"] == ("yarn" if yarn else "default")
    assert text.rope_parameters["rope_theta"] == (1e7 if old else 1e4)
    prompt = PLAIN
    if plus or old:
        date, space = ("December 19, 2024", " ") if plus else ("April 9, 2025", "")
        prompt = SYSTEM.format(date, space)
    assert processor.speech_prompt(ASR) == prompt
    audio = processor.tokenizer.convert_tokens_to_ids("<|audio|>")
    assert audio == config.audio_token_index == (49159 if old else 100352)


@pytest.mark.parametrize("rope", ["flat", "nested", "theta outside"])
def test_rope_of_5_0(rope):
    """However it is written, the angles are those of transformers for its heads of 128."""
    text = released.granite_5_0(rope).config["text_config"]
    heads = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4}
    config = GraniteConfig.from_dict({**text, **heads})
    assert config.max_position_embeddings == 16384
    embedding = RotaryEmbedding(128, config.rope_parameters, config.max_position_embeddings)
    assert embedding.context_length == 16384
    # the first head dimension of each frequency turns by it from one position to the next
    x = mx.concatenate([mx.ones((1, 1, 2, 64)), mx.zeros((1, 1, 2, 64))], axis=-1)
    turned = np.array(embedding.rotation(0, 2)(x), np.float64)[0, 0]
    angles = np.arctan2(turned[1, 64:], turned[1, :64])
    expected = {0: 1.0, 10: 0.237137, 20: 0.0562341, 21: 0.0472920, 33: 0.00541228}
    expected |= {40: 0.00133789, 45: 4.29403e-4, 46: 3.33380e-4, 63: 2.88695e-5}
    assert {n: angles[n] for n in expected} == pytest.approx(expected, rel=1e-4)
    assert turned[0, :64] == pytest.approx(1.13862944)


@pytest.mark.parametrize(
    ("tensor", "array", "message"),
    [
        *(
            (tensor, array, name or tensor)
            for tensor, name in (
                ("encoder.layers.15.attn.rel_pos_emb.weight", None),
                ("encoder.layers.0.conv.depth_conv.conv.weight", "encoder.layers.0.conv."),
                ("projector.qformer.encoder.layer.1.crossattention.attention.key.weight", None),
                ("layers.39.mlp.down_proj.weight", None),
                ("embed_tokens.weight", None),
            )
            for array in (None, mx.ones((3, 5, 7)))
        ),
        ("encoder.layers.7.conv.batch_norm.running_var", None, "layers.7.conv.batch_norm.running"),
        ("encoder.layers.7.conv.batch_norm.running_var", mx.ones(3), "batch_norm.running_var (3,"),
        ("projector.query", mx.ones((1, 3, 4)), "projector.query"),
        ("encoder.layers.16.ff1.up_proj.weight", mx.ones((64, 16)), "encoder.layers.16.ff1"),
        ("language_model.model.layers.40.mlp.up_proj.weight", mx.ones((64, 32)), "layers.40.mlp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "missing" if value is None else "other",
)
def test_damage_is_named(repository, tmp_path, tensor, array, message):
    _, content, folder, _ = repository
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load(content.damaged(folder, tmp_path / "damaged", tensor, array))
    assert "\n" not in str(caught.value)


def test_many_keywords(repository, monkeypatch):
    """2000 of them fit where there are 16,384 positions; else that is said before the recording is
    even opened."""
    _, _, _, loaded = repository
    if not loaded[1].prompts.keyword_tasks:
        pytest.skip("takes no keywords")
    keywords = [f"k{number:03}" for number in range(2000)]
    if loaded[0].context_length == 16384:
        request = TranscriptionRequest(keywords=keywords)
        prepare(RECORDING, loaded, request=request).recording.close()
        keywords *= 2
    monkeypatch.setattr("mlx_speech.transcription.pipeline.open_recording", None)
    message = r"^keywords: a prompt of \d+ tokens leaves no room .* context of (4096|16384); make"
    with pytest.raises(ContextLengthError, match=message):
        transcribe(RECORDING, loaded, keywords=keywords)
    with pytest.raises(ContextLengthError, match=r"^prompt: a prompt of \d+ tokens"):
        transcribe(RECORDING, loaded, prompt=" ".join(keywords))
