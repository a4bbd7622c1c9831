"""That every number is there, and plausible: how fast it is, nobody knows."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest import DATA, ROOT, TINY, find_recording
from nar_models import on_bundled_encoder

from mlx_speech import load
from mlx_speech.errors import InputError, UnsupportedOptionError
from mlx_speech.profiling import limits, profile, sample, speed
from mlx_speech.profiling.counts import decoding_bytes, encoder_flops, weight_bytes
from mlx_speech.profiling.profile import profile_model
from mlx_speech.profiling.speed import PipelineSpeed, decoding_speed
from mlx_speech.transcription.pipeline import prepare, transcribe

GATE = str(find_recording("synthetic/flite_08.flac"))
LIGHT = str(find_recording("synthetic/flite_07.flac"))
TINY_S2T = ROOT / "examples" / "tiny-s2t"


@pytest.fixture
def short(monkeypatch):
    """Few tokens in small batches, a few seconds of speech, small arrays."""
    monkeypatch.setattr(limits, "_LONG_ENOUGH_S", 0)
    monkeypatch.setattr(profile, "BATCHES", (1, 3))
    monkeypatch.setattr(sample, "SAMPLE_SECONDS", 3)
    monkeypatch.setattr(speed, "NEW_TOKENS", 4)


@pytest.mark.parametrize("folder", [TINY, TINY_S2T], ids=lambda folder: folder.name)
def test_all_numbers(short, folder):
    loaded = model, processor = load(folder)
    told: list[str] = []
    found = profile_model(loaded, [GATE, LIGHT], 1e6, 1, told.append)
    steps = ["warming up", "transcribing", "encoding"]
    assert told == [*steps, "decoding in batches of 1", "decoding in batches of 3"]
    assert (found.bits, found.dtype) == (8 * model.dtype.size, str(model.dtype)[len("mlx.core.") :])
    assert found.weight_bytes == weight_bytes(model)
    assert found.decoding_bytes == decoding_bytes(model)

    encoding = found.encoding
    samples = mx.zeros(round(encoding.audio_seconds * 16000))
    features = processor.speech_inputs(samples)["input_features"]
    assert 1 < encoding.audio_seconds <= 3
    assert encoding.flops == encoder_flops(model, features)
    assert encoding.ms_per_audio_second == 1000 * encoding.seconds / encoding.audio_seconds > 0
    achieved = encoding.flops / encoding.seconds
    assert encoding.share_of_limit == pytest.approx(achieved / encoding.limit_flops)

    alone, three = found.decoding
    assert (alone.batch, three.batch) == (1, 3)
    assert alone.prompt_tokens == three.prompt_tokens
    assert alone.decode_tokens_per_second > 0
    assert found.share_of_bandwidth == pytest.approx(
        decoding_bytes(model) * alone.decode_tokens_per_second / 1e6
    )

    pipeline = found.pipeline
    assert pipeline.audio_seconds == pytest.approx(1.5095625 + 2.7379375)
    assert pipeline.times_real_time == pipeline.audio_seconds / pipeline.seconds > 0
    # what is mapped from a file is no memory of MLX's
    assert pipeline.peak_memory_bytes > 2**20
    decoder = [use.num_queries for use in found.attention if use.part == "decoder"]
    assert decoder[-1] == 1
    assert {use.part for use in found.attention} >= {"encoder", "decoder"}
    # both recordings are known by heart, and Speech2Text has no drafts
    expected = [transcribe(recording, loaded).drafts for recording in (GATE, LIGHT)]
    if folder is TINY:
        assert len(decoder) > 2  # a prompt, with its draft and without
        assert pipeline.drafts == expected[0] + expected[1]
        assert pipeline.passes_per_token == pipeline.drafts.passes / pipeline.drafts.tokens < 0.5
    else:
        assert (pipeline.drafts, pipeline.passes_per_token) == (None, None)
        assert expected == [None, None]


def test_a_model_of_one_pass(short, tmp_path):
    """Its editor looks at audio and slots at once; there are no tokens one after the other."""
    loaded = model, _ = load(on_bundled_encoder(tmp_path / "nar", {}))
    told: list[str] = []
    found = profile_model(loaded, [GATE, LIGHT], 1e6, 1, told.append)
    assert told == ["warming up", "transcribing", "encoding"]
    assert (found.bits, found.weight_bytes) == (8 * model.dtype.size, weight_bytes(model))
    assert (found.decoding, found.decoding_bytes) == ([], 0)
    assert found.encoding.flops > 0
    assert found.pipeline.times_real_time > 0
    assert found.pipeline.drafts is None
    (editor,) = (use for use in found.attention if use.part == "decoder")
    assert editor.num_queries == editor.least_keys == editor.most_keys > 8
    assert not editor.causal


def test_prefill_of_a_prompt(short):
    """Of a decoder that gets the audio in its prompt; an encoder-decoder starts from one token."""
    for folder, alone in ((TINY, False), (TINY_S2T, True)):
        job = prepare(GATE, load(folder))
        (chunk,) = job.chunks
        found = decoding_speed(job.decoder, chunk, 2, 1)
        if alone:
            assert (found.prompt_tokens, found.prefill_tokens_per_second) == (1, None)
        else:
            inputs = job.decoder.family.chunk_inputs([chunk], job.decoder.request)
            assert found.prompt_tokens == inputs["input_ids"].shape[1] > len(chunk.audio)
            assert found.prefill_tokens_per_second > 0


@pytest.mark.parametrize("folder", [TINY, TINY_S2T], ids=lambda folder: folder.name)
def test_tokens_are_counted_as_they_are_decoded(monkeypatch, folder):
    """By a clock that advances a second whenever a step is handed to the device; what ends answers
    ends none here, and an encoder-decoder does not encode again."""
    seconds, encoded = [0.0], []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: seconds[0])
    loaded = model, _ = load(folder)
    job = prepare(GATE, loaded)
    (chunk,) = job.chunks
    original, stages = speed.prefill, type(model).audio_stages

    def prefill(*args, **options):
        run = original(*args, **options)
        step = run.step

        def counted(tokens):
            seconds[0] += 1
            return step(tokens)

        object.__setattr__(run, "step", counted)
        seconds[0] += 5
        return run

    monkeypatch.setattr(speed, "prefill", prefill)
    monkeypatch.setattr(
        type(model), "audio_stages", lambda *args: (encoded.append(1), stages(*args))[1]
    )
    found = decoding_speed(job.decoder, chunk, 3, 2)
    # the first token's step is in flight when the first is read, the last token's has ended
    steps = speed.NEW_TOKENS - 2
    assert found.decode_tokens_per_second == 3 * (speed.NEW_TOKENS - 1) / steps
    if found.prefill_tokens_per_second is None:
        assert encoded == [1]
    else:
        assert found.prefill_tokens_per_second == 3 * found.prompt_tokens / 5


def test_real_time():
    assert PipelineSpeed(60.0, 4.0, 1, None).times_real_time == 15.0


def test_no_speech(short):
    silence = str(DATA / "audio" / "silence.flac")
    with pytest.raises(InputError, match="no speech in the first 3 seconds of the recordings"):
        profile_model(load(TINY), [silence], 1e6)


def test_a_text_model(short, tiny_text):
    with pytest.raises(UnsupportedOptionError, match="granite model is not a speech model"):
        profile_model(load(tiny_text), [GATE], 1e6)
