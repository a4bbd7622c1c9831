"""Word errors of every way to use what the encoder's CTC heads write, passes of the decoder for
each token, and time.

    python tests/benchmarks/draft_errors.py [--audio FOLDER]

The folder has a `manifest.jsonl` of what is said in its recordings, as `tests/data/audio` has.
Prints a table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_speech import load, transcribe
from mlx_speech.transcription.word_errors import word_error_rate, word_errors

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny-granite-speech"
BPE_HEAD = "out_llm.safetensors"
WAYS: dict[str, dict[str, Any]] = {
    "`--no-draft`": {"draft": False},
    "drafts": {},
    **{f"`--draft-acceptance {p}`": {"draft_acceptance": p} for p in (0.5, 0.1, 0.01)},
    "`--ctc-only`": {"ctc_only": True},
}
#: single sentences, which is what the tiny model was trained on
CUTS = {"chunk_duration": 9, "min_silence": 0.4}


def model_without_bpe_head() -> tuple[Any, Any]:
    """The bundled one, so that the character head writes."""
    with tempfile.TemporaryDirectory() as folder:
        for file in TINY.iterdir():
            if file.name != BPE_HEAD:
                (Path(folder) / file.name).symlink_to(file)
        return load(folder, dtype=mx.float32)


def row(recordings: dict[Path, str], model: tuple[Any, Any], options: dict[str, Any]) -> str:
    """Word errors, passes for each token and CPU seconds for a minute of audio."""
    errors = words = passes = tokens = 0
    audio, start = 0.0, time.process_time()
    for path, text in recordings.items():
        transcript = transcribe(path, model, **CUTS, **options)
        errors += word_errors(text, transcript.text)
        words += len(text.split())
        audio += transcript.duration
        if (drafts := transcript.drafts) is not None:
            passes += drafts.passes
            tokens += drafts.tokens
    seconds = 60 * (time.process_time() - start) / audio
    each = f"{passes / tokens:.2f}" if tokens else ("0" if options.get("ctc_only") else "1")
    return f"{word_error_rate(errors, words):.1f} % | {each} | {seconds:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--audio", type=Path, default=ROOT / "tests" / "data" / "audio")
    folder = parser.parse_args().audio
    lines = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    recordings = {folder / line["file"]: line["text"] for line in lines if line["text"]}
    models = {"characters": model_without_bpe_head(), "BPE": load(TINY, dtype=mx.float32)}
    print("| | head | word errors | passes for a token | CPU time of a minute |")
    print("|---|---|---|---|---|")
    for way, options in WAYS.items():
        heads = models if options.get("draft", True) else {"none": models["BPE"]}
        for head, model in heads.items():
            print(f"| {way} | {head} | {row(recordings, model, options)} |", flush=True)


if __name__ == "__main__":
    main()
