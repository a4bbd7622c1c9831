"""Speculative decoding (https://arxiv.org/abs/2211.17192), the greedy form.

A small draft model proposes a few tokens one by one; the model checks them all in one step and
keeps those that it would have chosen itself, and its own choice after them. The answer is the one
that greedy search gives without a draft, in fewer of the model's steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx

from ..errors import InputError
from ..layers.cache import KVCache
from .config import GenerationConfig
from .sampling import LogitsProcessor, Sampler
from .search import Step, TokenStep
from .stopping import StoppingCriteria


def speculative_search(
    logits: mx.array,
    step: Step,
    cache: Sequence[KVCache],
    draft_step: Step,
    draft_cache: Sequence[KVCache],
    config: GenerationConfig,
    prompt: mx.array,
    *,
    stopping: StoppingCriteria,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[TokenStep]:
    """As `search`, for one row.

    Args:
        logits: (1, vocab) of the first new token.
        step, cache: feeds tokens to the model, and what is trimmed where they were wrong.
        draft_step, draft_cache: the same of the draft model, which was fed the prompt as well.

    Raises:
        InputError: several rows, sampling, or a cache that cannot be trimmed.
    """
    if len(prompt) > 1 or config.sampling:
        raise InputError("a draft model serves one prompt at a time, without sampling")
    if any(layer.max_size is not None for layer in (*cache, *draft_cache)):
        raise InputError.about(
            "a draft model needs a cache that keeps everything: no {max_kv_size}"
        )
    answer: list[int] = []
    prompt_length = cache[0].length
    try:
        yield from _search(
            logits,
            step,
            cache,
            draft_step,
            draft_cache,
            config,
            prompt,
            stopping,
            processors,
            answer,
        )
    finally:
        # what was right beyond the end of the answer
        for layer in cache:
            layer.trim(max(0, layer.length - prompt_length - len(answer)))


def _search(
    logits, step, cache, draft_step, draft_cache, config, prompt, stopping, processors, answer
) -> Iterator[TokenStep]:
    """As above; `answer` grows with what is yielded."""
    sample = Sampler(config, processors)
    token, logprob = sample(logits, prompt)
    answer += token.tolist()[0]
    yield TokenStep(answer[:], logprob.tolist()[0], [False])
    history = prompt
    unseen = token  # by the draft model
    while len(answer) < config.limit and not stopping(answer):
        history = mx.concatenate([history, token], axis=1)
        count = min(config.num_draft_tokens, config.limit - len(answer) - 1)
        drafts: list[mx.array] = []
        for _ in range(count):
            context = mx.concatenate([history, *drafts], axis=1)
            drafts.append(sample(draft_step(unseen)[:, -1], context)[0])
            unseen = drafts[-1]
        checked = step(mx.concatenate([token, *drafts], axis=1))
        choices = [
            sample(checked[:, i], mx.concatenate([history, *drafts[:i]], axis=1))
            for i in range(count + 1)
        ]
        proposed = mx.concatenate([token, *drafts], axis=1)[0, 1:]
        chosen, logprobs = (mx.concatenate(part, axis=1)[0] for part in zip(*choices, strict=True))
        mx.eval(proposed, chosen, logprobs)
        proposed, chosen, logprobs = proposed.tolist(), chosen.tolist(), logprobs.tolist()
        agreed = next((i for i in range(count) if proposed[i] != chosen[i]), count)

        for layer in cache:
            layer.trim(count - agreed)
        for layer in draft_cache:
            layer.trim(max(count - 1 - agreed, 0))
        # of proposals that were all right, the draft model has not been fed the last one
        unseen = mx.array([chosen[max(agreed - 1, 0) if agreed == count else agreed : agreed + 1]])
        history = mx.concatenate([history, mx.array([chosen[:agreed]], history.dtype)], axis=1)
        token = mx.array([[chosen[agreed]]])
        for i, logprob in zip(chosen[: agreed + 1], logprobs, strict=False):
            answer.append(i)
            yield TokenStep([i], [logprob], [False])
            if stopping(answer):
                return
