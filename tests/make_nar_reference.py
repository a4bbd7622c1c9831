"""Writes what the assembled reference of Granite Speech NAR says into data/reference.

Needs what `make parity` installs: `.venv/bin/python tests/make_nar_reference.py`. Float32, batch 1,
over the random tensors of `nar_models`; see parity/test_granite_speech_nar.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
LENGTHS = (23, 47)


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from parity.test_granite_speech_nar import Reference, recordings

    reference, golden = Reference(), {}
    for length in LENGTHS:
        x = recordings(length).astype(np.float16).astype(np.float32)
        audio, draft = reference.audio(x), reference.draft(x)
        arrays = {
            "input_features": x[0].astype(np.float16),
            "encoder": reference.fused(x)[0],
            "audio": audio,
            "draft": draft,
            "logits": reference.edit(audio, draft).numpy(),
            "ids": np.array(reference.ids(x)),
        }
        golden |= {f"{length}.{name}": np.array(array) for name, array in arrays.items()}
    np.savez_compressed(ROOT / "tests" / "data" / "reference" / "nar_golden.npz", **golden)


if __name__ == "__main__":
    main()
