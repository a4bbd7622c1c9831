"""Writes what transformers' TurboCTC says, of small random models, into data/reference.

Needs what `make parity` installs: `.venv/bin/python tests/make_turboctc_golden.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import turboctc
from transformers import (
    GraniteSpeech5CTCConfig,
    GraniteSpeech5FeatureExtractor,
    GraniteSpeech5ForCTC,
)

FILE = Path(__file__).parent / "data" / "reference" / "turboctc.npz"
#: in frames of features: from one of the encoder up, beside the edges of attention blocks
LENGTHS = (4, 7, 16, 17, 31, 33, 50, 129)
#: of recordings, in samples: odd ones, and beside the edges of frames
SAMPLES = (257, 320, 480, 481, 4799)


@torch.no_grad()
def main() -> None:
    data = turboctc.config(**turboctc.SMALL)
    model = GraniteSpeech5ForCTC(GraniteSpeech5CTCConfig.from_dict(data)).eval()
    values = turboctc.tensors(data["encoder_config"])
    missing, unexpected = model.load_state_dict(
        {name: torch.tensor(value) for name, value in values.items()}, strict=False
    )
    assert set(missing) == {"ctc_head.weight", "ctc_head.bias"}
    assert not unexpected
    model.tie_weights()
    golden = {}
    for length in LENGTHS:
        x = torch.tensor(turboctc.features(length, 4 * turboctc.SMALL["num_mel_bins"]))[None]
        golden[f"logits {length}"] = model(x).logits[0].numpy()
    extractor = GraniteSpeech5FeatureExtractor()
    for samples in SAMPLES:
        made = extractor(turboctc.waveform(samples), sampling_rate=16000)
        golden[f"features {samples}"] = made["input_features"][0].numpy()
    np.savez_compressed(FILE, **golden)
    print({name: array.shape for name, array in golden.items()}, FILE.stat().st_size)


if __name__ == "__main__":
    main()
