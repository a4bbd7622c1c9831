"""Room for added tokens, beside transformers."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch

from .random_models import (
    VOCAB,
    Pair,
    assert_close,
    assert_logits_match,
    save_granite,
    tensor,
    text_ids,
)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_resizing(tmp_path, tied):
    """Logits for two tokens more within 1e-4; for those two within 1e-2, as transformers draws
    their rows, closely around the mean that they are here."""
    pair = Pair.load(save_granite(tmp_path, 16, tie_word_embeddings=tied), tmp_path)
    ids = text_ids(2, 8)
    pair.reference.resize_token_embeddings(VOCAB + 2)
    pair.ours.resize_token_embeddings(VOCAB + 2)
    expected = pair.reference(tensor(ids)).logits
    got = pair.ours(mx.array(ids)).logits
    assert_logits_match(got[..., :VOCAB], expected[..., :VOCAB])
    assert_close(got, expected, 1e-2)
