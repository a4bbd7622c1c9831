"""Writes what the reference implementation says to the bundled recordings into data/reference.

Needs what `make parity` installs: `.venv/bin/python tests/make_reference.py`. Everything is
float32, unpadded, batch 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import AutoProcessor, GraniteSpeechForConditionalGeneration

DATA = Path(__file__).parent / "data"
TINY = Path(__file__).parent.parent / "examples" / "tiny-granite-speech"
ENGLISH = "<|audio|>can you transcribe the speech into a written format?"
FRENCH = "<|audio|>translate the speech to french"
TEXT_PROMPTS = (
    "turn on the kitchen light",
    "wake me up at seven thirty",
    "what is the weather in paris tomorrow",
    "repeat: close the front door",
    "translate to french: set a timer for ten minutes",
    "add milk and eggs to the shopping list",
    "call my sister",
    "good night",
    "seven two nine",
    "translate to french: turn off the bathroom fan",
)
#: values kept of each recording's features
FEATURE_SAMPLES = 2000


def recordings() -> dict[str, Path]:
    """Bundled ones, and the human ones where they lie beside the checkout."""
    human = DATA.parent.parent.parent / "shared" / "audio" / "human"
    folders = {"synthetic": DATA / "audio", "human": human}
    return {
        f"{name}/{file.name}": file
        for name, folder in folders.items()
        for file in sorted(folder.glob("*.*"))
        if file.suffix in (".flac", ".wav")
    }


class Reference:
    """transformers' model and processor of the bundled checkpoint."""

    def __init__(self):
        self.model = GraniteSpeechForConditionalGeneration.from_pretrained(
            TINY, dtype=torch.float32
        ).eval()
        self.processor = AutoProcessor.from_pretrained(TINY)

    def inputs(self, text: str, samples: np.ndarray | None = None):
        """A chat prompt, with a recording or without."""
        prompt = self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        audio = None if samples is None else torch.tensor(samples)[None]
        return self.processor(prompt, audio, return_tensors="pt")

    def generate(self, inputs, **options) -> list[int]:
        """The new tokens."""
        output = self.model.generate(**inputs, max_new_tokens=100, do_sample=False, **options)
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    def text(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True)

    def ctc(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Encoder output, CTC logits and their greedy text (character codes, 0 is blank)."""
        encoder = self.model.model.encoder
        hidden = encoder(features).last_hidden_state
        logits = encoder.out(hidden)
        ids = torch.unique_consecutive(logits[0].argmax(-1)).tolist()
        return hidden, logits, "".join(chr(i) for i in ids if i).strip()

    def describe(self, samples: np.ndarray) -> dict:
        """An entry of tiny_granite_reference.json."""
        english = self.inputs(ENGLISH, samples)
        greedy = self.generate(english)
        french = self.generate(self.inputs(FRENCH, samples))
        beams = self.generate(english, num_beams=4)
        return {
            "audio_tokens": int((english["input_ids"] == 4).sum()),
            "prompt_ids": english["input_ids"][0].tolist(),
            "greedy_ids": greedy,
            "greedy": self.text(greedy),
            "french_ids": french,
            "french": self.text(french),
            "beam4_ids": beams,
            "beam4": self.text(beams),
            "ctc": self.ctc(english["input_features"])[2],
        }

    def stages(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of tiny_granite_golden.npz for one recording."""
        inputs = self.inputs(ENGLISH, samples)
        hidden, logits, _ = self.ctc(inputs["input_features"])
        arrays = {
            "input_features": inputs["input_features"],
            "encoder": hidden,
            "ctc_logits": logits,
            "projector": self.model.model.projector(hidden),
            "first_logits": self.model(**inputs).logits[:, -1],
            "input_ids": inputs["input_ids"],
        }
        return {name: array[0].numpy() for name, array in arrays.items()}


def sample_features(features: np.ndarray) -> dict[str, np.ndarray]:
    """Shape, and every so manieth value."""
    stride = max(1, features.size // FEATURE_SAMPLES) | 1  # odd, to meet every mel band
    values = features.reshape(-1)[::stride]
    return {"shape": np.array(features.shape), "stride": np.array(stride), "sample": values}


@torch.no_grad()
def main() -> None:
    reference = Reference()
    files, features, lengths = {}, {}, {}
    for name, path in recordings().items():
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != 16000 or samples.ndim != 1:
            continue  # resampling is ours alone
        whole = reference.inputs(ENGLISH, samples)["input_features"][0].numpy()
        if not name.startswith("human/"):
            features |= {f"{name}.{k}": v for k, v in sample_features(whole).items()}
        if len(samples) > 30 * 16000:
            continue
        lengths[name] = len(samples)
        files[name] = reference.describe(samples)
    spoken = [n for n in lengths if "short" not in n and "silence" not in n and "human" not in n]
    golden = {}
    for index, name in enumerate(sorted(spoken, key=lengths.get)[:3]):
        samples, _ = soundfile.read(recordings()[name], dtype="float32")
        golden[f"{index}.file"] = np.array(name)
        golden |= {f"{index}.{k}": v for k, v in reference.stages(samples).items()}
    replies = []
    for prompt in TEXT_PROMPTS:
        inputs = reference.inputs(prompt)
        ids = reference.generate(inputs)
        replies.append(
            {
                "prompt": prompt,
                "prompt_ids": inputs["input_ids"][0].tolist(),
                "ids": ids,
                "reply": reference.text(ids),
            }
        )
    document = {
        "model": TINY.name,
        "dtype": "float32",
        "prompt": {"en": ENGLISH, "fr": FRENCH},
        "files": files,
        "text_only": replies,
    }
    folder = DATA / "reference"
    text = json.dumps(document, ensure_ascii=False)
    (folder / "tiny_granite_reference.json").write_text(text + "\n")
    np.savez_compressed(folder / "tiny_granite_golden.npz", **golden)
    np.savez_compressed(folder / "granite_features.npz", **features)


if __name__ == "__main__":
    main()
