"""What the encoder gives: the same from the cache, within its limit, whatever happens to it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from adapters import adapter
from conftest import ROOT, TINY

from mlx_speech import load, load_audio
from mlx_speech.errors import InputError
from mlx_speech.loading import load_model
from mlx_speech.training import encoded_audio
from mlx_speech.training.data import load_data
from mlx_speech.training.encoded_audio import StateCache
from mlx_speech.training.options import FineTuneOptions

from .conftest import NAMES, write_jsonl


def files(tmp_path) -> list:
    return sorted(tmp_path.glob("adapters/cache/*.safetensors"))


def test_states_are_those_of_the_encoder(tiny, read, folder, encoded):
    model, processor = tiny
    dataset = read(folder).train
    for _ in range(2):
        for index, name in enumerate(NAMES[:4]):
            features = processor.audio_processor.log_mel(load_audio(folder / name))
            expected = model.encoder(features[None]).last_hidden_state[0]
            found = dataset.audio(index)
            assert found.dtype == expected.dtype
            assert mx.array_equal(found, expected)
    assert len(encoded) == 4 + 2 * 4


def test_an_adapter_of_the_encoder_is_on(read, folder, tiny, tmp_path):
    """And what the encoder gives without it is of no use."""
    plain, processor = tiny
    adapter(tmp_path / "terms", plain, lora=["encoder.layers.1.ff1.up_proj"])
    adapted = load_model(TINY, dtype=mx.float32, adapter=tmp_path / "terms")
    options = FineTuneOptions(adapter_path=str(tmp_path / "adapters"))
    before = read(folder).train.audio(0)
    features = processor.audio_processor.log_mel(load_audio(folder / NAMES[0]))
    expected = adapted.get_audio_features(features[None])
    found = load_data(folder, adapted, processor, options).train.audio(0)
    assert mx.array_equal(found, expected.last_hidden_state[0])
    assert not mx.allclose(found, before)
    assert len(files(tmp_path)) == 2


def test_nothing_is_encoded_twice(read, folder, encoded, tmp_path):
    told = []
    data = read(folder)
    data.train.fill_cache(lambda done, total: told.append((done, total)))
    assert told == [(n, 4) for n in range(1, 5)]
    assert len(encoded) == len(files(tmp_path)) == 4
    again = read(folder)
    again.train.fill_cache()
    again.train.batch(range(4))
    assert len(encoded) == 4
    again.valid.batch([0])
    assert len(encoded) == 5


def test_a_recording_in_several_rows_is_encoded_once(read, folder, encoded):
    shutil.copy(folder / NAMES[0], folder / "same.flac")
    rows = [{"audio": NAMES[0], "text": "one"}, {"audio": "same.flac", "text": "two"}]
    write_jsonl(folder / "train.jsonl", rows)
    read(folder).train.fill_cache()
    assert len(encoded) == 1


def test_a_run_that_was_killed_goes_on(read, folder, encoded, tmp_path, monkeypatch):
    """Where it was: also if it was writing."""
    written = []
    original = mx.save_safetensors

    def interrupted(file, *args):
        written.append(file)
        if len(written) == 3:
            file.write(b"half")
            raise KeyboardInterrupt
        original(file, *args)

    monkeypatch.setattr(mx, "save_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(folder).train.fill_cache()
    assert len(files(tmp_path)) == 2
    again = read(folder)
    again.train.fill_cache()
    assert len(encoded) == 3 + 2
    assert len(files(tmp_path)) == 4


def test_a_process_that_was_killed_leaves_what_is_whole(read, folder, encoded, tmp_path):
    code = f"""
import os, signal
import mlx.core as mx
from mlx_speech import load
from mlx_speech.training.data import load_data
from mlx_speech.training.options import FineTuneOptions

options = FineTuneOptions(adapter_path={str(tmp_path / "adapters")!r})
data = load_data({str(folder)!r}, *load({str(TINY)!r}, dtype=mx.float32), options)
data.train.fill_cache(lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert len(files(tmp_path)) == 3
    data = read(folder)
    data.train.fill_cache()
    assert len(encoded) == 1


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-100],
    "no header": lambda data: data[:6],
    "something else": lambda data: b"no safetensors at all" * 9,
    "a bit": lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
    "another name": lambda data: data.replace(b"states", b"status"),
    "no checksum": lambda data: data.replace(b"crc32", b"crc16"),
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(read, folder, encoded, tmp_path, damage):
    data = read(folder)
    expected = data.valid.audio(0)
    (file,) = files(tmp_path)
    whole, change = file.read_bytes(), DAMAGES[damage]
    data = read(folder)  # which finds it
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(whole))
    assert mx.array_equal(data.valid.audio(0), expected)
    assert len(encoded) == 2
    assert file.read_bytes() == whole
    data.valid.audio(0)
    assert len(encoded) == 2


def test_what_does_not_fit_is_encoded_anew(read, folder, encoded, tmp_path):
    limit = 110_000  # of 125, 76, 87 and 124 frames, at 512 bytes each: the first two
    for _ in range(2):
        data = read(folder, cache_limit=limit)
        encoded.clear()
        data.train.fill_cache()
        assert sum(file.stat().st_size for file in files(tmp_path)) <= limit
        assert len(files(tmp_path)) == 2
        before = len(encoded)
        for _ in range(2):
            data.train.batch(range(4))
        assert len(encoded) == before + 4
    assert before == 0


