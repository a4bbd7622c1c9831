"""Granite Speech NAR, which transformers lacks, against a reference put together from what there
is, float32: transformers' encoder and Granite decoder, and what mlx-audio has between them.

mlx-audio's encoder is no reference: it lets the last block of frames look at what fills it up. Nor
is its number of rows of audio: IBM's code, in all revisions, keeps one for every five frames that
are whole.
"""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_audio.stt.models.granite_speech_nar.decoding import (
    add_insertion_slots,
    ctc_collapse_decode,
)
from mlx_audio.stt.models.granite_speech_nar.encoder import _posterior_weighted_pool
from mlx_audio.stt.models.granite_speech_nar.projector import GraniteSpeechNarProjector
from nar_models import BLANK, CONFIG, ENCODER, PROJECTOR, TEXT, small, tensors
from transformers import GraniteConfig, GraniteForCausalLM, GraniteSpeechEncoderConfig
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

from mlx_speech.loading import load_model
from mlx_speech.models.granite_speech.pooling import pool_frames
from mlx_speech.processing.granite_speech_nar import GraniteSpeechNarFeatureExtractor

from .random_models import assert_close, assert_logits_match, features, tensor

LAYERS, MIDDLE = CONFIG["encoder_layer_indices"], ENCODER["self_conditioning_layer"]
CONTEXT = ENCODER["context_size"]
#: frames: fewer than a row, a block of attention, one more, and several blocks with a rest
LENGTHS = [1, 4, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT, 47, 75]


def part(weights: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def torch_state(weights: dict[str, mx.array], prefix: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.array(w)) for name, w in part(weights, prefix).items()}


