"""Trains a tiny TurboCTC (granite_speech5_ctc) that transcribes the command language of
make_tiny_speech.py, and saves it as the released repositories are laid out.

`.venv/bin/python tests/make_tiny_turboctc.py speech.npz tests/data/tiny-turboctc`: minutes with a
GPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_training import HeldOut, Mixer, by_voice, held_out, options, train
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import ctc_loss
from transformers import (
    GraniteSpeech5CTCConfig,
    GraniteSpeech5EncoderConfig,
    GraniteSpeech5FeatureExtractor,
    GraniteSpeech5ForCTC,
    GraniteSpeech5Processor,
    ParakeetTokenizer,
)

BLANK = "<|blank|>"
LABELS = 160


def tokenizer(texts: list[str]) -> ParakeetTokenizer:
    """Byte-level BPE whose first label is the blank. Every word begins with its space, wherever
    it stands: no sound tells whether a word is the first one of a recording."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    bpe.train_from_iterator(
        sorted(texts),
        trainers.BpeTrainer(vocab_size=LABELS, special_tokens=[BLANK], show_progress=False),
    )
    return ParakeetTokenizer(tokenizer_object=bpe, pad_token=BLANK, unk_token=BLANK)


def network() -> GraniteSpeech5ForCTC:
    encoder = GraniteSpeech5EncoderConfig(
        vocab_size=LABELS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=32,
        context_size=32,
        initializer_range=0.08,
    )
    return GraniteSpeech5ForCTC(GraniteSpeech5CTCConfig(vocab_size=LABELS, encoder_config=encoder))


def in_bfloat16(model: GraniteSpeech5ForCTC) -> dict[str, torch.Tensor]:
    """The tensors of the file: bfloat16, but BatchNorm in float32; the tied head is left out."""
    return {
        name: tensor if "conv.norm" in name else tensor.bfloat16()
        for name, tensor in model.state_dict().items()
        if not name.startswith("ctc_head.")
    }


@torch.no_grad()
def transcribed(
    model: GraniteSpeech5ForCTC, processor: GraniteSpeech5Processor, recordings: list[HeldOut]
) -> list[str]:
    """What the model says to each recording, alone."""
    texts = []
    for recording in recordings:
        inputs = processor(recording.wave, sampling_rate=16000, return_tensors="pt")
        texts += processor.batch_decode(model.generate(**inputs.to(model.device)))
    return texts


def save(model: GraniteSpeech5ForCTC, processor: GraniteSpeech5Processor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.config.architectures, model.config.dtype = [type(model).__name__], torch.bfloat16
    model.config.save_pretrained(folder)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in in_bfloat16(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    args = options(__doc__, steps=4300)
    torch.manual_seed(args.seed)
    recordings = held_out()
    speech = Mixer(args.speech, args.device, args.seed)
    processor = GraniteSpeech5Processor(GraniteSpeech5FeatureExtractor(), tokenizer(speech.texts))
    labels = {text: processor.tokenizer.encode(text) for text in speech.texts}
    model = network().to(args.device)
    middle: list[torch.Tensor] = []
    model.encoder.out.register_forward_hook(lambda *call: middle.append(call[2]))
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)

    def loss_of(waves: torch.Tensor, said: list[list[str]]) -> torch.Tensor:
        """CTC of the final labels, and of those in the middle that condition the later layers."""
        middle.clear()
        features = processor.feature_extractor._extract_features(waves, device=args.device)
        both = torch.cat([model(features).logits, *middle])
        ids = [[label for text in texts for label in labels[text]] for texts in said] * 2
        return ctc_loss(
            both.float().log_softmax(-1).transpose(0, 1),
            torch.tensor([label for row in ids for label in row], device=args.device),
            torch.full((len(ids),), both.shape[1]),
            torch.tensor([len(row) for row in ids]),
            zero_infinity=True,
        )

    def evaluate() -> str:
        model.eval()
        rates = by_voice(recordings, transcribed(model, processor, recordings))
        model.train()
        return rates

    model.train()
    train(args, speech, list(model.parameters()), loss_of, evaluate, peak_rate=3e-3, longest=12)
    rounded = {name: tensor.float() for name, tensor in in_bfloat16(model).items()}
    model.load_state_dict(rounded, strict=False)
    model.eval()
    texts = transcribed(model, processor, recordings)
    print("in bfloat16:", by_voice(recordings, texts))
    for recording, text in zip(recordings, texts, strict=True):
        if text != recording.text:
            print(f"{recording.file}: {text!r} for {recording.text!r}")
    save(model, processor, args.folder)


if __name__ == "__main__":
    main()
