"""What fine-tuning is for: a voice that the model gets wrong is learned from sixty recordings, and
what it could do before it still can."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from conftest import DATA, TINY
from spliced_speech import Voice, sentences

from convert import convert
from mlx_speech import load, transcribe
from mlx_speech.cli.finetune import main
from mlx_speech.transcription.word_errors import word_error_rate, word_errors

TRAINED, HELD_OUT, ITERS = 60, 40, 350


def transcripts(model, rows: Path) -> list[str]:
    return [
        transcribe(rows.parent / json.loads(line)["audio"], model).text
        for line in rows.read_text().splitlines()
    ]


def error_rate(texts: list[str], right: list[str]) -> float:
    errors = sum(word_errors(*pair) for pair in zip(right, texts, strict=True))
    return word_error_rate(errors, sum(len(text.split()) for text in right))


def test_a_new_speaker_is_learned(tmp_path, tiny, capsys):
    texts = sentences(TRAINED + HELD_OUT, seed=1)
    voice = Voice(tiny, seed=1)
    held_out = tmp_path / "recordings" / "valid.jsonl"
    voice.write(held_out.with_name("train.jsonl"), texts[:TRAINED])
    voice.write(held_out, texts[TRAINED:])
    before = error_rate(transcripts(tiny, held_out), texts[TRAINED:])
    rows = [json.loads(line) for line in (DATA / "audio" / "manifest.jsonl").open()]
    old = tmp_path / "old.jsonl"
    rows = [{**row, "audio": str(DATA / "audio" / row["file"])} for row in rows]
    rows = [row for row in rows if row["file"].endswith(".flac")]
    old.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    old_texts = [row["text"] for row in rows]
    old_before = error_rate(transcripts(tiny, old), old_texts)

    adapter = tmp_path / "adapter"
    data = held_out.with_name("train.jsonl")
    # as IBM's notebook has it: such steps at first, and smaller ones at the end
    config = tmp_path / "lora.yaml"
    rate = "{name: linear_schedule, warmup: 20, arguments: [2e-5, 0, 330]}"
    config.write_text(f"iters: {ITERS}\nlr_schedule: {rate}\n")
    args = ["--model", TINY, "--data", data, "--adapter-path", adapter, "-c", config]
    assert main([*map(str, args)]) == 0
    assert capsys.readouterr().out == f"{adapter}\n"

    adapted = load(TINY, adapter=adapter, dtype=mx.float32)
    after = transcripts(adapted, held_out)
    rates = before, error_rate(after, texts[TRAINED:])
    old_rates = old_before, error_rate(transcripts(adapted, old), old_texts)
    assert rates[1] <= 2 / 3 * rates[0]
    assert old_rates[1] <= old_rates[0] + 1

    convert(TINY, tmp_path / "fused", fuse_adapter=True, adapter=adapter, progress=False)
    assert transcripts(load(tmp_path / "fused", dtype=mx.float32), held_out) == after
