"""Granite Speech NAR in torch, of the sizes of data/tiny-nar, put together from what there is:
transformers' encoder and Granite decoder, and a projector, which transformers lacks.
"""

from __future__ import annotations

import json
from itertools import groupby

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_nar import ADDED, BASE
from torch import nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention, silu
from torchaudio.transforms import MelSpectrogram
from transformers import GraniteConfig, GraniteForCausalLM, GraniteSpeechEncoderConfig
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

CONFIG = json.loads((ADDED / "config.json").read_text())
ENCODER, PROJECTOR, TEXT = (CONFIG[f"{part}_config"] for part in ("encoder", "projector", "text"))
BLANK = CONFIG["blank_token_id"]  # in drafts and in what the editor writes


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        by_head = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = self.q_proj(queries), self.k_proj(frames), self.v_proj(frames)
        mixed = scaled_dot_product_attention(by_head(q), by_head(k), by_head(v))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class ProjectorLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.cross_attention = CrossAttention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, queries: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        queries = queries + self.cross_attention(self.attn_norm(queries), frames)
        return queries + self.mlp["fc2"](silu(self.mlp["fc1"](self.mlp_norm(queries))))


class Projector(nn.Module):
    """Windows of 15 frames of four encoder layers become three rows of the editor's width."""

    def __init__(self) -> None:
        super().__init__()
        width, eps = PROJECTOR["hidden_size"], PROJECTOR["layernorm_eps"]
        layers, dim = PROJECTOR["num_encoder_layers"], PROJECTOR["encoder_dim"]
        self.block, self.run = PROJECTOR["block_size"], PROJECTOR["downsample_rate"]
        self.layer_norms = nn.ModuleList(nn.LayerNorm(dim, eps) for _ in range(layers))
        self.layer_projector = nn.Linear(layers * dim, width)
        self.query = nn.Parameter(torch.randn(1, self.block // self.run, width) * 0.02)
        self.window_positions = nn.Parameter(torch.randn(1, self.block, width) * 0.02)
        sizes = width, PROJECTOR["num_heads"], width * PROJECTOR["mlp_ratio"], eps
        blocks = nn.ModuleList(ProjectorLayer(*sizes) for _ in range(PROJECTOR["num_layers"]))
        self.qformer = nn.ModuleDict({"layers": blocks})
        self.out_norm = nn.LayerNorm(width, eps)
        self.out_linear = nn.Linear(width, PROJECTOR["llm_dim"])

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        normed = [norm(state) for norm, state in zip(self.layer_norms, states, strict=True)]
        fused = gelu(self.layer_projector(torch.cat(normed, -1)))
        fused = pad(fused, (0, 0, 0, -fused.shape[1] % self.block))
        windows = fused.unflatten(1, (-1, self.block)).flatten(0, 1)
        queries = self.query + windows.unflatten(1, (-1, self.run)).mean(2)
        frames = windows + self.window_positions
        for layer in self.qformer["layers"]:
            queries = layer(queries, frames)
        return self.out_linear(self.out_norm(queries)).unflatten(0, (len(fused), -1)).flatten(1, 2)


class Nar(nn.Module):
    """The whole model, with the names of the released checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = GraniteSpeechCTCEncoder(GraniteSpeechEncoderConfig(**ENCODER))
        weights = load_file(BASE / "model.safetensors")
        mine = {name[8:]: w for name, w in weights.items() if name.startswith("encoder.")}
        self.encoder.load_state_dict(mine)
        self.encoder.float().requires_grad_(False).eval()
        self.encoder.out_bpe = nn.Linear(ENCODER["hidden_dim"], ENCODER["bpe_output_dim"])
        self.projector = Projector()
        self.language_model = GraniteForCausalLM(GraniteConfig(**TEXT))
        self.mel = MelSpectrogram(n_fft=512, win_length=400, hop_length=160, n_mels=80)

    def features(self, waves: torch.Tensor) -> torch.Tensor:
        """[rows, samples] to [rows, samples // 320, 160]; the maximum is of the frames kept."""
        logs = self.mel(waves)[..., : waves.shape[-1] // 320 * 2].clamp(min=1e-10).log10()
        logs = torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8) / 4 + 1
        return logs.transpose(1, 2).unflatten(1, (-1, 2)).flatten(2)

    def listen(self, waves: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Scores of draft tokens for every four frames, and the states that the editor sees."""
        middle = []
        hook = self.encoder.out.register_forward_hook(lambda *call: middle.append(call[2]))
        with torch.no_grad():
            seen = self.encoder(self.features(waves), output_hidden_states=True).hidden_states
        hook.remove()
        weights = 1 - middle[0].softmax(-1)[..., :1]
        window = ENCODER["bpe_pooling_window"]
        tail = (0, 0, 0, -weights.shape[1] % window)
        weights = pad(weights, tail).unflatten(1, (-1, window))
        weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-6)
        pooled = (pad(seen[-1], tail).unflatten(1, (-1, window)) * weights).sum(2)
        return self.encoder.out_bpe(pooled), [seen[i] for i in CONFIG["encoder_layer_indices"]]

    def edit(self, states: list[torch.Tensor], drafts: list[list[int]]) -> list[torch.Tensor]:
        """Scores of every slot of each draft, [2 tokens + 1 or more, vocabulary]."""
        rows = [[BLANK, *(t for token in draft for t in (token, BLANK))] for draft in drafts]
        lengths = [max(len(row), CONFIG["min_edit_sequence_length"]) for row in rows]
        longest = max(lengths)
        slots = [row + [BLANK] * (longest - len(row)) for row in rows]
        slots = torch.tensor(slots, device=states[0].device)
        audio = self.projector(states)[:, : states[0].shape[1] // PROJECTOR["downsample_rate"]]
        audio = audio / TEXT["embedding_multiplier"]
        inputs = torch.cat([audio, self.language_model.get_input_embeddings()(slots)], 1)
        place = torch.arange(longest, device=slots.device)
        real = place < torch.tensor(lengths, device=slots.device)[:, None]
        real = pad(real, (audio.shape[1], 0), value=True)[:, None, None, :]
        everywhere = real.expand(-1, -1, inputs.shape[1], -1)  # no causal mask
        scores = self.language_model(inputs_embeds=inputs, attention_mask=everywhere).logits
        scores = scores[:, audio.shape[1] :]
        return [row[:length] for row, length in zip(scores, lengths, strict=True)]

    @torch.no_grad()
    def transcribe(self, wave: np.ndarray) -> tuple[list[int], list[int]]:
        """Draft and edited tokens of a recording; where there is no draft there is no text."""
        scores, states = self.listen(torch.from_numpy(wave)[None].to(self.projector.query.device))
        draft = collapse(scores[0])
        return draft, collapse(self.edit(states, [draft])[0]) if draft else []


def collapse(scores: torch.Tensor) -> list[int]:
    """Greedy CTC: repeats merged, blanks dropped."""
    return [token for token, _ in groupby(scores.argmax(-1).tolist()) if token != BLANK]