def test_no_cache(read, folder, encoded, tmp_path):
    data = read(folder, cache_limit=0)
    data.train.fill_cache()
    assert encoded == []
    data.train.batch(range(4))
    assert len(encoded) == 4
    assert files(tmp_path) == []


def test_others_make_room(read, folder, encoded, tmp_path):
    """What an earlier run left stays where there is room, and gives way where there is not."""
    read(folder).train.fill_cache()
    first = {file.name for file in files(tmp_path)}
    rows = [{"audio": NAMES[4], "text": "x"}]
    write_jsonl(folder / "train.jsonl", rows)
    read(folder).train.fill_cache()
    assert first < {file.name for file in files(tmp_path)}
    size = max(file.stat().st_size for file in files(tmp_path))
    write_jsonl(folder / "train.jsonl", [{"audio": NAMES[0], "text": "x"}])
    encoded.clear()
    data = read(folder, cache_limit=size + 1000)
    assert len(files(tmp_path)) == 1
    data.train.fill_cache()
    assert encoded == []
    data.valid.fill_cache()
    assert encoded == []
    assert len(files(tmp_path)) == 1


def test_another_encoder_another_key(folder, tmp_path, encoded):
    options = FineTuneOptions(adapter_path=str(tmp_path / "adapters"))
    write_jsonl(folder / "train.jsonl", [{"audio": NAMES[0], "text": "x"}])

    def run(dtype=mx.float32, change=None) -> mx.array:
        model, processor = load(TINY, dtype=dtype)
        if change is not None:
            change(model)
        return load_data(folder, model, processor, options).train.audio(0)

    def nudge(model):
        norm = model.encoder.layers[-1].post_norm
        norm.bias = norm.bias + 1e-3

    def decoder(model):
        norm = model.language_model.model.norm
        norm.weight = norm.weight + 1

    def settings(model):
        model.config.encoder_config.context_size = 40
        for layer in model.encoder.layers:
            layer.attn.context_size = 40

    first = run()
    assert mx.array_equal(run(change=decoder), first)
    assert len(encoded) == 1
    assert not mx.array_equal(run(change=nudge), first)
    assert run(dtype=mx.bfloat16).dtype == mx.bfloat16
    assert len(encoded) == 3
    assert mx.array_equal(run(dtype=mx.bfloat16), run(dtype=mx.bfloat16))
    assert len(encoded) == 3
    assert not mx.array_equal(run(change=settings), first)
    assert len(encoded) == 4


def test_a_full_disk_is_told(read, folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    data = read(folder)
    monkeypatch.setattr(encoded_audio.mx, "save_safetensors", full)
    with pytest.raises(InputError) as caught:
        data.train.fill_cache()
    line = "cannot be written (No space left on device): free disk space, or lower cache_limit"
    assert str(caught.value).endswith(line)


def test_the_encoder_is_in_evaluation_mode(folder, tmp_path):
    """Whatever mlx-lm's trainer, which puts the whole model in training mode, did before."""
    model, processor = load(TINY, dtype=mx.float32)
    for module in model.encoder.modules():
        if type(module).__name__ == "Dropout":
            module._p_1 = 0.5
    options = FineTuneOptions(adapter_path=str(tmp_path / "adapters"), cache_limit=0)
    dataset = load_data(folder, model, processor, options).train
    model.eval()
    expected = dataset.audio(0)
    model.train()
    assert mx.array_equal(dataset.audio(0), expected)


def test_a_cache_of_other_arrays(tmp_path):
    cache = StateCache(tmp_path / "x", 10_000)
    assert cache.get("a") is None
    cache.put("a", mx.arange(100))
    assert "a" in cache
    assert cache.get("a").tolist() == list(range(100))
    assert not cache.has_room(9_500)
    assert cache.has_room(8_000)
    again = StateCache(tmp_path / "x", 10_000)
    assert "a" not in again
    again.claim(["a", "b"])
    assert again.get("a").tolist() == list(range(100))


def kept(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.safetensors")}


def test_a_limit_that_became_lower(tmp_path):
    """What is needed stays as far as it fits, whatever else there is."""
    cache = StateCache(tmp_path, 10_000)
    for key in "abcd":
        cache.put(key, mx.zeros(500))  # 2000 bytes, and a header
    assert kept(tmp_path) == set("abcd")
    cache = StateCache(tmp_path, 5_000)
    cache.claim("dxba")
    assert kept(tmp_path) == set("db")
    assert "d" in cache
    assert "a" not in cache
    assert not cache.has_room(2000)


def test_what_is_not_needed_makes_room_when_that_is_needed(tmp_path):
    cache = StateCache(tmp_path, 10_000)
    for key in "abc":
        cache.put(key, mx.zeros(500))
    cache = StateCache(tmp_path, 7_500)
    cache.claim("b")
    assert kept(tmp_path) == set("abc")
    cache.put("d", mx.zeros(500))
    assert len(kept(tmp_path)) == 3
    assert {"b", "d"} < kept(tmp_path)
    cache.put("e", mx.zeros(500))
    cache.put("f", mx.zeros(500))
    assert kept(tmp_path) == set("bde")


def test_what_is_there_already_is_replaced(tmp_path):
    """And is no longer among what may be deleted."""
    StateCache(tmp_path, 10_000).put("a", mx.zeros(500))
    cache = StateCache(tmp_path, 5_000)
    cache.put("a", mx.ones(500))
    cache.put("b", mx.zeros(500))
    cache.put("c", mx.zeros(500))
    assert kept(tmp_path) == set("ab")
    assert cache.get("a").tolist() == [1] * 500
