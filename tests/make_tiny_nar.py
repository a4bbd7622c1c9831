"""Trains what a tiny non-autoregressive Granite Speech (granite_speech_nar) adds to the encoder of
examples/tiny-granite-speech, which stays as it is: a CTC head that drafts text in tokens, a
projector and an editor that corrects the draft in one pass. Only these are saved; `tiny_nar.py`
puts the whole checkpoint together. The sizes are those of data/tiny-nar/config.json.

`.venv/bin/python tests/make_tiny_nar.py speech.npz tests/data/tiny-nar`: minutes with a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_nar import ADDED_TENSORS, BASE
from tiny_training import HeldOut, Mixer, by_voice, held_out, options, train
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import ctc_loss
from torch_nar import BLANK, Nar, collapse


def ctc(scores: list[torch.Tensor], ids: list[list[int]]) -> torch.Tensor:
    padded = nn.utils.rnn.pad_sequence([row.float().log_softmax(-1) for row in scores])
    return ctc_loss(
        padded,
        torch.tensor([label for row in ids for label in row], device=padded.device),
        torch.tensor([len(row) for row in scores]),
        torch.tensor([len(row) for row in ids]),
        blank=BLANK,
        zero_infinity=True,
    )


def damaged(draft: list[int], tokens: list[int], rng: np.random.Generator) -> list[int]:
    """A draft as a worse head might have written it: tokens replaced, left out, put in."""
    if rng.random() < 0.03:
        return []
    rate = rng.uniform(0, 0.2)
    made = []
    for token in draft:
        fate = rng.random() / rate
        if fate >= 1 or fate < 1 / 3:
            made.append(token if fate >= 1 else int(rng.choice(tokens)))
        elif fate < 2 / 3:
            made += [int(rng.choice(tokens)), token]
    return made


def transcribed(model: Nar, tokenizer: Tokenizer, recordings: list[HeldOut]) -> list[list[str]]:
    """The draft of each recording alone, and the edited text."""
    both = [model.transcribe(recording.wave) for recording in recordings]
    return [[tokenizer.decode(ids).strip() for ids in pair] for pair in both]


def start_head(model: Nar) -> None:
    """The head of the autoregressive model is a good start: its label i is token i - 1."""
    head = load_file(BASE / "out_llm.safetensors")
    tokens = len(head["bias"])
    labels = torch.arange(1, tokens + 1).clamp(max=tokens - 1)
    labels[BLANK] = 0
    for name, values in model.encoder.out_bpe.named_parameters():
        values.data.copy_(head[name][labels])
    model.encoder.out_bpe.bias.data[-1] = -10  # the last token has no label to start from


def added(model: Nar) -> dict[str, torch.Tensor]:
    """The tensors that the encoder's checkpoint does not have, in bfloat16."""
    return {
        name: tensor.bfloat16().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(("encoder.out_bpe.", "projector.", "language_model.model."))
    }


def main() -> None:
    args = options(__doc__, steps=2300)
    torch.manual_seed(args.seed)
    recordings = [recording for recording in held_out() if len(recording.wave) < 30 * 16000]
    speech = Mixer(args.speech, args.device, args.seed)
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    model = Nar()
    start_head(model)
    model.to(args.device)
    tokens = sorted({t for text in speech.texts for t in tokenizer.encode(text).ids})
    trained = [values for values in model.parameters() if values.requires_grad]
    print(sum(values.numel() for values in trained), "parameters", flush=True)

    def loss_of(waves: torch.Tensor, said: list[list[str]]) -> torch.Tensor:
        ids = [tokenizer.encode(" ".join(texts)).ids for texts in said]
        scores, states = model.listen(waves)
        drafts = [collapse(row) for row in scores.detach().cpu()]
        for i in range(0, len(drafts), 2):
            drafts[i] = damaged(drafts[i], tokens, speech.rng)
        return ctc(list(scores), ids) + ctc(model.edit(states, drafts), ids)

    def evaluate() -> str:
        pairs = transcribed(model, tokenizer, recordings)
        rates = [by_voice(recordings, [pair[i] for pair in pairs]) for i in range(2)]
        return f"drafts: {rates[0]}; edited: {rates[1]}"

    train(args, speech, trained, loss_of, evaluate, peak_rate=2e-3, longest=9)
    model.load_state_dict({n: t.float() for n, t in added(model).items()}, strict=False)
    print("in bfloat16:", evaluate())
    for recording, (draft, edited) in zip(
        recordings, transcribed(model, tokenizer, recordings), strict=True
    ):
        print(f"{recording.file}: {draft!r} edited to {edited!r} of {recording.text!r}")
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(added(model), args.folder / ADDED_TENSORS, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