class Reference:
    """The whole model, for one recording at a time."""

    def __init__(self):
        weights = tensors()
        known = {*GraniteSpeechEncoderConfig().to_dict()}
        options = {n: v for n, v in ENCODER.items() if n in known and n != "model_type"}
        self.encoder = GraniteSpeechCTCEncoder(GraniteSpeechEncoderConfig(**options)).eval()
        state = torch_state(weights, "encoder.")
        self.head = state.pop("out_bpe.weight"), state.pop("out_bpe.bias")
        # distances between frames are all that it makes itself
        missing, unexpected = self.encoder.load_state_dict(state, strict=False)
        assert (set(missing) - {"attention_dists"}, unexpected) == (set(), [])
        self.projector = GraniteSpeechNarProjector(SimpleNamespace(**PROJECTOR))
        self.projector.load_weights(list(part(weights, "projector.").items()))
        text = {n: v for n, v in TEXT.items() if n != "model_type"}
        self.editor = GraniteForCausalLM(GraniteConfig(**text)).eval()
        state = torch_state(weights, "language_model.")
        assert self.editor.load_state_dict(state, strict=False) == (["lm_head.weight"], [])

    @torch.no_grad()
    def states(self, x: np.ndarray) -> tuple[torch.Tensor, ...]:
        return self.encoder(tensor(x), output_hidden_states=True).hidden_states

    @torch.no_grad()
    def non_blank(self, x: np.ndarray) -> torch.Tensor:
        """Of the middle layer's result before anything is added to it."""
        found = []
        # a copy: what self-conditioning adds is added in place
        layer = self.encoder.layers[MIDDLE - 1]
        hook = layer.register_forward_hook(lambda *given: found.append(given[2].clone()))
        self.encoder(tensor(x))
        hook.remove()
        return 1 - self.encoder.out(found[0]).softmax(-1)[..., 0]

    def fused(self, x: np.ndarray) -> mx.array:
        states = self.states(x)
        return mx.array(torch.cat([states[index] for index in LAYERS], -1).numpy())

    def audio(self, x: np.ndarray) -> mx.array:
        rows = self.projector(self.fused(x))[:, : x.shape[1] // PROJECTOR["downsample_rate"]]
        return rows[0] / TEXT["embedding_multiplier"]

    @torch.no_grad()
    def draft(self, x: np.ndarray) -> mx.array:
        states, blank = self.states(x)[-1], 1 - self.non_blank(x)
        pooled = _posterior_weighted_pool(
            mx.array(states.numpy()), mx.array(blank.numpy()), ENCODER["bpe_pooling_window"]
        )
        logits = torch.nn.functional.linear(tensor(np.array(pooled)), *self.head)
        return ctc_collapse_decode(mx.array(logits[0].argmax(-1).numpy()), BLANK)

    @torch.no_grad()
    def edit(self, audio: mx.array, draft: mx.array, causal: bool = False) -> torch.Tensor:
        """(slots, vocab_size) logits."""
        slots = add_insertion_slots(draft, BLANK, CONFIG["min_edit_sequence_length"])
        embedded = self.editor.model.embed_tokens(torch.tensor(slots.tolist()))
        x = torch.cat([tensor(np.array(audio)), embedded])[None]
        logits = self.editor(inputs_embeds=x, is_causal=causal, use_cache=False).logits
        return logits[0, len(audio) :]

    def ids(self, x: np.ndarray) -> list[int]:
        best = self.edit(self.audio(x), self.draft(x)).argmax(-1)
        return ctc_collapse_decode(mx.array(best.numpy()), BLANK).tolist()


@pytest.fixture(scope="module")
def reference():
    return Reference()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(small(tmp_path_factory.mktemp("small") / "model"), dtype=mx.float32)


def recordings(length: int, batch: int = 1) -> np.ndarray:
    return features(batch, length, ENCODER["input_dim"])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_encoder(reference, model, length, batch):
    """All hidden states within 1e-5, the one in the middle with what is added to it, and what the
    projector is given; a batch of equal lengths."""
    x = recordings(length, batch)
    expected = reference.states(x)
    ours = model.encoder(mx.array(x), output_hidden_states=True)
    assert len(ours.hidden_states) == len(expected) == ENCODER["num_layers"] + 1
    for found, state in zip(ours.hidden_states[:-1], expected[:-1], strict=True):
        assert_close(found, state, 1e-5)
    fused = torch.cat([expected[index] for index in LAYERS], -1)
    assert_close(ours.last_hidden_state, fused, 1e-5)
    assert_close(ours.non_blank, reference.non_blank(x), 1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_projector(reference, model, length):
    """Rows within 1e-5: one for every five whole frames."""
    states = reference.fused(recordings(length))
    whole = reference.projector(states)
    assert_close(model.projector(states), tensor(np.array(whole)), 1e-5)
    if length < 5:
        assert model.project(states).shape == (1, 0, TEXT["hidden_size"])
        return
    rows = model.project(states)[0] * TEXT["embedding_multiplier"]
    assert_close(rows, tensor(np.array(whole))[0, : length // 5], 1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_pooling(length):
    rng = np.random.default_rng(length)
    frames = mx.array(rng.normal(size=(2, length, 5)).astype(np.float32))
    blank = rng.random((2, length)).astype(np.float32)
    blank[0, 4:8], blank[1, 4:8] = 1, 1 - 1e-7  # nothing but blanks, and hardly anything else
    expected = _posterior_weighted_pool(frames, mx.array(blank), 4)
    found = pool_frames(frames, 1 - mx.array(blank), 4, 1e-6)
    assert mx.abs(found - expected).max().item() < 1e-6


@pytest.mark.parametrize("number", [0, 1, 3, 4, 9])
def test_slots(model, number):
    draft = list(range(20, 20 + number))
    expected = add_insertion_slots(mx.array(draft, mx.int32), BLANK, 8).tolist()
    assert model.slots(draft) == expected


@pytest.mark.parametrize("rows", [0, 1, 9, 40])
@pytest.mark.parametrize("number", [0, 2, 7, 20])
def test_editor(reference, model, rows, number):
    """Logits of 1 to 30 within 1e-4; a causal decoder would give others."""
    rng = np.random.default_rng(100 * rows + number)
    audio = mx.array(rng.normal(size=(rows, TEXT["hidden_size"])).astype(np.float32))
    draft = mx.array(rng.integers(2, TEXT["vocab_size"], number).astype(np.int32))
    expected = reference.edit(audio, draft)
    (states,) = model.edit([audio], [draft.tolist()])
    found = model.language_model.logits(states)
    assert_logits_match(found, expected)
    if rows or number:  # where all positions are the same it makes no difference
        causal = reference.edit(audio, draft, causal=True).numpy()
        assert np.abs(np.array(found) - causal).max() > 0.05


@pytest.mark.parametrize("length", [n for n in LENGTHS if n > 4])
def test_ids(reference, model, length):
    """Draft and final ids of each recording alone; of an empty draft there are none."""
    for x in recordings(length, 3)[:, None]:
        draft, ids = reference.draft(x).tolist(), reference.ids(x)
        output = model(mx.array(x))
        assert output.input_ids[0].tolist() == model.slots(draft)
        assert model.generate(mx.array(x))[0].tolist() == (ids if draft else [])
        assert ids != draft


def test_ids_of_a_batch(reference, model):
    """Recordings of different lengths get what each gets alone."""
    lengths = [47, 11, 75, 30]
    x = np.zeros((4, 75, ENCODER["input_dim"]), np.float32)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = recordings(length)[0]
        row[length:] = 100.0
    found = model.generate(mx.array(x), mx.array(lengths)).tolist()
    expected = [reference.ids(row[None, :n]) for row, n in zip(x, lengths, strict=True)]
    longest = max(map(len, expected))
    assert found == [ids + [TEXT["pad_token_id"]] * (longest - len(ids)) for ids in expected]
    assert len({len(ids) for ids in expected}) > 1


@pytest.mark.parametrize("length", [400, 639, 640, 16000, 16159, 33333])
def test_features(length):
    """As IBM's extractor computes them with torchaudio, within 1e-4: cut before the maximum."""
    from torchaudio.transforms import MelSpectrogram

    samples = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    samples[length // 2 : -200] *= 1e-4
    transform = MelSpectrogram(16000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
    mel = transform(tensor(samples))[:, : 2 * (length // 320)].T.clamp_min(1e-10).log10()
    expected = (torch.maximum(mel, mel.max() - 8) / 4 + 1).reshape(-1, 160)
    found = GraniteSpeechNarFeatureExtractor().log_mel(mx.array(samples))
    assert_close(found, expected, 1e-4)
